#include "llama-expert-routing.h"

#include "llama-context.h"
#include "llama-experts.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <set>
#include <stdexcept>

// ids of all layers, I32 [n_ids, n_rows]
class llm_graph_input_expert_routing : public llm_graph_input_i {
public:
    llm_graph_input_expert_routing(const llama_expert_routing * routing, ggml_context * ctx, int64_t n_rows, bool only_outputs) :
        routing(routing), ids(ggml_new_tensor_2d(ctx, GGML_TYPE_I32, routing->n_ids(), n_rows)), copy(ggml_cont(ctx, ids)), only_outputs(only_outputs) {
        ggml_set_input(ids);
        ggml_set_name(ids,  "inp_expert_routing");
        ggml_set_name(copy, "expert_routing");
    }

    void set_input(const llama_ubatch * ubatch) override {
        int64_t row = 0;
        for (uint32_t i = 0; i < ubatch->n_tokens; ++i) {
            if (!only_outputs || ubatch->output[i]) {
                ggml_backend_tensor_set(ids, routing->at(ubatch->pos[i]), row*ids->nb[1], ids->nb[1]);
                row++;
            }
        }
        GGML_ASSERT(row == ids->ne[1]);
    }

    bool can_reuse(const llm_graph_params & params) override {
        return ids->ne[1] == (only_outputs ? params.n_outputs : params.ubatch.n_tokens);
    }

    const llama_expert_routing * routing;

    ggml_tensor * ids;
    ggml_tensor * copy; // what the layers look at: a view of the input itself would be copied to the device by each of them

    const bool only_outputs;
};

llama_expert_routing::llama_expert_routing(const llama_model & model, const int32_t * data, int64_t n_tokens, int32_t n_layers, int32_t n_used) :
    n_tokens(n_tokens), n_used(n_used) {
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        if (model.layers[il].ffn_down_exps) {
            const int32_t i = index.size();
            index[il] = i;
        }
    }
    const int32_t n_expert      = model.hparams.n_expert;
    const int32_t n_expert_used = model.hparams.n_expert_used_max();
    if (n_tokens < 1 || index.empty() || n_layers != (int32_t) index.size() || n_used != n_expert_used) {
        throw std::runtime_error(format("routing of %lld tokens, %d layers and %d experts per token does not fit the model, which has %d MoE layers and uses %d",
                (long long) n_tokens, n_layers, n_used, (int) index.size(), n_expert_used));
    }
    for (const auto & [il, _] : index) {
        if ((int32_t) model.hparams.n_expert_used(il) != n_used) {
            throw std::runtime_error("the layers of the model use different numbers of experts: its routing cannot be given");
        }
    }
    for (int64_t i = 0; i < n_tokens*n_layers; ++i) {
        const std::set<int32_t> distinct(data + i*n_used, data + (i + 1)*n_used);
        if ((int32_t) distinct.size() != n_used || *distinct.begin() < 0 || *distinct.rbegin() >= n_expert) {
            throw std::runtime_error(format("routing of token %lld, layer %lld: not %d different experts from 0 to %d",
                    (long long) (i/n_layers), (long long) (i%n_layers), n_used, n_expert - 1));
        }
    }
    ids.assign(data, data + n_tokens*n_ids());
}

const int32_t * llama_expert_routing::at(int64_t pos) const {
    GGML_ASSERT(pos >= 0);
    return ids.data() + (pos % n_tokens)*n_ids();
}

ggml_tensor * llama_expert_routing::build(ggml_context * ctx, llm_graph_result * res, int64_t n_tokens, int64_t n_rows, int il) const {
    const auto it = index.find(il);
    if (it == index.end()) {
        return nullptr;
    }

    // one input for all layers
    ggml_tensor * all = nullptr;
    for (const auto & input : res->inputs) {
        const auto * known = dynamic_cast<const llm_graph_input_expert_routing *>(input.get());
        if (known && known->ids->ne[1] == n_rows) {
            all = known->copy;
        }
    }
    if (!all) {
        auto input = std::make_unique<llm_graph_input_expert_routing>(this, ctx, n_rows, n_rows != n_tokens);
        all = input->copy;
        res->add_input(std::move(input));
    }
    return ggml_view_2d(ctx, all, n_used, n_rows, all->nb[1], it->second*n_used*all->nb[0]);
}

bool llama_set_expert_routing(llama_context * ctx, const int32_t * ids, int64_t n_tokens, int32_t n_layers, int32_t n_expert_used) {
    try {
        ctx->set_expert_routing(ids ? std::make_unique<llama_expert_routing>(*llama_get_model(ctx), ids, n_tokens, n_layers, n_expert_used) : nullptr);
    } catch (const std::exception & e) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, e.what());
        return false;
    }
    return true;
}
