#pragma once

#include "llama.h"

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// settings, sweep axes and results of the expert cache, for all tools

struct common_arg;

// All setters and common_expert_cache_from_env throw std::invalid_argument that names the value at fault.
struct common_expert_cache_params {
    int32_t                   capacity = LLAMA_EXPERT_CACHE_OFF; // slots per layer, or LLAMA_EXPERT_CACHE_AUTO
    int32_t                   pinned   = -1;                     // -1 = half of the capacity if there is a pin list
    llama_expert_cache_policy policy   = LLAMA_EXPERT_CACHE_POLICY_LRU;
    std::string               pin_list;
    bool                      unified  = false;                  // pinned experts have no copy in host memory
    bool                      capacity_given = false;            // else unified memory takes what fits
    bool                      pinned_with_list = false;          // pinned counts only if there is a pin list
    size_t                    reserve  = 0;                      // bytes to leave on each device for what is loaded after the context

    std::array<float, 5> rates = {}; // of the policy hybrid: see llama_context_params.expert_cache_rates

    // of the policy hot
    int32_t hot_k        = 0; // --moe-hot-k: policy and capacity in one, 0 = not asked for
    int32_t hot_interval = llama_context_default_params().expert_cache_hot_interval;
    int32_t hot_bypass   = llama_context_default_params().expert_cache_hot_bypass;
    bool    policy_set   = false;

    void set_capacity(const std::string & value); // "off", "auto" or a number
    void set_policy  (const std::string & value); // "lru", "hot" or "hybrid"
    void set_pinned  (const std::string & value);

    void set_rates(const std::string & value); // "C0,C1,H0,H1[,A]"

    void set_hot_k       (const std::string & value);
    void set_hot_interval(const std::string & value);

    // what hot_k stands for, once all is set
    void resolve();

    std::string capacity_str() const;
    std::string policy_str() const;

    void set_unified (const std::string & value); // "0" or "1"

    bool off() const { return effective_capacity() == LLAMA_EXPERT_CACHE_OFF; }

    // params points into this object afterwards
    void apply(llama_context_params & params) const;
    void apply(llama_model_params   & params) const;

    // whether the same model can serve both
    bool same_model(const common_expert_cache_params & other) const;

private:
    int32_t effective_capacity() const;
    int32_t effective_pinned() const;
};

// what EXPERT_CACHE_* ask for, the variables of other programs that drive these tools
common_expert_cache_params common_expert_cache_from_env();

// --expert-cache* for the tools that use common_params
void common_expert_cache_add_opts(const std::function<void(common_arg)> & add_opt);

// the cache as axes of a sweep: one instance per combination
class common_expert_cache_sweep {
public:
    // EXPERT_CACHE_*, overridden by LLAMA_ARG_EXPERT_CACHE*: for the axes that the command line does not name
    void read_env();

    static bool is_arg(const std::string & arg);
    static const char * usage();

    // value: a list separated by commas, but for the pin list
    void parse(const std::string & arg, const std::string & value);

    std::vector<common_expert_cache_params> instances() const;

    bool off() const;

private:
    common_expert_cache_params base;

    std::vector<std::string> capacity;
    std::vector<std::string> policy;
    std::vector<std::string> pinned;
    std::vector<std::string> unified;
    std::vector<std::string> hot_k;
    std::vector<std::string> hot_interval;
};

// totals over the layers, since the context was created
struct common_expert_cache_stats {
    int64_t hits        = 0;
    int64_t misses      = 0;
    int64_t computed    = 0; // misses that the CPU computed
    int64_t bytes_moved = 0;

    double hit_rate() const { return hits + misses > 0 ? (double) hits/(hits + misses) : 0.0; }

    // what happened between two readings
    void add(const common_expert_cache_stats & after, const common_expert_cache_stats & before) {
        hits        += after.hits        - before.hits;
        misses      += after.misses      - before.misses;
        computed    += after.computed    - before.computed;
        bytes_moved += after.bytes_moved - before.bytes_moved;
    }
};

common_expert_cache_stats common_expert_cache_get_stats(llama_context * ctx);

// a number or a word from the status object of the context; empty if there is no such field
std::string common_expert_cache_status_field(const llama_context * ctx, const std::string & field);

// log callback for tools that are quiet otherwise: errors, and what the cache is doing
void common_expert_cache_log(ggml_log_level level, const char * text, void * user_data);
