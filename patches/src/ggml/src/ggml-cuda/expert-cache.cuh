#include "common.cuh"

// whether the kernels can work on an operation of the expert cache
bool ggml_cuda_expert_cache_supported(const ggml_tensor * op);

void ggml_cuda_op_expert_resolve(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

void ggml_cuda_op_expert_fill(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

void ggml_cuda_op_expert_gather(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// resolve and fill in one kernel; whether node i and the next one are such a pair
bool ggml_cuda_try_expert_resolve_fill(ggml_backend_cuda_context & ctx, const ggml_cgraph * cgraph, int i);

// whether the operation must wait for the device, which a CUDA graph cannot
bool ggml_cuda_expert_fill_needs_sync(const ggml_tensor * op);

// see ggml_backend_expert_store_map_t
void * ggml_backend_cuda_expert_store_map(void * base, size_t size);
void   ggml_backend_cuda_expert_store_unmap(void * base);

// see ggml_backend_expert_cache_max_tokens_t
int ggml_backend_cuda_expert_cache_max_tokens(enum ggml_type type);
