#include "expert-cache.h"

#include "arg.h"
#include "common.h"
#include "llama-experts.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>

//
// common_expert_cache_params
//

static int32_t parse_count(const std::string & value, int32_t min, const char * what) {
    const bool digits = !value.empty() && value.size() < 10 && value.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoi(value) < min) {
        throw std::invalid_argument(string_format("expert cache: '%s' is not %s", value.c_str(), what));
    }
    return std::stoi(value);
}

void common_expert_cache_params::set_capacity(const std::string & value) {
    capacity_given = true;
    if (value == "off") {
        capacity = LLAMA_EXPERT_CACHE_OFF;
    } else if (value == "auto") {
        capacity = LLAMA_EXPERT_CACHE_AUTO;
    } else {
        capacity = parse_count(value, 1, "'off', 'auto' or a number of slots per layer from 1");
    }
}

static const std::map<llama_expert_cache_policy, const char *> POLICIES = {
    { LLAMA_EXPERT_CACHE_POLICY_LRU,    "lru"    },
    { LLAMA_EXPERT_CACHE_POLICY_HOT,    "hot"    },
    { LLAMA_EXPERT_CACHE_POLICY_HYBRID, "hybrid" },
};

void common_expert_cache_params::set_policy(const std::string & value) {
    const auto it = std::find_if(POLICIES.begin(), POLICIES.end(), [&value](const auto & p) { return value == p.second; });
    if (it == POLICIES.end()) {
        throw std::invalid_argument(string_format("expert cache: '%s' is not a policy of this version: choose 'lru', 'hot' or 'hybrid'", value.c_str()));
    }
    policy     = it->first;
    policy_set = true;
}

void common_expert_cache_params::set_rates(const std::string & value) {
    auto words = string_split<std::string>(value, ',');
    if (words.size() + 1 == rates.size()) {
        words.push_back("0");
    }
    for (size_t i = 0; i < rates.size(); ++i) {
        char * end = nullptr;
        rates[i] = i < words.size() ? std::strtof(words[i].c_str(), &end) : -1.0f;
        if (words.size() != rates.size() || end == words[i].c_str() || *end || !std::isfinite(rates[i]) || rates[i] < 0.0f) {
            throw std::invalid_argument(string_format("expert cache: '%s' is not four or five numbers of microseconds from 0, separated by commas: "
                    "a copy's fixed part and that of each expert, those of the CPU, and what a step pays that could ask it", value.c_str()));
        }
    }
}

void common_expert_cache_params::set_hot_k(const std::string & value) {
    hot_k = parse_count(value, 0, "a number of hot experts per layer (0 = the policy hot is not asked for)");
}

void common_expert_cache_params::set_hot_interval(const std::string & value) {
    hot_interval = parse_count(value, 1, "a number of tokens from 1, after which the hot experts are chosen again");
}

void common_expert_cache_params::resolve() {
    const bool off_by_hand = capacity_given && off();
    if (hot_k == 0 || off_by_hand) {
        return;
    }
    if (policy_set && policy != LLAMA_EXPERT_CACHE_POLICY_HOT) {
        throw std::invalid_argument(string_format("expert cache: %d hot experts are asked for, but the policy is '%s': "
                "leave out --moe-hot-k, or choose --expert-cache-policy hot", hot_k, policy_str().c_str()));
    }
    const int32_t slots = hot_k + 1; // one for zeros
    if (capacity_given && capacity != slots) {
        throw std::invalid_argument(string_format("expert cache: %d hot experts are asked for, but --expert-cache is '%s': "
                "leave out one of them", hot_k, capacity_str().c_str()));
    }
    policy   = LLAMA_EXPERT_CACHE_POLICY_HOT;
    capacity = slots;
}

void common_expert_cache_params::set_pinned(const std::string & value) {
    pinned           = parse_count(value, 0, "a number of pinned slots per layer");
    pinned_with_list = false;
}

static bool parse_switch(const std::string & value) {
    if (value != "0" && value != "1") {
        throw std::invalid_argument(string_format("expert cache: '%s' is not 0 or 1", value.c_str()));
    }
    return value == "1";
}

void common_expert_cache_params::set_unified(const std::string & value) {
    unified = parse_switch(value);
}

int32_t common_expert_cache_params::effective_capacity() const {
    return unified && !capacity_given ? LLAMA_EXPERT_CACHE_AUTO : capacity;
}

int32_t common_expert_cache_params::effective_pinned() const {
    return pin_list.empty() && pinned_with_list ? -1 : pinned;
}

std::string common_expert_cache_params::capacity_str() const {
    switch (effective_capacity()) {
        case LLAMA_EXPERT_CACHE_OFF:  return "off";
        case LLAMA_EXPERT_CACHE_AUTO: return "auto";
        default:                      return std::to_string(capacity);
    }
}

std::string common_expert_cache_params::policy_str() const {
    return POLICIES.at(policy);
}

void common_expert_cache_params::apply(llama_context_params & params) const {
    params.expert_cache_capacity = effective_capacity();
    params.expert_cache_pinned   = effective_pinned();
    params.expert_cache_pin_list = pin_list.empty() ? nullptr : pin_list.c_str();
    params.expert_cache_policy   = policy;
    params.expert_cache_reserve  = reserve;
    params.expert_cache_hot_interval = hot_interval;
    params.expert_cache_hot_bypass   = hot_bypass;
    std::copy(rates.begin(), rates.end(), params.expert_cache_rates);
}

void common_expert_cache_params::apply(llama_model_params & params) const {
    params.expert_cache_unified  = unified && !off();
    params.expert_cache_capacity = effective_capacity();
    params.expert_cache_pinned   = effective_pinned();
    params.expert_cache_pin_list = pin_list.empty() ? nullptr : pin_list.c_str();
}

bool common_expert_cache_params::same_model(const common_expert_cache_params & other) const {
    const bool in_unified = unified && !off();
    if (in_unified != (other.unified && !other.off())) {
        return false;
    }
    // what an earlier context loaded to host memory stays there
    return !in_unified || (capacity_str() == other.capacity_str() && pinned == other.pinned && pin_list == other.pin_list);
}

//
// environment
//

// calls set with the value of a variable, if there is one
static void from_env(const char * name, const std::function<void(const std::string &)> & set) {
    const char * value = std::getenv(name);
    if (!value) {
        return;
    }
    try {
        set(value);
    } catch (const std::invalid_argument & e) {
        throw std::invalid_argument(string_format("error: %s (environment variable %s)", e.what(), name));
    }
}

common_expert_cache_params common_expert_cache_from_env() {
    common_expert_cache_params params;

    from_env("EXPERT_CACHE_CAPACITY", [&](const std::string & v) { params.set_capacity(v); });
    from_env("EXPERT_CACHE_PINNED",   [&](const std::string & v) { params.set_pinned(v); params.pinned_with_list = true; });
    from_env("EXPERT_CACHE_PIN_LIST", [&](const std::string & v) { params.pin_list = v; params.unified = true; });
    from_env("EXPERT_CACHE_UNIFIED",  [&](const std::string & v) { params.set_unified(v); });

    from_env("LLAMA_MOE_HOT_PP_BYPASS_N_TOKENS", [&](const std::string & v) {
        params.hot_bypass = parse_count(v, 1, "a number of tokens from 1: steps of more go past the hot experts");
    });

    // enabled without a capacity means auto; a capacity does not count if disabled
    from_env("EXPERT_CACHE_ENABLE", [&](const std::string & v) {
        const bool enable = parse_switch(v);
        params.capacity_given = true;
        if (!enable) {
            params.set_capacity("off");
        } else if (params.off()) {
            params.capacity = LLAMA_EXPERT_CACHE_AUTO;
        }
    });

    return params;
}

//
// command line
//

void common_expert_cache_add_opts(const std::function<void(common_arg)> & add_opt) {
    add_opt(common_arg(
        {"--expert-cache"}, "{off,auto,N}",
        "slots per MoE layer for the most recently used experts, when the experts are in host memory (default: off)",
        [](common_params & params, const std::string & value) { params.expert_cache.set_capacity(value); }
    ).set_env("LLAMA_ARG_EXPERT_CACHE"));
    add_opt(common_arg(
        {"--expert-cache-policy"}, "{lru,hot,hybrid}",
        "which experts the slots hold, and who has the others: lru: the most recently used, others are copied; hot: the most used, others are "
        "computed by the CPU; hybrid: the most recently used, others are copied or computed, whichever is done sooner (default: lru)",
        [](common_params & params, const std::string & value) { params.expert_cache.set_policy(value); }
    ).set_env("LLAMA_ARG_EXPERT_CACHE_POLICY"));
    add_opt(common_arg(
        {"--expert-cache-pin-list"}, "FNAME",
        "experts to pin to slots, per layer",
        [](common_params & params, const std::string & value) { params.expert_cache.pin_list = value; }
    ).set_env("LLAMA_ARG_EXPERT_CACHE_PIN_LIST"));
    add_opt(common_arg(
        {"--expert-cache-pinned"}, "N",
        "how many slots per layer to pin (default: half of them, if there is a pin list)",
        [](common_params & params, const std::string & value) { params.expert_cache.set_pinned(value); }
    ).set_env("LLAMA_ARG_EXPERT_CACHE_PINNED"));
    add_opt(common_arg(
        {"--expert-cache-unified"},
        "pinned experts are only on the device, without a copy in host memory: for models that are larger than that (default: off)",
        [](common_params & params) { params.expert_cache.unified = true; }
    ).set_env("LLAMA_ARG_EXPERT_CACHE_UNIFIED"));
    add_opt(common_arg(
        {"--moe-hot-k"}, "N",
        "the policy hot with N experts in slots, and one slot more that holds zeros (default: 0, not asked for)",
        [](common_params & params, const std::string & value) { params.expert_cache.set_hot_k(value); }
    ).set_env("LLAMA_ARG_MOE_HOT_K"));
    add_opt(common_arg(
        {"--expert-cache-rates"}, "C0,C1,H0,H1[,A]",
        "for the policy hybrid: microseconds that copying experts of a layer takes, fixed and for each, the same for computing them on "
        "the CPU, and what a layer pays for being able to ask it (default: measured)",
        [](common_params & params, const std::string & value) { params.expert_cache.set_rates(value); }
    ).set_env("LLAMA_ARG_EXPERT_CACHE_RATES"));
    add_opt(common_arg(
        {"--moe-hot-rebalance-interval"}, "N",
        "tokens after which the policy hot chooses its experts again (default: 16)",
        [](common_params & params, const std::string & value) { params.expert_cache.set_hot_interval(value); }
    ).set_env("LLAMA_ARG_MOE_HOT_REBALANCE_INTERVAL"));
}

//
// common_expert_cache_sweep
//

void common_expert_cache_sweep::read_env() {
    base = common_expert_cache_from_env();

    from_env("LLAMA_ARG_EXPERT_CACHE",          [&](const std::string & v) { base.set_capacity(v); });
    from_env("LLAMA_ARG_EXPERT_CACHE_POLICY",   [&](const std::string & v) { base.set_policy(v); });
    from_env("LLAMA_ARG_EXPERT_CACHE_PINNED",   [&](const std::string & v) { base.set_pinned(v); });
    from_env("LLAMA_ARG_EXPERT_CACHE_PIN_LIST", [&](const std::string & v) { base.pin_list = v; });
    from_env("LLAMA_ARG_EXPERT_CACHE_UNIFIED",  [&](const std::string & v) { base.set_unified(v); });
    from_env("LLAMA_ARG_EXPERT_CACHE_RATES",    [&](const std::string & v) { base.set_rates(v); });
    from_env("LLAMA_ARG_MOE_HOT_K",             [&](const std::string & v) { base.set_hot_k(v); });
    from_env("LLAMA_ARG_MOE_HOT_REBALANCE_INTERVAL", [&](const std::string & v) { base.set_hot_interval(v); });
}

bool common_expert_cache_sweep::is_arg(const std::string & arg) {
    return arg == "--expert-cache" || arg == "--expert-cache-policy" || arg == "--expert-cache-pin-list" || arg == "--expert-cache-pinned" ||
        arg == "--expert-cache-unified" || arg == "--expert-cache-rates" || arg == "--moe-hot-k" || arg == "--moe-hot-rebalance-interval";
}

const char * common_expert_cache_sweep::usage() {
    return
        "  --expert-cache <off|auto|N>                       (default: off)\n"
        "  --expert-cache-policy <lru|hot|hybrid>            (default: lru)\n"
        "  --expert-cache-pinned <n>                         (default: half of the slots with a pin list)\n"
        "  --expert-cache-pin-list <filename>                (default: none)\n"
        "  --expert-cache-unified <0|1>                      (default: 0)\n"
        "  --expert-cache-rates <c0,c1,h0,h1[,a]>            (default: measured)\n"
        "  --moe-hot-k <n>                                   (default: 0, none; else the policy hot with n experts)\n"
        "  --moe-hot-rebalance-interval <n>                  (default: 16)\n";
}

void common_expert_cache_sweep::parse(const std::string & arg, const std::string & value) {
    if (arg == "--expert-cache-pin-list") {
        base.pin_list = value;
        return;
    }
    if (arg == "--expert-cache-rates") {
        base.set_rates(value);
        return;
    }

    auto & axis =
        arg == "--expert-cache"         ? capacity :
        arg == "--expert-cache-policy"  ? policy   :
        arg == "--expert-cache-pinned"  ? pinned   :
        arg == "--expert-cache-unified" ? unified  :
        arg == "--moe-hot-k"            ? hot_k    : hot_interval;
    for (const auto & item : string_split<std::string>(value, ',')) {
        axis.push_back(item);
    }
    instances(); // refuse malformed values now
}

// the instances of an axis without values are those there are
static std::vector<common_expert_cache_params> expand(
        const std::vector<common_expert_cache_params> & instances, const std::vector<std::string> & axis,
        void (common_expert_cache_params::*set)(const std::string &)) {
    if (axis.empty()) {
        return instances;
    }
    std::vector<common_expert_cache_params> result;
    for (const auto & value : axis) {
        for (auto instance : instances) {
            (instance.*set)(value);
            result.push_back(instance);
        }
    }
    return result;
}

std::vector<common_expert_cache_params> common_expert_cache_sweep::instances() const {
    std::vector<common_expert_cache_params> result = { base };
    result = expand(result, capacity, &common_expert_cache_params::set_capacity);
    result = expand(result, policy,   &common_expert_cache_params::set_policy);
    result = expand(result, pinned,   &common_expert_cache_params::set_pinned);
    result = expand(result, unified,  &common_expert_cache_params::set_unified);
    result = expand(result, hot_k,    &common_expert_cache_params::set_hot_k);
    result = expand(result, hot_interval, &common_expert_cache_params::set_hot_interval);
    for (auto & instance : result) {
        instance.resolve();
    }
    return result;
}

bool common_expert_cache_sweep::off() const {
    for (const auto & instance : instances()) {
        if (!instance.off()) {
            return false;
        }
    }
    return true;
}

//
// results
//

common_expert_cache_stats common_expert_cache_get_stats(llama_context * ctx) {
    common_expert_cache_stats stats;
    for (int32_t i = 0; i < llama_expert_cache_n_layers(ctx); ++i) {
        const auto layer = llama_expert_cache_get_layer_stats(ctx, i);
        stats.hits        += layer.hits;
        stats.misses      += layer.misses;
        stats.computed    += layer.computed;
        stats.bytes_moved += layer.copied*(int64_t) layer.expert_bytes;
    }
    return stats;
}

std::string common_expert_cache_status_field(const llama_context * ctx, const std::string & field) {
    const auto status = nlohmann::json::parse(llama_expert_cache_status(ctx));
    if (!status.contains(field)) {
        return "";
    }
    const auto & value = status.at(field);
    return value.is_string() ? value.get<std::string>() : value.dump();
}

void common_expert_cache_log(ggml_log_level level, const char * text, void * user_data) {
    GGML_UNUSED(user_data);
    static const std::string own = "expert cache:";
    if (level == GGML_LOG_LEVEL_ERROR || std::string(text).compare(0, own.size(), own) == 0) {
        fputs(text, stderr);
    }
}
