#include "llama-expert-store.h"

#include "llama-expert-memory.h"
#include "llama-impl.h"

#include "ggml-expert-cache.h"

#include <cstdint>

llama_expert_store::~llama_expert_store() {
    clear();
}

void llama_expert_store::clear() {
    for (const auto & [key, m] : mappings) {
        const auto unmap = (ggml_backend_expert_store_unmap_t) ggml_backend_reg_get_proc_address(m.reg, "ggml_backend_expert_store_unmap");
        if (m.device && unmap) {
            unmap(ggml_backend_buffer_get_base(key.second));
        }
    }
    mappings.clear();
}

const void * llama_expert_store::map(ggml_backend_dev_t dev, const ggml_tensor * tensor) {
    if (llama_device_is_cpu(dev)) {
        return tensor->data;
    }
    if (!ggml_backend_buffer_is_host(tensor->buffer)) {
        return ggml_backend_buft_get_device(ggml_backend_buffer_get_type(tensor->buffer)) == dev ? tensor->data : nullptr;
    }
    const char * base = map_buffer(dev, tensor->buffer);
    return base ? base + ((const char *) tensor->data - (const char *) ggml_backend_buffer_get_base(tensor->buffer)) : nullptr;
}

size_t llama_expert_store::size() const {
    size_t result = 0;
    for (const auto & [key, m] : mappings) {
        result += m.device ? ggml_backend_buffer_get_size(key.second) : 0;
    }
    return result;
}

const char * llama_expert_store::map_buffer(ggml_backend_dev_t dev, ggml_backend_buffer_t buffer) {
    const auto it = mappings.find({ dev, buffer });
    if (it != mappings.end()) {
        return it->second.device;
    }

    mapping m = { nullptr, ggml_backend_dev_backend_reg(dev) };

    const size_t size = ggml_backend_buffer_get_size(buffer);
    const auto   map  = (ggml_backend_expert_store_map_t) ggml_backend_reg_get_proc_address(m.reg, "ggml_backend_expert_store_map");

    if (size >= llama_host_memory_total()) {
        LLAMA_LOG_WARN("expert cache: not pinning %.1f GiB: more than the memory of the host\n", size/1024.0/1024.0/1024.0);
    } else if (map) {
        const int64_t start = ggml_time_us();
        LLAMA_LOG_INFO("expert cache: pinning %.1f GiB of host memory for %s ...\n", size/1024.0/1024.0/1024.0, ggml_backend_dev_name(dev));
        m.device = (char *) map(ggml_backend_buffer_get_base(buffer), size);
        LLAMA_LOG_INFO("expert cache: %s after %.1f s\n", m.device ? "pinned" : "not pinned", (ggml_time_us() - start)/1e6);
    }

    mappings[{ dev, buffer }] = m;
    return m.device;
}
