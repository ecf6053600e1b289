#pragma once

#include "common.h"
#include "ggml-expert-host.h"

#ifdef __cplusplus
extern "C" {
#endif

void ggml_compute_forward_expert_misses(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_ffn(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_post(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_collect(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// without a graph, see ggml-expert-host.h
void   ggml_backend_cpu_expert_misses(struct ggml_tensor * misses);
void   ggml_backend_cpu_expert_ffn(struct ggml_tensor * ffn, const struct ggml_expert_host_thread * thread);
size_t ggml_backend_cpu_expert_ffn_work_size(const struct ggml_tensor * ffn, int nth); // also of params->wdata

#ifdef __cplusplus
}
#endif
