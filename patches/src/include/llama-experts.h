#pragma once

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// Expert cache of a context: see llama_context_params.expert_cache_* for its settings and ggml-expert-cache.h for terms

// counters of one layer since the last reset
struct llama_expert_cache_layer_stats {
    int32_t il;           // layer of the model
    int64_t hits;         // accesses (token, selected expert) to a resident expert
    int64_t misses;       // other accesses
    int64_t copied;       // experts copied into slots: with the policy lru one for each miss
    int64_t computed;     // misses that the CPU computed: with the policy hot all, with lru none
    size_t  expert_bytes; // size of one expert
};

// number of layers that the cache serves, 0 if it is not engaged
LLAMA_API int32_t llama_expert_cache_n_layers(const struct llama_context * ctx);

// i < llama_expert_cache_n_layers; waits for the device
LLAMA_API struct llama_expert_cache_layer_stats llama_expert_cache_get_layer_stats(struct llama_context * ctx, int32_t i);

// back to the state after the context was created: prewarmed slots, zero counters
LLAMA_API void llama_expert_cache_reset(struct llama_context * ctx);

// what the cache is doing, as a JSON object on one line; valid until the next call. Its counters may miss
// a step that the device is not done with
LLAMA_API const char * llama_expert_cache_status(const struct llama_context * ctx);

// Host memory that can be had without swapping, of the machine and of the control groups of this process, in bytes;
// SIZE_MAX where nothing tells
LLAMA_API size_t llama_host_memory_available(void);

// Routing given from outside, for replaying a trace: from now on the token at position p uses the experts ids[p] instead
// of those that the router selects; their weights stay the router's. After the last position it begins again.
//   ids: [n_tokens][n_layers][n_expert_used], copied; layers with experts, ascending. NULL gives the choice back to the router
// returns false, with a logged reason, if the routing does not fit the model
LLAMA_API bool llama_set_expert_routing(struct llama_context * ctx, const int32_t * ids, int64_t n_tokens, int32_t n_layers, int32_t n_expert_used);

#ifdef __cplusplus
}
#endif
