#include "ggml-expert-cache-impl.h"

#include "ggml-backend.h"

#include <vector>

ggml_expert_cache_state ggml_new_expert_cache_state(ggml_context * ctx, int64_t n_expert, int64_t n_slots) {
    GGML_ASSERT(n_slots > 0 && n_slots <= n_expert);

    return {
        /*.table    =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_expert),
        /*.owner    =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_slots),
        /*.stamp    =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_slots),
        /*.fills    =*/ ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 2, n_slots + 1),
        /*.counters =*/ ggml_new_tensor_1d(ctx, GGML_TYPE_I64, GGML_EXPERT_CACHE_N_COUNTERS),
    };
}

template <typename T>
static void expert_cache_set(ggml_tensor * tensor, const std::vector<T> & data) {
    GGML_ASSERT(data.size()*sizeof(T) == ggml_nbytes(tensor));
    ggml_backend_tensor_set(tensor, data.data(), 0, ggml_nbytes(tensor));
}

void ggml_expert_cache_state_init(const ggml_expert_cache_state * state, const int32_t * owner) {
    const int32_t n_expert = state->table->ne[0];
    const int32_t n_slots  = state->owner->ne[0];

    std::vector<int32_t> table(n_expert, -1);
    std::vector<int64_t> stamp(n_slots);
    std::vector<int32_t> fills(2*(n_slots + 1), 0);

    for (int32_t s = 0; s < n_slots; ++s) {
        if (owner[s] < 0) {
            stamp[s] = INT64_MIN; // an empty slot is the first choice
            continue;
        }
        GGML_ASSERT(owner[s] < n_expert && table[owner[s]] == -1);
        table[owner[s]] = s;
        stamp[s] = -1 - s; // before the first access, slot 0 last

        int32_t & n = fills[0];
        n++;
        fills[2*n + 0] = owner[s];
        fills[2*n + 1] = s;
    }

    expert_cache_set(state->table,    table);
    expert_cache_set(state->owner,    std::vector<int32_t>(owner, owner + n_slots));
    expert_cache_set(state->stamp,    stamp);
    expert_cache_set(state->fills,    fills);
    expert_cache_set(state->counters, std::vector<int64_t>(GGML_EXPERT_CACHE_N_COUNTERS, 0));
}

static ggml_tensor * new_resolve(ggml_context * ctx, ggml_tensor * ids, const ggml_expert_cache_state * state, int32_t n_pinned, int n_results) {
    GGML_ASSERT(ids->type == GGML_TYPE_I32);
    GGML_ASSERT(ids->ne[2] == 1 && ids->ne[3] == 1);
    GGML_ASSERT(n_pinned >= 0);
    // otherwise a step could need more experts at once than there are slots
    GGML_ASSERT(ggml_nelements(ids) <= state->owner->ne[0] - n_pinned);

    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, ids->ne[0], n_results*ids->ne[1]);

    ggml_set_op_params_i32(result, 0, n_pinned);

    result->op     = GGML_OP_EXPERT_RESOLVE;
    result->src[0] = ids;
    result->src[1] = state->table;
    result->src[2] = state->owner;
    result->src[3] = state->stamp;
    result->src[4] = state->fills;
    result->src[5] = state->counters;

    return result;
}

ggml_tensor * ggml_expert_resolve(ggml_context * ctx, ggml_tensor * ids, const ggml_expert_cache_state * state, int32_t n_pinned) {
    return new_resolve(ctx, ids, state, n_pinned, 1);
}

ggml_tensor * ggml_expert_resolve_split(
        ggml_context * ctx, ggml_tensor * ids, const ggml_expert_cache_state * state, int32_t n_pinned, ggml_tensor * n_copied, int32_t n_background) {
    GGML_ASSERT(n_copied->type == GGML_TYPE_I32 && ggml_is_contiguous(n_copied) && n_copied->ne[0] > ggml_nelements(ids));
    GGML_ASSERT(n_background >= 0);

    ggml_tensor * result = new_resolve(ctx, ids, state, n_pinned, 2);

    ggml_set_op_params_i32(result, 1, n_background);
    result->src[6] = n_copied;

    return result;
}

static bool is_split(const ggml_tensor * slots) {
    return slots->op == GGML_OP_EXPERT_RESOLVE && ggml_expert_resolve_n_copied(slots);
}

ggml_tensor * ggml_expert_host_ids(ggml_context * ctx, ggml_tensor * resolved) {
    GGML_ASSERT(is_split(resolved));

    const int64_t n_tokens = resolved->ne[1]/2;
    return ggml_view_2d(ctx, resolved, resolved->ne[0], n_tokens, resolved->nb[1], n_tokens*resolved->nb[1]);
}

ggml_tensor * ggml_expert_fill(
        ggml_context * ctx, ggml_tensor * slots, const ggml_expert_cache_state * state,
        int n_weights, ggml_tensor ** cache, const void ** store, bool mapped) {
    GGML_ASSERT(n_weights > 0 && n_weights <= GGML_EXPERT_CACHE_MAX_WEIGHTS);
    static_assert((GGML_EXPERT_FILL_MAPPED + 1)*sizeof(int32_t) <= GGML_MAX_OP_PARAMS, "store addresses do not fit");
    static_assert(GGML_EXPERT_CACHE_MAX_WEIGHTS + 2 <= GGML_MAX_SRC, "weights do not fit");

    ggml_tensor * result = is_split(slots) ? ggml_view_2d(ctx, slots, slots->ne[0], slots->ne[1]/2, slots->nb[1], 0) : ggml_view_tensor(ctx, slots);

    ggml_set_op_params(result, store, n_weights*sizeof(store[0]));
    ggml_set_op_params_i32(result, GGML_EXPERT_FILL_MAPPED, mapped);

    result->op     = GGML_OP_EXPERT_FILL;
    result->src[0] = slots;
    result->src[1] = state->fills;
    for (int i = 0; i < n_weights; ++i) {
        GGML_ASSERT(cache[i]->ne[2] >= state->owner->ne[0] && ggml_is_contiguous(cache[i]));
        result->src[2 + i] = cache[i];
    }

    return result;
}

ggml_tensor * ggml_expert_gather(
        ggml_context * ctx, ggml_tensor * ids, const ggml_expert_cache_state * state,
        ggml_tensor * cache, const ggml_tensor * store, const void * address) {
    GGML_ASSERT(ids->type == GGML_TYPE_I32 && ids->ne[2] == 1 && ids->ne[3] == 1);
    GGML_ASSERT(ggml_nbytes(store)/state->table->ne[0] == cache->nb[2]);

    ggml_tensor * result = ggml_dup_tensor(ctx, store);

    ggml_set_op_params(result, &address, sizeof(address));

    result->op     = GGML_OP_EXPERT_GATHER;
    result->src[0] = ids;
    result->src[1] = state->table;
    result->src[2] = cache;

    return result;
}
