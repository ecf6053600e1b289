// Contexts with an expert cache come and go: none leaves anything behind, none disturbs another, each starts afresh.
// Needs a model with experts; they stay in host memory. One line for each check, exit code 1 if one failed.
//
//   test-expert-cache-contexts -m MODEL [-ngl N]

#include "ggml-backend.h"
#include "llama-cpp.h"
#include "llama-experts.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

static constexpr int N_CONTEXTS = 100; // created and destroyed one after the other
static constexpr int N_MODELS   = 10;
static constexpr int N_STEPS    = 12;  // of one token
static constexpr int N_WARMUP   = 8;   // until allocators, thread pools and drivers have what they keep

static constexpr int64_t MiB = 1024*1024;

//
// memory
//

// what this process holds; negative = this system does not tell
struct memory_use {
    int64_t resident = -1; // bytes of host memory
    int64_t regions  = -1; // mapped
    int64_t device   = -1; // bytes in use on all GPUs, by whomever

    static memory_use now() {
        memory_use result;

#if defined(__GLIBC__)
        malloc_trim(0); // what is free but was not given back is no leak
#endif
        std::ifstream status("/proc/self/status");
        std::string   word;
        while (status >> word) {
            if (word == "VmRSS:" && status >> result.resident) {
                result.resident *= 1024;
            }
        }

        std::ifstream maps("/proc/self/maps");
        for (std::string line; std::getline(maps, line);) {
            result.regions = std::max<int64_t>(result.regions, 0) + 1;
        }

        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            ggml_backend_dev_t dev = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_GPU) {
                size_t free  = 0;
                size_t total = 0;
                ggml_backend_dev_memory(dev, &free, &total);
                result.device = std::max<int64_t>(result.device, 0) + total - free;
            }
        }
        return result;
    }
};

static void require(bool what, const std::string & otherwise) {
    if (!what) {
        throw std::runtime_error(otherwise);
    }
}

static void require_no_growth(const memory_use & before, const memory_use & after, int64_t bytes) {
    constexpr int64_t few_regions = 16;

    const auto mib = [](int64_t n) { return std::to_string(n/MiB) + " MiB"; };

    const int64_t resident = after.resident - before.resident;
    const int64_t device   = after.device   - before.device;
    const int64_t regions  = after.regions  - before.regions;
    require(resident <= bytes,      "resident memory grew by " + mib(resident) + ", more than " + mib(bytes));
    require(device   <= bytes,      "device memory grew by "   + mib(device)   + ", more than " + mib(bytes));
    require(regions  <= few_regions, std::to_string(regions) + " more mapped regions");
}

//
// models and contexts
//

struct options {
    std::string path;
    int32_t     n_gpu_layers = 0;
};

static llama_model_ptr load(const options & opts, llama_progress_callback progress = nullptr) {
    static const llama_model_tensor_buft_override in_host_memory[] = {
        { "\\.ffn_(up|down|gate|gate_up)_(ch|)exps", ggml_backend_cpu_buffer_type() },
        { nullptr, nullptr },
    };

    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers          = opts.n_gpu_layers;
    params.tensor_buft_overrides = in_host_memory;
    params.progress_callback     = progress;
    return llama_model_ptr { llama_model_load_from_file(opts.path.c_str(), params) };
}

static llama_context_ptr new_context(const llama_model_ptr & model, int32_t capacity) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                 = 256;
    params.n_batch               = 64;
    params.n_ubatch              = 64;
    params.n_threads             = 2;
    params.n_threads_batch       = 2;
    params.expert_cache_capacity = capacity;
    return llama_context_ptr { llama_init_from_model(model.get(), params) };
}

// number in the status of a context
static int64_t status_number(const llama_context_ptr & ctx, const std::string & field) {
    const std::string status = llama_expert_cache_status(ctx.get());
    const std::string key    = "\"" + field + "\": ";
    const size_t      pos    = status.find(key);
    require(pos != std::string::npos, "the status has no " + field + ": " + status);
    return std::atoll(status.c_str() + pos + key.size());
}

struct counters {
    int64_t hits   = 0;
    int64_t misses = 0;

    bool operator==(const counters & other) const { return hits == other.hits && misses == other.misses; }

    static counters of(const llama_context_ptr & ctx) {
        counters result;
        for (int32_t i = 0; i < llama_expert_cache_n_layers(ctx.get()); ++i) {
            const auto stats = llama_expert_cache_get_layer_stats(ctx.get(), i);
            result.hits   += stats.hits;
            result.misses += stats.misses;
        }
        return result;
    }
};

// one step of one token, always the same for the same index; returns a hash of the logits
static uint64_t step(const llama_context_ptr & ctx, int index) {
    const auto * vocab = llama_model_get_vocab(llama_get_model(ctx.get()));
    const int    n     = llama_vocab_n_tokens(vocab);

    llama_token token = (17 + 101*(int64_t) index) % n;
    require(llama_decode(ctx.get(), llama_batch_get_one(&token, 1)) == 0, "a step failed");

    const auto * bytes = (const unsigned char *) llama_get_logits_ith(ctx.get(), -1);
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < n*sizeof(float); ++i) {
        hash = (hash ^ bytes[i])*1099511628211u;
    }
    return hash;
}

static std::vector<uint64_t> steps(const llama_context_ptr & ctx) {
    std::vector<uint64_t> result;
    for (int i = 0; i < N_STEPS; ++i) {
        result.push_back(step(ctx, i));
    }
    return result;
}

//
// checks: std::runtime_error says what is wrong
//

class context_test {
public:
    context_test(const options & opts) : opts(opts), model(load(opts)) {
        require(model != nullptr, "cannot load '" + opts.path + "'");

        llama_context_ptr ctx = new_context(model, LLAMA_EXPERT_CACHE_AUTO);
        require(ctx != nullptr, "cannot create a context");
        require(llama_expert_cache_n_layers(ctx.get()) > 0, std::string("the cache is not engaged: ") + llama_expert_cache_status(ctx.get()));

        few  = status_number(ctx, "n_expert_used");
        some = std::min<int32_t>(2*few, status_number(ctx, "n_expert"));

        ctx      = new_context(model, some);
        n_bytes  = status_number(ctx, "cache_bytes");
        expected = steps(ctx);
        counted  = counters::of(ctx);
        require(counted.misses > 0, "no step missed an expert: nothing would be checked");
    }

    // one after the other: nothing is left behind, counters start at zero
    void create_and_destroy() {
        repeat(N_CONTEXTS, [this]() {
            const llama_context_ptr ctx = new_context(model, some);
            require(counters::of(ctx) == counters(), "a new context has counts");
            require_expected(ctx);
        });
    }

    // with different capacities, a step of each in turn
    void several_at_once() {
        std::vector<llama_context_ptr> ctxs;
        for (const int32_t capacity : { some, few, some }) {
            ctxs.push_back(new_context(model, capacity));
        }
        for (int i = 0; i < N_STEPS; ++i) {
            for (const auto & ctx : ctxs) {
                require(step(ctx, i) == expected[i], "other logits than alone");
            }
        }
        require(counters::of(ctxs[0]) == counted && counters::of(ctxs[2]) == counted, "other hits and misses than alone");

        const counters with_few = counters::of(ctxs[1]);
        require(with_few.hits + with_few.misses == counted.hits + counted.misses, "another number of accesses with fewer slots");
        require(few == some || with_few.misses > counted.misses, "no more misses with fewer slots");
    }

    // those that are left go on
    void any_order_of_destruction() {
        std::vector<size_t> order = { 0, 1, 2 };
        do {
            std::vector<llama_context_ptr> ctxs;
            for (size_t i = 0; i < order.size(); ++i) {
                ctxs.push_back(new_context(model, some));
            }
            for (int i = 0; i < N_STEPS; ++i) {
                if (i % 4 == 3) {
                    ctxs[order[i/4]].reset();
                }
                for (const auto & ctx : ctxs) {
                    require(!ctx || step(ctx, i) == expected[i], "other logits after another context was destroyed");
                }
            }
        } while (std::next_permutation(order.begin(), order.end()));
    }

    void refused() {
        repeat(N_CONTEXTS, [this]() {
            require(!new_context(model, few - 1), "a context has fewer slots than a token uses experts");
        });
        require_expected(new_context(model, some));
    }

    // the sequence loses its first half and moves up, as when a program generates past the end of its context
    void shifted() {
        std::vector<uint64_t> results[2];
        for (int i = 0; i < 2; ++i) {
            const llama_context_ptr ctx = new_context(model, i == 0 ? few : some);
            llama_memory_t memory = llama_get_memory(ctx.get());
            steps(ctx);
            if (llama_memory_can_shift(memory)) {
                llama_memory_seq_rm (memory, 0, 0, N_STEPS/2);
                llama_memory_seq_add(memory, 0, N_STEPS/2, N_STEPS, -N_STEPS/2);
            }
            results[i] = steps(ctx);
        }
        require(results[0] == results[1], "other logits with fewer slots");
        require(results[0] != expected, "the steps before have no effect");
    }

    void reset() {
        const llama_context_ptr ctx = new_context(model, some);
        steps(ctx);
        llama_memory_clear(llama_get_memory(ctx.get()), true);
        llama_expert_cache_reset(ctx.get());
        require(counters::of(ctx) == counters(), "there are counts after a reset");
        require_expected(ctx);
    }

    void models() {
        repeat(N_MODELS, [this]() {
            require(!load(opts, [](float progress, void *) { return progress < 0.5f; }), "a load that was interrupted gave a model");

            const llama_model_ptr other = load(opts);
            const llama_context_ptr a = new_context(other, some);
            const llama_context_ptr b = new_context(other, few);
            require_expected(a);
            require(steps(b) == expected, "other logits with fewer slots");
        });
    }

private:
    // nothing is left behind
    void repeat(int n, const std::function<void()> & what) const {
        memory_use before;
        for (int i = 0; i < N_WARMUP + n; ++i) {
            if (i == N_WARMUP) {
                before = memory_use::now();
            }
            what();
        }
        // what n of them leave behind is more than half of what one has; the driver of a GPU keeps things of its own
        const memory_use after = memory_use::now();
        require_no_growth(before, after, std::max(n_bytes/2, after.device < 0 ? MiB : 32*MiB));
    }

    void require_expected(const llama_context_ptr & ctx) const {
        require(steps(ctx) == expected, "other logits");
        require(counters::of(ctx) == counted, "other hits and misses");
    }

    const options   opts;
    llama_model_ptr model;

    int32_t few;  // slots, the fewest there can be
    int32_t some; // slots
    int64_t n_bytes;

    // of a context with some slots
    std::vector<uint64_t> expected;
    counters              counted;
};

static options parse(int argc, char ** argv) {
    options opts;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg == "-m" && i + 1 < argc) {
            opts.path = argv[++i];
        } else if (arg == "-ngl" && i + 1 < argc) {
            opts.n_gpu_layers = std::atoi(argv[++i]);
        } else {
            throw std::runtime_error("unknown argument '" + arg + "'");
        }
    }
    require(!opts.path.empty(), "there is no model");
    return opts;
}

static bool run(context_test & test) {
    const std::vector<std::pair<const char *, void (context_test::*)()>> checks = {
        { "contexts created and destroyed", &context_test::create_and_destroy },
        { "several contexts at once",       &context_test::several_at_once },
        { "destroyed in any order",         &context_test::any_order_of_destruction },
        { "refused contexts",               &context_test::refused },
        { "shifted positions",              &context_test::shifted },
        { "reset",                          &context_test::reset },
        { "models loaded and freed",        &context_test::models },
    };

    bool passed = true;
    for (const auto & [name, check] : checks) {
        std::string outcome = "ok";
        try {
            (test.*check)();
        } catch (const std::exception & e) {
            outcome = std::string("FAILED: ") + e.what();
            passed  = false;
        }
        printf("%s: %s\n", name, outcome.c_str());
        fflush(stdout);
    }
    return passed;
}

int main(int argc, char ** argv) {
    options opts;
    try {
        opts = parse(argc, argv);
    } catch (const std::exception & e) {
        fprintf(stderr, "error: %s\nusage: %s -m MODEL [-ngl N]\n", e.what(), argv[0]);
        return 1;
    }

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ggml_backend_load_all();
    llama_backend_init();

    bool passed = false;
    try {
        context_test test(opts);
        passed = run(test);
    } catch (const std::exception & e) {
        fprintf(stderr, "error: %s\n", e.what());
    }
    llama_backend_free();
    return passed ? 0 : 1;
}
