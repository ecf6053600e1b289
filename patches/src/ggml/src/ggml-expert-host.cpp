#include "ggml-expert-host-impl.h"

#include <atomic>

static std::atomic<uint32_t> & shared_number(uint32_t & number) {
    static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the mailbox has plain numbers");
    return reinterpret_cast<std::atomic<uint32_t> &>(number);
}

uint32_t ggml_expert_mailbox_posted(ggml_expert_mailbox * mailbox) {
    return shared_number(mailbox->posted).load(std::memory_order_acquire);
}

void ggml_expert_mailbox_answer(ggml_expert_mailbox * mailbox, uint32_t number) {
    shared_number(mailbox->answered).store(number, std::memory_order_release);
}

void ggml_expert_mailbox_post(ggml_expert_mailbox * mailbox, uint32_t number) {
    shared_number(mailbox->posted).store(number, std::memory_order_release);
}

uint32_t ggml_expert_mailbox_answered(ggml_expert_mailbox * mailbox) {
    return shared_number(mailbox->answered).load(std::memory_order_acquire);
}

ggml_expert_host_state ggml_new_expert_host_state(ggml_context * ctx, int64_t n_expert) {
    return {
        /*.table    =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_expert),
        /*.uses     =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_expert),
        /*.counters =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I64, GGML_EXPERT_HOST_N_COUNTERS),
    };
}

ggml_tensor * ggml_expert_misses(ggml_context * ctx, ggml_tensor * step, int32_t n_used, const ggml_expert_host_state * state) {
    GGML_ASSERT(step->type == GGML_TYPE_F32 && ggml_is_matrix(step) && step->ne[0] > 2*n_used && n_used > 0);

    const int64_t n_head = sizeof(ggml_expert_misses_head)/(2*sizeof(int32_t));
    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 2, n_used*step->ne[1] + n_head);

    ggml_set_op_params_i32(result, 0, n_used);

    result->op     = GGML_OP_EXPERT_MISSES;
    result->src[0] = step;
    if (state) {
        result->src[1] = state->table;
        result->src[2] = state->uses;
        result->src[3] = state->counters;
    }

    return result;
}

ggml_tensor * ggml_expert_post(
        ggml_context * ctx, ggml_tensor * x, ggml_tensor * weights, ggml_tensor * ids,
        const ggml_expert_host_state * host, ggml_tensor * state, const ggml_expert_post_address * address, int32_t layer) {
    GGML_ASSERT(x->type == GGML_TYPE_F32 && ggml_is_matrix(x) && x->nb[0] == sizeof(float));
    GGML_ASSERT(ids->type == GGML_TYPE_I32 && ggml_is_matrix(ids) && ids->ne[1] == x->ne[1]);
    GGML_ASSERT(weights->type == GGML_TYPE_F32 && weights->ne[1] == ids->ne[0] && weights->ne[2] == ids->ne[1]);
    static_assert((GGML_EXPERT_POST_LAYER + 1)*sizeof(int32_t) <= GGML_MAX_OP_PARAMS, "the address does not fit");

    ggml_tensor * result = ggml_view_tensor(ctx, state);

    ggml_set_op_params(result, address, sizeof(*address));
    ggml_set_op_params_i32(result, GGML_EXPERT_POST_LAYER, layer);

    result->op     = GGML_OP_EXPERT_POST;
    result->src[0] = x;
    result->src[1] = weights;
    result->src[2] = ids;
    result->src[3] = state;
    if (host) {
        result->src[4] = host->table;
        result->src[5] = host->uses;
        result->src[6] = host->counters;
    }

    return result;
}

ggml_tensor * ggml_expert_collect(ggml_context * ctx, ggml_tensor * out, ggml_tensor * posted, const ggml_expert_post_address * address) {
    GGML_ASSERT(out->type == GGML_TYPE_F32 && ggml_is_contiguous(out) && ggml_is_matrix(out));
    GGML_ASSERT(posted->op == GGML_OP_EXPERT_POST);

    ggml_tensor * result = ggml_view_tensor(ctx, out);

    ggml_set_op_params(result, address, sizeof(*address));

    result->op     = GGML_OP_EXPERT_COLLECT;
    result->src[0] = out;
    result->src[1] = posted;

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
