#include "expert-post.cuh"

#include "../ggml-expert-host-impl.h"

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)

// not tried there: the scheduler hands over what the host computes

bool ggml_cuda_expert_post_supported(const ggml_tensor *) { return false; }
void ggml_cuda_op_expert_post(ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("not supported"); }
void ggml_cuda_op_expert_collect(ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("not supported"); }

#else

#define CUDA_EXPERT_POST_BLOCK_SIZE    256
#define CUDA_EXPERT_COLLECT_MAX_BLOCKS  16 // each waits for the answer

namespace {

struct post_args {
    ggml_expert_post_address to; // in host memory
    int layer;

    const char * x;
    int64_t      x_nb1;
    const char * weights;
    int64_t      weights_nb1;
    int64_t      weights_nb2;
    const char * ids;
    int64_t      ids_nb0;
    int64_t      ids_nb1;

    int n_embd;
    int n_used;
    int n_tokens;

    int32_t * state;

    const int32_t * table; // nullptr = the ids tell already what has a slot, and nothing is counted
    int32_t       * uses;
    int64_t       * counters;
};

} // namespace

static __device__ int32_t selected(const post_args & args, const int i) {
    const int32_t id = *(const int32_t *) (args.ids + (i/args.n_used)*args.ids_nb1 + (i%args.n_used)*args.ids_nb0);
    return args.table && args.table[id] >= 0 ? -1 - id : id;
}

// whether an expert has no slot, the same for all threads; counts with a table
static __device__ bool count(const post_args & args) {
    bool missing  = false;
    int  n_hits   = 0;
    int  n_misses = 0;
    for (int i = threadIdx.x; i < args.n_used*args.n_tokens; i += blockDim.x) {
        const int32_t id = selected(args, i);
        missing   = missing || id >= 0;
        n_hits   += id <  0;
        n_misses += id >= 0;
        if (args.table) {
            atomicAdd(&args.uses[id >= 0 ? id : -1 - id], 1);
        }
    }
    if (args.table && n_hits > 0) {
        atomicAdd((unsigned long long *) &args.counters[GGML_EXPERT_HOST_HITS], (unsigned long long) n_hits);
    }
    if (args.table && n_misses > 0) {
        atomicAdd((unsigned long long *) &args.counters[GGML_EXPERT_HOST_MISSES], (unsigned long long) n_misses);
    }
    return __syncthreads_or(missing);
}

static __device__ void store_number(uint32_t * address, const uint32_t number) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= GGML_CUDA_CC_VOLTA
    asm volatile("st.release.sys.global.u32 [%0], %1;" :: "l"(address), "r"(number) : "memory");
#else
    __threadfence_system();
    *(volatile uint32_t *) address = number;
#endif
}

static __device__ uint32_t load_number(const uint32_t * address) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= GGML_CUDA_CC_VOLTA
    uint32_t number;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(number) : "l"(address) : "memory");
    return number;
#else
    const uint32_t number = *(const volatile uint32_t *) address;
    __threadfence_system();
    return number;
#endif
}

// One block: the numbers of a request are few. It does not let the next kernel start early, so that one of those between two
// resolves of a layer never does.
static __global__ void __launch_bounds__(CUDA_EXPERT_POST_BLOCK_SIZE, 1)
expert_post(const post_args args) {
    ggml_cuda_pdl_sync();

    if (!count(args)) {
        if (threadIdx.x == 0) {
            args.state[GGML_EXPERT_POST_WAITS] = 0;
        }
        return;
    }

    const int n_row = args.n_embd + 2*args.n_used;
    for (int t = 0; t < args.n_tokens; ++t) {
        float       * row = args.to.request + (int64_t) t*n_row;
        const float * x   = (const float *) (args.x + t*args.x_nb1);
        for (int i = threadIdx.x; i < args.n_embd; i += blockDim.x) {
            row[i] = x[i];
        }
        for (int k = threadIdx.x; k < args.n_used; k += blockDim.x) {
            row[args.n_embd + k]               = *(const float *) (args.weights + t*args.weights_nb2 + k*args.weights_nb1);
            row[args.n_embd + args.n_used + k] = selected(args, t*args.n_used + k);
        }
    }
    if (threadIdx.x == 0) {
        args.to.mailbox->layer    = args.layer;
        args.to.mailbox->n_tokens = args.n_tokens;
    }
    __threadfence_system(); // of what this thread wrote
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t number = args.state[GGML_EXPERT_POST_NUMBER] + 1;
        args.state[GGML_EXPERT_POST_NUMBER] = number;
        args.state[GGML_EXPERT_POST_WAITS]  = 1;
        store_number(&args.to.mailbox->posted, number);
    }
}

static __global__ void __launch_bounds__(CUDA_EXPERT_POST_BLOCK_SIZE, 1)
expert_collect(const ggml_expert_post_address from, const int32_t * state, float * out, const int n) {
    ggml_cuda_pdl_sync();

    if (state[GGML_EXPERT_POST_WAITS] == 0) {
        return;
    }
    if (threadIdx.x == 0) {
        const uint32_t number = state[GGML_EXPERT_POST_NUMBER];
        while (load_number(&from.mailbox->answered) != number) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= GGML_CUDA_CC_VOLTA
            __nanosleep(200);
#endif
        }
    }
    __syncthreads();
    for (int i = blockIdx.x*blockDim.x + threadIdx.x; i < n; i += gridDim.x*blockDim.x) {
        out[i] += __ldcv(from.answer + i);
    }
}

bool ggml_cuda_expert_post_supported(const ggml_tensor * op) {
    return op->op == GGML_OP_EXPERT_COLLECT || op->src[2]->ne[0] <= CUDA_EXPERT_POST_BLOCK_SIZE;
}

void ggml_cuda_op_expert_post(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * x       = dst->src[0];
    const ggml_tensor * weights = dst->src[1];
    const ggml_tensor * ids     = dst->src[2];

    const post_args args = {
        /*.to          =*/ ggml_expert_get_address(dst),
        /*.layer       =*/ ggml_get_op_params_i32(dst, GGML_EXPERT_POST_LAYER),
        /*.x           =*/ (const char *) x->data,
        /*.x_nb1       =*/ (int64_t) x->nb[1],
        /*.weights     =*/ (const char *) weights->data,
        /*.weights_nb1 =*/ (int64_t) weights->nb[1],
        /*.weights_nb2 =*/ (int64_t) weights->nb[2],
        /*.ids         =*/ (const char *) ids->data,
        /*.ids_nb0     =*/ (int64_t) ids->nb[0],
        /*.ids_nb1     =*/ (int64_t) ids->nb[1],
        /*.n_embd      =*/ (int) x->ne[0],
        /*.n_used      =*/ (int) ids->ne[0],
        /*.n_tokens    =*/ (int) ids->ne[1],
        /*.state       =*/ (int32_t *) dst->data,
        /*.table       =*/ dst->src[4] ? (const int32_t *) dst->src[4]->data : nullptr,
        /*.uses        =*/ dst->src[5] ? (int32_t *) dst->src[5]->data : nullptr,
        /*.counters    =*/ dst->src[6] ? (int64_t *) dst->src[6]->data : nullptr,
    };
    const auto params = ggml_cuda_kernel_launch_params(1, CUDA_EXPERT_POST_BLOCK_SIZE, 0, ctx.stream());
    ggml_cuda_kernel_launch(expert_post, params, args);
}

void ggml_cuda_op_expert_collect(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const int n        = ggml_nelements(dst);
    const int n_blocks = std::min((n + CUDA_EXPERT_POST_BLOCK_SIZE - 1)/CUDA_EXPERT_POST_BLOCK_SIZE, CUDA_EXPERT_COLLECT_MAX_BLOCKS);

    const auto params = ggml_cuda_kernel_launch_params(n_blocks, CUDA_EXPERT_POST_BLOCK_SIZE, 0, ctx.stream());
    ggml_cuda_kernel_launch(expert_collect, params, ggml_expert_get_address(dst), (const int32_t *) dst->src[1]->data, (float *) dst->data, n);
}

#endif // defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
