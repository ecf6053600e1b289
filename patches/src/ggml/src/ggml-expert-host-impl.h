#pragma once

// operands of the operations of ggml-expert-host.h

#include "ggml-expert-host.h"
#include "ggml-impl.h"

#include <string.h>

// whether an operation must not leave the process: it has addresses of it, or indices that are not checked
static inline bool ggml_expert_op_is_local(enum ggml_op op) {
    return op == GGML_OP_EXPERT_FILL || op == GGML_OP_EXPERT_GATHER || op == GGML_OP_EXPERT_MISSES || op == GGML_OP_EXPERT_FFN ||
        op == GGML_OP_EXPERT_POST || op == GGML_OP_EXPERT_COLLECT;
}

// GGML_OP_EXPERT_POST:    src = x, weights, ids, state, table, uses, counters (the last three may be NULL); op_params = address, layer
// GGML_OP_EXPERT_COLLECT: src = out, state; op_params = address
static inline struct ggml_expert_post_address ggml_expert_get_address(const struct ggml_tensor * op) {
    struct ggml_expert_post_address address;
    memcpy(&address, op->op_params, sizeof(address));
    return address;
}

// the device's end, if that is the CPU
#ifdef __cplusplus
extern "C" {
#endif
GGML_API void     ggml_expert_mailbox_post(struct ggml_expert_mailbox * mailbox, uint32_t number);
GGML_API uint32_t ggml_expert_mailbox_answered(struct ggml_expert_mailbox * mailbox);
#ifdef __cplusplus
}
#endif

// index in op_params as I32
#define GGML_EXPERT_POST_LAYER (sizeof(struct ggml_expert_post_address)/sizeof(int32_t))

// how the result of GGML_OP_EXPERT_MISSES begins
struct ggml_expert_misses_head {
    int32_t n;
    int32_t unused[15]; // what follows changes all the time, and is kept out of the cache lines of what is read
    int32_t taken[2];   // by GGML_OP_EXPERT_FFN: chunks of hidden rows, and of rows of the result, that a thread has begun with
    int32_t done[2];
    int32_t unused_end[12];
};

// GGML_OP_EXPERT_MISSES: src = step, table, uses, counters (the last three may be NULL); op_params = n_used
// GGML_OP_EXPERT_FFN:    src = step, misses, gate, up, down, gate_b, up_b, down_b, scales; op_params = n_used, ...
enum ggml_expert_ffn_param {
    GGML_EXPERT_FFN_N_USED,
    GGML_EXPERT_FFN_ACT,
    GGML_EXPERT_FFN_GATE_UP,
    GGML_EXPERT_FFN_WEIGHT_FIRST,
    GGML_EXPERT_FFN_PARAMS, // 2 of F32
};

static inline struct ggml_expert_host_weights ggml_expert_ffn_weights(const struct ggml_tensor * op) {
    struct ggml_expert_host_weights weights = {
        /*.gate    =*/ op->src[2],
        /*.up      =*/ op->src[3],
        /*.down    =*/ op->src[4],
        /*.gate_b  =*/ op->src[5],
        /*.up_b    =*/ op->src[6],
        /*.down_b  =*/ op->src[7],
        /*.scales  =*/ op->src[8],
        /*.gate_up =*/ ggml_get_op_params_i32(op, GGML_EXPERT_FFN_GATE_UP) != 0,
    };
    return weights;
}
