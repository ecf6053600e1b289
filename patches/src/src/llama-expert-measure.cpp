// Policy hybrid: what a miss costs on this machine, measured with the operations and the memory that the steps use.

#include "llama-expert-cache.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>

namespace {

// tensors and nodes that are computed at once and timed
class timed_graph {
public:
    timed_graph(ggml_backend_t backend, size_t n_layers) : backend(backend) {
        const size_t n_tensors = 16*n_layers + 16; // and views
        ctx.reset(ggml_init({ n_tensors*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false), nullptr, /*.no_alloc =*/ true }));
        gf = ggml_new_graph_custom(ctx.get(), n_tensors, false);
    }

    // memory for the tensors so far that have none
    void allocate() {
        buffers.emplace_back(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    }

    // microseconds
    double run() {
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            ggml_tensor * node = ggml_graph_node(gf, i);
            if (!node->buffer && node->view_src) {
                ggml_backend_view_init(node);
            }
        }
        ggml_backend_synchronize(backend);
        const int64_t start = ggml_time_us();
        GGML_ASSERT(ggml_backend_graph_compute(backend, gf) == GGML_STATUS_SUCCESS);
        return ggml_time_us() - start;
    }

    ggml_backend_t   backend;
    ggml_context_ptr ctx;
    ggml_cgraph    * gf;

private:
    std::vector<ggml_backend_buffer_ptr> buffers;
};

template <typename T>
void set(ggml_tensor * t, const std::vector<T> & data) {
    ggml_backend_tensor_set(t, data.data(), 0, data.size()*sizeof(T));
}

void set_n_threads(ggml_backend_t cpu, int32_t n_threads) {
    const auto reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu));
    const auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    set(cpu, n_threads); // until the next step sets its own
}

} // namespace

void llama_expert_cache::measure() {
    constexpr size_t  most_layers  = 16;
    constexpr int32_t most_experts = 8;

    const auto served = std::find_if(layers.begin(), layers.end(), [](const layer & l) { return l.has_zeros(); });
    if (served == layers.end()) {
        n_copied = { 0 };
        return;
    }
    std::vector<size_t> which; // layers on one device
    for (size_t i = 0; i < layers.size() && which.size() < most_layers; ++i) {
        if (layers[i].dev == served->dev && layers[i].has_zeros() && ffns[i].weights.down) {
            which.push_back(i);
        }
    }
    if (!rates_given && !which.empty()) {
        const int32_t n = std::min({ most_experts, n_expert_used, served->n_owners() });
        rates.copy = llama_expert_rates::line::measure(n, [&](int32_t k) { return time_copies  (which, k); });
        rates.cpu  = llama_expert_rates::line::measure(n, [&](int32_t k) { return time_computed(which, k); });
        rates.ask  = llama_expert_rates::measure([&]() { return time_computed(which, 0); });
    }
    n_copied = (which.empty() ? llama_expert_rates() : rates).split(served->n_owners(), served->n_background > 0);
}

// n experts to the slots of each of some layers; microseconds for a layer
double llama_expert_cache::time_copies(const std::vector<size_t> & which, int32_t n) {
    timed_graph timed(layers[which[0]].backend, which.size());
    for (const size_t i : which) {
        const layer & l = layers[i];

        std::vector<int32_t> fills(ggml_nelements(l.state.fills), 0);
        fills[0] = n;
        for (int32_t j = 0; j < n; ++j) {
            fills[2*(j + 1) + 0] = n_timed++ % l.n_expert(); // others each time: the caches of the CPU must not have them
            fills[2*(j + 1) + 1] = j;
        }
        set(l.state.fills, fills);
        ggml_build_forward_expand(timed.gf, l.build_fill(timed.ctx.get(), l.state.owner));
    }
    return timed.run()/which.size();
}

// the host computes n experts for each of some layers; microseconds for a layer
double llama_expert_cache::time_computed(const std::vector<size_t> & which, int32_t n) {
    const auto    it     = workers.find(layers[which[0]].dev);
    const bool    posted = it != workers.end();
    timed_graph   timed(posted ? it->second.backend : backend_cpu, which.size());
    ggml_context * ctx = timed.ctx.get();

    const auto wanted = [&](const llama_expert_ffn & ffn, int32_t n_expert_layer) {
        std::vector<int32_t> ids(ffn.n_used, -1);
        for (int32_t j = 0; j < std::min(n, ffn.n_used); ++j) {
            ids[j] = n_timed++ % n_expert_layer;
        }
        return ids;
    };

    // the input, the weights and the ids of a request in one tensor, as the host gets them
    std::vector<ggml_tensor *> requests;
    std::vector<ggml_tensor *> ids;
    for (const size_t i : which) {
        const llama_expert_ffn & ffn = ffns[i];
        requests.push_back(ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ffn.weights.up->ne[0] + 2*ffn.n_used, 1));
        ids     .push_back(ggml_new_tensor_2d(ctx, GGML_TYPE_I32, ffn.n_used, 1));
    }
    ggml_tensor * out = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ffns[which[0]].weights.down->ne[1], 1);
    if (!posted) {
        for (size_t k = 0; k < which.size(); ++k) {
            const llama_expert_ffn & ffn = ffns[which[k]];
            ggml_build_forward_expand(timed.gf, ffn.build(ctx, ggml_expert_misses(ctx, requests[k], ffn.n_used, nullptr)));
        }
    }
    timed.allocate();

    for (size_t k = 0; k < which.size(); ++k) {
        const llama_expert_ffn & ffn    = ffns[which[k]];
        const int64_t            n_embd = ffn.weights.up->ne[0];

        const auto list = wanted(ffn, layers[which[k]].n_expert());
        std::vector<float> request(n_embd + 2*ffn.n_used, 0.01f);
        std::copy(list.begin(), list.end(), request.end() - ffn.n_used);
        set(requests[k], request);
        set(ids[k], list);
        if (posted) {
            const auto & a = it->second;
            a.worker->set_layer(which[k], ffn);
            ggml_tensor * x    = ggml_view_2d(ctx, requests[k], n_embd, 1, requests[k]->nb[1], 0);
            ggml_tensor * w    = ggml_view_3d(ctx, requests[k], 1, ffn.n_used, 1, sizeof(float), requests[k]->nb[1], n_embd*sizeof(float));
            ggml_tensor * post = ggml_expert_post(ctx, x, w, ids[k], nullptr, a.state, &a.worker->address(), which[k]);
            ggml_backend_view_init(x);
            ggml_backend_view_init(w);
            ggml_build_forward_expand(timed.gf, post);
            out = ggml_expert_collect(ctx, out, post, &a.worker->address());
            ggml_build_forward_expand(timed.gf, out);
        }
    }
    if (posted) {
        it->second.worker->begin(n_threads);
    } else {
        set_n_threads(backend_cpu, n_threads);
    }
    const double time = timed.run();
    if (posted) {
        it->second.worker->end();
    }
    return time/which.size();
}
