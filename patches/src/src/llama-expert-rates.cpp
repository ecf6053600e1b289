#include "llama-expert-rates.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>

static double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size()/2, values.end());
    return values[values.size()/2];
}

static constexpr int N_ROUNDS = 9;

double llama_expert_rates::measure(const std::function<double()> & time) {
    std::vector<double> values(N_ROUNDS);
    std::generate(values.begin(), values.end(), time);
    return median(std::move(values));
}

llama_expert_rates::line llama_expert_rates::line::measure(int32_t n_most, const std::function<double(int32_t)> & time) {
    time(1); // and what is done once, such as reading the file
    time(n_most);
    std::vector<double> one;
    std::vector<double> most;
    std::vector<double> more; // for each expert after the first
    for (int i = 0; i < N_ROUNDS; ++i) { // in turn: the machine may change its speed
        one .push_back(time(1));
        most.push_back(time(n_most));
        more.push_back((most.back() - one.back())/std::max(1, n_most - 1));
    }
    // what it usually takes: the least is only seen where nothing else runs on the machine
    const double each = n_most > 1 ? median(more) : 0.0;
    if (each <= 0.0) { // other work took longer than the experts: how much of their time is fixed cannot be told
        return { 0.0, median(most)/n_most };
    }
    return { std::max(0.0, median(one) - each), each };
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

double llama_expert_rates::saved(double mean, const std::vector<int32_t> & n_copied) const {
    double result      = 0.0;
    double probability = std::exp(-mean);
    for (int32_t n = 1; n < (int32_t) n_copied.size(); ++n) {
        probability *= mean/n;
        result += probability*(copy(n) - std::max(copy(n_copied[n]), cpu(n - n_copied[n])));
    }
    return result;
}

bool llama_expert_rates::computes(const std::vector<int32_t> & n_copied) {
    for (size_t n = 0; n < n_copied.size(); ++n) {
        if (n_copied[n] < (int32_t) n) {
            return true;
        }
    }
    return false;
}

const char * llama_expert_rates::choice(const std::vector<int32_t> & n_copied) {
    const bool computes = llama_expert_rates::computes(n_copied);
    const bool copies   = std::any_of(n_copied.begin(), n_copied.end(), [](int32_t k) { return k > 0; });
    return !computes ? "copy" : !copies ? "cpu" : "split";
}

std::string llama_expert_rates::json(const std::vector<int32_t> & n_copied, int32_t n_background, bool asks) const {
    std::string list;
    for (const int32_t k : n_copied) {
        list += (list.empty() ? "" : ", ") + std::to_string(k);
    }
    return format("{\"copy_us\": [%.2f, %.2f], \"cpu_us\": [%.2f, %.2f], \"ask_us\": %.2f, \"misses_copied\": [%s], \"background\": %d, \"choice\": \"%s\", \"asks\": %s}",
            copy.fixed, copy.each, cpu.fixed, cpu.each, ask, list.c_str(), n_background, choice(n_copied), asks ? "true" : "false");
}
