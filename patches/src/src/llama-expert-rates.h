#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// What misses cost on this machine, for the policy hybrid: microseconds for some misses of a layer, fixed + each*n.
struct llama_expert_rates {
    struct line {
        double fixed = 0.0;
        double each  = 0.0;

        double operator()(int32_t n) const { return n == 0 ? 0.0 : fixed + each*n; }

        // through the medians of several time(1) and time(n_most), in microseconds; through the origin where more experts did
        // not take longer
        static line measure(int32_t n_most, const std::function<double(int32_t)> & time);
    };

    static double measure(const std::function<double()> & time); // the median of several

    line copy; // to the slots
    line cpu;  // on the CPU, which tells the device
    double ask = 0.0; // for a layer of a step whose graph could ask the CPU, if it does not

    static llama_expert_rates from(const float values[5]) {
        return { { values[0], values[1] }, { values[2], values[3] }, values[4] };
    }

    // for steps with 0, 1, .. n_most misses in a layer, how many of them to copy so that both sides are done soonest; of equal
    // choices the one with more copies, which the next steps find in slots
    //   background: some of the others are copied too while the device goes on; without, the slots would not change if none
    //   were copied, so one of several is
    std::vector<int32_t> split(int32_t n_most, bool background) const;

    // what a split saves in a layer and step on average, where the numbers of misses are Poisson distributed with this mean
    double saved(double mean, const std::vector<int32_t> & n_copied) const;

    static bool         computes(const std::vector<int32_t> & n_copied); // whether not all are copied
    static const char * choice(const std::vector<int32_t> & n_copied); // "copy", "cpu" or "split"

    // asks: whether steps at present can ask the CPU
    std::string json(const std::vector<int32_t> & n_copied, int32_t n_background, bool asks) const;
};
