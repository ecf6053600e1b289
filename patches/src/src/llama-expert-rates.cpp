#include "llama-expert-rates.h"

#include "llama-impl.h"

#include <algorithm>

llama_expert_rates::line llama_expert_rates::line::measure(int32_t n_most, const std::function<double(int32_t)> & time) {
    constexpr int n_rounds = 7;

    double one  = time(1); // and what is done once, such as reading the file
    double most = time(n_most);
    for (int i = 0; i < n_rounds; ++i) { // in turn: the machine may change its speed
        one  = std::min(one,  time(1));
        most = std::min(most, time(n_most));
    }
    const double each = n_most > 1 ? std::max(0.0, (most - one)/(n_most - 1)) : 0.0;
    return { std::max(0.0, one - each), each };
}

std::vector<int32_t> llama_expert_rates::split(int32_t n_most, bool background) const {
    std::vector<int32_t> result;
    for (int32_t n = 0; n <= n_most; ++n) {
        const int32_t fewest = !background && n > 1 ? 1 : 0;

        int32_t best = n;
        for (int32_t k = n - 1; k >= fewest; --k) {
            if (std::max(copy(k), cpu(n - k)) < std::max(copy(best), cpu(n - best))) {
                best = k;
            }
        }
        result.push_back(best);
    }
    return result;
}

const char * llama_expert_rates::choice(const std::vector<int32_t> & n_copied) {
    bool copies   = false;
    bool computes = false;
    for (size_t n = 0; n < n_copied.size(); ++n) {
        copies   = copies   || n_copied[n] > 0;
        computes = computes || n_copied[n] < (int32_t) n;
    }
    return !computes ? "copy" : !copies ? "cpu" : "split";
}

std::string llama_expert_rates::json(const std::vector<int32_t> & n_copied, int32_t n_background) const {
    std::string list;
    for (const int32_t k : n_copied) {
        list += (list.empty() ? "" : ", ") + std::to_string(k);
    }
    return format("{\"copy_us\": [%.2f, %.2f], \"cpu_us\": [%.2f, %.2f], \"misses_copied\": [%s], \"background\": %d, \"choice\": \"%s\"}",
            copy.fixed, copy.each, cpu.fixed, cpu.each, list.c_str(), n_background, choice(n_copied));
}
