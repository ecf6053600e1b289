#include "common.cuh"

//
// for the kernels of products with experts in slots
//

static __device__ __forceinline__ int32_t ggml_cuda_expert_load(const int32_t * x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= GGML_CUDA_CC_VOLTA
    int32_t result;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(result) : "l"(x) : "memory"); // not what this SM has read before
    return result;
#else
    return *x;
#endif
}

// Nothing is waited for that might not run yet: all blocks of the fill do, or the product would not have started.
static __device__ __forceinline__ void ggml_cuda_expert_wait_filled(const ggml_cuda_expert_wait & wait) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= GGML_CUDA_CC_VOLTA
    const int64_t to_fill = *wait.to_fill;
    int64_t       filled  = 0;
    while (true) {
        asm volatile("ld.acquire.gpu.global.s64 %0, [%1];" : "=l"(filled) : "l"(wait.filled) : "memory");
        if (filled >= to_fill) {
            return;
        }
        __nanosleep(400); // the others poll the same address
    }
#else
    GGML_UNUSED(wait); // a kernel starts when the one before is over
#endif
}

// In place of ggml_cuda_pdl_sync: waits for what the product with the expert in slot *slot needs, and returns that slot. Where
// the step has misses the fill may still run; a fence then stands for what the end of a kernel otherwise does. It costs the
// products of other warps what is in L1, so it is only taken then. whole_block: all threads of the block are here for the slot.
template <bool whole_block>
static __device__ __forceinline__ int32_t ggml_cuda_expert_sync(const ggml_cuda_expert_wait & wait, const int32_t * slot) {
    if (!wait.beside_fill) {
        ggml_cuda_pdl_sync();
    }
    if (!wait.fills) {
        return slot ? *slot : 0;
    }
    const int32_t n_miss = ggml_cuda_expert_load(wait.fills);
    const int32_t result = ggml_cuda_expert_load(slot);
    if (n_miss == 0) {
        ggml_cuda_pdl_sync();
        return result;
    }
    __threadfence();
    if (!whole_block || threadIdx.y == 0) {
        bool missed = false;
        for (int m = 1; m <= n_miss; ++m) {
            missed = missed || wait.fills[2*m + 1] == result;
        }
        if (missed) {
            ggml_cuda_expert_wait_filled(wait);
        }
    }
    if (whole_block) {
        __syncthreads();
    }
    return result;
}

// whether the kernels can work on an operation of the expert cache
bool ggml_cuda_expert_cache_supported(const ggml_tensor * op);

void ggml_cuda_op_expert_resolve(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

void ggml_cuda_op_expert_fill(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

void ggml_cuda_op_expert_gather(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// Resolve and fill in one kernel; whether node i and the next one are such a pair. If the product that follows quantises its
// activations the launch waits for it: ggml_cuda_expert_resolve_quantize.
bool ggml_cuda_try_expert_resolve_fill(ggml_backend_cuda_context & ctx, const ggml_cgraph * cgraph, int i);

// Launches the resolve and fill that ids come from, unless that is done, and quantises x beside them: whether it did.
// y: [ne3][ne2][ne1][ne0] values, ne0 those of a row and padding
bool ggml_cuda_expert_resolve_quantize(
        ggml_backend_cuda_context & ctx, const ggml_tensor * ids, const ggml_tensor * x, void * y, int64_t ne0);

// what a product with weights, and gate, has to wait for; beside_fill: ggml_cuda_expert_resolve_quantize launched the fill for it
ggml_cuda_expert_wait ggml_cuda_get_expert_wait(
        const ggml_backend_cuda_context & ctx, const ggml_tensor * ids, const ggml_tensor * weights, const ggml_tensor * gate, bool beside_fill);

// whether the operation must wait for the device, which a CUDA graph cannot
bool ggml_cuda_expert_fill_needs_sync(const ggml_tensor * op);

// see ggml_backend_expert_store_map_t
void * ggml_backend_cuda_expert_store_map(void * base, size_t size);
void   ggml_backend_cuda_expert_store_unmap(void * base);

// see ggml_backend_expert_cache_max_tokens_t
int ggml_backend_cuda_expert_cache_max_tokens(enum ggml_type type);

// see ggml_backend_expert_cache_fills_beside_t
bool ggml_backend_cuda_expert_cache_fills_beside();
