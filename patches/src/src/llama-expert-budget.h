#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// How many slots a layer gets in unified memory, and how many of them are pinned, so that the experts which are not pinned
// fit in host memory.
struct llama_expert_budget {
    struct layer {
        size_t  expert_bytes;
        int32_t n_expert;
        int32_t n_listed;      // experts that the pin list names, 0 if the layer is not served
        bool    slots_in_host; // the device has no memory of its own
    };

    struct choice {
        int32_t capacity;
        int32_t pinned;
    };

    std::vector<layer> layers;

    int32_t n_expert_used = 0;
    int32_t capacity_max  = 0; // slots per layer that the devices have memory for
    size_t  host_bytes    = 0; // memory of the host that experts may take

    // capacity: LLAMA_EXPERT_CACHE_AUTO for the most slots that leave a choice of pinned ones
    // pinned:   negative for half of the capacity, or as many more as host memory demands
    // throws std::runtime_error with the numbers and with what to do
    choice choose(int32_t capacity, int32_t pinned) const;

private:
    size_t need  (int32_t capacity, int32_t pinned) const; // bytes of host memory
    bool   fits  (int32_t capacity, int32_t pinned) const;
    int32_t fewest_pinned(int32_t capacity, int32_t first) const; // that fit, from first on; -1 = none

    size_t total() const;
    int32_t n_listed() const;
    [[noreturn]] void refuse(int32_t capacity, int32_t pinned) const;
};
