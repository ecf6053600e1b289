#include "expert-cache.cuh"

#include "mmvq.cuh"

#include "../ggml-expert-cache-impl.h"

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)

// not tried there: layers with experts in host memory are not served

bool   ggml_cuda_expert_cache_supported(const ggml_tensor *) { return false; }
void   ggml_cuda_op_expert_resolve(ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("not supported"); }
void   ggml_cuda_op_expert_fill(ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("not supported"); }
void   ggml_cuda_op_expert_gather(ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("not supported"); }
bool   ggml_cuda_try_expert_resolve_fill(ggml_backend_cuda_context &, const ggml_cgraph *, int) { return false; }
bool   ggml_cuda_expert_resolve_quantize(ggml_backend_cuda_context &, const ggml_tensor *, const ggml_tensor *, void *, int64_t) { return false; }
ggml_cuda_expert_wait ggml_cuda_get_expert_wait(const ggml_backend_cuda_context &, const ggml_tensor *, const ggml_tensor *, const ggml_tensor *, bool) { return {}; }
bool   ggml_cuda_expert_fill_needs_sync(const ggml_tensor *) { return false; }
void * ggml_backend_cuda_expert_store_map(void *, size_t) { return nullptr; }
void   ggml_backend_cuda_expert_store_unmap(void *) {}
int    ggml_backend_cuda_expert_cache_max_tokens(ggml_type) { return 0; }
bool   ggml_backend_cuda_expert_cache_fills_beside() { return false; }

#else

#include <algorithm>
#include <climits>
#include <map>
#include <mutex>
#include <vector>

// Misses are read from mapped host memory by the blocks of one kernel: enough of them to keep PCIe busy, few enough that a
// step without misses is over soon.
#define CUDA_EXPERT_CACHE_BLOCK_SIZE 256
#define CUDA_EXPERT_CACHE_BLOCKS      32

// the same where the experts of a whole layer are gathered
#define CUDA_EXPERT_CACHE_BLOCKS_PER_EXPERT 2

// loads that a thread has in flight
#define CUDA_EXPERT_CACHE_UNROLL 8

// bounds of the shared memory of the kernel
#define CUDA_EXPERT_CACHE_MAX_EXPERTS 2048
#define CUDA_EXPERT_CACHE_MAX_IDS     1024

namespace {

// tensors that are filled together
struct fill_args {
    struct {
        const char * store;
        char       * cache;
        int64_t      nb;  // bytes of an expert
        int          vec; // see copy_width
    } weights[GGML_EXPERT_CACHE_MAX_WEIGHTS];

    int  n_weights;
    bool early; // the next kernel starts before all is copied and waits for what it reads, see ggml_cuda_expert_wait
};

// The activations that the product with the experts reads, to be quantised beside the resolve: like this a layer has as many
// kernels as without the cache. A grid of [ne3][ne2][ne1][ne0] values, of which the first n of a row are those of x.
struct quantize_args {
    const float * x;
    block_q8_1  * y;
    int64_t       s1;
    int64_t       s2;
    int64_t       s3;
    int           n;
    int           ne0;
    int           ne1;
    int           ne2;
    int           n_total; // 0 = there is nothing to quantise
};

// the experts that the tokens of a step use
struct id_list {
    const char * data;
    int64_t      nb0;
    int64_t      nb1;
    int          n_used; // by a token
    int          n;

    __device__ int32_t operator[](const int i) const {
        return *(const int32_t *) (data + (i/n_used)*nb1 + (i%n_used)*nb0);
    }
};

// state of one layer and the ids of a step, see ggml_expert_cache_state
struct resolve_args {
    id_list   ids;
    int32_t * slots; // result

    int32_t * table;
    int32_t * owner;
    int64_t * stamp;
    int32_t * fills;
    int64_t * counters;
    int       n_expert;
    int       n_slots;
    int       n_pinned;

    const int32_t * n_copied; // by number of misses; nullptr = all of them are
    int             n_background;
    int32_t       * host_ids; // result, with n_copied
};

} // namespace

//
// fill
//

template <typename T>
static __device__ __forceinline__ T load_from_host(const T * x) {
    return __ldcs(x); // read once
}

// the first n_blocks blocks along x copy one expert of one tensor
template <typename T>
static __device__ __forceinline__ void copy_expert(const char * src, char * dst, const int64_t nb, const int n_blocks) {
    const int64_t n      = nb/sizeof(T);
    const int64_t stride = (int64_t) n_blocks*blockDim.x;

    for (int64_t i0 = (int64_t) blockIdx.x*blockDim.x + threadIdx.x; i0 < n; i0 += CUDA_EXPERT_CACHE_UNROLL*stride) {
        T tmp[CUDA_EXPERT_CACHE_UNROLL];
#pragma unroll
        for (int u = 0; u < CUDA_EXPERT_CACHE_UNROLL; ++u) {
            if (i0 + u*stride < n) {
                tmp[u] = load_from_host((const T *) src + i0 + u*stride);
            }
        }
#pragma unroll
        for (int u = 0; u < CUDA_EXPERT_CACHE_UNROLL; ++u) {
            if (i0 + u*stride < n) {
                ((T *) dst)[i0 + u*stride] = tmp[u];
            }
        }
    }
}

// vec: bytes that are copied at once
static __device__ void copy_expert(const char * src, char * dst, const int64_t nb, const int vec, const int n_blocks) {
    switch (vec) {
        case 16: copy_expert<uint4>   (src, dst, nb, n_blocks); break;
        case  4: copy_expert<uint32_t>(src, dst, nb, n_blocks); break;
        default: copy_expert<uint8_t> (src, dst, nb, n_blocks); break;
    }
}

static __device__ void fill_slot(const fill_args & args, const int w, const int32_t expert, const int32_t slot, const int n_blocks) {
    const int64_t nb = args.weights[w].nb;
    copy_expert(args.weights[w].store + expert*nb, args.weights[w].cache + slot*nb, nb, args.weights[w].vec, n_blocks);
}

static __global__ void __launch_bounds__(CUDA_EXPERT_CACHE_BLOCK_SIZE, 1)
expert_fill(const fill_args args, const int32_t * fills) {
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();

    const int n = fills[0];
    for (int w = 0; w < args.n_weights; ++w) {
        for (int i = 1; i <= n; ++i) {
            fill_slot(args, w, fills[2*i + 0], fills[2*i + 1], gridDim.x);
        }
    }
}

//
// resolve
//

// what a block knows of the layer and the step, in shared memory
struct step_state {
    int64_t * stamp;  // [n_slots], LLONG_MAX = cannot be a victim
    int32_t * table;  // [n_expert]
    int32_t * expert; // [n_ids]
    int32_t * slot;   // [n_ids], -1 = not resident
    int32_t * miss;   // [n_ids], for each miss with a slot the index of the first id that wants the expert
    int32_t * victim; // [n_ids], that slot
    int64_t   clock;
    int       n_miss;
    int       n_copied; // misses that the products of this step find in slots: the first ones
    int       n_fill;   // misses that get a slot
};

static size_t step_state_size(const resolve_args & args) {
    return args.n_slots*sizeof(int64_t) + (args.n_expert + 4*args.ids.n)*sizeof(int32_t);
}

// Reads the state as the last step left it, before the kernel waits for its predecessor. Kernels that let their successor
// start early before they wait themselves can form a chain, so this is safe only because a layer is in a graph once, and the
// next graph of a context with the policy hybrid begins when this one is over (llama_expert_cache::begin_step). With the
// policy lru all that is written here is written before products that wait for it are over.
static __device__ step_state load_state(const resolve_args & args, int64_t * shared) {
    step_state step;
    step.stamp  = shared;
    step.table  = (int32_t *) (step.stamp + args.n_slots);
    step.expert = step.table  + args.n_expert;
    step.slot   = step.expert + args.ids.n;
    step.miss   = step.slot   + args.ids.n;
    step.victim = step.miss   + args.ids.n;
    step.clock  = args.counters[GGML_EXPERT_CACHE_CLOCK];
    step.n_miss   = 0;
    step.n_copied = 0;
    step.n_fill   = 0;

    for (int e = threadIdx.x; e < args.n_expert; e += blockDim.x) {
        step.table[e] = args.table[e];
    }
    for (int s = threadIdx.x; s < args.n_slots; s += blockDim.x) {
        step.stamp[s] = s < args.n_pinned ? LLONG_MAX : args.stamp[s];
    }
    __syncthreads();
    return step;
}

// whether an expert is missed, the same for all threads of the block
static __device__ bool look_up(const resolve_args & args, step_state & step) {
    bool missed = false;
    for (int i = threadIdx.x; i < args.ids.n; i += blockDim.x) {
        const int32_t expert = args.ids[i];
        const int32_t slot   = step.table[expert];
        step.expert[i] = expert;
        step.slot[i]   = slot;
        missed = missed || slot < 0;
    }
    return __syncthreads_or(missed);
}

// index of the smallest of n values, the first one if there are several; every warp for itself
static __device__ int warp_argmin(const int64_t * values, const int n) {
    int64_t value = LLONG_MAX;
    int     index = INT_MAX;
    for (int i = threadIdx.x % WARP_SIZE; i < n; i += WARP_SIZE) {
        if (values[i] < value) {
            value = values[i];
            index = i;
        }
    }
    for (int mask = WARP_SIZE/2; mask > 0; mask /= 2) {
        const int64_t other_value = __shfl_xor_sync(0xFFFFFFFF, value, mask, WARP_SIZE);
        const int     other_index = __shfl_xor_sync(0xFFFFFFFF, index, mask, WARP_SIZE);
        if (other_value < value || (other_value == value && other_index < index)) {
            value = other_value;
            index = other_index;
        }
    }
    return index;
}

// how many different experts are missed
static __device__ int count_misses(const resolve_args & args, const step_state & step) {
    int result = 0;
    for (int i0 = 0; i0 < args.ids.n; i0 += blockDim.x) {
        const int i = i0 + threadIdx.x;
        bool first = i < args.ids.n && step.slot[i] < 0;
        for (int j = 0; first && j < i; ++j) {
            first = step.expert[j] != step.expert[i];
        }
        result += __syncthreads_count(first);
    }
    return result;
}

// gives missed experts a slot, in the order of the first access; what the host computes has that of zeros in this step
static __device__ void choose_victims(const resolve_args & args, step_state & step) {
    int n_copied = INT_MAX;
    int n_fill   = INT_MAX;
    if (args.n_copied) {
        n_copied = args.n_copied[count_misses(args, step)];
        n_fill   = n_copied + args.n_background;
    }
    for (int i = threadIdx.x; i < args.ids.n; i += blockDim.x) {
        if (step.slot[i] >= 0) {
            step.stamp[step.slot[i]] = LLONG_MAX; // in use by the step
        }
    }
    __syncthreads();

    for (int i = 0; i < args.ids.n; ++i) {
        if (step.slot[i] >= 0) {
            continue;
        }
        const bool fill   = step.n_miss < n_fill;
        const int  victim = fill ? warp_argmin(step.stamp, args.n_slots) : args.n_slots;
        __syncthreads(); // all threads have read slot[i] and stamp
        for (int j = i + threadIdx.x; j < args.ids.n; j += blockDim.x) {
            if (step.expert[j] == step.expert[i]) {
                step.slot[j] = step.n_miss < n_copied ? victim : args.n_slots;
            }
        }
        if (fill && threadIdx.x == 0) {
            step.miss  [step.n_miss] = i;
            step.victim[step.n_miss] = victim;
            step.stamp[victim] = LLONG_MAX;
        }
        step.n_miss++;
        __syncthreads();
    }
    step.n_copied = min(step.n_miss, n_copied);
    step.n_fill   = min(step.n_miss, n_fill);
}

// The threads of one warp or block, of which this is number thread of n_threads, write what the step changes.

static __device__ void write_result(const resolve_args & args, const step_state & step, const int thread, const int n_threads) {
    for (int i = thread; i < args.ids.n; i += n_threads) {
        args.slots[i] = step.slot[i];
        if (args.n_copied) {
            args.host_ids[i] = step.slot[i] == args.n_slots ? step.expert[i] : -1 - step.expert[i];
        }
    }
    for (int m = thread; m < step.n_fill; m += n_threads) {
        args.fills[2*(m + 1) + 0] = step.expert[step.miss[m]];
        args.fills[2*(m + 1) + 1] = step.victim[m];
    }
    if (thread == 0) {
        args.fills[0] = step.n_fill;
    }
}

static __device__ void write_state(const resolve_args & args, const step_state & step, const int thread, const int n_threads) {
    for (int i = thread; i < args.ids.n; i += n_threads) {
        bool last = true; // access to this expert; the stamp is that one's
        for (int j = i + args.ids.n_used - i%args.ids.n_used; j < args.ids.n; ++j) { // a token uses an expert once
            last = last && step.slot[j] != step.slot[i];
        }
        if (last && step.slot[i] < args.n_slots) {
            args.stamp[step.slot[i]] = step.clock + i;
        }
    }
    for (int m = thread; m < step.n_fill; m += n_threads) {
        const int32_t expert = step.expert[step.miss[m]];
        const int32_t slot   = step.victim[m];
        if (m >= step.n_copied) {
            args.stamp[slot] = step.clock + step.miss[m];
        }
        if (args.owner[slot] >= 0) {
            args.table[args.owner[slot]] = -1; // no other miss, as those were not resident
        }
        args.owner[slot]   = expert;
        args.table[expert] = slot;
    }
    if (thread == 0) {
        args.counters[GGML_EXPERT_CACHE_CLOCK] = step.clock + args.ids.n;
        atomicAdd((unsigned long long *) &args.counters[GGML_EXPERT_CACHE_HITS],   (unsigned long long) (args.ids.n - step.n_miss));
        if (step.n_miss > 0) {
            atomicAdd((unsigned long long *) &args.counters[GGML_EXPERT_CACHE_MISSES],   (unsigned long long) step.n_miss);
            atomicAdd((unsigned long long *) &args.counters[GGML_EXPERT_CACHE_COPIED],   (unsigned long long) step.n_fill);
            atomicAdd((unsigned long long *) &args.counters[GGML_EXPERT_CACHE_COMPUTED], (unsigned long long) (step.n_miss - step.n_copied));
        }
    }
}

// whether this is the last block to come here; for the threads of one warp
static __device__ bool is_last_block(const resolve_args & args, const int n_blocks) {
    int n_before = 0;
    if (threadIdx.x == 0) {
        __threadfence(); // what the block has read it read before
        n_before = atomicAdd(&args.fills[1], 1);
    }
    const bool last = __shfl_sync(0xFFFFFFFF, n_before, 0, WARP_SIZE) == n_blocks - 1;
    if (last && threadIdx.x == 0) {
        args.fills[1] = 0;
    }
    return last;
}

// the same values as those of quantize_q8_1
static __device__ void quantize(const quantize_args & args, const int block) {
    const int i = block*blockDim.x + threadIdx.x;
    if (i >= args.n_total) { // a multiple of the warp size
        return;
    }
    const int i0 = i % args.ne0;
    const int i1 = i / args.ne0 % args.ne1;
    const int i2 = i / args.ne0 / args.ne1 % args.ne2;
    const int i3 = i / args.ne0 / args.ne1 / args.ne2;

    const float x    = i0 < args.n ? args.x[i3*args.s3 + i2*args.s2 + i1*args.s1 + i0] : 0.0f;
    const float amax = warp_reduce_max<QK8_1>(fabsf(x));
    const float sum  = warp_reduce_sum<QK8_1>(x);
    const float d    = amax/127.0f;

    block_q8_1 & y = args.y[i/QK8_1];
    y.qs[i % QK8_1] = amax == 0.0f ? 0 : (int8_t) roundf(x/d);
    if (i % QK8_1 == 0) {
        y.ds = make_half2(d, sum);
    }
}

// lets the next kernel start, which sees what the warp has written
static __device__ void let_successor_start() {
    __threadfence();
    __syncwarp();
    ggml_cuda_pdl_lc();
}

// Copies the misses tensor by tensor and tells how far it is: the kernels that read them need not wait for all.
static __device__ void fill_and_tell(const resolve_args & args, const step_state & step, const fill_args & fill, const int n_blocks) {
    for (int w = 0; w < fill.n_weights; ++w) {
        for (int m = 0; m < step.n_copied; ++m) {
            fill_slot(fill, w, step.expert[step.miss[m]], step.victim[m], n_blocks);
        }
        __syncwarp();
        if (fill.early && threadIdx.x % WARP_SIZE == 0) {
            __threadfence();
            atomicAdd((unsigned long long *) &args.counters[GGML_EXPERT_CACHE_FILLED + w], 1ull);
        }
    }
    for (int m = step.n_copied; m < step.n_fill; ++m) { // for the next steps
        for (int w = 0; w < fill.n_weights; ++w) {
            fill_slot(fill, w, step.expert[step.miss[m]], step.victim[m], n_blocks);
        }
    }
}

// Resolves the ids of a step and copies what is missing; further blocks quantise the activations.
//
// Every block reads the state and comes to the same list of misses, so none waits for another. If there are misses, the
// last block to have read the state writes the new one. If there are none, block 0 does: what the others read and it
// writes, the stamps, matters only to a step with misses.
static __global__ void __launch_bounds__(CUDA_EXPERT_CACHE_BLOCK_SIZE, 1)
expert_resolve_fill(const resolve_args args, const fill_args fill, const quantize_args activations, const int n_blocks) {
    extern __shared__ int64_t shared[];

    if (!fill.early) {
        ggml_cuda_pdl_lc();
    }
    if ((int) blockIdx.x >= n_blocks) {
        ggml_cuda_pdl_sync();
        quantize(activations, blockIdx.x - n_blocks);
        if (fill.early) {
            __threadfence();
        }
        return;
    }

    step_state step = load_state(args, shared);
    const int64_t to_fill = args.counters[GGML_EXPERT_CACHE_TO_FILL];
    ggml_cuda_pdl_sync();

    if (!look_up(args, step)) {
        if (blockIdx.x == 0) {
            write_result(args, step, threadIdx.x, blockDim.x);
            if (fill.early) {
                __threadfence();
            }
            write_state(args, step, threadIdx.x, blockDim.x);
        }
        return;
    }

    choose_victims(args, step);

    if (threadIdx.x < WARP_SIZE) { // the others copy already
        if (blockIdx.x == 0) {
            write_result(args, step, threadIdx.x, WARP_SIZE);
            if (fill.early && threadIdx.x == 0) {
                args.counters[GGML_EXPERT_CACHE_TO_FILL] = to_fill + n_blocks*(CUDA_EXPERT_CACHE_BLOCK_SIZE/WARP_SIZE);
            }
        }
        if (fill.early) {
            let_successor_start();
        }
        if (is_last_block(args, n_blocks)) {
            write_state(args, step, threadIdx.x, WARP_SIZE);
        }
    }
    fill_and_tell(args, step, fill, n_blocks);
}

//
// gather
//

struct gather_args {
    id_list         ids;
    const int32_t * table;
    const char    * cache;
    const char    * store;
    char          * dst;
    int64_t         nb;  // bytes of an expert
    int             vec; // see copy_width
};

// each row of the grid looks after one expert
static __global__ void __launch_bounds__(CUDA_EXPERT_CACHE_BLOCK_SIZE, 1)
expert_gather(const gather_args args) {
    const int32_t expert = blockIdx.y;

    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();

    __shared__ bool used;
    __shared__ bool used_before; // the expert before this one
    if (threadIdx.x == 0) {
        used        = false;
        used_before = false;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < args.ids.n; i += blockDim.x) {
        const int32_t id = args.ids[i];
        if (id == expert) {
            used = true;
        } else if (id == expert - 1) {
            used_before = true;
        }
    }
    __syncthreads();

    char * dst = args.dst + expert*args.nb;
    if (used) {
        const int32_t slot = args.table[expert];
        copy_expert(slot >= 0 ? args.cache + slot*args.nb : args.store + expert*args.nb, dst, args.nb, args.vec, gridDim.x);
    } else if (used_before && blockIdx.x == 0) {
        for (int64_t i = threadIdx.x; i < min(args.nb, (int64_t) GGML_EXPERT_GATHER_PADDING); i += blockDim.x) {
            dst[i] = 0;
        }
    }
}

//
// operations
//

// bytes that can be copied at once: a divisor of the size of an expert and of all addresses
static int copy_width(const void * a, const void * b, const void * c, const size_t nb) {
    const uintptr_t all = (uintptr_t) a | (uintptr_t) b | (uintptr_t) c | nb;
    return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 1;
}

static id_list get_ids(const ggml_tensor * ids) {
    return {
        /*.data   =*/ (const char *) ids->data,
        /*.nb0    =*/ (int64_t) ids->nb[0],
        /*.nb1    =*/ (int64_t) ids->nb[1],
        /*.n_used =*/ (int) ids->ne[0],
        /*.n      =*/ (int) ggml_nelements(ids),
    };
}

static resolve_args get_resolve_args(const ggml_tensor * dst) {
    const ggml_expert_cache_state state    = ggml_expert_resolve_state(dst);
    const ggml_tensor           * n_copied = ggml_expert_resolve_n_copied(dst);

    return {
        /*.ids      =*/ get_ids(dst->src[0]),
        /*.slots    =*/ (int32_t *) dst->data,
        /*.table    =*/ (int32_t *) state.table->data,
        /*.owner    =*/ (int32_t *) state.owner->data,
        /*.stamp    =*/ (int64_t *) state.stamp->data,
        /*.fills    =*/ (int32_t *) state.fills->data,
        /*.counters =*/ (int64_t *) state.counters->data,
        /*.n_expert =*/ (int) state.table->ne[0],
        /*.n_slots  =*/ (int) state.owner->ne[0],
        /*.n_pinned =*/ ggml_expert_resolve_n_pinned(dst),
        /*.n_copied     =*/ n_copied ? (const int32_t *) n_copied->data : nullptr,
        /*.n_background =*/ ggml_expert_resolve_n_background(dst),
        /*.host_ids     =*/ (int32_t *) dst->data + ggml_nelements(dst->src[0]),
    };
}

static fill_args get_fill_args(const ggml_tensor * dst) {
    fill_args args = {};

    for (int w = 0; w < GGML_EXPERT_CACHE_MAX_WEIGHTS && ggml_expert_fill_cache(dst, w); ++w) {
        const ggml_tensor * cache = ggml_expert_fill_cache(dst, w);
        const char        * store = ggml_expert_fill_store(dst, w);

        args.weights[w] = { store, (char *) cache->data, (int64_t) cache->nb[2], copy_width(store, cache->data, nullptr, cache->nb[2]) };
        args.n_weights  = w + 1;
    }

    return args;
}

static void launch_resolve(
        ggml_backend_cuda_context & ctx, const resolve_args & args, const fill_args & fill, const quantize_args & activations) {
    const int n_blocks = fill.n_weights > 0 ? CUDA_EXPERT_CACHE_BLOCKS : 1;
    const int n_quant  = (activations.n_total + CUDA_EXPERT_CACHE_BLOCK_SIZE - 1)/CUDA_EXPERT_CACHE_BLOCK_SIZE;

    const auto params = ggml_cuda_kernel_launch_params(n_blocks + n_quant, CUDA_EXPERT_CACHE_BLOCK_SIZE, step_state_size(args), ctx.stream());
    ggml_cuda_kernel_launch(expert_resolve_fill, params, args, fill, activations, n_blocks);
}

// the way when the device cannot read the store
static void fill_by_host(const ggml_tensor * dst, cudaStream_t stream) {
    const ggml_tensor * list = ggml_expert_fill_list(dst);

    std::vector<int32_t> fills(ggml_nelements(list));
    CUDA_CHECK(cudaMemcpyAsync(fills.data(), list->data, ggml_nbytes(list), cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));

    for (int i = 1; i <= fills[0]; ++i) {
        for (int w = 0; w < GGML_EXPERT_CACHE_MAX_WEIGHTS && ggml_expert_fill_cache(dst, w); ++w) {
            const ggml_tensor * cache = ggml_expert_fill_cache(dst, w);
            const size_t        nb    = cache->nb[2];
            CUDA_CHECK(cudaMemcpyAsync((char *) cache->data + fills[2*i + 1]*nb, ggml_expert_fill_store(dst, w) + fills[2*i + 0]*nb, nb,
                cudaMemcpyDefault, stream));
        }
    }
}

bool ggml_cuda_expert_cache_supported(const ggml_tensor * op) {
    if (op->op != GGML_OP_EXPERT_RESOLVE) {
        return true;
    }
    return ggml_nelements(op->src[0]) <= CUDA_EXPERT_CACHE_MAX_IDS &&
        ggml_expert_resolve_state(op).table->ne[0] <= CUDA_EXPERT_CACHE_MAX_EXPERTS;
}

void ggml_cuda_op_expert_resolve(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    launch_resolve(ctx, get_resolve_args(dst), {}, {});
}

void ggml_cuda_op_expert_fill(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!ggml_expert_fill_mapped(dst)) {
        fill_by_host(dst, ctx.stream());
        return;
    }
    const auto params = ggml_cuda_kernel_launch_params(CUDA_EXPERT_CACHE_BLOCKS, CUDA_EXPERT_CACHE_BLOCK_SIZE, 0, ctx.stream());
    ggml_cuda_kernel_launch(expert_fill, params, get_fill_args(dst), (const int32_t *) ggml_expert_fill_list(dst)->data);
}

void ggml_cuda_op_expert_gather(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * table = dst->src[1];
    const ggml_tensor * cache = dst->src[2];
    const char        * store = ggml_expert_gather_store(dst);

    const gather_args args = {
        /*.ids    =*/ get_ids(dst->src[0]),
        /*.table  =*/ (const int32_t *) table->data,
        /*.cache  =*/ (const char *) cache->data,
        /*.store  =*/ store,
        /*.dst    =*/ (char *) dst->data,
        /*.nb     =*/ (int64_t) cache->nb[2],
        /*.vec    =*/ copy_width(store, cache->data, dst->data, cache->nb[2]),
    };
    const dim3 blocks(CUDA_EXPERT_CACHE_BLOCKS_PER_EXPERT, table->ne[0]);

    const auto params = ggml_cuda_kernel_launch_params(blocks, CUDA_EXPERT_CACHE_BLOCK_SIZE, 0, ctx.stream());
    ggml_cuda_kernel_launch(expert_gather, params, args);
}

//
// products with experts in slots
//

// whether ggml_cuda_mul_mat_vec_q computes the product and its ids come from the fill
static bool is_mul_mat_vec_q(const ggml_tensor * op, const ggml_tensor * fill) {
    return op->op == GGML_OP_MUL_MAT_ID && op->src[2] == fill && ggml_is_quantized(op->src[0]->type) &&
        op->src[1]->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 &&
        op->ne[2] <= get_mmvq_mmid_max_batch(op->src[0]->type, ggml_cuda_info().devices[ggml_cuda_get_device()].cc);
}

// index of the first node after node i that does something
static int next_operation(const ggml_cgraph * cgraph, int i) {
    for (++i; i < cgraph->n_nodes; ++i) {
        const ggml_op op = cgraph->nodes[i]->op;
        if (op != GGML_OP_NONE && op != GGML_OP_RESHAPE && op != GGML_OP_VIEW && op != GGML_OP_PERMUTE && op != GGML_OP_TRANSPOSE) {
            break;
        }
    }
    return i;
}

// index of the tensor in the fill, -1 = not one of it
static int fill_index(const ggml_tensor * fill, const ggml_tensor * weights) {
    for (int w = 0; w < GGML_EXPERT_CACHE_MAX_WEIGHTS && ggml_expert_fill_cache(fill, w); ++w) {
        if (ggml_expert_fill_cache(fill, w) == weights) {
            return w;
        }
    }
    return -1;
}

// Whether products may run beside the fill of node i: it can have something to do, and all that it fills is read by products
// that wait for what they need.
static bool can_be_early(const ggml_cgraph * cgraph, int i) {
    const ggml_tensor             * fill  = cgraph->nodes[i];
    const ggml_expert_cache_state   state = ggml_expert_resolve_state(fill->src[0]);
    if (state.owner->ne[0] >= state.table->ne[0]) {
        return false;
    }
    int n_products = 0;
    for (++i; i < cgraph->n_nodes && cgraph->nodes[i]->op != GGML_OP_EXPERT_RESOLVE; ++i) {
        if (is_mul_mat_vec_q(cgraph->nodes[i], fill) && fill_index(fill, cgraph->nodes[i]->src[0]) >= 0) {
            n_products++;
        }
    }
    return n_products == get_fill_args(fill).n_weights;
}

bool ggml_cuda_try_expert_resolve_fill(ggml_backend_cuda_context & ctx, const ggml_cgraph * cgraph, int i) {
    ggml_cuda_expert_fill & last = ctx.expert_fill;
    GGML_ASSERT(last.launched || i <= last.product);

    if (i + 1 >= cgraph->n_nodes) {
        return false;
    }
    const ggml_tensor * resolve = cgraph->nodes[i];
    const ggml_tensor * fill    = cgraph->nodes[i + 1];

    if (resolve->op != GGML_OP_EXPERT_RESOLVE || fill->op != GGML_OP_EXPERT_FILL || fill->src[0] != resolve ||
            ggml_expert_fill_list(fill) != ggml_expert_resolve_state(resolve).fills || !ggml_expert_fill_mapped(fill)) {
        return false;
    }

    last = {};
    last.product = next_operation(cgraph, i + 1);
    if (last.product < cgraph->n_nodes && is_mul_mat_vec_q(cgraph->nodes[last.product], fill)) {
        last.launched = false;
        last.early    = can_be_early(cgraph, i + 1);
    } else {
        launch_resolve(ctx, get_resolve_args(resolve), get_fill_args(fill), {});
    }
    return true;
}

bool ggml_cuda_expert_resolve_quantize(
        ggml_backend_cuda_context & ctx, const ggml_tensor * ids, const ggml_tensor * x, void * y, int64_t ne0) {
    if (ctx.expert_fill.launched || !ids || ids->op != GGML_OP_EXPERT_FILL) {
        return false;
    }
    const quantize_args activations = {
        /*.x       =*/ (const float *) x->data,
        /*.y       =*/ (block_q8_1 *) y,
        /*.s1      =*/ (int64_t) (x->nb[1]/sizeof(float)),
        /*.s2      =*/ (int64_t) (x->nb[2]/sizeof(float)),
        /*.s3      =*/ (int64_t) (x->nb[3]/sizeof(float)),
        /*.n       =*/ (int) x->ne[0],
        /*.ne0     =*/ (int) ne0,
        /*.ne1     =*/ (int) x->ne[1],
        /*.ne2     =*/ (int) x->ne[2],
        /*.n_total =*/ (int) (ne0*x->ne[1]*x->ne[2]*x->ne[3]),
    };
    fill_args fill = get_fill_args(ids);
    fill.early = ctx.expert_fill.early;
    launch_resolve(ctx, get_resolve_args(ids->src[0]), fill, activations);
    ctx.expert_fill.launched = true;
    return true;
}

ggml_cuda_expert_wait ggml_cuda_get_expert_wait(
        const ggml_backend_cuda_context & ctx, const ggml_tensor * ids, const ggml_tensor * weights, const ggml_tensor * gate, bool beside_fill) {
    if (!ids || ids->op != GGML_OP_EXPERT_FILL || !ctx.expert_fill.early) {
        return {};
    }
    const ggml_expert_cache_state state    = ggml_expert_resolve_state(ids->src[0]);
    const int64_t               * counters = (const int64_t *) state.counters->data;
    const int                     w        = std::max(fill_index(ids, weights), gate ? fill_index(ids, gate) : -1); // the later one
    if (w < 0) {
        return {};
    }

    return {
        /*.fills       =*/ (const int32_t *) state.fills->data,
        /*.to_fill     =*/ counters + GGML_EXPERT_CACHE_TO_FILL,
        /*.filled      =*/ counters + GGML_EXPERT_CACHE_FILLED + w,
        /*.beside_fill =*/ beside_fill,
    };
}

bool ggml_cuda_expert_fill_needs_sync(const ggml_tensor * op) {
    return op->op == GGML_OP_EXPERT_FILL && !ggml_expert_fill_mapped(op);
}

int ggml_backend_cuda_expert_cache_max_tokens(ggml_type type) {
    int result = MMVQ_MAX_BATCH_SIZE;
    if (ggml_is_quantized(type)) {
        for (int id = 0; id < ggml_cuda_info().device_count; ++id) {
            result = std::min(result, get_mmvq_mmid_max_batch(type, ggml_cuda_info().devices[id].cc));
        }
    }
    return result;
}

// older ones start a kernel when the one before is over
bool ggml_backend_cuda_expert_cache_fills_beside() {
    const auto & info = ggml_cuda_info();
    return std::all_of(info.devices, info.devices + info.device_count, [](const auto & device) { return device.cc >= GGML_CUDA_CC_HOPPER; });
}

//
// store
//

namespace {

// host memory that the devices can read
struct mapped_store {
    void * device;
    int    n_users;
    bool   registered; // by this file; not if it was pinned already
};

std::mutex                     stores_mutex;
std::map<void *, mapped_store> stores;

} // namespace

static void * device_address(void * base) {
    void * result = nullptr;
    if (cudaHostGetDevicePointer(&result, base, 0) != cudaSuccess) {
        (void) cudaGetLastError();
        return nullptr;
    }
    return result;
}

static bool is_pinned(void * base) {
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, base) != cudaSuccess) {
        (void) cudaGetLastError();
        return false;
    }
    return attributes.type == cudaMemoryTypeHost;
}

// the error of the last attempt
static cudaError_t register_memory(void * base, size_t size) {
    cudaError_t err = cudaSuccess;
    // a mapped file is read-only, which not every system can register
    for (const unsigned int access : { cudaHostRegisterReadOnly, cudaHostRegisterDefault }) {
        err = cudaHostRegister(base, size, cudaHostRegisterPortable | cudaHostRegisterMapped | access);
        if (err == cudaSuccess) {
            break;
        }
        (void) cudaGetLastError();
    }
    return err;
}

void * ggml_backend_cuda_expert_store_map(void * base, size_t size) {
    std::lock_guard<std::mutex> lock(stores_mutex);

    const auto it = stores.find(base);
    if (it != stores.end()) {
        it->second.n_users++;
        return it->second.device;
    }

    const bool pinned = is_pinned(base);
    if (!pinned) {
        const cudaError_t err = register_memory(base, size);
        if (err != cudaSuccess) {
            GGML_LOG_WARN("%s: cannot pin %.1f MiB of host memory: %s\n", __func__, size/1024.0/1024.0, cudaGetErrorString(err));
            return nullptr;
        }
    }
    void * device = device_address(base);
    if (!device) {
        GGML_LOG_WARN("%s: the devices cannot read pinned host memory\n", __func__);
        if (!pinned) {
            CUDA_CHECK(cudaHostUnregister(base));
        }
        return nullptr;
    }
    stores[base] = { device, 1, !pinned };
    return device;
}

void ggml_backend_cuda_expert_store_unmap(void * base) {
    std::lock_guard<std::mutex> lock(stores_mutex);

    const auto it = stores.find(base);
    GGML_ASSERT(it != stores.end());
    if (--it->second.n_users == 0) {
        if (it->second.registered) {
            CUDA_CHECK(cudaHostUnregister(base));
        }
        stores.erase(it);
    }
}

#endif // defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
