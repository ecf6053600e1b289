#include "common.cuh"

bool ggml_cuda_expert_post_supported(const ggml_tensor * op);

void ggml_cuda_op_expert_post(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

void ggml_cuda_op_expert_collect(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
