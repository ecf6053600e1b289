#pragma once

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

void ggml_compute_forward_expert_resolve(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_fill(const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_expert_gather(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
