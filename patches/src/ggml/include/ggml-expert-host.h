#pragma once

#include "ggml.h"

#ifdef  __cplusplus
extern "C" {
#endif

// Experts that the host computes: the selected experts of a layer that have no slot on its device, see ggml-expert-cache.h.
//
// The state is in host memory, and so are the weights, so that all of this runs on the CPU while the device is busy with
// the experts that have slots:
//
//   device:  input, router --> step                    products with the slots                + --> output
//   host:                      ggml_expert_misses --> ggml_expert_ffn with the others --------'

// state of one layer
struct ggml_expert_host_state {
    struct ggml_tensor * table;    // I32 [n_expert] slot of each expert, -1 = none
    struct ggml_tensor * uses;     // I32 [n_expert] how often each was selected since the owner of the state cleared it
    struct ggml_tensor * counters; // I64 [GGML_EXPERT_HOST_N_COUNTERS]
};

enum ggml_expert_host_counter {
    GGML_EXPERT_HOST_HITS,   // selections of experts with a slot
    GGML_EXPERT_HOST_MISSES, // selections of experts without one

    GGML_EXPERT_HOST_N_COUNTERS,
};

// what becomes of the products with gate (g) and up (u), or with up alone
enum ggml_expert_act {
    GGML_EXPERT_ACT_SILU,        // silu(g)*u
    GGML_EXPERT_ACT_GELU,
    GGML_EXPERT_ACT_RELU,
    GGML_EXPERT_ACT_RELU_SQR,    // without gate only
    GGML_EXPERT_ACT_SWIGLU_OAI,  // with gate only: param 0 = alpha, param 1 = limit
    GGML_EXPERT_ACT_SILU_CLAMP,  // silu(min(g, limit))*clamp(u, -limit, limit); param 1 = limit
    GGML_EXPERT_ACT_CLAMP_SILU,  // min(silu(g), limit)*clamp(u, -limit, limit); param 1 = limit
};

// weights of all experts of a layer; NULL = there are none
struct ggml_expert_host_weights {
    struct ggml_tensor * gate;   // [n_embd, n_ff, n_expert]
    struct ggml_tensor * up;     // the same, or with gate_up [n_embd, 2*n_ff, n_expert]: gate above up
    struct ggml_tensor * down;   // [n_ff, n_embd_out, n_expert]

    struct ggml_tensor * gate_b; // F32 [rows of the product, n_expert]
    struct ggml_tensor * up_b;
    struct ggml_tensor * down_b;

    struct ggml_tensor * scales; // F32 [n_expert, 3] of the products with gate, up and down, before the biases

    bool gate_up;                // up has both, and both its scale
};

// creates the tensors of a state in ctx, without data
GGML_API struct ggml_expert_host_state ggml_new_expert_host_state(struct ggml_context * ctx, int64_t n_expert);

// lists the selections whose expert has no slot, and counts all
//
//   step:   F32 [n_embd + 2*n_used, n_tokens] input of the experts, weights of the selected ones, their ids as numbers
//   result: I32 [2, n_used*n_tokens + 1] (count, 0), then (expert, token*n_used + k) for each; ascending
GGML_API struct ggml_tensor * ggml_expert_misses(
        struct ggml_context                 * ctx,
        struct ggml_tensor                  * step,
        int32_t                               n_used,
        const struct ggml_expert_host_state * state);

// what the listed selections contribute to the output: down(act(gate, up)), weighted, summed by token
//
//   misses: result of ggml_expert_misses with the same step
//   weight_first: the weight scales the input instead of the output
//   result: F32 [n_embd_out, n_tokens], the same for any number of threads; -0.0 where nothing is listed, which added
//           to a number leaves its bits alone
GGML_API struct ggml_tensor * ggml_expert_ffn(
        struct ggml_context                   * ctx,
        struct ggml_tensor                    * step,
        struct ggml_tensor                    * misses,
        int32_t                                 n_used,
        const struct ggml_expert_host_weights * weights,
        enum ggml_expert_act                    act,
        const float                             params[2],
        bool                                    weight_first);

#ifdef  __cplusplus
}
#endif
