#include "host-ballast.h"

#include "common.h"
#include "llama-experts.h"
#include "log.h"

#include <stdexcept>
#include <string>

#if defined(__linux__)

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

// In the holder, which shares the locks of a parent with several threads: system calls only.
[[noreturn]] static void hold(size_t bytes, int parent, int ready) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
    char * data = (char *) mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        _exit(1);
    }
    madvise(data, bytes, MADV_HUGEPAGE); // less work
    for (size_t i = 0; i < bytes; i += 4096) {
        data[i] = 1;
    }
    const char locked = mlock(data, bytes) == 0 ? 1 : 0;
    if (write(ready, &locked, 1) != 1) {
        _exit(1);
    }
    for (;;) {
        pause();
    }
}

static bool has_swap() {
    FILE * meminfo = fopen("/proc/meminfo", "r");
    char   line[256];
    long   kib = 0;
    while (meminfo && fgets(line, sizeof(line), meminfo) && sscanf(line, "SwapTotal: %ld", &kib) != 1) {
    }
    if (meminfo) {
        fclose(meminfo);
    }
    return kib > 0;
}

// when memory runs out: this process first
static void volunteer() {
    if (FILE * score = fopen("/proc/self/oom_score_adj", "w")) {
        fputs("1000", score);
        fclose(score);
    }
}

host_ballast::host_ballast(int32_t limit_mib) {
    if (limit_mib == 0) {
        return;
    }
    const size_t limit     = (size_t) limit_mib*1024*1024;
    const size_t available = llama_host_memory_available();
    if (available == SIZE_MAX || available < limit) {
        throw std::runtime_error(string_format("--host-limit: the host has %zu MiB available, fewer than the limit: choose at most that, or free some",
                available == SIZE_MAX ? 0 : available/1024/1024));
    }
    const size_t bytes = available - limit;
    LOG_INF("occupying %.1f GiB of host memory ...\n", bytes/1024.0/1024.0/1024.0);

    if (bytes == 0) {
        return;
    }
    int ready[2];
    if (pipe(ready) != 0) {
        throw std::runtime_error(string_format("--host-limit: no pipe: %s", strerror(errno)));
    }
    const int parent = getpid();
    holder = fork();
    if (holder == 0) {
        hold(bytes, parent, ready[1]);
    }
    close(ready[1]);

    char       locked = 0;
    const bool held   = holder > 0 && read(ready[0], &locked, 1) == 1;
    close(ready[0]);
    if (!held || (!locked && has_swap())) {
        release();
        throw std::runtime_error(string_format("--host-limit: cannot occupy %zu MiB of host memory: %s", bytes/1024/1024,
                held ? "it cannot be locked, and could be swapped: raise ulimit -l" : "something else took it"));
    }
    volunteer();
}

void host_ballast::release() {
    if (holder > 0) {
        kill(holder, SIGKILL);
        waitpid(holder, nullptr, 0);
    }
    holder = -1;
}

#else

host_ballast::host_ballast(int32_t limit_mib) {
    if (limit_mib > 0) {
        throw std::runtime_error("--host-limit: not on this system");
    }
}

void host_ballast::release() {}

#endif

host_ballast::~host_ballast() {
    release();
}
