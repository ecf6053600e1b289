#pragma once

#include "llama-expert-budget.h"
#include "llama-expert-hot.h"
#include "llama-expert-info.h"
#include "llama-expert-rates.h"
#include "llama-expert-store.h"
#include "llama-expert-worker.h"
#include "llama-experts.h"

#include "ggml-cpp.h"
#include "ggml-expert-cache.h"

#include <array>
#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

struct llama_model;
class  llama_expert_unified;

// what the graph of a step asks of a layer
struct llama_expert_step {
    ggml_tensor * x;            // F32 [n_embd, n_rows] input of the experts
    ggml_tensor * weights;      // F32 [1, n_expert_used, n_rows]
    ggml_tensor * selected;     // I32 [n_expert_used, n_rows]
    bool          weight_first; // the weights scale the input
    int64_t       n_tokens;     // of the step; the last layer may have fewer rows
    const char  * not_on_host;  // why the host cannot compute experts of this layer, null if it can
};

// where the graph of a step finds the experts of a layer
struct llama_expert_view {
    ggml_tensor * ids    = nullptr; // index in the tensors below; null = not with the cache
    // what the host computes has to be added; null = nothing is
    ggml_tensor * misses = nullptr; // the scheduler hands it over
    ggml_tensor * posted = nullptr; // the device asks for it: with the policy hot first of all, else build_moe_ffn queues it

    int32_t          layer = -1; // of the cache; -1 = there is nothing for the host
    llama_expert_ffn ffn;        // how the host computes its experts, without the activation

    std::vector<std::pair<const ggml_tensor *, ggml_tensor *>> tensors; // weights, biases and scales: the model's, and where they are

    ggml_tensor * get(const ggml_tensor * t) const;
};

// Keeps the most recently used experts of the layers whose experts are in host memory on the device of the layer.
class llama_expert_cache {
public:
    // chooses the layers to serve and starts with the fewest slots that serve one token; see resize
    // throws std::runtime_error if the parameters do not fit the model
    llama_expert_cache(
            const llama_model          & model,
            const llama_context_params & params,
            const std::vector<ggml_backend_ptr> & backends);

    // logs the totals; the devices must be idle
    ~llama_expert_cache();

    // to be called when the weights, the KV cache and the compute buffers are allocated: gives the cache the slots that
    // were asked for, or with "auto" as many as the free memory of each device allows
    // returns whether the slots are new tensors now, which graphs must be rebuilt for
    // throws std::runtime_error naming the largest capacity that fits
    bool resize();

    // prewarmed slots, zero counters
    void reset();

    bool engaged() const { return !layers.empty(); }

    bool is_unified() const { return unified; }

    // a step whose experts fit in the slots finds them there; a larger one in tensors that are gathered for it from the
    // slots and the store, where the device can read the store. Empty if neither, or if these tensors are not served.
    //   exps: the weights, biases and scales that will be used, null for those that the model does not have:
    //         up, gate, down, gate_up, their biases, and the scales of up, gate and down
    llama_expert_view view(ggml_context * ctx, ggml_cgraph * gf, const llama_expert_step & step, std::initializer_list<ggml_tensor *> exps) const;

    // adds what the host computes to the output of the device
    //   activation: the device's input of the product with down
    ggml_tensor * add_misses(
            ggml_context * ctx, ggml_cgraph * gf, const llama_expert_view & view, const ggml_tensor * activation, ggml_tensor * out) const;

    // to be called before a graph is built for a step; returns whether that of the step before is no longer right
    bool adapt();

    // to be called before a step is computed, and when the devices are idle
    void begin_step(int64_t n_tokens, int32_t n_threads);
    void end_step();

    // how many of n threads the CPU's part of the graph gets: if the experts are computed apart, those threads wait for them
    int32_t n_threads_left(ggml_cgraph * gf, int32_t n) const;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const;

    int32_t n_layers() const { return layers.size(); }
    llama_expert_cache_layer_stats layer_stats(int32_t i) const;

    const std::string & status();

private:
    // gate, up or down weights of the experts of a layer, their biases or their scales
    struct weights {
        ggml_tensor              * store;   // last dimension: n_expert
        ggml_tensor              * cache;   // [.., .., n_slots] on the device
        ggml_tensor              * slots;   // the same with as many dimensions as store
        ggml_backend_buffer_type_t buft;    // of cache
        const void               * address; // of store, for the device; null if it cannot read it
    };

    struct layer {
        int                  il;
        ggml_backend_dev_t   dev;
        ggml_backend_t       backend;
        std::vector<weights> exps;

        std::vector<int32_t> order;    // experts, in the order in which they get slots; the first n_pinned are pinned
        int32_t              n_listed; // how many of them the pin list names

        int32_t max_tokens;   // steps of more do not use the slots
        int32_t n_zeros;      // slots for zeros, 0 or 1
        int32_t n_background; // with the policy hybrid, see ggml_expert_resolve_split

        ggml_expert_cache_state state;
        ggml_expert_host_state  host;     // with the policy hot
        ggml_tensor           * lookup;   // the same
        ggml_tensor           * n_copied; // with the policy hybrid, see ggml_expert_resolve_split

        std::array<const ggml_tensor *, 3> scales; // of the products with gate, up and down; null = none
        ggml_tensor * host_scales;                 // F32 [n_expert, 3] in host memory; null = no scales, or the host computes none

        int32_t n_expert()     const { return exps[0].store->ne[2]; }
        size_t  expert_bytes() const;
        bool    mapped()       const;
        bool    has_scales()   const;
        void    set_host_scales() const;

        int32_t n_owners()     const { return state.owner->ne[0]; }
        bool    has_zeros()    const { return n_zeros > 0; }

        ggml_tensor * build_fill(ggml_context * ctx, ggml_tensor * slots) const;
    };

    // of a device that asks the host
    struct asking {
        std::unique_ptr<llama_expert_worker> worker;
        ggml_backend_t backend;
        ggml_tensor  * state; // of the device's end
    };

    const void * map(ggml_backend_dev_t dev, const ggml_tensor * t);
    void hot_view (ggml_context * ctx, ggml_cgraph * gf, const llama_expert_step & step, size_t i, llama_expert_view & view) const;
    void slot_view(ggml_context * ctx, ggml_cgraph * gf, const llama_expert_step & step, size_t i, bool hybrid, llama_expert_view & view) const;
    void ask_host(
            ggml_context * ctx, const llama_expert_step & step, size_t i, ggml_tensor * ids,
            const ggml_expert_host_state * state, llama_expert_view & view) const;
    llama_expert_ffn host_ffn(const llama_expert_step & step, size_t i, const std::vector<ggml_tensor *> & exps) const;
    std::vector<llama_expert_hot::layer> hot_layers() const;

    bool host_computes() const { return policy != LLAMA_EXPERT_CACHE_POLICY_LRU; }
    bool is_hybrid()     const { return policy == LLAMA_EXPERT_CACHE_POLICY_HYBRID; }
    // whether the host may have something to compute; unknown before it is measured
    bool host_serves()   const { return hot || (is_hybrid() && asks && (n_copied.empty() || llama_expert_rates::computes(n_copied))); }
    int32_t n_zeros(int32_t n_slots) const { return host_computes() && n_slots < n_expert ? 1 : 0; }

    void create_workers(const llama_model & model);
    void reset_asking();
    void measure();
    double time_copies  (const std::vector<size_t> & which, int32_t n);
    double time_computed(const std::vector<size_t> & which, int32_t n);

    void collect(const llama_model & model, const std::vector<ggml_backend_ptr> & backends, llama_context_type ctx_type);
    void order_experts(const llama_model & model, const char * pin_list);
    void choose_pinned(int32_t wanted);
    ggml_backend_buffer_type_t allocate(int32_t n_slots_new); // returns which one lacks the memory, without slots then; null if none
    void allocate_what_fits(int32_t wanted);
    void load(); // in unified memory: the experts
    llama_expert_budget budget(int32_t capacity_max) const;
    llama_expert_cache_info info() const;

    int32_t fewest_slots() const;
    void    set_hybrid(const layer & l) const;
    int32_t capacity_that_fits() const;
    size_t  prompt_scratch(const layer & l) const;
    int32_t batch_limit() const;
    int32_t pinned_in(const layer & l) const;
    bool    gathers(const layer & l) const;
    size_t  slot_bytes() const;

    const llama_expert_cache_policy policy;
    const int32_t     requested; // LLAMA_EXPERT_CACHE_AUTO or the number of slots
    const int32_t     n_expert_used;
    const int32_t     n_pinned_requested; // negative = half of the slots
    const size_t      n_ubatch;
    const size_t      reserve;  // bytes to leave on each device
    const bool        no_alloc; // only measures: allocates, maps and refuses nothing
    llama_expert_unified * const unified; // of the model; null = all experts are in host memory
    int               il_begin = 0; // layers that the context computes
    int               il_end   = 0;
    int32_t           n_expert = 0;
    int32_t           n_slots  = 0;
    int32_t           n_pinned = 0;
    int32_t           n_moe    = 0; // layers with experts, served or not
    bool              counting = false; // the counters are set up
    mutable std::set<int> asked;  // layers whose experts some graph asked for
    mutable std::string not_on_host; // why the host cannot compute its experts, empty if it can
    std::string       reason;       // why layers are not served
    std::string       status_json;

    std::vector<layer> layers;
    llama_expert_store store;

    std::unique_ptr<llama_expert_hot> hot; // with this policy

    // with the policy hybrid
    llama_expert_rates   rates;
    bool                 rates_given;
    std::vector<int32_t> n_copied;    // see ggml_expert_resolve_split
    int32_t              n_threads;
    size_t               n_timed = 0; // experts that were used to measure
    bool                 asks = true; // see adapt
    mutable bool         graph_asks      = true; // what was built last
    int32_t              n_adapted       = 0; // steps since then
    int64_t              n_misses_before = 0;

    std::map<ggml_backend_dev_t, asking>  workers;
    bool                                  computed_apart = false; // by workers of other devices than the CPU
    ggml_backend_t                        backend_cpu    = nullptr;
    mutable std::vector<llama_expert_ffn> ffns;                   // by layer, once a graph asked for it

    struct cached_weights {
        size_t layer;  // index in layers
        size_t weight; // index in its exps
    };

    std::unordered_map<const ggml_tensor *, cached_weights> cached; // by the tensor in the store

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;
};
