#include "llama-expert-info.h"

#include "llama-impl.h"

#include <cinttypes>

static std::string json_string(const std::string & text) {
    return text.empty() ? "null" : "\"" + text + "\""; // our own texts only, nothing to escape
}

std::string llama_expert_cache_info::warning() const {
    // published for TEC, whose default capacity is at least so many times K: that must not be all experts
    constexpr int32_t fewest  = 32;
    constexpr int32_t times_k = 4;
    if (!engaged || (n_expert >= fewest && n_expert > times_k*n_expert_used)) {
        return "";
    }
    return format("preconditions not met: %d experts per layer, of which a token uses %d; with fewer than %d, or no more than %d times those used, "
            "a cache is not expected to be faster", n_expert, n_expert_used, fewest, times_k);
}

std::string llama_expert_cache_info::miss_cost() const {
    if (policy == LLAMA_EXPERT_CACHE_POLICY_HOT || (policy == LLAMA_EXPERT_CACHE_POLICY_HYBRID && hybrid_choice == "cpu")) {
        return format("a miss is computed by the CPU, which reads up to %.1f KiB for it", expert_bytes/1024.0);
    }
    if (policy == LLAMA_EXPERT_CACHE_POLICY_HYBRID && hybrid_choice == "split") {
        return format("of the misses of a step some are copied and some are computed by the CPU, of up to %.1f KiB each", expert_bytes/1024.0);
    }
    return format("a miss copies up to %.1f KiB from %s memory%s", expert_bytes/1024.0, store_pinned() ? "pinned" : "pageable",
            by_host ? ", and in every layer the host waits for the device because the memory could not be pinned" : "");
}

static const char * policy_name(llama_expert_cache_policy policy) {
    return policy == LLAMA_EXPERT_CACHE_POLICY_HYBRID ? "hybrid" : policy == LLAMA_EXPERT_CACHE_POLICY_HOT ? "hot" : "lru";
}

std::string llama_expert_cache_info::policy_json() const {
    if (policy == LLAMA_EXPERT_CACHE_POLICY_LRU) {
        return "";
    }
    return
        format(", \"hits\": %" PRId64 ", \"misses\": %" PRId64 ", \"copied\": %" PRId64 ", \"computed_by_cpu\": %" PRId64, hits, misses, copied, computed) +
        format(", \"experts_in_slots\": %d, \"device_asks\": %s", n_in_slots, asks ? "true" : "false") +
        (policy == LLAMA_EXPERT_CACHE_POLICY_HOT ? format(", \"hot_interval\": %d", hot_interval) : ", \"hybrid\": " + (hybrid.empty() ? "null" : hybrid));
}

std::string llama_expert_cache_info::policy_line() const {
    switch (policy) {
        case LLAMA_EXPERT_CACHE_POLICY_HOT:    return format("hot, chosen again every %d tokens", hot_interval);
        case LLAMA_EXPERT_CACHE_POLICY_HYBRID: return format("hybrid, choice %s", hybrid_choice.c_str());
        default:                               return "lru";
    }
}

std::string llama_expert_cache_info::json() const {
    std::string device_list;
    for (const auto & name : devices) {
        device_list += (device_list.empty() ? "" : ", ") + json_string(name);
    }
    const std::string asked =
        requested == LLAMA_EXPERT_CACHE_OFF  ? "off"  :
        requested == LLAMA_EXPERT_CACHE_AUTO ? "auto" : std::to_string(requested);
    return
        format("{\"engaged\": %s, \"reason\": %s, \"policy\": \"%s\", ", engaged ? "true" : "false", json_string(reason).c_str(), policy_name(policy)) +
        format("\"requested\": \"%s\", \"capacity\": %d, \"pinned\": %d, ", asked.c_str(), capacity, pinned) +
        format("\"n_expert\": %d, \"n_expert_used\": %d, \"n_layers\": %d, \"n_layers_moe\": %d, ", n_expert, n_expert_used, n_layers, n_layers_moe) +
        format("\"unified\": %s, \"host_bytes\": %zu, \"device_only_bytes\": %zu, ", unified ? "true" : "false", host_bytes, device_bytes) +
        format("\"device\": [%s], \"cache_bytes\": %zu, \"store_bytes\": %zu, \"expert_bytes_max\": %zu, ",
                device_list.c_str(), cache_bytes, store_bytes, expert_bytes) +
        format("\"store_pinned\": %s, \"store_pinned_bytes\": %zu, \"miss_cost\": %s, \"batch_limit\": %d, \"gathers\": %s, \"warning\": %s",
                store_pinned() ? "true" : "false", pinned_bytes, json_string(engaged ? miss_cost() : "").c_str(), batch_limit, gathers ? "true" : "false", json_string(warning()).c_str()) +
        (engaged ? policy_json() : "") + "}";
}

std::string llama_expert_cache_info::line() const {
    if (!engaged) {
        return format("expert cache: not engaged: %s", reason.c_str());
    }
    std::string device_list;
    for (const auto & name : devices) {
        device_list += (device_list.empty() ? "" : ", ") + name;
    }
    return
        format("expert cache: engaged: %s, %d of %d experts in slots, %d pinned, %d of %d MoE layers on %s, %.1f MiB; ",
                policy_line().c_str(), n_in_slots, n_expert, pinned, n_layers, n_layers_moe, device_list.c_str(), cache_bytes/1024.0/1024.0) +
        (!unified ? "" : format("unified: %.1f MiB of experts in host memory, %.1f MiB only on the device; ", host_bytes/1024.0/1024.0, device_bytes/1024.0/1024.0)) +
        format("%s; steps of up to %d tokens%s%s%s", miss_cost().c_str(), batch_limit, gathers ? ", larger ones gather their experts" : "",
                reason.empty() ? "" : "; other layers not served: ", reason.c_str()) +
        format("%s%s", warning().empty() ? "" : "; warning: ", warning().c_str());
}
