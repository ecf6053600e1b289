#pragma once

#include <cstdint>
#include <map>
#include <vector>

struct ggml_context;
struct ggml_tensor;
struct llama_model;
class llm_graph_result;

// Routing that is given instead of the router's: the experts of every position and MoE layer. The weights of the experts
// stay those that the router gives them.
class llama_expert_routing {
public:
    // ids: [n_tokens][n_layers][n_used], see llama_set_expert_routing
    // throws std::runtime_error if it does not fit the model
    llama_expert_routing(const llama_model & model, const int32_t * ids, int64_t n_tokens, int32_t n_layers, int32_t n_used);

    // experts of a layer for the rows of this step, or null if the layer has no place in the routing
    //   n_tokens: tokens of the step
    //   n_rows:   n_tokens, or where only the rows with outputs are computed their number
    ggml_tensor * build(ggml_context * ctx, llm_graph_result * res, int64_t n_tokens, int64_t n_rows, int il) const;

    // experts of all layers at a position; after the last one it begins again
    const int32_t * at(int64_t pos) const;

    // of one position
    int64_t n_ids() const { return (int64_t) index.size()*n_used; }

private:
    const int64_t n_tokens;
    const int32_t n_used;

    std::map<int, int32_t> index; // layer of the model -> layer of the routing
    std::vector<int32_t>   ids;
};
