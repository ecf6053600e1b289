// Checks GGML_OP_EXPERT_MISSES and GGML_OP_EXPERT_FFN on the CPU against sums in double precision, for every type of
// weights, activation and arrangement, in a graph and in threads that are not ggml's; then GGML_OP_EXPERT_POST and
// GGML_OP_EXPERT_COLLECT on a back end, with a thread that answers. Prints a line for each type and one for the mailbox; exits
// with 1 if a result is off.
//
//   --backend NAME   the mailbox of this back end only

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-expert-cache.h"
#include "ggml-expert-host.h"

#include "../src/llama-expert-team.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int64_t N_EXPERT = 5;
constexpr int64_t N_USED   = 3;
constexpr int64_t N_EMBD   = 256;
constexpr int64_t N_FF     = 256;

struct arrangement {
    const char    * name;
    ggml_expert_act act;
    bool            gate;
    bool            gate_up;
    bool            biases;
    bool            scales;
    bool            weight_first;
};

const arrangement ARRANGEMENTS[] = {
    { "silu",         GGML_EXPERT_ACT_SILU,       true,  false, false, false, false },
    { "gelu",         GGML_EXPERT_ACT_GELU,       true,  false, false, false, false },
    { "relu",         GGML_EXPERT_ACT_RELU,       true,  false, false, false, false },
    { "silu_clamp",   GGML_EXPERT_ACT_SILU_CLAMP, true,  false, false, false, false },
    { "clamp_silu",   GGML_EXPERT_ACT_CLAMP_SILU, true,  false, false, false, false },
    { "oai biases",   GGML_EXPERT_ACT_SWIGLU_OAI, true,  false, true,  false, false },
    { "silu scales",  GGML_EXPERT_ACT_SILU,       true,  false, false, true,  false },
    { "both",         GGML_EXPERT_ACT_SILU,       true,  false, true,  true,  false },
    { "gate_up",      GGML_EXPERT_ACT_SILU,       false, true,  false, false, false },
    { "gate_up bias", GGML_EXPERT_ACT_SILU,       false, true,  true,  false, false },
    { "no gate",      GGML_EXPERT_ACT_RELU_SQR,   false, false, false, false, false },
    { "weight first", GGML_EXPERT_ACT_SILU,       true,  false, false, false, true  },
};

constexpr float ALPHA = 1.702f;
constexpr float LIMIT = 0.7f;

double silu(double x) { return x/(1.0 + std::exp(-x)); }

double clamped(double x) { return std::min<double>(std::max<double>(x, -LIMIT), LIMIT); }

double activate(ggml_expert_act act, double g, double u) {
    switch (act) {
        case GGML_EXPERT_ACT_SILU:       return silu(g)*u;
        case GGML_EXPERT_ACT_GELU:       return 0.5*g*(1.0 + std::tanh(0.79788456080286535588*g*(1.0 + 0.044715*g*g)))*u;
        case GGML_EXPERT_ACT_RELU:       return std::max(g, 0.0)*u;
        case GGML_EXPERT_ACT_RELU_SQR:   return std::max(g, 0.0)*std::max(g, 0.0)*u;
        case GGML_EXPERT_ACT_SILU_CLAMP: return silu(std::min<double>(g, LIMIT))*clamped(u);
        case GGML_EXPERT_ACT_CLAMP_SILU: return std::min<double>(silu(g), LIMIT)*clamped(u);
        case GGML_EXPERT_ACT_SWIGLU_OAI:
            {
                const double x = std::min<double>(g, LIMIT);
                return x/(1.0 + std::exp(-ALPHA*x))*(clamped(u) + 1.0);
            }
    }
    return 0.0;
}

// a tensor with random values, and these as numbers after the rounding of its type
struct data {
    ggml_tensor      * t = nullptr;
    std::vector<float> values;

    const float * row(int64_t i) const { return values.data() + i*t->ne[0]; }
};

struct model {
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;

    data gate, up, down, gate_b, up_b, down_b, scales, step;
    ggml_expert_host_state state;
};

std::mt19937 rng(1);

void fill(data & d, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);

    const int64_t n = ggml_nelements(d.t);
    std::vector<float> random(n);
    std::generate(random.begin(), random.end(), [&]() { return normal(rng); });

    d.values = random;
    if (d.t->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(d.t, random.data(), 0, ggml_nbytes(d.t));
        return;
    }
    std::vector<char>  bytes(ggml_nbytes(d.t));
    std::vector<float> importance(d.t->ne[0], 1.0f);
    ggml_quantize_chunk(d.t->type, random.data(), bytes.data(), 0, n/d.t->ne[0], d.t->ne[0], importance.data());
    ggml_backend_tensor_set(d.t, bytes.data(), 0, bytes.size());
    ggml_get_type_traits(d.t->type)->to_float(bytes.data(), d.values.data(), n);
}

model make(const arrangement & a, ggml_type type, ggml_type type_up, int64_t n_tokens) {
    model m;
    m.ctx.reset(ggml_init({ 32*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }));
    ggml_context * ctx = m.ctx.get();

    const int64_t n_up = a.gate_up ? 2*N_FF : N_FF;

    m.up.t   = ggml_new_tensor_3d(ctx, type_up, N_EMBD, n_up, N_EXPERT);
    m.down.t = ggml_new_tensor_3d(ctx, type, N_FF, N_EMBD, N_EXPERT);
    m.step.t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_EMBD + 2*N_USED, n_tokens);
    if (a.gate) {
        m.gate.t = ggml_new_tensor_3d(ctx, type, N_EMBD, N_FF, N_EXPERT);
    }
    if (a.biases) {
        m.up_b.t   = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_up, N_EXPERT);
        m.down_b.t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_EMBD, N_EXPERT);
        m.gate_b.t = a.gate ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_FF, N_EXPERT) : nullptr;
    }
    if (a.scales) {
        m.scales.t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_EXPERT, 3);
    }
    m.state = ggml_new_expert_host_state(ctx, N_EXPERT);
    m.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_buffer_type()));

    for (data * d : { &m.gate, &m.up, &m.down }) {
        if (d->t) {
            fill(*d, 1.0f/std::sqrt((float) d->t->ne[0]));
        }
    }
    for (data * d : { &m.gate_b, &m.up_b, &m.down_b, &m.scales, &m.step }) {
        if (d->t) {
            fill(*d, 1.0f);
        }
    }
    return m;
}

// scale: row of the scales
double product(const model & m, const data & w, int scale, const data & bias, int64_t expert, int64_t row, const std::vector<double> & x) {
    const float * values = w.row(expert*w.t->ne[1] + row);
    double sum = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        sum += values[i]*x[i];
    }
    if (m.scales.t) {
        sum *= m.scales.row(scale)[expert];
    }
    return bias.t ? sum + bias.row(expert)[row] : sum;
}

// what a selection contributes
std::vector<double> contribution(const model & m, const arrangement & a, int64_t expert, const float * input, double weight) {
    std::vector<double> x(input, input + N_EMBD);
    if (a.weight_first) {
        for (double & value : x) { value *= weight; }
    }
    std::vector<double> h(N_FF);
    for (int64_t r = 0; r < N_FF; ++r) {
        const double u = product(m, m.up, 1, m.up_b, expert, a.gate_up ? r + N_FF : r, x);
        if (a.gate || a.gate_up) {
            h[r] = activate(a.act, a.gate ? product(m, m.gate, 0, m.gate_b, expert, r, x) : product(m, m.up, 1, m.up_b, expert, r, x), u);
        } else {
            h[r] = activate(a.act, u, 1.0);
        }
    }
    std::vector<double> result(N_EMBD);
    for (int64_t r = 0; r < N_EMBD; ++r) {
        result[r] = (a.weight_first ? 1.0 : weight)*product(m, m.down, 2, m.down_b, expert, r, h);
    }
    return result;
}

// which experts are in slots, and which each token selects
struct routing {
    std::vector<int32_t> table;
    std::vector<int32_t> ids;

    int64_t n_hits() const {
        return std::count_if(ids.begin(), ids.end(), [this](int32_t e) { return table[e] >= 0; });
    }
};

routing route(int64_t n_tokens, int32_t n_slots, model & m) {
    routing r;
    r.table.assign(N_EXPERT, -1);
    for (int32_t s = 0; s < n_slots; ++s) {
        r.table[(3*s + 1)%N_EXPERT] = s; // 3 and N_EXPERT have no common divisor
    }
    for (int64_t t = 0; t < n_tokens; ++t) {
        std::vector<int32_t> order(N_EXPERT);
        for (int32_t e = 0; e < N_EXPERT; ++e) { order[e] = e; }
        std::shuffle(order.begin(), order.end(), rng);
        for (int64_t k = 0; k < N_USED; ++k) {
            r.ids.push_back(order[k]);
            m.step.values[t*m.step.t->ne[0] + N_EMBD + N_USED + k] = order[k];
        }
    }
    ggml_backend_tensor_set(m.step.t, m.step.values.data(), 0, ggml_nbytes(m.step.t));
    ggml_backend_tensor_set(m.state.table, r.table.data(), 0, ggml_nbytes(m.state.table));
    ggml_backend_tensor_memset(m.state.uses, 0, 0, ggml_nbytes(m.state.uses));
    ggml_backend_tensor_memset(m.state.counters, 0, 0, ggml_nbytes(m.state.counters));
    return r;
}

template <typename T>
T cpu_function(ggml_backend_t backend, const char * name) {
    return (T) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(ggml_backend_get_device(backend)), name);
}

// Without a graph; some of the threads sleep, come late or not at all. Of several runs the result of the first that is not
// what is expected stays.
void compute_in_team(ggml_backend_t backend, ggml_tensor * out, const std::vector<float> & expected) {
    static llama_expert_team team(5);

    const auto list = cpu_function<ggml_backend_cpu_expert_misses_t>       (backend, "ggml_backend_cpu_expert_misses");
    const auto ffn  = cpu_function<ggml_backend_cpu_expert_ffn_t>          (backend, "ggml_backend_cpu_expert_ffn");
    const auto size = cpu_function<ggml_backend_cpu_expert_ffn_work_size_t>(backend, "ggml_backend_cpu_expert_ffn_work_size");

    std::vector<char> work(size(out, team.size()) + 64);
    void * begin = (void *) GGML_PAD((uintptr_t) work.data(), 64);
    for (int i = 0; i < 6; ++i) {
        if (i == 3) {
            std::this_thread::sleep_for(2*llama_expert_team::EAGER);
        }
        ggml_backend_tensor_memset(out, 0xff, 0, ggml_nbytes(out));
        list(out->src[1]);
        team.run([&](int32_t ith) {
            const ggml_expert_host_thread thread = { ith, begin };
            ffn(out, &thread);
        });
        if (memcmp(out->data, expected.data(), ggml_nbytes(out)) != 0) {
            return;
        }
    }
}

// n_threads: 0 = in a team
std::vector<float> compute(ggml_backend_t backend, const model & m, const arrangement & a, int n_threads, const std::vector<float> & expected = {}) {
    ggml_context_ptr ctx { ggml_init({ 8*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };

    const ggml_expert_host_weights weights = { m.gate.t, m.up.t, m.down.t, m.gate_b.t, m.up_b.t, m.down_b.t, m.scales.t, a.gate_up };
    const float params[2] = { ALPHA, LIMIT };

    ggml_tensor * misses = ggml_expert_misses(ctx.get(), m.step.t, N_USED, &m.state);
    ggml_tensor * out    = ggml_expert_ffn(ctx.get(), m.step.t, misses, N_USED, &weights, a.act, params, a.weight_first);
    ggml_cgraph * gf     = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, out);

    ggml_backend_buffer_ptr buffer { ggml_backend_alloc_ctx_tensors(ctx.get(), backend) };
    if (n_threads > 0) {
        ggml_backend_cpu_set_n_threads(backend, n_threads);
        GGML_ASSERT(ggml_backend_graph_compute(backend, gf) == GGML_STATUS_SUCCESS);
    } else {
        compute_in_team(backend, out, expected);
    }

    std::vector<float> result(ggml_nelements(out));
    ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
    return result;
}

bool counted(const model & m, const routing & r) {
    const auto * counters = (const int64_t *) m.state.counters->data;
    const auto * uses     = (const int32_t *) m.state.uses->data;
    bool ok = counters[GGML_EXPERT_HOST_HITS] == r.n_hits() && counters[GGML_EXPERT_HOST_MISSES] == (int64_t) r.ids.size() - r.n_hits();
    for (int32_t e = 0; e < N_EXPERT; ++e) {
        ok = ok && uses[e] == std::count(r.ids.begin(), r.ids.end(), e);
    }
    return ok;
}

// normalised mean squared error
double error(const model & m, const arrangement & a, const routing & r, const std::vector<float> & out, int64_t n_tokens) {
    double off = 0.0;
    double all = 0.0;
    for (int64_t t = 0; t < n_tokens; ++t) {
        std::vector<double> expected(N_EMBD, 0.0);
        for (int64_t k = 0; k < N_USED; ++k) {
            const int32_t e = r.ids[t*N_USED + k];
            if (r.table[e] < 0) {
                const auto part = contribution(m, a, e, m.step.row(t), m.step.row(t)[N_EMBD + k]);
                for (int64_t i = 0; i < N_EMBD; ++i) { expected[i] += part[i]; }
            }
        }
        for (int64_t i = 0; i < N_EMBD; ++i) {
            off += std::pow(out[t*N_EMBD + i] - expected[i], 2);
            all += std::pow(expected[i], 2);
        }
    }
    return all > 0.0 ? off/all : off;
}

bool check(ggml_backend_t backend, const arrangement & a, ggml_type type, ggml_type type_up, int64_t n_tokens, int32_t n_slots) {
    model         m = make(a, type, type_up, n_tokens);
    const routing r = route(n_tokens, n_slots, m);

    const auto   out = compute(backend, m, a, 1);
    const bool   ok  = counted(m, r);
    const double off = error(m, a, r, out, n_tokens);

    const auto two  = compute(backend, m, a, 2);
    const auto team = compute(backend, m, a, 0, out);
    const bool same  = memcmp(out.data(), two .data(), out.size()*sizeof(out[0])) == 0;
    const bool alike = memcmp(out.data(), team.data(), out.size()*sizeof(out[0])) == 0;
    const bool none  = n_slots < N_EXPERT || std::all_of(out.begin(), out.end(), [](float x) { return x == 0.0f && std::signbit(x); });
    if (ok && same && alike && none && off < 1e-3) {
        return true;
    }
    printf("%s, %s of %s and %s, %d tokens, %d slots: error %g%s%s%s%s\n", a.name, "experts", ggml_type_name(type), ggml_type_name(type_up),
        (int) n_tokens, n_slots, off, ok ? "" : ", wrong counts", same ? "" : ", other bits with 2 threads", alike ? "" : ", other bits in a team", none ? "" : ", not -0.0");
    return false;
}

//
// mailbox
//

// Answers requests with the sum of weight*(id + 1) over the selections without a slot, in each element of a token's row.
class answering {
public:
    explicit answering(const ggml_expert_post_address & host) : host(host), thread([this]() { run(); }) {}

    ~answering() {
        done = true;
        thread.join();
    }

    std::vector<int32_t> layers; // of the requests; to be read when the device is idle

private:
    void run() {
        while (!done) {
            const uint32_t posted = ggml_expert_mailbox_posted(host.mailbox);
            if (posted == host.mailbox->answered) {
                std::this_thread::yield();
                continue;
            }
            layers.push_back(host.mailbox->layer);
            for (int32_t t = 0; t < host.mailbox->n_tokens; ++t) {
                answer(host.request + t*(N_EMBD + 2*N_USED), host.answer + t*N_EMBD);
            }
            ggml_expert_mailbox_answer(host.mailbox, posted);
        }
    }

    static void answer(const float * row, float * out) {
        for (int64_t i = 0; i < N_EMBD; ++i) {
            out[i] = row[i];
            for (int64_t k = 0; k < N_USED; ++k) {
                const float id = row[N_EMBD + N_USED + k];
                out[i] += id >= 0.0f ? row[N_EMBD + k]*(id + 1.0f) : 0.0f;
            }
        }
    }

    ggml_expert_post_address host;
    std::atomic<bool>        done = false;
    std::thread              thread;
};

// memory of a mailbox that the device of a back end can write
struct mailbox_memory {
    ggml_backend_buffer_ptr  buffer;
    ggml_expert_post_address host;
    ggml_expert_post_address device;

    mailbox_memory(ggml_backend_t backend, int64_t n_tokens) {
        ggml_backend_dev_t dev     = ggml_backend_get_device(backend);
        const size_t       header  = sizeof(ggml_expert_mailbox)/sizeof(float);
        const size_t       request = n_tokens*(N_EMBD + 2*N_USED);
        const auto         buft    = ggml_backend_dev_host_buffer_type(dev) ? ggml_backend_dev_host_buffer_type(dev) : ggml_backend_cpu_buffer_type();
        buffer.reset(ggml_backend_buft_alloc_buffer(buft, (header + request + n_tokens*N_EMBD)*sizeof(float)));

        void * base = ggml_backend_buffer_get_base(buffer.get());
        memset(base, 0, ggml_backend_buffer_get_size(buffer.get()));
        const auto map = (ggml_backend_expert_store_map_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_expert_store_map");
        void * mapped = map ? map(base, ggml_backend_buffer_get_size(buffer.get())) : base;

        for (auto & [address, begin] : { std::make_pair(&host, (float *) base), std::make_pair(&device, (float *) mapped) }) {
            *address = { (ggml_expert_mailbox *) begin, begin + header, begin + header + request };
        }
    }
};

// two layers in one graph, several times: with a table that counts, or with ids that tell
bool check_mailbox(ggml_backend_t backend, bool with_table, int64_t n_tokens, int32_t n_slots) {
    constexpr int n_layers = 2;
    constexpr int n_rounds = 3;

    const mailbox_memory memory(backend, n_tokens);
    answering            thread(memory.host);

    ggml_context_ptr ctx { ggml_init({ 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_tensor * x     = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, N_EMBD, n_tokens);
    ggml_tensor * w     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 1, N_USED, n_tokens);
    ggml_tensor * wide  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, N_USED + 2, n_tokens); // as in the router's top-k
    ggml_tensor * ids   = ggml_view_2d(ctx.get(), wide, N_USED, n_tokens, wide->nb[1], 0);
    ggml_tensor * state = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, GGML_EXPERT_POST_N_STATE);
    ggml_tensor * out   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, N_EMBD, n_tokens);
    const auto    host  = ggml_new_expert_host_state(ctx.get(), N_EXPERT);

    ggml_cgraph * gf   = ggml_new_graph(ctx.get());
    ggml_tensor * last = out;
    for (int il = 0; il < n_layers; ++il) {
        ggml_tensor * posted = ggml_expert_post(ctx.get(), x, w, ids, with_table ? &host : nullptr, state, &memory.device, 7 + il);
        ggml_build_forward_expand(gf, posted);
        last = ggml_expert_collect(ctx.get(), last, posted, &memory.device);
        ggml_build_forward_expand(gf, last);
    }
    ggml_backend_buffer_ptr buffer { ggml_backend_alloc_ctx_tensors(ctx.get(), backend) };

    std::vector<int32_t> table(N_EXPERT, -1);
    for (int32_t s = 0; s < n_slots; ++s) {
        table[(3*s + 1)%N_EXPERT] = s;
    }
    std::normal_distribution<float> normal;
    std::vector<float>   xs(N_EMBD*n_tokens);
    std::vector<float>   ws(N_USED*n_tokens);
    std::vector<int32_t> selected((N_USED + 2)*n_tokens);
    std::generate(xs.begin(), xs.end(), [&]() { return normal(rng); });
    std::generate(ws.begin(), ws.end(), [&]() { return normal(rng); });
    std::vector<float> expected(xs.size(), 0.0f);
    int64_t n_misses = 0;
    for (int64_t t = 0; t < n_tokens; ++t) {
        float sum = 0.0f;
        for (int64_t k = 0; k < N_USED; ++k) {
            const int32_t e = (t + 2*k)%N_EXPERT;
            selected[t*(N_USED + 2) + k] = with_table || table[e] < 0 ? e : -1 - e;
            n_misses += table[e] < 0;
            sum      += table[e] < 0 ? ws[t*N_USED + k]*(e + 1.0f) : 0.0f;
        }
        for (int64_t i = 0; i < N_EMBD; ++i) {
            expected[t*N_EMBD + i] = n_layers*(xs[t*N_EMBD + i] + sum);
        }
    }
    if (n_misses == 0) {
        std::fill(expected.begin(), expected.end(), 0.0f);
    }
    ggml_backend_tensor_set(x,          xs.data(),       0, ggml_nbytes(x));
    ggml_backend_tensor_set(w,          ws.data(),       0, ggml_nbytes(w));
    ggml_backend_tensor_set(wide,       selected.data(), 0, ggml_nbytes(wide));
    ggml_backend_tensor_set(host.table, table.data(),    0, ggml_nbytes(host.table));
    for (ggml_tensor * t : { state, host.uses, host.counters }) {
        ggml_backend_tensor_memset(t, 0, 0, ggml_nbytes(t));
    }

    bool ok = true;
    for (int r = 0; r < n_rounds; ++r) {
        ggml_backend_tensor_memset(out, 0, 0, ggml_nbytes(out));
        GGML_ASSERT(ggml_backend_graph_compute(backend, gf) == GGML_STATUS_SUCCESS);

        std::vector<float> result(expected.size());
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
        for (size_t i = 0; i < result.size(); ++i) {
            ok = ok && std::abs(result[i] - expected[i]) < 1e-4f;
        }
    }
    int64_t counters[GGML_EXPERT_HOST_N_COUNTERS];
    ggml_backend_tensor_get(host.counters, counters, 0, sizeof(counters));
    std::vector<int32_t> uses(N_EXPERT);
    ggml_backend_tensor_get(host.uses, uses.data(), 0, ggml_nbytes(host.uses));
    const int64_t n_counted = with_table ? n_rounds*n_layers : 0;
    ok = ok && counters[GGML_EXPERT_HOST_MISSES] == n_counted*n_misses && counters[GGML_EXPERT_HOST_HITS] == n_counted*(N_USED*n_tokens - n_misses);
    ok = ok && std::accumulate(uses.begin(), uses.end(), int64_t(0)) == n_counted*N_USED*n_tokens;
    ok = ok && thread.layers.size() == (n_misses > 0 ? n_rounds*n_layers : 0);
    for (size_t i = 0; i < thread.layers.size(); ++i) {
        ok = ok && thread.layers[i] == 7 + (int32_t) i%n_layers;
    }
    if (!ok) {
        printf("mailbox, %s, %d tokens, %d slots: failed\n", with_table ? "with a table" : "with ids that tell", (int) n_tokens, n_slots);
    }
    return ok;
}

int check_mailboxes(ggml_backend_t backend) {
    int n_failed = 0;
    for (const bool with_table : { false, true }) {
        for (const int64_t n_tokens : { 1, 5, 32 }) {
            for (const int32_t n_slots : { 0, 2, (int32_t) N_EXPERT }) {
                n_failed += !check_mailbox(backend, with_table, n_tokens, n_slots);
            }
        }
    }
    printf("mailbox of %s: %s\n", ggml_backend_name(backend), n_failed == 0 ? "ok" : "failed");
    return n_failed;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc == 3 && std::string(argv[1]) == "--backend") {
        ggml_backend_load_all();
        ggml_backend_ptr backend { ggml_backend_init_by_name(argv[2], nullptr) };
        if (!backend) {
            fprintf(stderr, "error: there is no back end '%s'\n", argv[2]);
            return 1;
        }
        return check_mailboxes(backend.get()) == 0 ? 0 : 1;
    }
    ggml_backend_ptr backend { ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr) };

    const ggml_type types[] = {
        GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4,
    };

    int n_failed = 0;
    for (const ggml_type type : types) {
        int n_failed_type = 0;
        for (const auto & a : ARRANGEMENTS) {
            // of one type all arrangements, of the others those whose inputs differ most
            if (type != GGML_TYPE_F32 && !a.biases && !a.weight_first) {
                continue;
            }
            n_failed_type += !check(backend.get(), a, type, type,          1, 2);
            n_failed_type += !check(backend.get(), a, type, GGML_TYPE_F16, 7, 0); // gate and up want their input in other types
            n_failed_type += !check(backend.get(), a, type, type,          2, N_EXPERT);
        }
        printf("%s: %s\n", ggml_type_name(type), n_failed_type == 0 ? "ok" : "failed");
        n_failed += n_failed_type;
    }
    n_failed += check_mailboxes(backend.get());
    return n_failed == 0 ? 0 : 1;
}
