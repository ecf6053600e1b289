// Runs the expert cache operations of a back end on commands from standard input, so that other programs can compare
// them with a reference. Without commands on a terminal: echo "init 8 4 0\nstep 1 2 5 6" | test-expert-cache
//
//   init N_EXPERT C P e0 ... e{P-1}   new state, the P experts pinned           -> ok
//   step T K id ...                   T*K ids of T tokens                       -> slots ... fills n e:s ... hits H misses M
//   split T K B c0 ... c{T*K} id ...  the same, of i misses c{i} are copied at once, B of the others in the background
//                                     -> slots ... host ... fills n e:s ... hits H misses M copied X computed Y
//   gather T K id ...                 T*K ids of T tokens, any number                       -> ok
//   table                             expert in each slot                       -> table ...
//
// A command that is refused or a slot with other data than its expert's        -> error ...

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-expert-cache.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// odd on purpose: no multiple of a cache line
static constexpr int64_t N_EMBD = 37;
static constexpr int64_t N_FF   = 3;

class cache_test {
public:
    cache_test(ggml_backend_t backend, bool mapped, int64_t n_expert, int64_t n_slots, std::vector<int32_t> pinned) :
        backend(backend), mapped(mapped), n_expert(n_expert), n_slots(n_slots), n_pinned(pinned.size()) {
        ggml_init_params params = { 64*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
        ctx.reset(ggml_init(params));

        state = ggml_new_expert_cache_state(ctx.get(), n_expert, n_slots);
        for (int w = 0; w < GGML_EXPERT_CACHE_MAX_WEIGHTS; ++w) {
            cache.push_back(ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, N_EMBD, N_FF + w, n_slots));
            store.push_back(expert_data(w));
            addresses.push_back(map(store.back()));
        }
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));

        prewarm(std::move(pinned));
    }

    ~cache_test() {
        for (auto & s : store) {
            unmap(s);
        }
    }

    // n_copied: see ggml_expert_resolve_split; empty = all misses are copied
    std::string step(int64_t n_tokens, int64_t n_used, const std::vector<int32_t> & ids, const std::vector<int32_t> & n_copied, int32_t n_background) {
        if (n_tokens*n_used > n_slots - n_pinned) {
            throw std::invalid_argument("too many experts for one step");
        }

        // ids are a view of a wider tensor, as in the router's top-k
        ggml_context_ptr graph_ctx = new_graph_context();
        ggml_tensor * wide     = ggml_new_tensor_2d(graph_ctx.get(), GGML_TYPE_I32, n_used + 3, n_tokens);
        ggml_tensor * selected = ggml_view_2d(graph_ctx.get(), wide, n_used, n_tokens, wide->nb[1], 0);
        ggml_set_input(wide);

        ggml_tensor * split = ggml_new_tensor_1d(graph_ctx.get(), GGML_TYPE_I32, std::max<size_t>(1, n_copied.size()));
        ggml_set_input(split);

        ggml_tensor * slots = n_copied.empty() ?
            ggml_expert_resolve(graph_ctx.get(), selected, &state, n_pinned) :
            ggml_expert_resolve_split(graph_ctx.get(), selected, &state, n_pinned, split, n_background);
        ggml_tensor * filled = fill(graph_ctx.get(), slots);
        ggml_set_output(slots);

        ggml_cgraph * gf = ggml_new_graph(graph_ctx.get());
        ggml_build_forward_expand(gf, filled);

        ggml_gallocr_ptr alloc { ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)) };
        ggml_gallocr_alloc_graph(alloc.get(), gf);
        for (int64_t t = 0; t < n_tokens; ++t) {
            ggml_backend_tensor_set(wide, ids.data() + t*n_used, t*wide->nb[1], n_used*sizeof(int32_t));
        }
        if (!n_copied.empty()) {
            ggml_backend_tensor_set(split, n_copied.data(), 0, ggml_nbytes(split));
        }
        compute(gf);

        const auto result = read<int32_t>(slots);
        for (size_t i = 0; i < ids.size(); ++i) {
            if (result[i] < n_slots) {
                check_slot(result[i], ids[i]);
            }
        }
        const auto fills = read<int32_t>(state.fills);
        for (int32_t i = 1; i <= fills[0]; ++i) {
            check_slot(fills[2*i + 1], fills[2*i]);
        }
        return describe(result, ids.size());
    }

    std::string gather(int64_t n_tokens, int64_t n_used, const std::vector<int32_t> & ids) {
        ggml_context_ptr graph_ctx = new_graph_context();
        ggml_tensor * selected = ggml_new_tensor_2d(graph_ctx.get(), GGML_TYPE_I32, n_used, n_tokens);
        ggml_set_input(selected);

        for (size_t w = 0; w < cache.size(); ++w) {
            ggml_tensor * all      = ggml_new_tensor_3d(graph_ctx.get(), GGML_TYPE_F32, N_EMBD, N_FF + w, n_expert);
            ggml_tensor * gathered = ggml_expert_gather(graph_ctx.get(), selected, &state, cache[w], all, addresses[w]);
            ggml_set_output(gathered);

            ggml_cgraph * gf = ggml_new_graph(graph_ctx.get());
            ggml_build_forward_expand(gf, gathered);

            ggml_gallocr_ptr alloc { ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)) };
            ggml_gallocr_alloc_graph(alloc.get(), gf);
            const std::vector<char> dirt(ggml_nbytes(gathered), -1);
            ggml_backend_tensor_set(gathered, dirt.data(), 0, dirt.size());
            ggml_backend_tensor_set(selected, ids.data(), 0, ids.size()*sizeof(int32_t));
            compute(gf);

            for (const int32_t id : ids) {
                check_expert(gathered, w, id, id);
                if (id + 1 < n_expert && std::find(ids.begin(), ids.end(), id + 1) == ids.end()) {
                    check_padding(gathered, id + 1);
                }
            }
            selected->buffer = nullptr;
            selected->data   = nullptr;
        }
        return "ok";
    }

    std::string table() const {
        std::ostringstream os;
        os << "table";
        for (const int32_t e : read<int32_t>(state.owner)) {
            os << " " << e;
        }
        return os.str();
    }

private:
    static ggml_context_ptr new_graph_context() {
        ggml_init_params params = { 32*ggml_tensor_overhead() + 8*ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true };
        return ggml_context_ptr { ggml_init(params) };
    }

    // different for each weight tensor, expert and element
    std::vector<float> expert_data(int w) const {
        std::vector<float> data(N_EMBD*(N_FF + w)*n_expert);
        for (size_t i = 0; i < data.size(); ++i) {
            data[i] = w*1e6f + i;
        }
        return data;
    }

    ggml_tensor * fill(ggml_context * graph_ctx, ggml_tensor * slots) {
        return ggml_expert_fill(graph_ctx, slots, &state, cache.size(), cache.data(), addresses.data(), mapped);
    }

    void * proc(const char * name) const {
        return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(ggml_backend_get_device(backend)), name);
    }

    // address for the back end
    const void * map(std::vector<float> & data) {
        if (const auto map = (ggml_backend_expert_store_map_t) proc("ggml_backend_expert_store_map"); map && mapped) {
            void * address = map(data.data(), data.size()*sizeof(float));
            if (!address) {
                throw std::runtime_error("the store cannot be mapped");
            }
            return address;
        }
        return data.data();
    }

    void unmap(std::vector<float> & data) const {
        if (const auto unmap = (ggml_backend_expert_store_unmap_t) proc("ggml_backend_expert_store_unmap"); unmap && mapped) {
            unmap(data.data());
        }
    }

    void prewarm(std::vector<int32_t> owner) {
        for (int32_t e = 0; e < n_expert && (int64_t) owner.size() < n_slots; ++e) {
            bool used = false;
            for (const int32_t o : owner) {
                used = used || o == e;
            }
            if (!used) {
                owner.push_back(e);
            }
        }
        ggml_expert_cache_state_init(&state, owner.data());

        ggml_context_ptr graph_ctx = new_graph_context();
        ggml_tensor * filled = fill(graph_ctx.get(), state.owner);
        ggml_backend_view_init(filled);

        ggml_cgraph * gf = ggml_new_graph(graph_ctx.get());
        ggml_build_forward_expand(gf, filled);
        compute(gf);

        for (int64_t s = 0; s < n_slots; ++s) {
            check_slot(s, owner[s]);
        }
    }

    void compute(ggml_cgraph * gf) {
        if (ggml_backend_graph_compute(backend, gf) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the graph failed");
        }
    }

    template <typename T>
    static std::vector<T> read(const ggml_tensor * t) {
        std::vector<T> data(ggml_nelements(t));
        ggml_backend_tensor_get(t, data.data(), 0, ggml_nbytes(t));
        return data;
    }

    void check_slot(int64_t slot, int64_t expert) const {
        for (size_t w = 0; w < cache.size(); ++w) {
            check_expert(cache[w], w, slot, expert);
        }
    }

    // whether number index of t is an expert
    void check_expert(const ggml_tensor * t, size_t w, int64_t index, int64_t expert) const {
        const size_t nb = t->nb[2];
        std::vector<char> data(nb);
        ggml_backend_tensor_get(t, data.data(), index*nb, nb);
        if (memcmp(data.data(), (const char *) store[w].data() + expert*nb, nb) != 0) {
            throw std::runtime_error("number " + std::to_string(index) + " of " + t->name + " is not expert " + std::to_string(expert));
        }
    }

    static void check_padding(const ggml_tensor * t, int64_t index) {
        std::vector<char> data(std::min<size_t>(t->nb[2], GGML_EXPERT_GATHER_PADDING));
        ggml_backend_tensor_get(t, data.data(), index*t->nb[2], data.size());
        if (std::any_of(data.begin(), data.end(), [](char c) { return c != 0; })) {
            throw std::runtime_error("number " + std::to_string(index) + " of " + t->name + " does not begin with zeros");
        }
    }

    // the slots, then what the host computes of a split step
    std::string describe(const std::vector<int32_t> & slots, size_t n_ids) const {
        const auto fills    = read<int32_t>(state.fills);
        const auto counters = read<int64_t>(state.counters);

        std::ostringstream os;
        os << "slots";
        for (size_t i = 0; i < slots.size(); ++i) {
            os << (i == n_ids ? " host " : " ") << slots[i];
        }
        os << " fills " << fills[0];
        for (int32_t i = 1; i <= fills[0]; ++i) {
            os << " " << fills[2*i] << ":" << fills[2*i + 1];
        }
        os << " hits " << counters[GGML_EXPERT_CACHE_HITS] << " misses " << counters[GGML_EXPERT_CACHE_MISSES];
        if (slots.size() > n_ids) {
            os << " copied " << counters[GGML_EXPERT_CACHE_COPIED] << " computed " << counters[GGML_EXPERT_CACHE_COMPUTED];
        }
        return os.str();
    }

    ggml_backend_t backend;

    const bool    mapped;
    const int64_t n_expert;
    const int64_t n_slots;
    const int64_t n_pinned;

    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_expert_cache_state state;

    std::vector<ggml_tensor *>      cache; // F32 [N_EMBD, N_FF + w, n_slots]
    std::vector<std::vector<float>> store; // F32 [N_EMBD, N_FF + w, n_expert]
    std::vector<const void *>       addresses;
};

static std::vector<int32_t> read_ids(std::istringstream & is, int64_t n, int64_t n_expert) {
    std::vector<int32_t> ids;
    int32_t id;
    while (is >> id) {
        if (id < 0 || id >= n_expert) {
            throw std::invalid_argument("expert " + std::to_string(id) + " is not in range");
        }
        ids.push_back(id);
    }
    if ((int64_t) ids.size() != n) {
        throw std::invalid_argument("expected " + std::to_string(n) + " experts, got " + std::to_string(ids.size()));
    }
    return ids;
}

class driver {
public:
    driver(ggml_backend_t backend, bool mapped) : backend(backend), mapped(mapped) {}

    std::string run(const std::string & line) {
        std::istringstream is(line);
        std::string command;
        is >> command;

        if (command == "init") {
            int64_t n_slots  = 0;
            int64_t n_pinned = 0;
            is >> n_expert >> n_slots >> n_pinned;
            if (n_slots < 1 || n_slots > n_expert || n_pinned < 0 || n_pinned >= n_slots) {
                throw std::invalid_argument("expected N_EXPERT >= C > P >= 0");
            }
            test = std::make_unique<cache_test>(backend, mapped, n_expert, n_slots, read_ids(is, n_pinned, n_expert));
            return "ok";
        }
        if (!test) {
            throw std::invalid_argument("init must come first");
        }
        if (command == "step") {
            int64_t n_tokens = 0;
            int64_t n_used   = 0;
            is >> n_tokens >> n_used;
            return test->step(n_tokens, n_used, read_ids(is, n_tokens*n_used, n_expert), {}, 0);
        }
        if (command == "split") {
            int64_t n_tokens     = 0;
            int64_t n_used       = 0;
            int32_t n_background = -1;
            is >> n_tokens >> n_used >> n_background;
            std::vector<int32_t> n_copied(std::max<int64_t>(0, n_tokens*n_used) + 1, -1);
            for (size_t i = 0; i < n_copied.size(); ++i) {
                is >> n_copied[i];
                if (n_copied[i] < 0 || n_copied[i] > (int64_t) i || n_background < 0) {
                    throw std::invalid_argument("expected a split of the misses");
                }
            }
            return test->step(n_tokens, n_used, read_ids(is, n_tokens*n_used, n_expert), n_copied, n_background);
        }
        if (command == "gather") {
            int64_t n_tokens = 0;
            int64_t n_used   = 0;
            is >> n_tokens >> n_used;
            return test->gather(n_tokens, n_used, read_ids(is, n_tokens*n_used, n_expert));
        }
        if (command == "table") {
            return test->table();
        }
        throw std::invalid_argument("unknown command '" + command + "'");
    }

private:
    ggml_backend_t backend;
    const bool     mapped;
    int64_t        n_expert = 0;

    std::unique_ptr<cache_test> test;
};

int main(int argc, char ** argv) {
    std::string name   = "CPU";
    bool        mapped = true;
    for (int i = 1; i < argc; ++i) {
        if (std::string(argv[i]) == "--backend" && i + 1 < argc) {
            name = argv[++i];
        } else if (std::string(argv[i]) == "--unmapped") {
            mapped = false; // the host copies for the back end
        } else {
            fprintf(stderr, "error: unknown argument '%s'\nusage: %s [--backend NAME] [--unmapped] < COMMANDS\n", argv[i], argv[0]);
            return 1;
        }
    }

    ggml_backend_load_all();
    ggml_backend_ptr backend { ggml_backend_init_by_name(name.c_str(), nullptr) };
    if (!backend) {
        fprintf(stderr, "error: there is no back end '%s'\n", name.c_str());
        return 1;
    }

    driver d(backend.get(), mapped);
    std::string line;
    while (std::getline(std::cin, line)) {
        try {
            printf("%s\n", d.run(line).c_str());
        } catch (const std::exception & e) {
            printf("error %s\n", e.what());
        }
        fflush(stdout);
    }
    return 0;
}
