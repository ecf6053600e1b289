#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>

// what the cache is doing
struct llama_expert_cache_info {
    bool        engaged       = false;
    std::string reason        = "off"; // why layers are not served, empty if all are
    int32_t     requested     = LLAMA_EXPERT_CACHE_OFF;
    int32_t     capacity      = 0;     // slots per layer
    int32_t     n_in_slots    = 0;     // experts in them
    int32_t     pinned        = 0;
    int32_t     n_expert      = 0;
    int32_t     n_expert_used = 0;
    int32_t     n_layers      = 0;     // served by the cache
    int32_t     n_layers_moe  = 0;     // with experts
    int32_t     batch_limit   = 0;     // steps of more tokens do not use the slots
    bool        gathers       = false; // but what is in them, the rest from pinned host memory; else they go past the cache
    size_t      cache_bytes   = 0;
    size_t      store_bytes   = 0;
    size_t      expert_bytes  = 0;     // largest expert
    size_t      pinned_bytes  = 0;     // host memory that devices read themselves
    bool        unified       = false; // pinned experts are only in slots
    size_t      host_bytes    = 0;     // of experts in host memory
    size_t      device_bytes  = 0;     // of experts that are not
    bool        by_host       = false; // they cannot: the host copies, for which it waits for the device in each layer
    llama_expert_cache_policy policy = LLAMA_EXPERT_CACHE_POLICY_LRU;
    int32_t     hot_interval  = 0;     // with the policy hot: tokens after which the experts are chosen again
    std::string hybrid;                // with the policy hybrid: what a miss costs, as JSON
    std::string hybrid_choice;
    bool        asks          = false; // the device asks the CPU itself for what it computes; else the scheduler hands it over
    int64_t     hits          = 0;
    int64_t     misses        = 0;
    int64_t     copied        = 0;
    int64_t     computed      = 0;

    std::set<std::string> devices;

    bool        store_pinned() const { return pinned_bytes > 0 && !by_host; }
    std::string miss_cost() const;

    // why the cache is not expected to pay off, empty if nothing speaks against it
    std::string warning() const;

    std::string policy_json() const; // what lru does not have
    std::string policy_line() const;

    std::string json() const; // one line
    std::string line() const; // for people
};
