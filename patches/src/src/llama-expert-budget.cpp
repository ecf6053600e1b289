#include "llama-expert-budget.h"

#include "llama-expert-memory.h"
#include "llama-impl.h"

#include <algorithm>
#include <stdexcept>

size_t llama_expert_budget::need(int32_t capacity, int32_t pinned) const {
    size_t result = 0;
    for (const auto & l : layers) {
        const int32_t in_host  = l.n_expert - std::min(pinned, l.n_listed);
        const int32_t in_slots = l.slots_in_host ? std::min(capacity, l.n_expert) : 0;
        result += (in_host + in_slots)*l.expert_bytes;
    }
    return result;
}

bool llama_expert_budget::fits(int32_t capacity, int32_t pinned) const {
    return need(capacity, pinned) <= host_bytes;
}

int32_t llama_expert_budget::fewest_pinned(int32_t capacity, int32_t first) const {
    for (int32_t pinned = first; pinned <= capacity - n_expert_used; ++pinned) {
        if (fits(capacity, pinned)) {
            return pinned;
        }
    }
    return -1;
}

size_t llama_expert_budget::total() const {
    size_t result = 0;
    for (const auto & l : layers) {
        result += l.n_expert*l.expert_bytes;
    }
    return result;
}

int32_t llama_expert_budget::n_listed() const {
    int32_t result = 0;
    for (const auto & l : layers) {
        result = std::max(result, l.n_listed);
    }
    return result;
}

void llama_expert_budget::refuse(int32_t capacity, int32_t pinned) const {
    const int32_t most = capacity - n_expert_used;
    const int32_t say  = std::min(pinned < 0 ? most : pinned, most);

    std::string advice = "free host memory or take a smaller quantisation";
    if (const int32_t enough = fewest_pinned(capacity, std::max(pinned, 1)); enough > 0) {
        advice = format("pin %d to %d", enough, most);
    } else if (capacity < capacity_max && fewest_pinned(capacity_max, 1) > 0) {
        advice = format("the device has room for %d slots per layer", capacity_max);
    } else if (n_listed() < most) {
        advice += format("; the pin list names at most %d experts of a layer, %d could be pinned: make it from more text", n_listed(), most);
    }
    throw std::runtime_error(format("expert cache: unified memory does not fit: of %.2f GiB of experts, %d of %d slots per layer pinned leave "
            "%.2f GiB%s for the host, which has %.2f GiB for them: %s",
            llama_gib(total()), say, capacity, llama_gib(need(capacity, say)), layers.front().slots_in_host ? " with the slots" : "", llama_gib(host_bytes), advice.c_str()));
}

llama_expert_budget::choice llama_expert_budget::choose(int32_t capacity, int32_t pinned) const {
    const bool automatic = capacity == LLAMA_EXPERT_CACHE_AUTO;

    if (automatic && capacity_max <= n_expert_used) {
        throw std::runtime_error(format("expert cache: unified memory does not fit: the device has room for %d slots per layer, at least %d are needed, "
                "one of them pinned: shorten the context, or free device memory", capacity_max, n_expert_used + 1));
    }
    if (!automatic && capacity > capacity_max) {
        throw std::runtime_error(format("expert cache: unified memory does not fit: the device has room for %d slots per layer, not %d", capacity_max, capacity));
    }
    const int32_t most   = automatic ? capacity_max : capacity;
    const int32_t fewest = automatic ? n_expert_used + 1 : capacity;
    if (std::max(pinned, 1) > most - n_expert_used) {
        throw std::runtime_error(format("expert cache: unified memory: %d of %d slots pinned leave fewer than the %d that a token uses: %s",
                std::max(pinned, 1), most, n_expert_used,
                most > n_expert_used ? format("pin 1 to %d", most - n_expert_used).c_str() : format("choose a capacity of at least %d", n_expert_used + 1).c_str()));
    }

    for (int32_t c = most; c >= fewest; --c) {
        if (pinned >= 0) {
            if (pinned <= c - n_expert_used && fits(c, pinned)) {
                return { c, pinned };
            }
            continue;
        }
        const int32_t half = std::max(1, std::min(c/2, c - n_expert_used));
        if (const int32_t p = fewest_pinned(c, half); p > 0) {
            return { c, p };
        }
    }
    refuse(most, pinned);
}
