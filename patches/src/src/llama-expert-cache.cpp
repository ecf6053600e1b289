#include "llama-expert-cache.h"

#include "llama-context.h"
#include "llama-expert-memory.h"
#include "llama-expert-pin-list.h"
#include "llama-expert-unified.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>

//
// llama_expert_view
//

ggml_tensor * llama_expert_view::get(const ggml_tensor * t) const {
    const auto it = std::find_if(tensors.begin(), tensors.end(), [t](const auto & entry) { return entry.first == t; });
    GGML_ASSERT(it != tensors.end());
    return it->second;
}

//
// llama_expert_cache
//

// of an expert: gate, up and down weights, biases and scales
static constexpr size_t MAX_TENSORS = 9;

// Policy hybrid: of the misses that the CPU computes this many are copied too, for the steps to come, while the device goes
// on. With none the slots would never change where the CPU is always faster; more than one in a layer would not be over
// before the next layer wants to copy.
static constexpr int32_t N_BACKGROUND = 1;

// whether products run beside the fill of quantised weights alone; on the CPU nothing does, but tests see the same
static bool fills_beside(ggml_backend_dev_t dev) {
    const auto beside = (ggml_backend_expert_cache_fills_beside_t)
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_expert_cache_fills_beside");
    return llama_device_is_cpu(dev) || (beside && beside());
}

// the dimension of a tensor that counts experts: weights have 3, biases 2, scales 1
static int expert_dim(const ggml_tensor * t) {
    return ggml_n_dims(t) - 1;
}

size_t llama_expert_cache::layer::expert_bytes() const {
    return std::accumulate(exps.begin(), exps.end(), size_t(0), [](size_t sum, const weights & w) { return sum + w.store->nb[expert_dim(w.store)]; });
}

bool llama_expert_cache::layer::has_scales() const {
    return std::any_of(scales.begin(), scales.end(), [](const ggml_tensor * t) { return t != nullptr; });
}

// the scales in one tensor, 1 where there are none: an operation has not enough sources for each
void llama_expert_cache::layer::set_host_scales() const {
    if (!host_scales) {
        return;
    }
    const std::vector<float> ones(n_expert(), 1.0f);
    for (size_t i = 0; i < scales.size(); ++i) {
        ggml_backend_tensor_set(host_scales, scales[i] ? scales[i]->data : ones.data(), i*host_scales->nb[1], host_scales->nb[1]);
    }
}

bool llama_expert_cache::layer::mapped() const {
    return std::all_of(exps.begin(), exps.end(), [](const weights & w) { return w.address != nullptr; });
}

ggml_tensor * llama_expert_cache::layer::build_fill(ggml_context * ctx, ggml_tensor * slots) const {
    const bool by_device = mapped();

    // one operation for all of them, except for the rare models that have biases and scales
    for (size_t begin = 0; begin < exps.size(); begin += GGML_EXPERT_CACHE_MAX_WEIGHTS) {
        const size_t end = std::min(exps.size(), begin + GGML_EXPERT_CACHE_MAX_WEIGHTS);

        std::vector<const void *>  store;
        std::vector<ggml_tensor *> cache;
        for (size_t i = begin; i < end; ++i) {
            store.push_back(by_device ? exps[i].address : exps[i].store->data);
            cache.push_back(exps[i].cache);
        }
        slots = ggml_expert_fill(ctx, slots, &state, end - begin, cache.data(), store.data(), by_device);
    }
    return slots;
}

llama_expert_cache::llama_expert_cache(
        const llama_model          & model,
        const llama_context_params & params,
        const std::vector<ggml_backend_ptr> & backends) :
    policy(params.expert_cache_policy),
    requested(params.expert_cache_capacity),
    n_expert_used(model.hparams.n_expert_used_max()),
    n_pinned_requested(params.expert_cache_pin_list ? params.expert_cache_pinned : 0),
    n_ubatch(params.n_ubatch),
    reserve(params.expert_cache_reserve),
    no_alloc(model.hparams.no_alloc),
    unified(model.expert_unified.get()),
    rates(llama_expert_rates::from(params.expert_cache_rates)),
    rates_given(std::any_of(std::begin(params.expert_cache_rates), std::end(params.expert_cache_rates), [](float x) { return x > 0.0f; })),
    n_threads(params.n_threads) {
    if (policy < LLAMA_EXPERT_CACHE_POLICY_LRU || policy > LLAMA_EXPERT_CACHE_POLICY_HYBRID) {
        throw std::runtime_error("expert cache: unknown policy");
    }
    if (unified && host_computes()) {
        throw std::runtime_error("expert cache: unified memory works with the policy lru only: the CPU cannot compute experts that are not in host memory");
    }
    if (policy == LLAMA_EXPERT_CACHE_POLICY_HOT) {
        hot = std::make_unique<llama_expert_hot>(n_expert_used, params.expert_cache_hot_interval, params.expert_cache_hot_bypass);
    }
    if (!no_alloc && params.expert_cache_pinned > 0 && !params.expert_cache_pin_list) {
        throw std::runtime_error(format("expert cache: %d slots are to be pinned, but there is no pin list: name it with "
                "--expert-cache-pin-list or EXPERT_CACHE_PIN_LIST", params.expert_cache_pinned));
    }

    for (const auto & backend : backends) {
        backend_cpu = llama_device_is_cpu(ggml_backend_get_device(backend.get())) ? backend.get() : backend_cpu;
    }
    collect(model, backends, params.ctx_type);
    order_experts(model, no_alloc ? nullptr : params.expert_cache_pin_list);

    const int32_t fewest = fewest_slots();
    if (!no_alloc && requested != LLAMA_EXPERT_CACHE_AUTO && requested < fewest) {
        throw std::runtime_error(format("expert cache: capacity %d is below the %d experts that a token uses%s: choose %d to %d",
                requested, n_expert_used, fewest > n_expert_used ? " and the slot of zeros" : "", fewest, n_expert));
    }
    if (!no_alloc && engaged() && host_computes()) {
        create_workers(model);
    }
    if (const auto lacks = engaged() ? allocate(fewest) : nullptr; lacks) {
        throw std::runtime_error(format("expert cache: cannot allocate %d slots in %s, the fewest that serve a token: free %.1f MiB there",
                fewest, ggml_backend_buft_name(lacks), fewest*slot_bytes()/1024.0/1024.0));
    }

    status_json = info().json();
}

llama_expert_cache::~llama_expert_cache() {
    if (hot) {
        hot->synchronize(); // its copies
    }
    if (!counting) {
        return;
    }
    int64_t hits     = 0;
    int64_t misses   = 0;
    int64_t computed = 0;
    int64_t bytes    = 0;
    for (int32_t i = 0; i < n_layers(); ++i) {
        const auto stats = layer_stats(i);
        hits     += stats.hits;
        misses   += stats.misses;
        computed += stats.computed;
        bytes    += stats.copied*(int64_t) stats.expert_bytes;
    }
    if (hits + misses > 0) {
        LLAMA_LOG_WARN("expert cache: %" PRId64 " hits, %" PRId64 " misses (%.1f%% hits)%s, %.1f MiB moved\n",
            hits, misses, 100.0*hits/(hits + misses), computed > 0 ? format(", the CPU computed %" PRId64, computed).c_str() : "", bytes/1024.0/1024.0);
    }
}

// the back end that computes on a device
static ggml_backend_t find_backend(const std::vector<ggml_backend_ptr> & backends, ggml_backend_dev_t dev) {
    for (const auto & backend : backends) {
        if (ggml_backend_get_device(backend.get()) == dev) {
            return backend.get();
        }
    }
    return nullptr;
}

static bool dev_has_expert_cache(ggml_backend_dev_t dev) {
    // the slots of a split tensor would need a split store
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META) {
        return false;
    }
    // some back ends say yes to any operation, but these come with addresses of this process
    if (!llama_device_is_cpu(dev) && !ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_expert_store_map")) {
        return false;
    }

    ggml_init_params params = { /*.mem_size =*/ 16*ggml_tensor_overhead(), /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ true };
    ggml_context_ptr ctx { ggml_init(params) };

    const auto state = ggml_new_expert_cache_state(ctx.get(), 2, 1);

    const void  * store = nullptr;
    ggml_tensor * cache = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 1, 1, 1);
    ggml_tensor * slots = ggml_expert_resolve(ctx.get(), ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, 1, 1), &state, 0);
    ggml_tensor * fill  = ggml_expert_fill(ctx.get(), slots, &state, 1, &cache, &store, true);

    return ggml_backend_dev_supports_op(dev, slots) && ggml_backend_dev_supports_op(dev, fill);
}

// on the CPU the slots keep the layout of the store, which may be repacked
static ggml_backend_buffer_type_t slots_buft(ggml_backend_dev_t dev, const ggml_tensor * store) {
    if (!llama_device_is_cpu(dev)) {
        return ggml_backend_dev_buffer_type(dev);
    }
    return ggml_backend_buffer_is_host(store->buffer) ? ggml_backend_cpu_buffer_type() : ggml_backend_buffer_get_type(store->buffer);
}

// in host memory, as in the file or repacked for the CPU
static bool in_host_memory(const ggml_tensor * exps) {
    const auto dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(exps->buffer));
    return ggml_backend_buffer_is_host(exps->buffer) || (dev && llama_device_is_cpu(dev));
}

static bool is_repacked(const ggml_tensor * exps) {
    return !ggml_backend_buffer_is_host(exps->buffer);
}

// why a layer with these experts cannot be served, empty if it can
static std::string why_not(const std::vector<ggml_tensor *> & exps, ggml_backend_dev_t dev, ggml_backend_t backend, bool have_gpu) {
    if (!std::all_of(exps.begin(), exps.end(), in_host_memory)) {
        return "experts are in device memory";
    }
    if (llama_device_is_cpu(dev) && have_gpu) {
        return "the layer runs on the CPU";
    }
    if (!backend || !dev_has_expert_cache(dev)) {
        return format("the back end of %s has no expert cache", ggml_backend_dev_name(dev));
    }
    if (!llama_device_is_cpu(dev) && std::any_of(exps.begin(), exps.end(), is_repacked)) {
        return "experts are repacked for the CPU, load them with --no-repack";
    }
    if (!std::all_of(exps.begin(), exps.end(), [](const ggml_tensor * t) { return ggml_is_contiguous(t) && t->ne[3] == 1; })) {
        return "experts are not contiguous";
    }
    return "";
}

// the same where the host computes experts; small: biases and scales
static std::string why_not_on_host(const std::vector<ggml_tensor *> & exps, const std::vector<ggml_tensor *> & small, ggml_backend_dev_t dev) {
    if (std::any_of(exps.begin(), exps.end(), is_repacked)) {
        return "experts are repacked for the CPU, which the policies hot and hybrid do not read: load them with --no-repack";
    }
    if (!std::all_of(small.begin(), small.end(), in_host_memory)) {
        return "biases or scales of experts are in device memory, where the CPU cannot read them";
    }
    // all experts of a token that the host computes are in the slot of zeros, but other kernels want each at most once
    if (!llama_device_is_cpu(dev) && !std::all_of(exps.begin(), exps.end(), [](const ggml_tensor * t) { return ggml_is_quantized(t->type); })) {
        return "experts are not quantised, which the policies hot and hybrid need";
    }
    return "";
}

static std::vector<ggml_tensor *> present(std::initializer_list<ggml_tensor *> tensors) {
    std::vector<ggml_tensor *> result;
    std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(result), [](const ggml_tensor * t) { return t != nullptr; });
    return result;
}

// products of more tokens could have other bits with the slots in place of all experts
static int32_t max_tokens_in_slots(ggml_backend_dev_t dev, const std::vector<ggml_tensor *> & exps) {
    const auto max_tokens = (ggml_backend_expert_cache_max_tokens_t)
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_expert_cache_max_tokens");

    int32_t result = INT32_MAX;
    for (const ggml_tensor * t : exps) {
        result = max_tokens ? std::min(result, max_tokens(t->type)) : result;
    }
    return result;
}

// in unified memory the experts are loaded and mapped later, to the same addresses
const void * llama_expert_cache::map(ggml_backend_dev_t dev, const ggml_tensor * t) {
    if (no_alloc) {
        return t; // any address will do
    }
    return unified && unified->has(t) ? t->data : store.map(dev, t);
}

void llama_expert_cache::collect(const llama_model & model, const std::vector<ggml_backend_ptr> & backends, llama_context_type ctx_type) {
    const bool have_gpu = std::any_of(backends.begin(), backends.end(), [](const ggml_backend_ptr & backend) {
        const auto type = ggml_backend_dev_type(ggml_backend_get_device(backend.get()));
        return type != GGML_BACKEND_DEVICE_TYPE_CPU && type != GGML_BACKEND_DEVICE_TYPE_ACCEL;
    });

    // the layers that this context computes
    const bool is_mtp   = ctx_type == LLAMA_CONTEXT_TYPE_MTP;
    il_begin = is_mtp ? model.hparams.n_layer() : 0;
    il_end   = is_mtp ? model.hparams.n_layer_all : model.hparams.n_layer();

    std::set<std::string> reasons;
    for (int il = il_begin; il < il_end; ++il) {
        const auto & ml = model.layers[il];

        const auto exps   = present({ ml.ffn_gate_up_exps,   ml.ffn_gate_exps,   ml.ffn_up_exps,   ml.ffn_down_exps   });
        const auto biases = present({ ml.ffn_gate_up_exps_b, ml.ffn_gate_exps_b, ml.ffn_up_exps_b, ml.ffn_down_exps_b });
        const auto scales = present({                        ml.ffn_gate_exps_s, ml.ffn_up_exps_s, ml.ffn_down_exps_s });
        if (exps.empty()) {
            continue;
        }

        n_moe++;
        n_expert = std::max<int32_t>(n_expert, exps[0]->ne[2]);

        layer cur = {};
        cur.il      = il;
        cur.dev     = model.dev_layer(il);
        cur.backend = find_backend(backends, cur.dev);

        auto small = biases;
        small.insert(small.end(), scales.begin(), scales.end());

        std::string why = why_not(exps, cur.dev, cur.backend, have_gpu);
        if (why.empty() && host_computes()) {
            why = why_not_on_host(exps, small, cur.dev);
        }
        if (!why.empty()) {
            reasons.insert(why);
            continue;
        }
        cur.scales     = { ml.ffn_gate_exps_s, ml.ffn_up_exps_s, ml.ffn_down_exps_s };
        cur.max_tokens = max_tokens_in_slots(cur.dev, exps);
        cur.n_background = fills_beside(cur.dev) && (small.empty() || llama_device_is_cpu(cur.dev)) ? N_BACKGROUND : 0;
        if (hot) {
            hot->n_bypass = std::min(hot->n_bypass, cur.max_tokens);
        }
        for (const auto & tensors : { exps, small }) {
            for (ggml_tensor * t : tensors) {
                cur.exps.push_back({ t, nullptr, nullptr, slots_buft(cur.dev, t), map(cur.dev, t) });
            }
        }
        layers.push_back(std::move(cur));
    }

    if (n_moe == 0) {
        reasons.insert("the model has no experts");
    }

    for (const auto & why : reasons) {
        reason += (reason.empty() ? "" : "; ") + why;
    }
}

// whether a device can ask the host itself
static bool dev_asks(ggml_backend_dev_t dev) {
    if (!llama_device_is_cpu(dev)) {
        const ggml_init_params params = { /*.mem_size =*/ 8*ggml_tensor_overhead(), /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ true };
        ggml_context_ptr ctx { ggml_init(params) };

        const ggml_expert_post_address address = {};
        ggml_tensor * x    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 1, 1);
        ggml_tensor * w    = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 1, 1, 1);
        ggml_tensor * ids  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, 1, 1);
        ggml_tensor * s    = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, GGML_EXPERT_POST_N_STATE);
        ggml_tensor * post = ggml_expert_post(ctx.get(), x, w, ids, nullptr, s, &address, 0);
        return dev_has_expert_cache(dev) && ggml_backend_dev_supports_op(dev, post);
    }
    return getenv("LLAMA_EXPERT_WORKER") != nullptr; // the CPU has no need to, but to test what asks
}

// If the CPU computes layers too, its threads would be in each other's way.
void llama_expert_cache::create_workers(const llama_model & model) {
    size_t n_embd = 0;
    bool   alone  = true;
    for (int il = il_begin; il < il_end; ++il) {
        alone = alone && !llama_device_is_cpu(model.dev_layer(il));
    }
    for (const auto & l : layers) {
        for (const auto & w : l.exps) {
            n_embd = std::max<size_t>(n_embd, std::max(w.store->ne[0], w.store->ne[1]));
        }
    }
    size_t n_tokens = 0; // of a step that can ask: a layer may use fewer experts for a token than others
    for (const auto & l : layers) {
        n_tokens = std::max<size_t>(n_tokens, std::min({ (int32_t) n_ubatch, l.max_tokens, hot ? hot->n_bypass : l.n_expert() }));
    }
    for (const auto & l : layers) {
        if (workers.count(l.dev) || !(alone || llama_device_is_cpu(l.dev)) || !dev_asks(l.dev)) {
            continue;
        }
        auto worker = llama_expert_worker::create(l.dev, n_tokens*(n_embd + 2*n_expert_used), n_tokens*n_embd);
        if (worker) {
            workers[l.dev] = { std::move(worker), l.backend, nullptr };
        }
    }
    computed_apart = alone && !workers.empty();
}

void llama_expert_cache::order_experts(const llama_model & model, const char * pin_list) {
    llama_expert_pin_list pins;
    if (pin_list) {
        pins = llama_expert_pin_list::read(pin_list, model.hparams.n_layer(), model.hparams.n_layer_all, n_expert);
    }
    pins.layers.resize(model.hparams.n_layer_all);

    for (auto & l : layers) {
        std::vector<bool> listed(l.n_expert(), false);
        for (const int32_t e : pins.layers[l.il]) {
            if (e >= l.n_expert()) {
                throw std::runtime_error(format("expert cache: pin list '%s' has expert %d in layer %d, which has %d", pin_list, e, l.il, l.n_expert()));
            }
            listed[e] = true;
            l.order.push_back(e);
        }
        l.n_listed = l.order.size();

        for (int32_t e = 0; e < l.n_expert(); ++e) {
            if (!listed[e]) {
                l.order.push_back(e);
            }
        }
    }
}

// half of the capacity is pinned if there is a pin list that says nothing else
void llama_expert_cache::choose_pinned(int32_t wanted) {
    if (unified) {
        n_pinned = budget(wanted).choose(wanted, n_pinned_requested).pinned;
        return;
    }
    const int32_t most = wanted - n_zeros(wanted) - n_expert_used;
    if (n_pinned_requested > most) {
        throw std::runtime_error(format("expert cache: %d of %d slots pinned leaves fewer than the %d that a token uses: pin at most %d",
                n_pinned_requested, wanted, n_expert_used, most));
    }
    n_pinned = n_pinned_requested < 0 ? std::min(wanted/2, most) : n_pinned_requested;
}

// one slot in every layer
size_t llama_expert_cache::slot_bytes() const {
    return std::accumulate(layers.begin(), layers.end(), size_t(0), [](size_t sum, const layer & l) { return sum + l.expert_bytes(); });
}

// that serve a token
int32_t llama_expert_cache::fewest_slots() const {
    return n_expert_used + n_zeros(n_expert_used);
}

// steps of more tokens do not use the slots
int32_t llama_expert_cache::batch_limit() const {
    if (hot) {
        return hot->n_bypass;
    }
    int32_t result = (n_slots - n_zeros(n_slots) - n_pinned)/n_expert_used;
    for (const auto & l : layers) {
        result = std::min(result, l.max_tokens);
    }
    return result;
}

// what the product of a prompt with weights that are not quantised sorts its rows in, once for all layers
size_t llama_expert_cache::prompt_scratch(const layer & l) const {
    size_t result = 0;
    for (const auto & w : l.exps) {
        if (expert_dim(w.store) == 2 && !ggml_is_quantized(w.store->type)) {
            const size_t row = w.store->ne[0]*ggml_type_size(w.store->type) + w.store->ne[1]*sizeof(float);
            result = std::max(result, n_ubatch*n_expert_used*row);
        }
    }
    return llama_device_is_cpu(l.dev) ? 0 : 128u*1024*1024 + result;
}

// the same for every layer; the slots that the cache has already count as free
int32_t llama_expert_cache::capacity_that_fits() const {
    // room for the state of the cache, padding, and what is allocated late, such as the code of kernels
    size_t margin = 256u*1024*1024;

    std::map<ggml_backend_dev_t, size_t> per_slot;
    for (const auto & l : layers) {
        per_slot[l.dev] += l.expert_bytes();
        margin = std::max(margin, prompt_scratch(l));
    }

    int32_t result = n_expert;
    for (const auto & [dev, slot_bytes] : per_slot) {
        const size_t free      = llama_device_memory_free(dev);
        const size_t available = free > margin + reserve ? free - margin - reserve : 0;
        result = std::min<int64_t>(result, n_slots + available/slot_bytes);
    }
    return result;
}

bool llama_expert_cache::resize() {
    if ((asked.empty() || (hot && !not_on_host.empty())) && engaged()) {
        reason = asked.empty() ? "the model computes its experts in a way of its own" : not_on_host;
        workers.clear();
        computed_apart = false;
        layers.clear();
        ffns.clear();
        cached.clear();
        store.clear();
        ctxs_bufs.clear();
        n_slots     = 0;
        status_json = info().json();
    }
    if (unified && n_moe > 0 && (!engaged() || asked.size() < layers.size())) {
        throw std::runtime_error(format("expert cache: unified memory needs the cache in all layers: %s",
                engaged() ? "the model computes some in a way of its own" : reason.c_str()));
    }
    if (!engaged()) {
        LLAMA_LOG_WARN("%s\n", info().line().c_str());
        return false;
    }
    if (no_alloc) {
        allocate(requested == LLAMA_EXPERT_CACHE_AUTO ? fewest_slots() : std::min(requested, n_expert));
        return false;
    }

    const int32_t largest = capacity_that_fits();
    int32_t       wanted  = requested == LLAMA_EXPERT_CACHE_AUTO ? largest : std::min(requested, n_expert);
    if (wanted > largest) {
        throw std::runtime_error(format("expert cache: %d slots of %.1f MiB do not fit: the largest capacity that does is %d",
                wanted, slot_bytes()/1024.0/1024.0, largest));
    }

    if (unified) {
        const auto choice = budget(largest).choose(requested == LLAMA_EXPERT_CACHE_AUTO ? requested : wanted, n_pinned_requested);
        wanted   = choice.capacity;
        n_pinned = choice.pinned;
    }
    allocate_what_fits(wanted);
    if (!unified || n_slots < wanted) {
        choose_pinned(n_slots);
    }
    if (unified) {
        load();
    }
    reset();
    if (is_hybrid()) {
        measure();
        reset();
    }

    status_json = info().json();
    LLAMA_LOG_WARN("%s\n", info().line().c_str()); // at the level that all tools show
    LLAMA_LOG_DEBUG("%s: %s\n", __func__, status_json.c_str());
    return true;
}

// [.., .., n_slots], also for biases and scales: what fills them knows only weights
static ggml_tensor * new_slots(ggml_context * ctx, const ggml_tensor * store, int32_t n_slots) {
    const int dim = expert_dim(store);
    // the kernels for repacked weights want more than one matrix
    return ggml_new_tensor_3d(ctx, store->type, dim > 0 ? store->ne[0] : 1, dim > 1 ? store->ne[1] : 1, std::max(n_slots, 2));
}

static ggml_tensor * like_store(ggml_context * ctx, ggml_tensor * slots, const ggml_tensor * store) {
    switch (expert_dim(store)) {
        case 0:  return ggml_view_1d(ctx, slots, slots->ne[2], 0);
        case 1:  return ggml_view_2d(ctx, slots, slots->ne[0], slots->ne[2], slots->nb[2], 0);
        default: return slots;
    }
}

// other programs use the same memory: what was free a moment ago may not be now
void llama_expert_cache::allocate_what_fits(int32_t wanted) {
    while (const auto lacks = allocate(wanted)) {
        const int32_t largest = std::min(capacity_that_fits(), wanted - std::max(1, wanted/16));
        if (requested != LLAMA_EXPERT_CACHE_AUTO || largest < fewest_slots()) {
            const std::string otherwise = largest < fewest_slots() ? "" : format(", or choose a capacity of at most %d", largest);
            throw std::runtime_error(format("expert cache: cannot allocate %d slots in %s, although there was room for them a moment ago: "
                    "stop what else uses this memory%s", wanted, ggml_backend_buft_name(lacks), otherwise.c_str()));
        }
        LLAMA_LOG_WARN("expert cache: cannot allocate %d slots in %s, although there was room for them a moment ago: trying %d\n",
            wanted, ggml_backend_buft_name(lacks), largest);
        wanted = largest;
    }
}

ggml_backend_buffer_type_t llama_expert_cache::allocate(int32_t n_slots_new) {
    ctxs_bufs.clear(); // free the old slots first
    cached.clear();

    n_slots = n_slots_new;

    std::map<ggml_backend_buffer_type_t, ggml_context *> ctx_map;
    const auto ctx_for_buft = [&](ggml_backend_buffer_type_t buft) {
        if (ctx_map.count(buft) == 0) {
            // the tensors of the experts, views of them, the 5 tensors of the state, 5 for the policy hot, one for hybrid, and one of a device
            ggml_init_params params = { /*.mem_size =*/ (2*MAX_TENSORS + 12)*layers.size()*ggml_tensor_overhead(), /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ true };
            ctx_map[buft] = ggml_init(params);
            ctxs_bufs.emplace_back(ctx_map[buft], nullptr);
        }
        return ctx_map[buft];
    };

    for (size_t i = 0; i < layers.size(); ++i) {
        auto & l = layers[i];

        const int32_t n = std::min(n_slots, l.n_expert());

        for (size_t j = 0; j < l.exps.size(); ++j) {
            auto & w = l.exps[j];
            w.cache = new_slots(ctx_for_buft(w.buft), w.store, n);
            w.slots = like_store(ctx_for_buft(w.buft), w.cache, w.store);
            ggml_format_name(w.cache, "%s.slots", w.store->name);
            cached[w.store] = { i, j };
        }

        // the state is in plain memory
        const auto dev_buft = ggml_backend_dev_buffer_type(l.dev);
        const auto cpu_buft = ggml_backend_cpu_buffer_type();
        l.n_zeros = host_computes() && n < l.n_expert() ? 1 : 0;
        l.state   = ggml_new_expert_cache_state(ctx_for_buft(dev_buft), l.n_expert(), n - l.n_zeros);
        if (is_hybrid()) {
            l.n_copied = ggml_new_tensor_1d(ctx_for_buft(dev_buft), GGML_TYPE_I32, n - l.n_zeros + 1);
        }
        if (hot) {
            l.lookup = ggml_new_tensor_2d(ctx_for_buft(dev_buft), GGML_TYPE_I32, 1, l.n_expert());
            l.host   = ggml_new_expert_host_state(ctx_for_buft(workers.count(l.dev) ? dev_buft : cpu_buft), l.n_expert());
            if (workers.count(l.dev)) {
                l.host.table = l.state.table;
            }
        }
        l.host_scales = host_computes() && l.has_scales() ?
            ggml_new_tensor_2d(ctx_for_buft(cpu_buft), GGML_TYPE_F32, l.n_expert(), l.scales.size()) : nullptr;
    }
    for (auto & [dev, a] : workers) {
        a.state = ggml_new_tensor_1d(ctx_for_buft(ggml_backend_dev_buffer_type(dev)), GGML_TYPE_I32, GGML_EXPERT_POST_N_STATE);
    }

    for (auto & [ctx, buf] : ctxs_bufs) {
        const auto it = std::find_if(ctx_map.begin(), ctx_map.end(), [c = ctx.get()](const auto & entry) { return entry.second == c; });

        buf.reset(no_alloc ? ggml_backend_buft_alloc_buffer(it->first, 0) : ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), it->first));
        for (auto * t = no_alloc ? ggml_get_first_tensor(ctx.get()) : nullptr; t; t = ggml_get_next_tensor(ctx.get(), t)) {
            t->buffer = buf.get(); // empty, but the scheduler must not allocate the tensor
        }
        if (!buf) {
            ctxs_bufs.clear();
            cached.clear();
            n_slots = 0;
            return it->first;
        }
        // the scheduler runs operations where their weights are
        ggml_backend_buffer_set_usage(buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }
    if (hot) {
        hot->set_layers(hot_layers());
    }
    ffns.resize(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        auto & scales = ffns[i].weights.scales; // new ones
        scales = scales ? layers[i].host_scales : nullptr;
    }
    return nullptr;
}

llama_expert_budget llama_expert_cache::budget(int32_t capacity_max) const {
    std::map<int, llama_expert_unified::served> served;
    for (const auto & l : layers) {
        served[l.il] = { l.n_listed, llama_device_is_cpu(l.dev) };
    }
    llama_expert_budget result;
    result.layers        = unified->sizes(il_begin, il_end, served);
    result.n_expert_used = n_expert_used;
    result.capacity_max  = capacity_max;
    result.host_bytes    = unified->host_budget();
    return result;
}

void llama_expert_cache::load() {
    std::map<const ggml_tensor *, llama_expert_unified::pins> pins;
    for (const auto & l : layers) {
        const int32_t n = pinned_in(l);
        for (const auto & w : l.exps) {
            if (unified->has(w.store)) {
                pins[w.store] = { w.cache, l.order.data(), n };
                continue;
            }
            const size_t nb = w.cache->nb[2];
            for (int32_t slot = 0; slot < n; ++slot) { // biases and scales are in host memory
                ggml_backend_tensor_set(w.cache, (const char *) w.store->data + l.order[slot]*nb, slot*nb, nb);
            }
        }
    }
    unified->load(il_begin, il_end, pins);
    for (const auto & l : layers) {
        unified->map(l.dev);
    }
}

// leaves out the pinned slots, which are filled already and from nowhere else
static void skip_pinned_fills(const ggml_expert_cache_state & state, const std::vector<int32_t> & owner, int32_t n_pinned) {
    const int32_t n_slots = state.owner->ne[0];

    std::vector<int32_t> fills(2*(n_slots + 1), 0);
    for (int32_t slot = n_pinned; slot < n_slots; ++slot) {
        int32_t & n = fills[0];
        n++;
        fills[2*n + 0] = owner[slot];
        fills[2*n + 1] = slot;
    }
    ggml_backend_tensor_set(state.fills, fills.data(), 0, ggml_nbytes(state.fills));
}

void llama_expert_cache::reset() {
    asks            = true;
    n_adapted       = 0;
    n_misses_before = 0;

    // the operations that fill a layer, and their sources
    const size_t n_fills   = (MAX_TENSORS + GGML_EXPERT_CACHE_MAX_WEIGHTS - 1)/GGML_EXPERT_CACHE_MAX_WEIGHTS;
    const size_t n_tensors = n_fills*(1 + GGML_MAX_SRC);

    ggml_init_params params = { /*.mem_size =*/ n_fills*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false), /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ true };

    for (const auto & l : layers) {
        ggml_expert_cache_state_init(&l.state, l.order.data());
        l.set_host_scales();
        if (unified) {
            skip_pinned_fills(l.state, l.order, pinned_in(l));
        } else if (hot) {
            continue; // the slots of all layers are filled below
        } else if (is_hybrid()) {
            set_hybrid(l);
        }

        ggml_context_ptr ctx { ggml_init(params) };
        ggml_cgraph    * gf = ggml_new_graph_custom(ctx.get(), n_tensors, false);

        // the owners are on the fill list
        ggml_build_forward_expand(gf, l.build_fill(ctx.get(), l.state.owner));
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            ggml_backend_view_init(ggml_graph_node(gf, i));
        }

        if (ggml_backend_graph_compute(l.backend, gf) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error(format("expert cache: cannot fill the slots of layer %d", l.il));
        }
    }
    if (hot) {
        hot->reset(hot_layers());
    }
    reset_asking();
    counting = true;
}

// on the CPU the experts are in reach of any step, if they are all in host memory
bool llama_expert_cache::gathers(const layer & l) const {
    return (unified || !llama_device_is_cpu(l.dev)) && l.mapped();
}

int32_t llama_expert_cache::pinned_in(const layer & l) const {
    return std::min(n_pinned, l.n_listed);
}

std::vector<llama_expert_hot::layer> llama_expert_cache::hot_layers() const {
    std::vector<llama_expert_hot::layer> result;
    for (const auto & l : layers) {
        llama_expert_hot::layer cur = {};
        cur.backend  = l.backend;
        cur.table    = l.state.table;
        cur.lookup   = l.lookup;
        cur.host     = l.host;
        cur.n_slots  = l.state.owner->ne[0];
        cur.n_pinned = pinned_in(l);
        cur.order    = l.order;
        for (const auto & w : l.exps) {
            cur.exps.push_back({ w.cache, w.store->data });
        }
        result.push_back(std::move(cur));
    }
    return result;
}

void llama_expert_cache::set_hybrid(const layer & l) const {
    std::vector<int32_t> all(l.n_copied->ne[0]);
    std::iota(all.begin(), all.end(), 0);
    const auto & n = n_copied.empty() || !l.has_zeros() ? all : n_copied;
    ggml_backend_tensor_set(l.n_copied, n.data(), 0, ggml_nbytes(l.n_copied));

    for (const auto & w : l.exps) {
        if (l.has_zeros()) {
            ggml_backend_tensor_memset(w.cache, 0, l.n_owners()*w.cache->nb[2], w.cache->nb[2]);
        }
    }
}

void llama_expert_cache::reset_asking() {
    for (auto & [dev, a] : workers) {
        a.worker->end();
        const int32_t state[GGML_EXPERT_POST_N_STATE] = { (int32_t) a.worker->n_answered(), 0 };
        ggml_backend_tensor_set(a.state, state, 0, sizeof(state));
    }
}

// Policy hybrid: where it saves less than it costs to be able to ask the CPU, all misses are copied for a while.
bool llama_expert_cache::adapt() {
    constexpr int32_t n_steps = 128; // between two looks at the counters
    constexpr double  margin  = 1.25; // of what changes the choice

    if (!is_hybrid() || !engaged()) {
        return false;
    }
    if (n_adapted >= n_steps) {
        int64_t misses = 0;
        for (size_t i = 0; i < layers.size(); ++i) {
            ggml_backend_synchronize(layers[i].backend); // the step before has counted
            misses += layer_stats(i).misses;
        }
        const double saved = rates.saved(double(misses - n_misses_before)/(n_adapted*layers.size()), n_copied);
        asks            = saved > (asks ? rates.ask/margin : rates.ask*margin);
        n_misses_before = misses;
        n_adapted       = 0;
    }
    return graph_asks != host_serves();
}

void llama_expert_cache::begin_step(int64_t n_tokens, int32_t n_threads) {
    if (!engaged()) {
        return;
    }
    n_adapted += n_tokens <= batch_limit() ? 1 : 0;
    if (!workers.empty()) {
        // What a device asked for must be answered before the answers change. And its copies in the background must be over:
        // nothing in a graph waits for them.
        for (auto & [dev, a] : workers) {
            ggml_backend_synchronize(a.backend);
        }
        end_step();
    }
    if (hot) {
        hot->begin_step(n_tokens);
    }
    if (host_serves()) {
        for (auto & [dev, a] : workers) {
            a.worker->begin(n_threads);
        }
    }
}

// whether the CPU multiplies large matrices for a node
static bool is_cpu_product(const ggml_tensor * node) {
    if (node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID && node->op != GGML_OP_FLASH_ATTN_EXT) {
        return false;
    }
    const ggml_tensor * x = node->op == GGML_OP_FLASH_ATTN_EXT ? node->src[1] : node->src[0];
    const auto buffer = x->view_src ? x->view_src->buffer : x->buffer;
    return buffer && ggml_backend_buffer_is_host(buffer);
}

int32_t llama_expert_cache::n_threads_left(ggml_cgraph * gf, int32_t n) const {
    if (!computed_apart || !host_serves()) {
        return n;
    }
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        if (is_cpu_product(ggml_graph_node(gf, i))) {
            return n;
        }
    }
    return 1;
}

void llama_expert_cache::end_step() {
    for (auto & [dev, a] : workers) {
        a.worker->end();
    }
}

llama_expert_ffn llama_expert_cache::host_ffn(const llama_expert_step & step, size_t i, const std::vector<ggml_tensor *> & all) const {
    enum { UP, GATE, DOWN, GATE_UP, UP_B, GATE_B, DOWN_B, GATE_UP_B, UP_S, GATE_S, DOWN_S };
    const auto either = [&all](int a, int b) { return all[a] ? all[a] : all[b]; };

    llama_expert_ffn result;
    result.weight_first = step.weight_first;
    result.n_used       = step.selected->ne[0];
    result.weights      = {
        /*.gate    =*/ all[GATE_UP] ? nullptr : all[GATE],
        /*.up      =*/ either(GATE_UP, UP),
        /*.down    =*/ all[DOWN],
        /*.gate_b  =*/ all[GATE_B],
        /*.up_b    =*/ either(GATE_UP_B, UP_B),
        /*.down_b  =*/ all[DOWN_B],
        /*.scales  =*/ all[UP_S] || all[GATE_S] || all[DOWN_S] ? layers[i].host_scales : nullptr, // some models have them and do not use them
        /*.gate_up =*/ all[GATE_UP] != nullptr,
    };
    return result;
}

// in one tensor, because the host waits for the device for each that it gets
static ggml_tensor * build_request(ggml_context * ctx, const llama_expert_step & step, ggml_tensor * ids) {
    ggml_tensor * w = ggml_reshape_2d(ctx, step.weights, ids->ne[0], ids->ne[1]);
    return ggml_concat(ctx, step.x, ggml_concat(ctx, w, ggml_cast(ctx, ids, GGML_TYPE_F32), 0), 0); // exact up to 2^24
}

//   ids, state: see ggml_expert_misses and ggml_expert_post
void llama_expert_cache::ask_host(
        ggml_context * ctx, const llama_expert_step & step, size_t i, ggml_tensor * ids,
        const ggml_expert_host_state * state, llama_expert_view & view) const {
    const auto it = workers.find(layers[i].dev);
    if (it != workers.end()) {
        GGML_ASSERT((step.x->ne[0] + 2*ids->ne[0])*ids->ne[1] <= (int64_t) it->second.worker->n_request());
        view.posted = ggml_expert_post(ctx, step.x, step.weights, ids, state, it->second.state, &it->second.worker->address(), i);
    } else {
        view.misses = ggml_expert_misses(ctx, build_request(ctx, step, ids), step.selected->ne[0], state);
    }
}

void llama_expert_cache::hot_view(ggml_context * ctx, ggml_cgraph * gf, const llama_expert_step & step, size_t i, llama_expert_view & view) const {
    view.ids = step.selected;
    if (step.selected->ne[1] == 0) {
        return;
    }
    if (!hot->all_resident(i)) {
        // first of all, so that the host has it before the device begins with its own experts
        ask_host(ctx, step, i, step.selected, &layers[i].host, view);
        ggml_build_forward_expand(gf, view.posted ? view.posted : view.misses);
    }
    view.ids = hot->build_slots(ctx, i, step.selected);
}

// without ids if the device cannot resolve as many
void llama_expert_cache::slot_view(
        ggml_context * ctx, ggml_cgraph * gf, const llama_expert_step & step, size_t i, bool hybrid, llama_expert_view & view) const {
    const layer & l = layers[i];

    ggml_tensor * slots = hybrid ?
        ggml_expert_resolve_split(ctx, step.selected, &l.state, pinned_in(l), l.n_copied, l.n_background) :
        ggml_expert_resolve(ctx, step.selected, &l.state, pinned_in(l));
    if (!ggml_backend_dev_supports_op(l.dev, slots)) {
        return;
    }
    view.ids = l.build_fill(ctx, slots);
    if (hybrid) {
        ggml_build_forward_expand(gf, view.ids); // the fill right after the resolve: both are one kernel then
        ask_host(ctx, step, i, ggml_expert_host_ids(ctx, slots), nullptr, view);
        if (view.misses) {
            ggml_build_forward_expand(gf, view.misses); // before the products, which the device computes meanwhile
        }
    }
}

ggml_tensor * llama_expert_cache::add_misses(
        ggml_context * ctx, ggml_cgraph * gf, const llama_expert_view & view, const ggml_tensor * activation, ggml_tensor * out) const {
    if (view.layer < 0) {
        return out;
    }
    llama_expert_ffn & ffn = ffns[view.layer];
    ffn = view.ffn;
    ffn.set_activation(activation);

    if (view.posted) {
        const auto & a = workers.at(layers[view.layer].dev);
        a.worker->set_layer(view.layer, ffn);
        out = ggml_expert_collect(ctx, out, view.posted, &a.worker->address());
        ggml_build_forward_expand(gf, out); // before anything else is asked for
        return out;
    }
    if (view.misses) {
        ggml_build_forward_expand(gf, out); // the device is busy while the host computes
        return ggml_add(ctx, out, ffn.build(ctx, view.misses));
    }
    return out;
}

llama_expert_view llama_expert_cache::view(
        ggml_context * ctx, ggml_cgraph * gf, const llama_expert_step & step, std::initializer_list<ggml_tensor *> exps) const {
    ggml_tensor * selected = step.selected;

    const layer * l = nullptr;
    std::vector<const weights *> used;
    for (const ggml_tensor * t : exps) {
        if (!t) {
            continue;
        }
        const auto it = cached.find(t);
        if (it == cached.end()) {
            return {};
        }
        l = &layers[it->second.layer];
        used.push_back(&l->exps[it->second.weight]);
    }
    asked.insert(l->il);

    llama_expert_view result;

    const size_t i = l - layers.data();
    if (host_computes() && step.not_on_host && not_on_host != step.not_on_host) {
        not_on_host = step.not_on_host;
        if (counting) {
            LLAMA_LOG_WARN("expert cache: %s from now on: %s\n", hot ? "steps go past the slots" : "all misses are copied", step.not_on_host);
        }
    }
    const bool on_host = host_computes() && !step.not_on_host;
    if (on_host) {
        result.layer = i;
        result.ffn   = host_ffn(step, i, exps);
    }
    if (hot && on_host && hot->serves(step.n_tokens)) {
        hot_view(ctx, gf, step, i, result);
    } else if (!hot && ggml_nelements(selected) <= l->n_owners() - pinned_in(*l) && selected->ne[1] <= l->max_tokens) {
        graph_asks = host_serves();
        slot_view(ctx, gf, step, i, on_host && graph_asks && l->has_zeros() && selected->ne[1] > 0, result);
    }
    if (result.ids) {
        for (const weights * w : used) {
            result.tensors.emplace_back(w->store, w->slots);
        }
        return result;
    }
    if (gathers(*l)) {
        result.ids = selected;
        for (const weights * w : used) {
            result.tensors.emplace_back(w->store, ggml_expert_gather(ctx, selected, &l->state, w->cache, w->store, w->address));
        }
    }
    return result;
}

std::map<ggml_backend_buffer_type_t, size_t> llama_expert_cache::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> result;
    for (const auto & [ctx, buf] : ctxs_bufs) {
        const auto buft = ggml_backend_buffer_get_type(buf.get());
        result[buft] += no_alloc ? ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft) : ggml_backend_buffer_get_size(buf.get());
    }
    return result;
}

llama_expert_cache_layer_stats llama_expert_cache::layer_stats(int32_t i) const {
    const auto & l = layers.at(i);

    if (hot) {
        return { l.il, hot->hits(i), hot->misses(i), hot->copies(i), hot->misses(i), l.expert_bytes() };
    }
    int64_t counters[GGML_EXPERT_CACHE_N_COUNTERS];
    ggml_backend_tensor_get(l.state.counters, counters, 0, sizeof(counters));

    return { l.il, counters[GGML_EXPERT_CACHE_HITS], counters[GGML_EXPERT_CACHE_MISSES],
             counters[GGML_EXPERT_CACHE_COPIED], counters[GGML_EXPERT_CACHE_COMPUTED], l.expert_bytes() };
}

llama_expert_cache_info llama_expert_cache::info() const {
    llama_expert_cache_info result;

    result.engaged       = engaged();
    result.reason        = reason;
    result.requested     = requested;
    result.capacity      = n_slots;
    result.pinned        = n_pinned;
    result.n_expert      = n_expert;
    result.n_expert_used = n_expert_used;
    result.n_layers      = n_layers();
    result.n_layers_moe  = n_moe;
    result.batch_limit   = engaged() ? batch_limit() : 0;

    result.pinned_bytes  = store.size();
    if (unified) {
        result.unified       = true;
        result.pinned_bytes += unified->mapped_bytes();
        for (const auto & l : layers) {
            for (const auto & w : l.exps) {
                result.device_bytes += unified->has(w.store) ? pinned_in(l)*w.store->nb[2] : 0;
            }
        }
    }
    result.policy        = policy;
    result.n_in_slots    = n_slots - n_zeros(n_slots);
    result.hot_interval  = hot ? hot->interval : 0;
    result.asks          = !workers.empty();
    if (!n_copied.empty()) {
        const std::vector<int32_t> of_a_token(n_copied.begin(), n_copied.begin() + std::min<size_t>(n_copied.size(), n_expert_used + 1));
        result.hybrid        = rates.json(of_a_token, layers.empty() ? 0 : layers[0].n_background, host_serves());
        result.hybrid_choice = llama_expert_rates::choice(of_a_token);
    }

    for (const auto & [_, size] : memory_breakdown()) {
        result.cache_bytes += size;
    }
    for (const auto & l : layers) {
        result.expert_bytes = std::max(result.expert_bytes, l.expert_bytes());
        result.by_host      = result.by_host || !l.mapped();
        result.gathers      = result.gathers || gathers(l);
        result.store_bytes += l.n_expert()*l.expert_bytes();
        result.devices.insert(ggml_backend_dev_name(l.dev));
    }
    result.host_bytes = unified ? unified->host_bytes() : result.store_bytes;

    for (int32_t i = 0; host_computes() && counting && i < n_layers(); ++i) {
        const auto stats = layer_stats(i);
        result.hits     += stats.hits;
        result.misses   += stats.misses;
        result.copied   += stats.copied;
        result.computed += stats.computed;
    }

    return result;
}

const std::string & llama_expert_cache::status() {
    if (host_computes()) {
        status_json = info().json(); // has counters
    }
    return status_json;
}

//
// interface
//

int32_t llama_expert_cache_n_layers(const llama_context * ctx) {
    const auto * cache = ctx->get_expert_cache();
    return cache ? cache->n_layers() : 0;
}

llama_expert_cache_layer_stats llama_expert_cache_get_layer_stats(llama_context * ctx, int32_t i) {
    GGML_ASSERT(i >= 0 && i < llama_expert_cache_n_layers(ctx));
    ctx->synchronize();
    return ctx->get_expert_cache()->layer_stats(i);
}

void llama_expert_cache_reset(llama_context * ctx) {
    if (auto * cache = ctx->get_expert_cache()) {
        ctx->synchronize();
        cache->reset();
    }
}

const char * llama_expert_cache_status(const llama_context * ctx) {
    auto * cache = ctx->get_expert_cache();
    static const std::string off = llama_expert_cache_info().json();
    return cache ? cache->status().c_str() : off.c_str();
}
