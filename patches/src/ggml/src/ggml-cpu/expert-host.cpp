#include "expert-host.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-expert-host-impl.h"
#include "vec.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

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

void ggml_backend_cpu_expert_misses(ggml_tensor * dst) {
    const ggml_tensor * step   = dst->src[0];
    const selection_counts counts(dst->src[1], dst->src[2], dst->src[3]);
    const int64_t       n_used = ggml_get_op_params_i32(dst, 0);
    const int64_t       n      = n_used*step->ne[1];

    auto *  head   = (ggml_expert_misses_head *) dst->data;
    auto *  list   = (std::pair<int32_t, int32_t> *) (head + 1);
    int32_t n_miss = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float * ids = (const float *) ((const char *) step->data + (i/n_used)*step->nb[1]) + step->ne[0] - n_used;
        const int32_t id  = counts.add((int32_t) ids[i%n_used]);
        if (id >= 0) {
            list[n_miss++] = { id, i };
        }
    }
    std::sort(list, list + n_miss); // the selections of an expert follow each other
    *head   = {};
    head->n = n_miss;
}

void ggml_compute_forward_expert_misses(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->ith == 0) {
        ggml_backend_cpu_expert_misses(dst);
    }
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
    const ggml_expert_host_thread * thread; // null if nothing is computed
    const ggml_tensor             * dst;
    const ggml_tensor             * step;
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

    ggml_expert_misses_head * head;
    const miss              * misses;
    const int64_t             n_misses;

    // work memory; each thread converts for itself, which is less than to wait for the others
    float * h;      // [n_ff, n_misses] after the activation, of all threads
    char  * x;      // rows for up: one for each token, or with weight_first for each miss
    char  * x_gate; // the same for gate
    char  * h_dot;  // h as rows for down

    // rows that a thread takes at a time: few, so that all are done at about the same time
    static constexpr int64_t CHUNK_HIDDEN = 8;
    static constexpr int64_t CHUNK_OUTPUT = 16; // a cache line, to which is added for each miss

    expert_ffn(const ggml_expert_host_thread * thread, const ggml_tensor * dst) :
        thread(thread), dst(dst), step(dst->src[0]),
        w(ggml_expert_ffn_weights(dst)), up(w.up), gate(w.gate ? w.gate : w.up), down(w.down),
        n_used(ggml_get_op_params_i32(dst, GGML_EXPERT_FFN_N_USED)),
        n_embd(step->ne[0] - 2*n_used), n_ff(w.down->ne[0]),
        weight_first(ggml_get_op_params_i32(dst, GGML_EXPERT_FFN_WEIGHT_FIRST)),
        two_inputs(gate.dot_type != up.dot_type),
        act((ggml_expert_act) ggml_get_op_params_i32(dst, GGML_EXPERT_FFN_ACT)),
        alpha(ggml_get_op_params_f32(dst, GGML_EXPERT_FFN_PARAMS + 0)),
        limit(ggml_get_op_params_f32(dst, GGML_EXPERT_FFN_PARAMS + 1)),
        head((ggml_expert_misses_head *) dst->src[1]->data), misses((const miss *) (head + 1)), n_misses(thread ? head->n : 0) {
        if (thread) {
            lay_out((char *) thread->work, thread->ith);
        }
    }

    // lays out the work memory of a thread from begin on; returns the size up to its end with all selections missed
    size_t lay_out(char * begin, int64_t ith) {
        const int64_t n_most = n_used*step->ne[1];
        const int64_t n_rows = weight_first ? n_most : step->ne[1];

        size_t used = 0;
        const auto take = [&](size_t size) {
            char * result = begin ? begin + used : nullptr;
            used += GGML_PAD(size, 64); // cache line
            return result;
        };
        h = (float *) take(n_most*n_ff*sizeof(float));
        for (int64_t i = 0; i <= ith; ++i) {
            x      = take(n_rows*up.row_size);
            x_gate = two_inputs ? take(n_rows*gate.row_size) : x;
            h_dot  = take(n_most*down.row_size);
        }
        return used;
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

    // row of numbers to what the products want
    static void convert(const matrix & m, const float * from, char * to) {
        m.from_float(from, to, m.t->ne[0]);
    }

    void convert_weighted() const {
        std::vector<float> scaled(n_embd);
        for (int64_t i = 0; i < n_misses; ++i) {
            const float * from   = input(misses[i].selection/n_used);
            const float   factor = weight(misses[i]);
            std::transform(from, from + n_embd, scaled.begin(), [factor](float v) { return v*factor; });
            convert_input(scaled.data(), i);
        }
    }

    void convert_input(const float * from, int64_t row) const {
        convert(up, from, x + row*up.row_size);
        if (two_inputs) {
            convert(gate, from, x_gate + row*gate.row_size);
        }
    }

    void convert_inputs() const {
        if (weight_first) {
            convert_weighted();
            return;
        }
        for (int64_t t = 0; t < step->ne[1]; ++t) {
            convert_input(input(t), t);
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

    static int64_t n_chunks(int64_t n_rows, int64_t n_each) {
        return (n_rows + n_each - 1)/n_each;
    }

    // Calls f with the numbers below n that no other thread has, ascending, after prepare if there are any; then waits for the
    // others. A thread that comes too late takes nothing and keeps nobody waiting.
    template <typename P, typename F>
    void each(int part, int64_t n, const P & prepare, const F & f) const {
        auto & taken = reinterpret_cast<std::atomic<int32_t> &>(head->taken[part]);
        auto & done  = reinterpret_cast<std::atomic<int32_t> &>(head->done[part]);

        int64_t c = taken++;
        if (c < n) {
            prepare();
            int32_t n_done = 0;
            for (; c < n; c = taken++) {
                f(c);
                n_done++;
            }
            done += n_done;
        }
        for (int i = 0; done < n; ++i) {
            if (i > 1000) {
                std::this_thread::yield();
            }
        }
    }

    // chunks of rows of all missed experts one after the other, so that the threads share them evenly
    void compute_hidden() const {
        const int64_t n_each = n_chunks(n_ff, CHUNK_HIDDEN);

        int64_t n_experts = 0;
        for (int64_t i = 0; i < n_misses; i = same_expert(i)) {
            n_experts++;
        }
        int64_t first  = 0;
        int64_t last   = same_expert(0);
        int64_t before = 0; // chunks of experts before
        each(0, n_experts*n_each, [this]() { convert_inputs(); }, [&](int64_t c) {
            for (; c >= before + n_each; before += n_each) {
                first = last;
                last  = same_expert(first);
            }
            const int64_t begin = (c - before)*CHUNK_HIDDEN;
            hidden(first, last, begin, std::min(begin + CHUNK_HIDDEN, n_ff));
        });
    }

    // behind the last miss with the expert of first
    int64_t same_expert(int64_t first) const {
        int64_t last = first;
        while (last < n_misses && misses[last].expert == misses[first].expert) {
            last++;
        }
        return last;
    }

    void convert_hidden() const {
        for (int64_t i = 0; i < n_misses; ++i) {
            convert(down, h + i*n_ff, h_dot + i*down.row_size);
        }
    }

    void compute_output() const {
        const int64_t n = w.down->ne[1];
        each(1, n_chunks(n, CHUNK_OUTPUT), [this]() { convert_hidden(); }, [this, n](int64_t c) {
            output(c*CHUNK_OUTPUT, std::min((c + 1)*CHUNK_OUTPUT, n));
        });
    }

    // rows begin to end - 1 of the sums of all missed experts
    void output(int64_t begin, int64_t end) const {
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
    }
};

} // namespace

size_t ggml_backend_cpu_expert_ffn_work_size(const ggml_tensor * ffn, int nth) {
    return expert_ffn(nullptr, ffn).lay_out(nullptr, nth - 1);
}

void ggml_backend_cpu_expert_ffn(ggml_tensor * ffn, const ggml_expert_host_thread * thread) {
    const expert_ffn computed(thread, ffn);
    computed.compute_hidden();
    computed.compute_output();
}

void ggml_compute_forward_expert_ffn(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_expert_host_thread thread = {
        /*.ith  =*/ params->ith,
        /*.work =*/ params->wdata,
    };
    ggml_backend_cpu_expert_ffn(dst, &thread);
}
