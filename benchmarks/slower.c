// Planted slowdown: every graph takes SLOWER_BY more of its time, spent doing nothing.
// On the CPU back end the call returns when the graph is computed.
//
//   cc -O2 -shared -fPIC -o slower.so benchmarks/slower.c
//   SLOWER_BY=0.03 LD_PRELOAD=./slower.so llama-expert-bench ...

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

typedef int (*compute_t)(void * sched, void * graph);

int ggml_backend_sched_graph_compute_async(void * sched, void * graph) {
    static compute_t compute;
    static double    share;
    if (!compute) {
        compute = (compute_t) dlsym(RTLD_NEXT, "ggml_backend_sched_graph_compute_async");
        const char * text = getenv("SLOWER_BY");
        share = text ? atof(text) : 0.0;
    }
    const int64_t start  = now_ns();
    const int     status = compute(sched, graph);
    const int64_t end    = now_ns();
    const int64_t until  = end + (int64_t) ((end - start) * share);
    while (now_ns() < until) {
    }
    return status;
}
