#pragma once

#include "llama-expert-store.h"
#include "llama-expert-team.h"

#include "ggml-cpp.h"
#include "ggml-expert-host.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

// how the experts of a layer are computed, see ggml_expert_ffn
struct llama_expert_ffn {
    ggml_expert_host_weights weights = {};
    ggml_expert_act          act     = GGML_EXPERT_ACT_SILU;
    float                    params[2]    = { 0.0f, 0.0f };
    bool                     weight_first = false;
    int32_t                  n_used       = 0; // experts that a token selects

    bool operator==(const llama_expert_ffn & other) const;

    // activation: the device's input of the product with down
    void set_activation(const ggml_tensor * activation);

    // misses: see ggml_expert_misses
    ggml_tensor * build(ggml_context * ctx, ggml_tensor * misses) const;
};

// A thread that computes experts on the CPU for a device, which asks through a mailbox: see ggml_expert_post. The device
// needs nobody to wait for it like this, and its step stays one graph.
class llama_expert_worker {
public:
    // n_request, n_answer: numbers of the largest request and answer
    // returns null if the device cannot write to host memory
    static std::unique_ptr<llama_expert_worker> create(ggml_backend_dev_t dev, size_t n_request, size_t n_answer);

    ~llama_expert_worker();

    // what a request for layer i asks for
    void set_layer(int32_t i, const llama_expert_ffn & ffn);

    // from begin to end requests may come; in between a core looks for them. The device must be idle at the end
    void begin(int32_t n_threads);
    void end();

    // the number that the device's end has to have when the device is idle
    uint32_t n_answered() const;

    // numbers that a request can have
    size_t n_request() const { return room; }

    const ggml_expert_post_address & address() const { return device; }

private:
    llama_expert_worker() = default;

    struct job { // of a layer and a number of tokens
        ggml_context_ptr     ctx;
        ggml_tensor        * misses;
        ggml_tensor        * ffn;
        std::vector<int32_t> list; // data of misses
    };

    struct alignas(64) cache_line {
        char data[64];
    };

    void run();
    bool wait(uint32_t & number);
    void answer();
    job  build(const llama_expert_ffn & ffn, int32_t n_tokens) const;

    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    llama_expert_store      store; // maps the buffer

    ggml_expert_post_address host;
    ggml_expert_post_address device;
    size_t                   room = 0;

    ggml_backend_cpu_expert_misses_t        list_misses = nullptr;
    ggml_backend_cpu_expert_ffn_t           compute     = nullptr;
    ggml_backend_cpu_expert_ffn_work_size_t work_size   = nullptr;

    std::atomic<int32_t>               n_threads { 1 };
    int32_t                            n_most = 1; // that run at once beside the thread that waits for the device
    std::unique_ptr<llama_expert_team> team;
    std::vector<cache_line>            work; // memory

    std::mutex                                   layers_mutex;
    std::map<int32_t, llama_expert_ffn>          layers;
    std::map<std::pair<int32_t, int32_t>, job>   jobs; // by layer and number of tokens

    std::mutex              mutex;
    std::condition_variable changed;
    std::atomic<bool>       active  = false;
    bool                    stopped = false;
    std::thread             thread;
};
