#include "llama-expert-team.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

//
// llama_expert_looking
//

void llama_expert_looking::look() {
    constexpr int n_quick = 1000; // some ten microseconds

    if (n_looks == 0) {
        start = std::chrono::steady_clock::now();
    }
    if (n_looks < n_quick) {
        n_looks++;
#if defined(__x86_64__) || defined(_M_X64)
        _mm_pause();
        return;
#endif
    }
    std::this_thread::yield();
}

std::chrono::steady_clock::duration llama_expert_looking::time() const {
    return n_looks == 0 ? std::chrono::steady_clock::duration() : std::chrono::steady_clock::now() - start;
}

void llama_expert_looking::restart() {
    n_looks = 0;
}

//
// llama_expert_team
//

llama_expert_team::llama_expert_team(int32_t n) : n(n) {
    for (int32_t i = 1; i < n; ++i) {
        threads.emplace_back([this, i]() { work(i); });
    }
}

llama_expert_team::~llama_expert_team() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        stopped = true;
    }
    changed.notify_all();
    for (auto & t : threads) {
        t.join();
    }
}

void llama_expert_team::run(const std::function<void(int32_t)> & f) {
    job     = &f;
    current = (number(current) + 1)*RUN + OPEN;
    if (n_asleep > 0) { // counted before it looked for the last time
        { std::lock_guard<std::mutex> lock(mutex); } // one that is about to wait for the signal does
        changed.notify_all();
    }
    f(0);
    current &= ~OPEN;
    for (llama_expert_looking wait; current%OPEN != 0; ) {
        wait.look();
    }
}

void llama_expert_team::work(int32_t i) {
    uint64_t last = 0; // number of the run before
    llama_expert_looking wait;
    while (!stopped) {
        uint64_t now = current;
        if (number(now) != last && join(now)) {
            last = number(now);
            (*job)(i);
            current--;
            wait.restart();
        } else if (wait.time() < EAGER) {
            wait.look();
        } else {
            sleep(number(now));
            wait.restart();
        }
    }
}

// returns false if the run is over, or another one
bool llama_expert_team::join(uint64_t run) {
    while (run & OPEN) {
        uint64_t expected = run;
        if (current.compare_exchange_weak(expected, run + 1)) {
            return true;
        }
        if (number(expected) != number(run)) {
            return false;
        }
        run = expected;
    }
    return false;
}

// until a run begins after the one with the number: too late for that, but more may follow
void llama_expert_team::sleep(uint64_t last) {
    std::unique_lock<std::mutex> lock(mutex);
    n_asleep++;
    changed.wait(lock, [this, last]() { return number(current) != last || stopped; });
    n_asleep--;
}
