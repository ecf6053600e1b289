#pragma once

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

void ggml_compute_forward_expert_misses(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_ffn(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_post(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_collect(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// bytes of params->wdata
size_t ggml_expert_ffn_work_size(const struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
