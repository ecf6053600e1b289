#pragma once

#include "ggml.h"

#ifdef  __cplusplus
extern "C" {
#endif

// Expert cache: C slots that hold the most recently used of the n_expert experts of one MoE layer.
//
// All state lives in tensors on the device that runs the layer, so that a decode step needs no host round trip:
//
//   ids --> ggml_expert_resolve --> slots --> ggml_expert_fill --> ggml_mul_mat_id(cached weights, x, slots)
//              | updates the state             | copies the missed experts from the store into their slots
//
// Terms: store = where all experts live, slot = room for one expert, pinned = a slot whose expert never leaves.

// at most this many tensors (gate, up, down, and their biases) are filled together
#define GGML_EXPERT_CACHE_MAX_WEIGHTS 6

// state of one layer; n_pinned slots at the front never change their expert
struct ggml_expert_cache_state {
    struct ggml_tensor * table;    // I32 [n_expert]       slot of each expert, -1 = not resident
    struct ggml_tensor * owner;    // I32 [n_slots]        expert in each slot, -1 = empty
    struct ggml_tensor * stamp;    // I64 [n_slots]        time of the last access, the smallest is the next victim
    struct ggml_tensor * fills;    // I32 [2, n_slots + 1] (count, for the back end), then (expert, slot) for each missed expert of the last step
    struct ggml_tensor * counters; // I64 [GGML_EXPERT_CACHE_N_COUNTERS]
};

enum ggml_expert_cache_counter {
    GGML_EXPERT_CACHE_CLOCK,  // accesses since the state was set up, the time for the stamps
    GGML_EXPERT_CACHE_HITS,   // accesses to resident experts
    GGML_EXPERT_CACHE_MISSES, // accesses to experts that were not resident

    // misses of ggml_expert_resolve_split; those copied in the background count as both
    GGML_EXPERT_CACHE_COPIED,   // put on the fill list
    GGML_EXPERT_CACHE_COMPUTED, // left to the host

    // for a back end that reads slots while others are filled
    GGML_EXPERT_CACHE_TO_FILL,
    GGML_EXPERT_CACHE_FILLED, // of each tensor

    GGML_EXPERT_CACHE_N_COUNTERS = GGML_EXPERT_CACHE_FILLED + GGML_EXPERT_CACHE_MAX_WEIGHTS,
};

#define GGML_EXPERT_GATHER_PADDING 512 // bytes, or an expert if that is less

// creates the tensors of a state in ctx, without data; see ggml_expert_cache_state_init
GGML_API struct ggml_expert_cache_state ggml_new_expert_cache_state(
        struct ggml_context * ctx,
        int64_t               n_expert,
        int64_t               n_slots);

// slot s gets owner[s] (-1 = empty); slot 0 counts as the most recently used. Puts all owners on the fill list.
// The tensors must be allocated.
GGML_API void ggml_expert_cache_state_init(
        const struct ggml_expert_cache_state * state,
        const int32_t                        * owner);

// maps expert ids to slots and decides what to load
//
//   ids:    I32 [n_used, n_tokens], with n_used*n_tokens <= n_slots - n_pinned
//   result: I32 [n_used, n_tokens] slots
//
// All experts of a step stay resident during the step. The first access in a step to an expert that is not resident is
// a miss, any other access a hit. A miss takes the least recently used slot that is neither pinned nor in use by the
// step; empty slots come first, in order of their index.
GGML_API struct ggml_tensor * ggml_expert_resolve(
        struct ggml_context                  * ctx,
        struct ggml_tensor                   * ids,
        const struct ggml_expert_cache_state * state,
        int32_t                                n_pinned);

// the same, but leaves some of the misses to the host, see ggml-expert-host.h
//
//   n_copied:     I32 [> n_used*n_tokens] for a step with i misses, n_copied[i] of them get a slot like with
//                 ggml_expert_resolve, those accessed first; the host computes the others
//   n_background: of these at most so many, again the first, get a slot too, but for the steps to come: the products of
//                 this step do not use it, nor wait for it
//   result:       I32 [n_used, 2*n_tokens] slots, n_slots for an expert that the host computes: the experts in that slot
//                 have to be zeros. In the second half for each access the expert that the host computes, or -1 - id of
//                 one that it does not: ggml_expert_host_ids
GGML_API struct ggml_tensor * ggml_expert_resolve_split(
        struct ggml_context                  * ctx,
        struct ggml_tensor                   * ids,
        const struct ggml_expert_cache_state * state,
        int32_t                                n_pinned,
        struct ggml_tensor                   * n_copied,
        int32_t                                n_background);

// second half of the result of ggml_expert_resolve_split, I32 [n_used, n_tokens]
GGML_API struct ggml_tensor * ggml_expert_host_ids(struct ggml_context * ctx, struct ggml_tensor * resolved);

// copies the experts on the fill list from the store into their slots
//
//   slots:   result of ggml_expert_resolve or ggml_expert_resolve_split
//   cache:   n_weights tensors [.., .., >= n_slots], which the operation writes
//   store:   n_weights addresses of tensors [.., .., n_expert] with the layout of cache. They are no sources of the
//            operation: the scheduler would copy all experts to the device.
//   mapped:  the device can read the addresses itself, see ggml_backend_expert_store_map_t. If not, the host copies, which
//            it can do only after it has waited for the device to say what.
//   result:  view of the slots, to be used as the ids of ggml_mul_mat_id with the cached weights
GGML_API struct ggml_tensor * ggml_expert_fill(
        struct ggml_context                  * ctx,
        struct ggml_tensor                   * slots,
        const struct ggml_expert_cache_state * state,
        int                                    n_weights,
        struct ggml_tensor *                 * cache,
        const void *                         * store,
        bool                                   mapped);

// the experts that a step uses which is too large for the slots: from their slots if they are resident, else from the store
//
//   ids:     I32 [n_used, n_tokens]
//   store:   tensor whose last dimension is n_expert; only its type and shape are used
//   address: where the device reads the store itself
//   result:  like store; the experts that are not in ids are undefined, except for GGML_EXPERT_GATHER_PADDING zeros where
//            one follows an expert that is: kernels may read past the end of a row, which must not find NaN there
//
// The cache does not change.
GGML_API struct ggml_tensor * ggml_expert_gather(
        struct ggml_context                  * ctx,
        struct ggml_tensor                   * ids,
        const struct ggml_expert_cache_state * state,
        struct ggml_tensor                   * cache,
        const struct ggml_tensor             * store,
        const void                           * address);

// Functions of a back end whose devices do not share the memory of the host, found with ggml_backend_reg_get_proc_address
// under the names "ggml_backend_expert_store_map" and "ggml_backend_expert_store_unmap".
//
// map: lets the devices read host memory at the address that is returned, and pins it; NULL if that is refused, with the
// reason in the log. The same memory can be mapped more than once and is released when it is unmapped as often.
typedef void * (*ggml_backend_expert_store_map_t)  (void * base, size_t size);
typedef void   (*ggml_backend_expert_store_unmap_t)(void * base);

// "ggml_backend_expert_cache_max_tokens": up to how many tokens ggml_mul_mat_id of a type gives the same bits however many
// experts the tensor has. Kernels for more tokens may split their sums by the number of experts.
typedef int    (*ggml_backend_expert_cache_max_tokens_t)(enum ggml_type type);

// "ggml_backend_expert_cache_fills_beside": whether products with quantised experts run beside the fill, so that what
// ggml_expert_resolve_split copies in the background delays none of them
typedef bool   (*ggml_backend_expert_cache_fills_beside_t)(void);

#ifdef  __cplusplus
}
#endif
