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
//   state:  NULL if the ids tell already, and are counted elsewhere: -1 - id for an expert with a slot
//   result: I32 [2, n_used*n_tokens + 16] see ggml_expert_misses_head, then (expert, token*n_used + k) for each; ascending
GGML_API struct ggml_tensor * ggml_expert_misses(
        struct ggml_context                 * ctx,
        struct ggml_tensor                  * step,
        int32_t                               n_used,
        const struct ggml_expert_host_state * state);

// what the listed selections contribute to the output: down(act(gate, up)), weighted, summed by token
//
//   misses: result of ggml_expert_misses with the same step, for this alone: the threads count in it what they have done
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

// Without the scheduler between device and host: the device puts what the host needs into a mailbox in host memory, where a
// thread looks for it, and later waits for the answer in the same place. All of it can be in one CUDA graph.
//
// Requests and answers alternate. The memory is that of the mailbox, then the request, which is the step of
// ggml_expert_misses without a state, then the answer, which is the result of ggml_expert_ffn.
struct ggml_expert_mailbox {
    uint32_t posted; // number of the last request
    int32_t  layer;
    int32_t  n_tokens;
    uint32_t unused_device[13];

    uint32_t answered; // number of the last answer
    uint32_t unused_host[15];
};

// state of the device's end, I32
enum ggml_expert_post_state {
    GGML_EXPERT_POST_NUMBER, // of the last request
    GGML_EXPERT_POST_WAITS,  // whether the last GGML_OP_EXPERT_POST asked for something

    GGML_EXPERT_POST_N_STATE,
};

// the host's end: the number of the last request, and that its answer is there
GGML_API uint32_t ggml_expert_mailbox_posted(struct ggml_expert_mailbox * mailbox);
GGML_API void     ggml_expert_mailbox_answer(struct ggml_expert_mailbox * mailbox, uint32_t number);

// where the device finds the memory of a mailbox
struct ggml_expert_post_address {
    struct ggml_expert_mailbox * mailbox;
    float                      * request;
    float                      * answer;
};

// What the CPU's back end can do for the host's end outside of a graph, whose threads would sleep between requests.
// A thread of those that compute together:
struct ggml_expert_host_thread {
    int    ith;
    void * work; // memory of all threads, "ggml_backend_cpu_expert_ffn_work_size" bytes for nth of them
};

// ggml_backend_reg_get_proc_address(..., "ggml_backend_cpu_expert_misses"): one thread does it, before the others begin
typedef void   (*ggml_backend_cpu_expert_misses_t)(struct ggml_tensor * misses);
// "ggml_backend_cpu_expert_ffn": any of the threads do it; when one returns, all is computed
typedef void   (*ggml_backend_cpu_expert_ffn_t)(struct ggml_tensor * ffn, const struct ggml_expert_host_thread * thread);
typedef size_t (*ggml_backend_cpu_expert_ffn_work_size_t)(const struct ggml_tensor * ffn, int nth);

// asks the host for the selected experts without a slot, if there are any
//
//   x:        F32 [n_embd, n_tokens] input of the experts
//   weights:  F32 [1, n_used, n_tokens]
//   ids:      I32 [n_used, n_tokens] selected experts; without a table those of ggml_expert_host_ids
//   host:     on the device, which counts; NULL if the ids tell already what has a slot
//   state:    I32 [GGML_EXPERT_POST_N_STATE]
//   layer:    what the request says
//   result:   view of state
GGML_API struct ggml_tensor * ggml_expert_post(
        struct ggml_context                   * ctx,
        struct ggml_tensor                    * x,
        struct ggml_tensor                    * weights,
        struct ggml_tensor                    * ids,
        const struct ggml_expert_host_state   * host,
        struct ggml_tensor                    * state,
        const struct ggml_expert_post_address * address,
        int32_t                                 layer);

// adds the answer to out, if something was asked for
//
//   out:    F32 [n_embd_out, n_tokens]
//   posted: result of ggml_expert_post
//   result: view of out
GGML_API struct ggml_tensor * ggml_expert_collect(
        struct ggml_context                   * ctx,
        struct ggml_tensor                    * out,
        struct ggml_tensor                    * posted,
        const struct ggml_expert_post_address * address);

#ifdef  __cplusplus
}
#endif
