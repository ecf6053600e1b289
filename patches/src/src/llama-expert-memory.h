#pragma once

#include "llama-experts.h"

#include "ggml-backend.h"

#include <cstddef>

// bytes of a field of /proc/meminfo, SIZE_MAX where there is none
size_t llama_meminfo(const char * field);

// what can be pinned at most: the memory of the machine and of the control groups; SIZE_MAX where nothing tells
size_t llama_host_memory_total();

// what a device can still give; the CPU back end reports all the memory there is as free
size_t llama_device_memory_free(ggml_backend_dev_t dev);

inline bool llama_device_is_cpu(ggml_backend_dev_t dev) {
    return ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

inline double llama_gib(size_t bytes) {
    return bytes/1024.0/1024.0/1024.0;
}
