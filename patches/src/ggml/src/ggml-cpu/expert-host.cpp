#include "expert-host.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-expert-host-impl.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

namespace {

// what is known of the selections of a step
struct selection_counts {
    const int32_t * table; // null if the ids tell already what has a slot, and nothing is counted
    int64_t         n_expert;
    int32_t       * uses;
    int64_t       * counters;

    selection_counts(const ggml_tensor * t, const ggml_tensor * u, const ggml_tensor * c) :
        table(t ? (const int32_t *) t->data : nullptr), n_expert(t ? t->ne[0] : 0),
        uses(u ? (int32_t *) u->data : nullptr), counters(c ? (int64_t *) c->data : nullptr) {}

    // -1 - id for an expert with a slot
    int32_t add(int32_t id) const {
        if (!table) {
            return id;
        }
        GGML_ASSERT(id >= 0 && id < n_expert);
        uses[id]++;
        counters[table[id] >= 0 ? GGML_EXPERT_HOST_HITS : GGML_EXPERT_HOST_MISSES]++;
        return table[id] >= 0 ? -1 - id : id;
    }
};

} // namespace

void ggml_compute_forward_expert_misses(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->ith != 0) {
        return;
    }

    const ggml_tensor * step   = dst->src[0];
    const selection_counts counts(dst->src[1], dst->src[2], dst->src[3]);
    const int64_t       n_used = ggml_get_op_params_i32(dst, 0);
    const int64_t       n      = n_used*step->ne[1];

    auto *  list   = (std::pair<int32_t, int32_t> *) dst->data;
    int32_t n_miss = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float * ids = (const float *) ((const char *) step->data + (i/n_used)*step->nb[1]) + step->ne[0] - n_used;
        const int32_t id  = counts.add((int32_t) ids[i%n_used]);
        if (id >= 0) {
            list[++n_miss] = { id, i };
        }
    }
    std::sort(list + 1, list + 1 + n_miss); // the selections of an expert follow each other
    list[0] = { n_miss, 0 };
}

//
// mailbox
//

// a row of the request: input, weights, ids; returns whether an expert of it has no slot
static bool post_row(const ggml_tensor * op, int64_t token, const selection_counts & counts, float * row) {
    const ggml_tensor * x       = op->src[0];
    const ggml_tensor * weights = op->src[1];
    const ggml_tensor * ids     = op->src[2];
    const int64_t       n_embd  = x->ne[0];
    const int64_t       n_used  = ids->ne[0];

    memcpy(row, (const char *) x->data + token*x->nb[1], n_embd*sizeof(float));

    bool missing = false;
    for (int64_t k = 0; k < n_used; ++k) {
        const int32_t id = counts.add(*(const int32_t *) ((const char *) ids->data + token*ids->nb[1] + k*ids->nb[0]));
        row[n_embd + k]          = *(const float *) ((const char *) weights->data + token*weights->nb[2] + k*weights->nb[1]);
        row[n_embd + n_used + k] = id;
        missing = missing || id >= 0;
    }
    return missing;
}

void ggml_compute_forward_expert_post(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->ith != 0) {
        return;
    }
    const ggml_expert_post_address address  = ggml_expert_get_address(dst);
    const selection_counts         counts(dst->src[4], dst->src[5], dst->src[6]);
    const int64_t                  n_tokens = dst->src[0]->ne[1];
    const int64_t                  n_row    = dst->src[0]->ne[0] + 2*dst->src[2]->ne[0];

    bool missing = false;
    for (int64_t t = 0; t < n_tokens; ++t) {
        missing = post_row(dst, t, counts, address.request + t*n_row) || missing;
    }
    int32_t * state = (int32_t *) dst->data;
    state[GGML_EXPERT_POST_WAITS] = missing;
    if (missing) {
        address.mailbox->layer    = ggml_get_op_params_i32(dst, GGML_EXPERT_POST_LAYER);
        address.mailbox->n_tokens = n_tokens;
        ggml_expert_mailbox_post(address.mailbox, ++state[GGML_EXPERT_POST_NUMBER]);
    }
}

void ggml_compute_forward_expert_collect(const ggml_compute_params * params, ggml_tensor * dst) {
    const int32_t * state = (const int32_t *) dst->src[1]->data;
    if (params->ith != 0 || !state[GGML_EXPERT_POST_WAITS]) {
        return;
    }
    const ggml_expert_post_address address = ggml_expert_get_address(dst);
    while (ggml_expert_mailbox_answered(address.mailbox) != (uint32_t) state[GGML_EXPERT_POST_NUMBER]) {
        std::this_thread::yield();
    }
    float * out = (float *) dst->data;
    ggml_vec_add_f32(ggml_nelements(dst), out, out, address.answer);
}

namespace {

// selection of an expert that the host computes: token*n_used + k
struct miss {
    int32_t expert;
    int32_t selection;
};

// a matrix of weights and how rows of numbers are multiplied with it
struct matrix {
    const ggml_tensor * t;
    ggml_vec_dot_t      vec_dot;
    ggml_type           dot_type;
    ggml_from_float_t   from_float;
    size_t              row_size; // of a row of numbers

    explicit matrix(const ggml_tensor * t) : t(t) {
        const auto * traits = ggml_get_type_traits_cpu(t->type);
        vec_dot    = traits->vec_dot;
        dot_type   = traits->vec_dot_type;
        from_float = ggml_get_type_traits_cpu(dot_type)->from_float;
        row_size   = ggml_row_size(dot_type, t->ne[0]);
    }

    float dot(int64_t expert, int64_t row, const char * x) const {
        float result;
        vec_dot(t->ne[0], &result, 0, (const char *) t->data + expert*t->nb[2] + row*t->nb[1], 0, x, 0, 1);
        return result;
    }
};

struct expert_ffn {
    const ggml_compute_params    * params;
    const ggml_tensor            * dst;
    const ggml_tensor            * step;
    const ggml_expert_host_weights w;
    const matrix                   up;
    const matrix                   gate; // that of up if there is none
    const matrix                   down;

    const int64_t n_used;
    const int64_t n_embd;
    const int64_t n_ff;
    const bool    weight_first;
    const bool    two_inputs; // gate and up want them in different types

    const ggml_expert_act act;
    const float           alpha;
    const float           limit;

    const miss  * misses;
    const int64_t n_misses;

    // work memory
    char  * x;      // rows for up: one for each token, or with weight_first for each miss
    char  * x_gate; // the same for gate
    float * h;      // [n_ff, n_misses] after the activation
    char  * h_dot;  // the same as rows for down

    static constexpr int64_t CHUNK = 16; // rows that a thread takes at a time

    expert_ffn(const ggml_compute_params * params, const ggml_tensor * dst) :
        params(params), dst(dst), step(dst->src[0]),
        w(ggml_expert_ffn_weights(dst)), up(w.up), gate(w.gate ? w.gate : w.up), down(w.down),
        n_used(ggml_get_op_params_i32(dst, GGML_EXPERT_FFN_N_USED)),
        n_embd(step->ne[0] - 2*n_used), n_ff(w.down->ne[0]),
        weight_first(ggml_get_op_params_i32(dst, GGML_EXPERT_FFN_WEIGHT_FIRST)),
        two_inputs(gate.dot_type != up.dot_type),
        act((ggml_expert_act) ggml_get_op_params_i32(dst, GGML_EXPERT_FFN_ACT)),
        alpha(ggml_get_op_params_f32(dst, GGML_EXPERT_FFN_PARAMS + 0)),
        limit(ggml_get_op_params_f32(dst, GGML_EXPERT_FFN_PARAMS + 1)),
        misses(params ? (const miss *) dst->src[1]->data + 1 : nullptr), n_misses(params ? misses[-1].expert : 0) {
        char * begin = params ? (char *) params->wdata : nullptr;
        work_size(begin, x, x_gate, h, h_dot);
    }

    // lays out the work memory from begin on; returns its size with all selections missed
    size_t work_size(char * begin, char *& x, char *& x_gate, float *& h, char *& h_dot) const {
        const int64_t n_most = n_used*step->ne[1];
        const int64_t n_rows = weight_first ? n_most : step->ne[1];

        size_t used = 0;
        const auto take = [&](size_t size) {
            char * result = begin + used;
            used += GGML_PAD(size, 64); // cache line
            return result;
        };
        x      = take(n_rows*up.row_size);
        x_gate = two_inputs ? take(n_rows*gate.row_size) : x;
        h      = (float *) take(n_most*n_ff*sizeof(float));
        h_dot  = take(n_most*down.row_size);
        return used;
    }

    // share of this thread in n things
    std::pair<int64_t, int64_t> share(int64_t n) const {
        return { n*params->ith/params->nth, n*(params->ith + 1)/params->nth };
    }

    const float * input(int64_t token) const {
        return (const float *) ((const char *) step->data + token*step->nb[1]);
    }

    float weight(const miss & m) const {
        return input(m.selection/n_used)[n_embd + m.selection%n_used];
    }

    int64_t input_row(int64_t i) const {
        return weight_first ? i : misses[i].selection/n_used;
    }

    // calls f with chunks of n rows until all threads together have done all of them
    template <typename F>
    void chunks(int64_t n, const F & f) const {
        for (int64_t i = params->ith; i*CHUNK < n; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            f(i*CHUNK, std::min((i + 1)*CHUNK, n));
        }
    }

    // all threads wait for each other; those that are done first take the first chunks of what follows
    void barrier() const {
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
    }

    // rows of numbers to what the products want, in pieces of blocks, which are independent
    void convert(const matrix & m, const float * from, char * to) const {
        const int64_t block = ggml_blck_size(m.dot_type);
        const auto [begin, end] = share(m.t->ne[0]/block);
        if (begin < end) {
            m.from_float(from + begin*block, to + begin*ggml_type_size(m.dot_type), (end - begin)*block);
        }
    }

    void convert_weighted() const {
        for (int64_t i = 0; i < n_misses; ++i) {
            const float * from   = input(misses[i].selection/n_used);
            const float   factor = weight(misses[i]);

            // a thread scales what it converts
            scale_and_convert(up, from, factor, x + i*up.row_size);
            if (two_inputs) {
                scale_and_convert(gate, from, factor, x_gate + i*gate.row_size);
            }
        }
    }

    void scale_and_convert(const matrix & m, const float * from, float factor, char * to) const {
        constexpr int64_t most = 256; // the longest block
        const int64_t block = ggml_blck_size(m.dot_type);
        GGML_ASSERT(block <= most);

        const auto [begin, end] = share(m.t->ne[0]/block);
        for (int64_t b = begin; b < end; ++b) {
            float scaled[most];
            for (int64_t j = 0; j < block; ++j) {
                scaled[j] = from[b*block + j]*factor;
            }
            m.from_float(scaled, to + b*ggml_type_size(m.dot_type), block);
        }
    }

    void convert_inputs() const {
        if (weight_first) {
            convert_weighted();
            return;
        }
        for (int64_t t = 0; t < step->ne[1]; ++t) {
            convert(up, input(t), x + t*up.row_size);
            if (two_inputs) {
                convert(gate, input(t), x_gate + t*gate.row_size);
            }
        }
    }

    enum product { GATE, UP, DOWN }; // rows of scales

    // a product with its scale and bias; row counts in the tensor of the bias
    float finish(float value, product p, const ggml_tensor * bias, int64_t expert, int64_t row) const {
        if (w.scales) {
            value *= ((const float *) w.scales->data)[p*w.scales->ne[0] + expert];
        }
        if (bias) {
            value += ((const float *) bias->data)[expert*bias->ne[0] + row];
        }
        return value;
    }

    float activate(float g, float u) const {
        switch (act) {
            case GGML_EXPERT_ACT_SILU:       return ggml_silu_f32(g)*u;
            case GGML_EXPERT_ACT_GELU:       return ggml_gelu_f32(g)*u;
            case GGML_EXPERT_ACT_RELU:       return std::max(g, 0.0f)*u;
            case GGML_EXPERT_ACT_RELU_SQR:   return std::max(g, 0.0f)*std::max(g, 0.0f)*u;
            case GGML_EXPERT_ACT_SILU_CLAMP: return ggml_silu_f32(std::min(g, limit))*std::clamp(u, -limit, limit);
            case GGML_EXPERT_ACT_CLAMP_SILU: return std::min(ggml_silu_f32(g), limit)*std::clamp(u, -limit, limit);
            case GGML_EXPERT_ACT_SWIGLU_OAI:
                {
                    const float x = std::min(g, limit);
                    return x/(1.0f + std::exp(-alpha*x))*(std::clamp(u, -limit, limit) + 1.0f);
                }
        }
        GGML_ABORT("unknown activation");
    }

    // rows begin to end - 1 of gate and up of an expert, for its misses first to last - 1
    void hidden(int64_t first, int64_t last, int64_t begin, int64_t end) const {
        const int64_t expert = misses[first].expert;
        for (int64_t r = begin; r < end; ++r) {
            for (int64_t i = first; i < last; ++i) {
                const char * x_up = x + input_row(i)*up.row_size;

                float g;
                float u = 1.0f;
                if (w.gate_up) {
                    g = finish(up.dot(expert, r,        x_up), UP, w.up_b, expert, r);
                    u = finish(up.dot(expert, r + n_ff, x_up), UP, w.up_b, expert, r + n_ff);
                } else if (w.gate) {
                    g = finish(gate.dot(expert, r, x_gate + input_row(i)*gate.row_size), GATE, w.gate_b, expert, r);
                    u = finish(up.dot(expert, r, x_up), UP, w.up_b, expert, r);
                } else {
                    g = finish(up.dot(expert, r, x_up), UP, w.up_b, expert, r);
                }
                h[i*n_ff + r] = activate(g, u);
            }
        }
    }

    // rows of all missed experts one after the other, so that the threads share them evenly
    void compute_hidden() const {
        const int64_t n_chunks = (n_ff + CHUNK - 1)/CHUNK; // of an expert

        int64_t first     = 0;
        int64_t last      = same_expert(0);
        int64_t n_experts = 0; // before first
        int64_t c         = params->ith;
        while (first < n_misses) {
            if (c >= (n_experts + 1)*n_chunks) {
                first = last;
                last  = same_expert(first);
                n_experts++;
                continue;
            }
            const int64_t begin = (c - n_experts*n_chunks)*CHUNK;
            hidden(first, last, begin, std::min(begin + CHUNK, n_ff));
            c = ggml_threadpool_chunk_add(params->threadpool, 1);
        }
    }

    // behind the last miss with the expert of first
    int64_t same_expert(int64_t first) const {
        int64_t last = first;
        while (last < n_misses && misses[last].expert == misses[first].expert) {
            last++;
        }
        return last;
    }

    void compute_output() const {
        chunks(w.down->ne[1], [this](int64_t begin, int64_t end) {
            const auto row = [this](int64_t token) { return (float *) ((char *) dst->data + token*dst->nb[1]); };
            for (int64_t t = 0; t < step->ne[1]; ++t) {
                std::fill(row(t) + begin, row(t) + end, -0.0f);
            }
            for (int64_t i = 0; i < n_misses; ++i) {
                const int64_t expert = misses[i].expert;
                const float   factor = weight_first ? 1.0f : weight(misses[i]);
                float       * out    = row(misses[i].selection/n_used);
                for (int64_t r = begin; r < end; ++r) {
                    out[r] += factor*finish(down.dot(expert, r, h_dot + i*down.row_size), DOWN, w.down_b, expert, r);
                }
            }
        });
    }

    void compute() const {
        if (n_misses == 0) {
            const auto [begin, end] = share(ggml_nelements(dst));
            std::fill((float *) dst->data + begin, (float *) dst->data + end, -0.0f);
            return;
        }
        convert_inputs();
        barrier();
        compute_hidden();
        ggml_barrier(params->threadpool);
        for (int64_t i = 0; i < n_misses; ++i) {
            convert(down, h + i*n_ff, h_dot + i*down.row_size);
        }
        barrier();
        compute_output();
    }
};

} // namespace

size_t ggml_expert_ffn_work_size(const ggml_tensor * dst) {
    char  * x;
    float * h;
    return expert_ffn(nullptr, dst).work_size(nullptr, x, x, h, x);
}

void ggml_compute_forward_expert_ffn(const ggml_compute_params * params, ggml_tensor * dst) {
    expert_ffn(params, dst).compute();
}
