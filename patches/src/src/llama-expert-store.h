#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <map>
#include <utility>

struct ggml_tensor;

// Host memory of the experts, mapped so that the device of their layer can read it.
class llama_expert_store {
public:
    llama_expert_store() = default;
    ~llama_expert_store();

    llama_expert_store(const llama_expert_store &) = delete;
    llama_expert_store & operator=(const llama_expert_store &) = delete;

    // address at which the device reads the data of a tensor, or null if it cannot
    const void * map(ggml_backend_dev_t dev, const ggml_tensor * tensor);

    // bytes that were mapped, with everything else that is in the buffers of the experts
    size_t size() const;

    // unmaps all
    void clear();

private:
    const char * map_buffer(ggml_backend_dev_t dev, ggml_backend_buffer_t buffer);

    struct mapping {
        char             * device; // null if that was refused
        ggml_backend_reg_t reg;
    };

    std::map<std::pair<ggml_backend_dev_t, ggml_backend_buffer_t>, mapping> mappings;
};
