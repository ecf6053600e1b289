#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

// Looks for something that another thread is about to do: at first without a pause, then in a way that leaves the processor
// to others that need it.
class llama_expert_looking {
public:
    void look();

    // since the first look, or since restart
    std::chrono::steady_clock::duration time() const;

    void restart();

private:
    int n_looks = 0;
    std::chrono::steady_clock::time_point start;
};

// Threads for work of some ten microseconds that comes again and again. They look for more for some milliseconds before they
// sleep: to wake them takes as long as the work. Nothing waits for a thread that has not joined yet, for instance because it
// sleeps or another program has its processor.
class llama_expert_team {
public:
    static constexpr std::chrono::milliseconds EAGER { 5 }; // before a thread sleeps

    // n: threads, with the one that calls run
    explicit llama_expert_team(int32_t n);
    ~llama_expert_team();

    int32_t size() const { return n; }

    // Calls f with 0 in this thread, and with 1 to n - 1 in those of the others that come before that is over. f(0) returns
    // when all work is done; run returns when all calls have.
    void run(const std::function<void(int32_t)> & f);

private:
    // a run: its number, whether others can still join it, how many of them are in it
    static constexpr uint64_t RUN  = uint64_t(1) << 32;
    static constexpr uint64_t OPEN = uint64_t(1) << 31;

    static uint64_t number(uint64_t run) { return run/RUN; }

    void work(int32_t i);
    bool join(uint64_t run);
    void sleep(uint64_t last);

    const int32_t n;

    const std::function<void(int32_t)> * job = nullptr;

    alignas(64) std::atomic<uint64_t> current  { 0 };
    alignas(64) std::atomic<int32_t>  n_asleep { 0 };

    std::atomic<bool>        stopped { false };
    std::mutex               mutex;
    std::condition_variable  changed;
    std::vector<std::thread> threads;
};
