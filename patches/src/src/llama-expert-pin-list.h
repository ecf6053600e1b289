#pragma once

#include <cstdint>
#include <string>
#include <vector>

// experts to pin, read from a text file:
//   # EXPERT_CACHE_PIN_LIST v1
//   n_layer  N
//   n_expert N
//   layer I: e0 e1 ...   (one line per layer, most used first; may be empty)
struct llama_expert_pin_list {
    std::vector<std::vector<int32_t>> layers; // [n_layer][...] expert ids

    // n_layer_all counts the layers for multi-token prediction too; a list may leave them out
    // throws std::runtime_error that names the line at fault
    static llama_expert_pin_list read(const std::string & path, uint32_t n_layer, uint32_t n_layer_all, uint32_t n_expert);
};
