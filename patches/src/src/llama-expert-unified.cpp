#include "llama-expert-unified.h"

#include "llama-arch.h"
#include "llama-expert-cache.h"
#include "llama-expert-memory.h"
#include "llama-expert-pin-list.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include "ggml-alloc.h"
#include "ggml-expert-cache.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

#if !defined(_WIN32)
#include <sys/mman.h>
#include <unistd.h>
#endif

// memory of the host, in any layout
static bool is_host(ggml_backend_buffer_type_t buft) {
    const auto dev = ggml_backend_buft_get_device(buft);
    return ggml_backend_buft_is_host(buft) || (dev && llama_device_is_cpu(dev));
}

static size_t page_size() {
#if defined(_WIN32)
    return 4096;
#else
    return sysconf(_SC_PAGESIZE);
#endif
}

//
// address space
//

static char * page_begin(char * p) {
    return p - (uintptr_t) p % page_size();
}

static char * page_end(char * p) {
    return page_begin(p + page_size() - 1);
}

static char * reserve_addresses(size_t size) {
#if defined(_WIN32)
    GGML_UNUSED(size);
    throw std::runtime_error("expert cache: unified memory is not there on this system yet");
#else
    void * result = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (result == MAP_FAILED) {
        throw std::runtime_error(format("expert cache: unified memory: cannot reserve %.2f GiB of address space: %s", llama_gib(size), strerror(errno)));
    }
    return (char *) result;
#endif
}

static void free_addresses(char * base, size_t size) {
#if defined(_WIN32)
    GGML_UNUSED(base);
    GGML_UNUSED(size);
#else
    if (base) {
        munmap(base, size);
    }
#endif
}

// lets the pages of [first, last) be used; returns errno
static int open_pages(char * first, char * last) {
#if defined(_WIN32)
    GGML_UNUSED(first);
    GGML_UNUSED(last);
    return ENOSYS;
#else
    first = page_begin(first);
    return mprotect(first, page_end(last) - first, PROT_READ | PROT_WRITE) == 0 ? 0 : errno;
#endif
}

// The same for one expert after another of a tensor. Every hole between experts splits the mapping, and systems limit how many
// there may be: then the whole tensor can be read. What was not loaded still takes no memory.
static void open_experts(ggml_tensor * store, int64_t first, int64_t last) {
    char * data = (char *) store->data;

    int err = open_pages(data + first*store->nb[2], data + last*store->nb[2]);
    if (err != 0) {
        err = open_pages(data, data + ggml_nbytes(store));
    }
    if (err != 0) {
        throw std::runtime_error(format("expert cache: unified memory: no memory for the experts of %s: %s", store->name, strerror(err)));
    }
}

//
// settings
//

static void check_settings(int32_t capacity, const char * pin_list, int32_t pinned) {
    if (capacity == LLAMA_EXPERT_CACHE_OFF) {
        throw std::runtime_error("expert cache: unified memory needs the cache: set --expert-cache auto or a number of slots");
    }
    if (!pin_list) {
        throw std::runtime_error("expert cache: unified memory needs a pin list, which says what is only on the device: name it with "
                "--expert-cache-pin-list or EXPERT_CACHE_PIN_LIST");
    }
    if (pinned == 0) {
        throw std::runtime_error("expert cache: unified memory keeps pinned experts only on the device, and none is to be pinned: "
                "set --expert-cache-pinned or EXPERT_CACHE_PINNED to at least 1");
    }
}

void llama_expert_unified::check_context(const llama_model & model, const llama_context_params & params) {
    if (model.expert_unified) {
        check_settings(params.expert_cache_capacity, params.expert_cache_pin_list, params.expert_cache_pinned);
    }
}

//
// loading the model
//

llama_expert_unified::llama_expert_unified(const llama_model_params & params, llama_model_loader & ml) :
    params(params), check_tensors(params.check_tensors) {
    check_settings(params.expert_cache_capacity, params.expert_cache_pin_list, params.expert_cache_pinned);

    if (ml.files.empty()) {
        throw std::runtime_error("expert cache: unified memory needs a model file");
    }
    if (params.load_mode == LLAMA_LOAD_MODE_MLOCK || params.load_mode == LLAMA_LOAD_MODE_MMAP_MLOCK) {
        throw std::runtime_error("expert cache: unified memory cannot be locked: leave out mlock");
    }
    if (params.load_mode == LLAMA_LOAD_MODE_MMAP) {
        LLAMA_LOG_WARN("expert cache: unified memory: the model is read, not mapped: a mapping would read it ahead as a whole\n");
    }
    ml.use_mmap       = false;
    ml.expert_unified = this;

    ctx.reset(ggml_init({ /*.mem_size =*/ (ml.weights_map.size() + 1)*ggml_tensor_overhead(), /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ true }));
}

llama_expert_unified::~llama_expert_unified() {
    for (const auto & m : mappings) {
        const auto unmap = (ggml_backend_expert_store_unmap_t) ggml_backend_reg_get_proc_address(m.reg, "ggml_backend_expert_store_unmap");
        for (const auto & [first, last] : m.pages) {
            GGML_UNUSED(last);
            unmap(first);
        }
    }
    buffer.reset();
    free_addresses(base, size);
}

ggml_context * llama_expert_unified::context_for(const LLM_TN_IMPL & tn, ggml_backend_buffer_type_t buft) {
    switch (tn.tensor) {
        case LLM_TENSOR_FFN_GATE_EXPS:
        case LLM_TENSOR_FFN_UP_EXPS:
        case LLM_TENSOR_FFN_DOWN_EXPS:
        case LLM_TENSOR_FFN_GATE_UP_EXPS:
            break;
        default:
            return nullptr;
    }
    // biases and scales are small: they stay with the model
    const bool weight = tn.suffix && strcmp(tn.suffix, "weight") == 0;
    return weight && is_host(buft) ? ctx.get() : nullptr;
}

void llama_expert_unified::prepare(llama_model_loader & ml, llama_model & model) {
    for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
        const auto & source = ml.require_weight(t->name);

        int il = -1;
        sscanf(t->name, "blk.%d.", &il);
        GGML_ASSERT(il >= 0 && ggml_nbytes(t) == t->ne[2]*t->nb[2]);

        tensors.push_back({ t, il, source.idx, source.offs, std::vector<bool>(t->ne[2], false) });
        model.tensors_by_name.emplace_back(t->name, t);
        ml.size_data -= ggml_nbytes(t); // of what the loader loads
    }
    if (tensors.empty()) {
        throw std::runtime_error("expert cache: unified memory is for experts in host memory, and there are none: leave it out, or place them "
                "there with -cmoe, -ncmoe or -ot");
    }
    std::sort(tensors.begin(), tensors.end(), [](const weights & a, const weights & b) { return std::tie(a.file, a.offs) < std::tie(b.file, b.offs); });

    check(ml, model);
    reserve();
}

void llama_expert_unified::reserve() {
    for (const auto & w : tensors) {
        size += GGML_PAD(ggml_nbytes(w.store), page_size());
    }
    base = reserve_addresses(size);
    buffer.reset(ggml_backend_cpu_buffer_from_ptr(base, size));
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);

    char * data = base;
    for (const auto & w : tensors) {
        if (ggml_backend_tensor_alloc(buffer.get(), w.store, data) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error(format("expert cache: unified memory: cannot place %s", w.store->name));
        }
        data += GGML_PAD(ggml_nbytes(w.store), page_size());
    }
}

// What fits at best: slots for all that the other weights leave. The context, which knows the rest, checks it again.
void llama_expert_unified::check(const llama_model_loader & ml, const llama_model & model) const {
    const int n_layer = model.hparams.n_layer();

    const int32_t n_expert = tensors.front().store->ne[2];
    const auto    pins     = llama_expert_pin_list::read(params.expert_cache_pin_list, n_layer, model.hparams.n_layer_all, n_expert);
    const bool    have_gpu = std::any_of(model.devices.begin(), model.devices.end(), [](const auto & d) { return !llama_device_is_cpu(d.dev); });

    size_t host_taken = 0;
    std::map<ggml_backend_dev_t, size_t> taken;
    for (const auto & [key, tensors_ctx] : ml.ctx_map) {
        const size_t bytes = ggml_backend_alloc_ctx_tensors_from_buft_size(tensors_ctx.get(), key.buft);
        if (is_host(key.buft)) {
            host_taken += bytes;
        } else if (const auto dev = ggml_backend_buft_get_device(key.buft)) {
            taken[dev] += bytes;
        }
    }

    int32_t n_listed = 0;
    std::map<int, served>                layers;
    std::map<ggml_backend_dev_t, size_t> slot_bytes;
    for (const auto & w : tensors) {
        const auto dev = model.dev_layer(w.il);
        if (w.il >= n_layer || (llama_device_is_cpu(dev) && have_gpu)) {
            continue;
        }
        layers[w.il] = { (int32_t) pins.layers[w.il].size(), llama_device_is_cpu(dev) };
        n_listed     = std::max(n_listed, layers[w.il].n_listed);
        slot_bytes[dev] += w.expert_bytes();
    }
    if (n_listed == 0) {
        throw std::runtime_error(format("expert cache: unified memory: the pin list '%s' names no expert that could be pinned", params.expert_cache_pin_list));
    }

    llama_expert_budget budget;
    budget.layers        = sizes(0, n_layer, layers);
    budget.n_expert_used = model.hparams.n_expert_used_max();
    budget.capacity_max  = n_expert;
    budget.host_bytes    = host_budget() > host_taken ? host_budget() - host_taken : 0;
    for (const auto & [dev, bytes] : slot_bytes) {
        if (!llama_device_is_cpu(dev)) {
            const size_t free = llama_device_memory_free(dev);
            budget.capacity_max = std::min<int64_t>(budget.capacity_max, free > taken[dev] ? (free - taken[dev])/bytes : 0);
        }
    }
    const bool automatic = params.expert_cache_capacity == LLAMA_EXPERT_CACHE_AUTO;
    budget.choose(automatic ? LLAMA_EXPERT_CACHE_AUTO : std::min(params.expert_cache_capacity, n_expert), params.expert_cache_pinned);
}

void llama_expert_unified::keep_files(llama_model_loader & ml) {
    files = std::move(ml.files);
}

//
// sizes
//

bool llama_expert_unified::has(const ggml_tensor * store) const {
    return store->buffer == buffer.get();
}

std::vector<llama_expert_budget::layer> llama_expert_unified::sizes(int il_begin, int il_end, const std::map<int, served> & layers) const {
    std::map<int, llama_expert_budget::layer> result;
    for (const auto & w : tensors) {
        if (w.il < il_begin || w.il >= il_end) {
            continue;
        }
        const auto it = layers.find(w.il);
        const served s = it == layers.end() ? served { 0, false } : it->second;

        auto & l = result.emplace(w.il, llama_expert_budget::layer { 0, (int32_t) w.store->ne[2], s.n_listed, s.slots_in_host }).first->second;
        l.expert_bytes += w.expert_bytes();
    }

    std::vector<llama_expert_budget::layer> list;
    for (const auto & [il, l] : result) {
        GGML_UNUSED(il);
        list.push_back(l);
    }
    return list;
}

size_t llama_expert_unified::host_budget() const {
    const size_t available = llama_host_memory_available();
    const size_t margin    = std::min<size_t>(available/16, 1024*1024*1024); // for what is allocated later
    return available - margin + host_bytes();
}

size_t llama_expert_unified::host_bytes() const {
    size_t result = 0;
    for (const auto & w : tensors) {
        result += std::count(w.present.begin(), w.present.end(), true)*w.expert_bytes();
    }
    return result;
}

size_t llama_expert_unified::mapped_bytes() const {
    size_t result = 0;
    for (const auto & m : mappings) {
        for (const auto & [first, last] : m.pages) {
            result += last - first;
        }
    }
    return result;
}

//
// loading experts
//

void llama_expert_unified::progress::add(size_t bytes) {
    constexpr int64_t interval = 5*1000*1000; // us

    done += bytes;
    const int64_t now = ggml_time_us();
    if (now - spoken >= interval) {
        LLAMA_LOG_WARN("expert cache: unified memory: read %.2f of %.2f GiB of experts, %.2f GiB/s\n", llama_gib(done), llama_gib(total), llama_gib(done)/((now - start)/1e6));
        spoken = now;
    }
}

// experts first to last - 1
void llama_expert_unified::read(const weights & w, int64_t first, int64_t last, char * dst) {
    constexpr size_t most = 64*1024*1024; // a file without the page cache is read through a buffer of that size

    const size_t offs  = w.offs + first*w.expert_bytes();
    const size_t bytes = (last - first)*w.expert_bytes();
    for (size_t pos = 0; pos < bytes; pos += most) {
        const size_t n = std::min(most, bytes - pos);
        files[w.file]->seek(offs + pos, SEEK_SET);
        files[w.file]->read_raw(dst + pos, n);
        progress.add(n);
    }
    if (check_tensors && !ggml_validate_row_data(w.store->type, dst, bytes)) {
        throw std::runtime_error(format("tensor '%s' has invalid data", w.store->name));
    }
}

void llama_expert_unified::load(weights & w, const pins * pinned) {
    const int64_t n = w.store->ne[2];

    std::vector<int32_t> slot(n, -1);
    for (int32_t i = 0; pinned && i < pinned->n; ++i) {
        slot[pinned->experts[i]] = i;
    }
    const auto absent = [&](int64_t e) { return slot[e] < 0 && !w.present[e]; };

    for (int64_t e = 0; e < n; ++e) {
        if (slot[e] >= 0) {
            staging.resize(w.expert_bytes());
            read(w, e, e + 1, staging.data());
            ggml_backend_tensor_set(pinned->slots, staging.data(), slot[e]*w.expert_bytes(), w.expert_bytes());
        } else if (absent(e)) {
            int64_t last = e + 1;
            while (last < n && absent(last)) {
                last++;
            }
            open_experts(w.store, e, last);
            read(w, e, last, (char *) w.store->data + e*w.expert_bytes());
            std::fill(w.present.begin() + e, w.present.begin() + last, true);
        }
    }
}

void llama_expert_unified::load(int il_begin, int il_end, const std::map<const ggml_tensor *, pins> & pinned) {
    std::vector<std::pair<weights *, const pins *>> wanted;

    progress = {};
    progress.start = progress.spoken = ggml_time_us();
    for (auto & w : tensors) {
        if (w.il >= il_begin && w.il < il_end) {
            const auto it = pinned.find(w.store);
            wanted.emplace_back(&w, it == pinned.end() ? nullptr : &it->second);

            const auto absent = std::count(w.present.begin(), w.present.end(), false);
            progress.total += absent*w.expert_bytes(); // what another context pinned or loaded makes it a little less or more
        }
    }
    for (const auto & [w, pins_of_w] : wanted) {
        load(*w, pins_of_w);
    }
    staging = {};

    LLAMA_LOG_INFO("expert cache: unified memory: read %.2f GiB of experts in %.1f s\n", llama_gib(progress.done), (ggml_time_us() - progress.start)/1e6);
}

//
// memory that devices read
//

llama_expert_unified::ranges llama_expert_unified::loaded_pages() const {
    ranges result;
    for (const auto & w : tensors) { // by ascending address
        for (size_t e = 0; e < w.present.size(); ++e) {
            if (!w.present[e]) {
                continue;
            }
            char * data  = (char *) w.store->data + e*w.expert_bytes();
            char * first = page_begin(data);
            char * last  = page_end(data + w.expert_bytes());
            if (!result.empty() && first <= result.back().second) {
                result.back().second = last; // experts next to each other, or with a page in common
            } else {
                result.emplace_back(first, last);
            }
        }
    }
    return result;
}

void llama_expert_unified::map(ggml_backend_dev_t dev) {
    if (llama_device_is_cpu(dev)) {
        return;
    }
    const auto reg   = ggml_backend_dev_backend_reg(dev);
    const auto map   = (ggml_backend_expert_store_map_t)   ggml_backend_reg_get_proc_address(reg, "ggml_backend_expert_store_map");
    const auto unmap = (ggml_backend_expert_store_unmap_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_expert_store_unmap");
    GGML_ASSERT(map && unmap); // of a device that has the operations

    auto it = std::find_if(mappings.begin(), mappings.end(), [reg](const mapping & m) { return m.reg == reg; });
    if (it == mappings.end()) {
        it = mappings.insert(mappings.end(), { reg, {} });
    }

    // pages that an earlier context had loaded are mapped already: only what is between them is new
    const ranges mapped = it->pages;
    const auto   add    = [&](char * first, char * last) {
        if (first >= last) {
            return;
        }
        void * address = map(first, last - first);
        if (address != first) {
            if (address) {
                unmap(first);
            }
            throw std::runtime_error(format("expert cache: unified memory: %s cannot read %.2f GiB of host memory: "
                    "see the reason above; fewer bytes are left to the host if more experts are pinned", ggml_backend_dev_name(dev), llama_gib(last - first)));
        }
        it->pages.emplace_back(first, last);
    };
    for (const auto & [first, last] : loaded_pages()) {
        char * pos = first;
        for (const auto & [mapped_first, mapped_last] : mapped) {
            if (mapped_first >= pos && mapped_last <= last) {
                add(pos, mapped_first);
                pos = mapped_last;
            }
        }
        add(pos, last);
    }
    std::sort(it->pages.begin(), it->pages.end());
}
