// How fast experts come from pinned host memory: read by a kernel, as misses are, and by the copy engine.
//
//     nvcc -O3 -std=c++17 -arch=native -o /tmp/fill_rate benchmarks/fill_rate.cu && /tmp/fill_rate > fill_rate.csv
//
// A kernel copies 1, 2 or 4 experts of three tensors, chosen at random, as many times as a model has layers; the time of the
// same kernels without an expert is taken off. The copy engine copies pieces of the same memory, one after another, from a
// tensor of an expert to 256 MiB. The fastest of several repetitions counts: others only add noise of the machine.
// Takes 9 GiB of host memory and about ten seconds.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#define CHECK(call)                                                                             \
    do {                                                                                        \
        const cudaError_t error = (call);                                                       \
        if (error != cudaSuccess) {                                                             \
            fprintf(stderr, "error: %s (%s)\n", cudaGetErrorString(error), #call);              \
            fprintf(stderr, "  next: a CUDA device and 9 GiB of free host memory are needed\n"); \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

static const size_t TENSOR    = 2048*768/32*34; // bytes of an expert's gate, up or down: Qwen3-30B-A3B in Q8_0
static const int    N_TENSORS = 3;
static const int    N_LAYERS  = 48;
static const int    N_EXPERTS = 1900;           // in each of the three regions of host memory
static const int    N_REPEATS = 10;
static const int    UNROLL    = 8;              // loads that a thread has in flight, as in ggml-cuda/expert-cache.cu
static const int    THREADS   = 256;

static __global__ void copy_experts(const char * store, char * slots, const int * experts, const int n) {
    const int64_t n_vec  = TENSOR/sizeof(uint4);
    const int64_t stride = (int64_t) gridDim.x*blockDim.x;

    for (int piece = 0; piece < n*N_TENSORS; ++piece) {
        const int     tensor = piece % N_TENSORS;
        const uint4 * src    = (const uint4 *) (store + ((size_t) tensor*N_EXPERTS + experts[piece/N_TENSORS])*TENSOR);
        uint4       * dst    = (uint4 *) (slots + (size_t) piece*TENSOR);

        for (int64_t i0 = (int64_t) blockIdx.x*blockDim.x + threadIdx.x; i0 < n_vec; i0 += UNROLL*stride) {
            uint4 values[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                if (i0 + u*stride < n_vec) {
                    values[u] = __ldcs(src + i0 + u*stride);
                }
            }
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                if (i0 + u*stride < n_vec) {
                    dst[i0 + u*stride] = values[u];
                }
            }
        }
    }
}

// the fastest run of what launch() puts into the stream, in seconds
template <typename Launch>
static double fastest(cudaStream_t stream, const Launch & launch) {
    cudaEvent_t begin;
    cudaEvent_t end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    float best = 1e30f;
    for (int i = 0; i < N_REPEATS; ++i) {
        CHECK(cudaEventRecord(begin, stream));
        launch();
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaStreamSynchronize(stream));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        best = std::min(best, ms);
    }
    return best*1e-3;
}

static double seconds_of_layers(cudaStream_t stream, const char * store, char * slots, const int * experts, int n_blocks, int n) {
    cudaGraph_t     graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int layer = 0; layer < N_LAYERS; ++layer) {
        copy_experts<<<n_blocks, THREADS, 0, stream>>>(store, slots, experts + layer*n, n);
    }
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    const double seconds = fastest(stream, [&] { CHECK(cudaGraphLaunch(exec, stream)); });
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    return seconds;
}

int main() {
    const size_t size = N_TENSORS*N_EXPERTS*TENSOR;
    char       * store;
    char       * slots;
    CHECK(cudaHostAlloc(&store, size, cudaHostAllocMapped));
    memset(store, 1, size);
    CHECK(cudaMalloc(&slots, 256 << 20));

    std::mt19937     random(1);
    std::vector<int> experts(N_LAYERS*4);
    for (int & expert : experts) {
        expert = random() % N_EXPERTS;
    }
    int * device_experts;
    CHECK(cudaMalloc(&device_experts, experts.size()*sizeof(int)));
    CHECK(cudaMemcpy(device_experts, experts.data(), experts.size()*sizeof(int), cudaMemcpyHostToDevice));
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));

    printf("reader,blocks,experts,piece_bytes,us_per_expert,gb_per_s\n");
    for (const int n_blocks : { 8, 32, 128 }) {
        const double none = seconds_of_layers(stream, store, slots, device_experts, n_blocks, 0);
        for (const int n : { 1, 2, 4 }) {
            const double seconds = (seconds_of_layers(stream, store, slots, device_experts, n_blocks, n) - none)/N_LAYERS/n;
            printf("kernel,%d,%d,%zu,%.1f,%.1f\n", n_blocks, n, TENSOR, seconds*1e6, N_TENSORS*TENSOR/seconds*1e-9);
        }
    }
    for (const size_t piece : { TENSOR, (size_t) 4 << 20, (size_t) 256 << 20 }) {
        const size_t n       = std::max<size_t>(1, (512 << 20)/piece);
        const double seconds = fastest(stream, [&] {
            for (size_t i = 0; i < n; ++i) {
                const size_t offset = (size_t) experts[i % experts.size()]*TENSOR;
                CHECK(cudaMemcpyAsync(slots, store + offset, piece, cudaMemcpyHostToDevice, stream));
            }
        });
        printf("copy engine,,,%zu,%.1f,%.1f\n", piece, N_TENSORS*TENSOR*seconds/(n*piece)*1e6, n*piece/seconds*1e-9);
    }
    return 0;
}
