#include "ggml-expert-host-impl.h"

ggml_expert_host_state ggml_new_expert_host_state(ggml_context * ctx, int64_t n_expert) {
    return {
        /*.table    =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_expert),
        /*.uses     =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_expert),
        /*.counters =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I64, GGML_EXPERT_HOST_N_COUNTERS),
    };
}

ggml_tensor * ggml_expert_misses(ggml_context * ctx, ggml_tensor * step, int32_t n_used, const ggml_expert_host_state * state) {
    GGML_ASSERT(step->type == GGML_TYPE_F32 && ggml_is_matrix(step) && step->ne[0] > 2*n_used && n_used > 0);

    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 2, n_used*step->ne[1] + 1);

    ggml_set_op_params_i32(result, 0, n_used);

    result->op     = GGML_OP_EXPERT_MISSES;
    result->src[0] = step;
    result->src[1] = state->table;
    result->src[2] = state->uses;
    result->src[3] = state->counters;

    return result;
}

ggml_tensor * ggml_expert_ffn(
        ggml_context * ctx, ggml_tensor * step, ggml_tensor * misses, int32_t n_used,
        const ggml_expert_host_weights * weights, ggml_expert_act act, const float params[2], bool weight_first) {
    const int64_t n_embd = step->ne[0] - 2*n_used;
    const int64_t n_ff   = weights->down->ne[0];

    GGML_ASSERT(misses->op == GGML_OP_EXPERT_MISSES && misses->src[0] == step);
    GGML_ASSERT(weights->up->ne[0] == n_embd && weights->up->ne[1] == (weights->gate_up ? 2 : 1)*n_ff);
    GGML_ASSERT(!weights->gate || (!weights->gate_up && ggml_are_same_shape(weights->gate, weights->up)));
    for (const ggml_tensor * x : { weights->gate_b, weights->up_b, weights->down_b, weights->scales }) {
        GGML_ASSERT(!x || (x->type == GGML_TYPE_F32 && ggml_is_contiguous(x)));
    }

    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, weights->down->ne[1], step->ne[1]);

    ggml_set_op_params_i32(result, GGML_EXPERT_FFN_N_USED,       n_used);
    ggml_set_op_params_i32(result, GGML_EXPERT_FFN_ACT,          act);
    ggml_set_op_params_i32(result, GGML_EXPERT_FFN_GATE_UP,      weights->gate_up);
    ggml_set_op_params_i32(result, GGML_EXPERT_FFN_WEIGHT_FIRST, weight_first);
    ggml_set_op_params_f32(result, GGML_EXPERT_FFN_PARAMS + 0,   params[0]);
    ggml_set_op_params_f32(result, GGML_EXPERT_FFN_PARAMS + 1,   params[1]);

    result->op     = GGML_OP_EXPERT_FFN;
    result->src[0] = step;
    result->src[1] = misses;
    result->src[2] = weights->gate;
    result->src[3] = weights->up;
    result->src[4] = weights->down;
    result->src[5] = weights->gate_b;
    result->src[6] = weights->up_b;
    result->src[7] = weights->down_b;
    result->src[8] = weights->scales;

    return result;
}
