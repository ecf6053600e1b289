#pragma once

// operands of the expert cache operations, shared by the back ends

#include "ggml-expert-cache.h"
#include "ggml-impl.h"

#include <string.h>

// GGML_OP_EXPERT_RESOLVE: src = ids, table, owner, stamp, fills, counters, n_copied or NULL; op_params = n_pinned, n_background
static inline struct ggml_expert_cache_state ggml_expert_resolve_state(const struct ggml_tensor * op) {
    struct ggml_expert_cache_state state = {
        /*.table    =*/ op->src[1],
        /*.owner    =*/ op->src[2],
        /*.stamp    =*/ op->src[3],
        /*.fills    =*/ op->src[4],
        /*.counters =*/ op->src[5],
    };
    return state;
}

static inline int32_t ggml_expert_resolve_n_pinned(const struct ggml_tensor * op) {
    return ggml_get_op_params_i32(op, 0);
}

// NULL if all misses are copied
static inline const struct ggml_tensor * ggml_expert_resolve_n_copied(const struct ggml_tensor * op) {
    return op->src[6];
}

static inline int32_t ggml_expert_resolve_n_background(const struct ggml_tensor * op) {
    return ggml_get_op_params_i32(op, 1);
}

// GGML_OP_EXPERT_FILL: src = slots, fills, cache[0], ... ; op_params = store[0], ..., mapped
static inline const struct ggml_tensor * ggml_expert_fill_list(const struct ggml_tensor * op) {
    return op->src[1];
}

// i < GGML_EXPERT_CACHE_MAX_WEIGHTS, NULL past the last weight tensor
static inline struct ggml_tensor * ggml_expert_fill_cache(const struct ggml_tensor * op, int i) {
    return op->src[2 + i];
}

static inline const char * ggml_expert_fill_store(const struct ggml_tensor * op, int i) {
    const char * store;
    memcpy(&store, (const char *) op->op_params + i*sizeof(store), sizeof(store));
    return store;
}

// index in op_params as I32
#define GGML_EXPERT_FILL_MAPPED (GGML_EXPERT_CACHE_MAX_WEIGHTS*sizeof(void *)/sizeof(int32_t))

static inline bool ggml_expert_fill_mapped(const struct ggml_tensor * op) {
    return ggml_get_op_params_i32(op, GGML_EXPERT_FILL_MAPPED) != 0;
}

// GGML_OP_EXPERT_GATHER: src = ids, table, cache; op_params = store
static inline const char * ggml_expert_gather_store(const struct ggml_tensor * op) {
    return ggml_expert_fill_store(op, 0);
}
