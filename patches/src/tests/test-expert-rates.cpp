// Checks how the policy hybrid takes the cost of misses from measured times, on times that are made up, and what it decides.
// Prints a line for each check; exits with 1 if one fails.

#include "../src/llama-expert-rates.h"

#include <cmath>
#include <cstdio>
#include <numeric>

using rates = llama_expert_rates;

static bool near(double a, double b) {
    return std::fabs(a - b) < 1e-9;
}

// times of a machine that needs fixed + each*n, and now and then much longer
static bool line_ignores_what_seldom_happens() {
    int n_calls = 0;
    const auto line = rates::line::measure(8, [&](int32_t n) { return 40.0 + 5.0*n + (n_calls++ % 5 == 4 ? 1000.0 : 0.0); });
    return near(line.fixed, 40.0) && near(line.each, 5.0);
}

static bool line_follows_a_machine_that_slows_down() {
    double slower = 0.0;
    const auto line = rates::line::measure(5, [&](int32_t n) { slower += 0.5; return slower + 20.0*n; });
    return std::fabs(line.each - 20.0) < 0.5;
}

// eight experts seemed to be no slower than one
static bool line_has_a_cost_for_each_expert_always() {
    for (const double each : { 0.0, -3.0 }) {
        const auto line = rates::line::measure(8, [&](int32_t n) { return 60.0 + each*n; });
        if (!(near(line.fixed, 0.0) && near(line.each, (60.0 + 8*each)/8))) {
            return false;
        }
    }
    const auto one = rates::line::measure(1, [](int32_t) { return 7.0; });
    return near(one.fixed, 0.0) && near(one.each, 7.0);
}

// no other split of n misses ends sooner, and of equal ones it is the one with most copies
static bool split_is_the_soonest() {
    const rates all[] = { { { 4, 104 }, { 45, 58 }, 0 }, { { 0, 1 }, { 0, 1 }, 0 }, { { 1, 1000 }, { 1, 1 }, 0 }, { { 1, 1 }, { 1, 1000 }, 0 } };
    for (const auto & r : all) {
        for (const bool background : { false, true }) {
            const auto n_copied = r.split(8, background);
            for (int32_t n = 0; n <= 8; ++n) {
                const auto end = [&](int32_t k) { return std::fmax(r.copy(k), r.cpu(n - k)); };
                for (int32_t k = !background && n > 1 ? 1 : 0; k <= n; ++k) {
                    if (end(k) < end(n_copied[n]) || (end(k) == end(n_copied[n]) && k > n_copied[n])) {
                        return false;
                    }
                }
                if (!background && n > 1 && n_copied[n] == 0) { // or slots would never change
                    return false;
                }
            }
        }
    }
    return true;
}

static bool choice_has_a_name() {
    std::vector<int32_t> all(9);
    std::iota(all.begin(), all.end(), 0);
    return rates::choice(all) == std::string("copy") && rates::choice(std::vector<int32_t>(9, 0)) == std::string("cpu") &&
        rates::choice({ 0, 0, 1 }) == std::string("split") && !rates::computes(all) && rates::computes({ 0, 0 });
}

// sum of probability times what is saved, for a mean of one miss
static bool saved_is_the_mean() {
    const rates r = { { 0, 100 }, { 0, 50 }, 0 };
    const std::vector<int32_t> n_copied = { 0, 0, 1 };
    const double p1 = std::exp(-1.0);
    return near(r.saved(1.0, n_copied), p1*50.0 + p1/2*100.0) && near(r.saved(0.0, n_copied), 0.0);
}

int main() {
    const struct { const char * name; bool (*holds)(); } checks[] = {
        { "line ignores what seldom happens",       line_ignores_what_seldom_happens       },
        { "line follows a machine that slows down", line_follows_a_machine_that_slows_down },
        { "line has a cost for each expert always", line_has_a_cost_for_each_expert_always },
        { "split is the soonest",                   split_is_the_soonest                   },
        { "choice has a name",                      choice_has_a_name                      },
        { "saved is the mean",                      saved_is_the_mean                      },
    };
    int n_failed = 0;
    for (const auto & check : checks) {
        const bool ok = check.holds();
        printf("%s: %s\n", check.name, ok ? "ok" : "failed");
        n_failed += !ok;
    }
    return n_failed == 0 ? 0 : 1;
}
