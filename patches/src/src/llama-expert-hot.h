#pragma once

#include "ggml-cpp.h"
#include "ggml-expert-host.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

// Policy hot: the slots of a layer hold the experts that it used most; a use counts half as much with each interval that has
// passed since. After each interval they are chosen again; those that are new are copied while the device computes, a few with
// each step. The host computes the selected experts that have no slot at the same time as the device those that have one.
//
// For the device an expert without a slot is in a slot of zeros, and contributes nothing.
class llama_expert_hot {
public:
    // weights, biases or scales of the experts of a layer
    struct weights {
        ggml_tensor * slots; // [.., .., n_slots + 1] on the device, the last one for zeros
        const void  * store; // n_expert in host memory
    };

    struct layer {
        ggml_backend_t         backend; // of the device
        ggml_tensor          * table;   // I32 [n_expert] on the device: slot of each expert, -1 = none
        ggml_tensor          * lookup;  // I32 [1, n_expert] on the device: the same, with the slot of zeros for none
        ggml_expert_host_state host;    // where the experts are counted; its table may be the one above
        std::vector<weights>   exps;
        int32_t                n_slots;
        int32_t                n_pinned;
        std::vector<int32_t>   order;   // experts in the order in which they get slots; the first n_pinned keep theirs

        std::vector<int32_t> owner; // expert in each slot, -1 = it is being copied
        std::vector<int32_t> slots;  // what lookup has
        std::vector<int32_t> placed; // what the tables have
        std::vector<int32_t> score;  // uses of each expert up to the last choice
        int64_t n_resident = 0;     // uses of its experts while all are in slots

        bool resident() const { return n_slots == (int32_t) order.size(); }
        bool has_slot(int32_t expert) const { return slots[expert] < n_slots; }
    };

    // n_used:   experts that a token selects, at most
    // n_bypass: steps of more tokens neither use the slots nor count; can become less
    llama_expert_hot(int32_t n_used, int32_t interval, int32_t n_bypass) : interval(interval), n_bypass(n_bypass), n_used(n_used) {}
    ~llama_expert_hot();

    // what graphs are built for
    void set_layers(std::vector<layer> new_layers);

    // when the tensors of the layers are allocated: fills the slots with the first experts of their order, counts from zero
    void reset(std::vector<layer> new_layers);

    // to be called before a step is computed
    void begin_step(int64_t n_tokens);

    // waits for copies under way
    void synchronize();

    bool serves(int64_t n_tokens) const { return n_tokens <= n_bypass; }

    // graph of layer i: slots I32 [n_used, n_tokens] of the selected experts
    ggml_tensor * build_slots(ggml_context * ctx, size_t i, ggml_tensor * selected) const;

    bool all_resident(size_t i) const { return layers[i].resident(); }

    int64_t hits  (size_t i) const;
    int64_t misses(size_t i) const;
    int64_t copies(size_t i) const { return n_copies[i]; }

    const int32_t interval;
    int32_t       n_bypass;

private:
    const int32_t n_used;

    // of a device
    struct copier {
        ggml_backend_ptr     backend;          // with a stream of its own; null = the copies are in line with the steps
        ggml_backend_event_t steps  = nullptr; // what was queued before the copies
        ggml_backend_event_t copies = nullptr;
    };

    struct change {
        size_t  layer;
        int32_t expert;
        int32_t slot;
    };

    static void fill(const layer & l, const weights & w);

    void finish_copies();
    void choose();
    void choose(size_t i);
    void start_copies(int64_t n_tokens);
    void start_copies(ggml_backend_t backend, const std::vector<change> & changes);
    void upload(const std::vector<change> & changes);
    static void upload(layer & l);

    int64_t counter(size_t i, ggml_expert_host_counter which) const;

    copier & copier_of(ggml_backend_t backend);

    std::vector<layer>   layers;
    std::vector<int64_t> n_copies; // by layer

    int64_t             n_counted = 0; // tokens since the experts were chosen
    std::vector<change> chosen;        // by the last choice
    size_t              n_started = 0; // of them
    std::vector<change> under_way;

    std::map<ggml_backend_t, copier> copiers;
};
