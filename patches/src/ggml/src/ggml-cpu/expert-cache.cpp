#include "expert-cache.h"

#include "ggml-expert-cache-impl.h"

#include <algorithm>
#include <vector>

namespace {

// raw view of the state of one layer, see ggml_expert_cache_state
struct expert_cache {
    int32_t * table;
    int32_t * owner;
    int64_t * stamp;
    int32_t * fills;
    int64_t * counters;

    int64_t n_slots;
    int64_t n_pinned;

    const int32_t * n_copied; // null = all misses are
    int64_t         n_background;

    explicit expert_cache(const ggml_tensor * op) {
        const ggml_expert_cache_state state = ggml_expert_resolve_state(op);

        table    = (int32_t *) state.table->data;
        owner    = (int32_t *) state.owner->data;
        stamp    = (int64_t *) state.stamp->data;
        fills    = (int32_t *) state.fills->data;
        counters = (int64_t *) state.counters->data;

        n_slots  = state.owner->ne[0];
        n_pinned = ggml_expert_resolve_n_pinned(op);

        const ggml_tensor * split = ggml_expert_resolve_n_copied(op);
        n_copied     = split ? (const int32_t *) split->data : nullptr;
        n_background = ggml_expert_resolve_n_background(op);
    }

    // the least recently used slot; the stamps of slots in use by the step are the newest, so they are never chosen
    int32_t victim() const {
        return std::min_element(stamp + n_pinned, stamp + n_slots) - stamp;
    }

    void load(int32_t expert) {
        const int32_t slot = victim();
        if (owner[slot] >= 0) {
            table[owner[slot]] = -1;
        }
        owner[slot]   = expert;
        table[expert] = slot;

        int32_t & n = fills[0];
        n++;
        fills[2*n + 0] = expert;
        fills[2*n + 1] = slot;
    }
};

int32_t get_id(const ggml_tensor * ids, int64_t i) {
    const int64_t i0 = i % ids->ne[0];
    const int64_t i1 = i / ids->ne[0];
    return *(const int32_t *) ((const char *) ids->data + i0*ids->nb[0] + i1*ids->nb[1]);
}

} // namespace

void ggml_compute_forward_expert_resolve(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->ith != 0) {
        return;
    }

    const ggml_tensor * ids = dst->src[0];

    expert_cache cache(dst);

    const auto id = [ids](int64_t i) { return get_id(ids, i); };

    const int64_t n     = ggml_nelements(ids);
    const int64_t clock = cache.counters[GGML_EXPERT_CACHE_CLOCK];

    // 1. protect what is resident: a stamp of this step cannot be the smallest as long as n <= n_slots - n_pinned
    std::vector<int64_t> misses; // the first access to each missed expert
    for (int64_t i = 0; i < n; ++i) {
        const int32_t expert = id(i);
        GGML_ASSERT(expert >= 0 && expert < dst->src[1]->ne[0]);
        if (cache.table[expert] >= 0) {
            cache.stamp[cache.table[expert]] = clock + i;
        } else if (std::none_of(misses.begin(), misses.end(), [&](int64_t m) { return id(m) == expert; })) {
            misses.push_back(i);
        }
    }

    // 2. give missed experts a slot, in the order of the first access; the step may not use those of the last ones
    const int64_t n_misses = misses.size();
    const int64_t n_copied = cache.n_copied ? cache.n_copied[n_misses] : n_misses;
    const int64_t n_loaded = cache.n_copied ? std::min(n_misses, n_copied + cache.n_background) : n_misses;
    cache.fills[0] = 0;
    for (int64_t m = 0; m < n_loaded; ++m) {
        cache.load(id(misses[m]));
        cache.stamp[cache.table[id(misses[m])]] = clock + misses[m];
    }
    const auto on_host = [&](int32_t expert) {
        return std::any_of(misses.begin() + n_copied, misses.end(), [&](int64_t m) { return id(m) == expert; });
    };

    // 3. the slots of the step
    int32_t * slots = (int32_t *) dst->data;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t expert = id(i);
        const bool    host   = on_host(expert);
        slots[i] = host ? cache.n_slots : cache.table[expert];
        if (!host) {
            cache.stamp[slots[i]] = clock + i;
        }
        if (cache.n_copied) {
            slots[n + i] = host ? expert : -1 - expert;
        }
    }

    cache.counters[GGML_EXPERT_CACHE_CLOCK]    += n;
    cache.counters[GGML_EXPERT_CACHE_HITS]     += n - n_misses;
    cache.counters[GGML_EXPERT_CACHE_MISSES]   += n_misses;
    cache.counters[GGML_EXPERT_CACHE_COPIED]   += n_loaded;
    cache.counters[GGML_EXPERT_CACHE_COMPUTED] += n_misses - n_copied;
}

void ggml_compute_forward_expert_fill(const ggml_compute_params * params, ggml_tensor * dst) {
    const int32_t * fills = (const int32_t *) ggml_expert_fill_list(dst)->data;
    const int32_t   n     = fills[0];

    for (int w = 0; w < GGML_EXPERT_CACHE_MAX_WEIGHTS && ggml_expert_fill_cache(dst, w); ++w) {
        const ggml_tensor * cache = ggml_expert_fill_cache(dst, w);
        const char        * store = ggml_expert_fill_store(dst, w);

        // each thread copies its share of every missed expert
        const size_t nb    = cache->nb[2];
        const size_t share = GGML_PAD((nb + params->nth - 1)/params->nth, 64);
        const size_t begin = std::min(nb, share*params->ith);
        const size_t end   = std::min(nb, begin + share);

        for (int32_t i = 1; i <= n; ++i) {
            const int64_t expert = fills[2*i + 0];
            const int64_t slot   = fills[2*i + 1];

            memcpy((char *) cache->data + slot*nb + begin, store + expert*nb + begin, end - begin);
        }
    }
}

void ggml_compute_forward_expert_gather(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * ids      = dst->src[0];
    const ggml_tensor * cache    = dst->src[2];
    const int32_t     * table    = (const int32_t *) dst->src[1]->data;
    const int64_t       n_expert = dst->src[1]->ne[0];
    const char        * store    = ggml_expert_gather_store(dst);
    const size_t        nb       = cache->nb[2];

    std::vector<bool> used(n_expert, false);
    for (int64_t i = 0; i < ggml_nelements(ids); ++i) {
        used[get_id(ids, i)] = true;
    }
    for (int64_t e = params->ith; e < n_expert; e += params->nth) {
        char * out = (char *) dst->data + e*nb;
        if (used[e]) {
            memcpy(out, table[e] >= 0 ? (const char *) cache->data + table[e]*nb : store + e*nb, nb);
        } else if (e > 0 && used[e - 1]) {
            memset(out, 0, std::min<size_t>(nb, GGML_EXPERT_GATHER_PADDING));
        }
    }
}
