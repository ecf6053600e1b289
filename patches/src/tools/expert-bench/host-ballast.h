#pragma once

#include <cstdint>

// Host memory that the measured program must not have, so that this machine acts as one with less of it. A process of its own
// holds it, as any other program could: it counts as nobody's use, and when memory runs out the measured program is
// stopped, not the ballast. Linux only.
class host_ballast {
public:
    // leaves limit_mib MiB of what is available now, 0 = all
    // throws std::runtime_error if the rest cannot be occupied
    explicit host_ballast(int32_t limit_mib);
    ~host_ballast();

    host_ballast(const host_ballast &) = delete;
    host_ballast & operator=(const host_ballast &) = delete;

private:
    void release();

    int holder = -1; // process id
};
