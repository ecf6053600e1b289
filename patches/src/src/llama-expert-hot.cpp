#include "llama-expert-hot.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

static void set_tensor(ggml_backend_t backend, ggml_tensor * t, const std::vector<int32_t> & data) {
    ggml_backend_tensor_set_async(backend, t, data.data(), 0, data.size()*sizeof(data[0]));
}

static int32_t * table_of(const llama_expert_hot::layer & l) {
    return (int32_t *) l.host.table->data;
}

llama_expert_hot::~llama_expert_hot() {
    synchronize();
    for (auto & [_, c] : copiers) {
        ggml_backend_event_free(c.steps);
        ggml_backend_event_free(c.copies);
    }
}

void llama_expert_hot::synchronize() {
    for (auto & [_, c] : copiers) {
        if (c.backend) {
            ggml_backend_synchronize(c.backend.get());
        }
    }
}

void llama_expert_hot::set_layers(std::vector<layer> new_layers) {
    synchronize();
    layers = std::move(new_layers);
}

void llama_expert_hot::reset(std::vector<layer> new_layers) {
    set_layers(std::move(new_layers));

    n_copies.assign(layers.size(), 0);
    n_counted = 0;
    n_started = 0;
    chosen.clear();
    under_way.clear();

    for (auto & l : layers) {
        l.owner.assign(l.order.begin(), l.order.begin() + l.n_slots);
        l.slots.assign(l.order.size(), l.n_slots);

        std::fill_n(table_of(l), l.order.size(), -1);
        for (int32_t s = 0; s < l.n_slots; ++s) {
            table_of(l)[l.owner[s]] = s;
            l.slots[l.owner[s]]     = s;
        }
        ggml_backend_tensor_memset(l.host.uses,     0, 0, ggml_nbytes(l.host.uses));
        ggml_backend_tensor_memset(l.host.counters, 0, 0, ggml_nbytes(l.host.counters));

        ggml_backend_tensor_set(l.table,  table_of(l),    0, ggml_nbytes(l.table));
        ggml_backend_tensor_set(l.lookup, l.slots.data(), 0, ggml_nbytes(l.lookup));
        for (const auto & w : l.exps) {
            fill(l, w);
        }
    }
}

void llama_expert_hot::fill(const layer & l, const weights & w) {
    const size_t nb = w.slots->nb[2];
    for (int32_t s = 0; s < l.n_slots; ++s) {
        ggml_backend_tensor_set_async(l.backend, w.slots, (const char *) w.store + l.owner[s]*nb, s*nb, nb);
    }
    const std::vector<char> zeros(nb);
    if (!l.resident()) {
        ggml_backend_tensor_set_async(l.backend, w.slots, zeros.data(), l.n_slots*nb, nb);
    }
    ggml_backend_synchronize(l.backend);
}

int64_t llama_expert_hot::hits(size_t i) const {
    return ((const int64_t *) layers[i].host.counters->data)[GGML_EXPERT_HOST_HITS];
}

int64_t llama_expert_hot::misses(size_t i) const {
    return ((const int64_t *) layers[i].host.counters->data)[GGML_EXPERT_HOST_MISSES];
}

//
// choice and copies
//

void llama_expert_hot::begin_step(int64_t n_tokens) {
    if (!serves(n_tokens)) {
        return;
    }
    for (auto & l : layers) {
        if (l.resident()) { // nothing of it is on the host that could count
            ((int64_t *) l.host.counters->data)[GGML_EXPERT_HOST_HITS] += n_tokens*n_used;
        }
    }
    finish_copies();
    if (n_counted >= interval) {
        choose();
        n_counted = 0;
    }
    start_copies(n_tokens);
    n_counted += n_tokens;
}

// the experts that were copied during the last step are in their slots from now on
void llama_expert_hot::finish_copies() {
    if (under_way.empty()) {
        return;
    }
    for (auto & [backend, c] : copiers) {
        if (c.backend) {
            ggml_backend_event_wait(backend, c.copies);
        }
    }
    for (const auto & change : under_way) {
        auto & l = layers[change.layer];
        l.owner[change.slot]       = change.expert;
        l.slots[change.expert]     = change.slot;
        table_of(l)[change.expert] = change.slot;
    }
    upload(under_way);
    under_way.clear();
}

void llama_expert_hot::choose() {
    chosen.clear();
    n_started = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        choose(i);
    }
}

// of equally used experts the one that was before the other stays before it, so that nothing is copied in vain
void llama_expert_hot::choose(size_t i) {
    auto & l = layers[i];

    const auto * uses = (const int32_t *) l.host.uses->data;
    std::stable_sort(l.order.begin() + l.n_pinned, l.order.end(), [uses](int32_t a, int32_t b) { return uses[a] > uses[b]; });
    ggml_backend_tensor_memset(l.host.uses, 0, 0, ggml_nbytes(l.host.uses));

    // the most used of the new ones takes the place of the least used of the old ones
    auto leaving = l.order.rbegin();
    for (int32_t place = 0; place < l.n_slots; ++place) {
        if (table_of(l)[l.order[place]] >= 0) {
            continue;
        }
        while (table_of(l)[*leaving] < 0) {
            ++leaving;
        }
        chosen.push_back({ i, l.order[place], table_of(l)[*leaving] });
        ++leaving;
    }
}

// in half of the interval all that were chosen are copied
void llama_expert_hot::start_copies(int64_t n_tokens) {
    const int64_t n_steps = std::max(1, interval/2); // of one token
    const size_t  n       = std::min<size_t>(chosen.size() - n_started, (chosen.size()*n_tokens + n_steps - 1)/n_steps);
    if (n == 0) {
        return;
    }
    under_way.assign(chosen.begin() + n_started, chosen.begin() + n_started + n);
    n_started += n;

    for (const auto & change : under_way) {
        auto & l = layers[change.layer];
        const int32_t leaving = l.owner[change.slot];
        l.owner[change.slot]  = -1;
        l.slots[leaving]      = l.n_slots;
        table_of(l)[leaving]  = -1;
        n_copies[change.layer]++;
    }
    upload(under_way);

    std::map<ggml_backend_t, std::vector<change>> by_backend;
    for (const auto & change : under_way) {
        by_backend[layers[change.layer].backend].push_back(change);
    }
    for (const auto & [backend, changes] : by_backend) {
        start_copies(backend, changes);
    }
}

void llama_expert_hot::start_copies(ggml_backend_t backend, const std::vector<change> & changes) {
    copier & c = copier_of(backend);

    ggml_backend_t copying = c.backend ? c.backend.get() : backend;
    if (c.backend) { // earlier steps may still read the slots
        ggml_backend_event_record(c.steps, backend);
        ggml_backend_event_wait(copying, c.steps);
    }
    for (const auto & change : changes) {
        for (const auto & w : layers[change.layer].exps) {
            const size_t nb = w.slots->nb[2];
            ggml_backend_tensor_set_async(copying, w.slots, (const char *) w.store + change.expert*nb, change.slot*nb, nb);
        }
    }
    if (c.backend) {
        ggml_backend_event_record(c.copies, copying);
    }
}

llama_expert_hot::copier & llama_expert_hot::copier_of(ggml_backend_t backend) {
    const auto [it, is_new] = copiers.try_emplace(backend);
    copier & c = it->second;

    ggml_backend_dev_t dev = ggml_backend_get_device(backend);
    if (is_new && ggml_backend_dev_type(dev) != GGML_BACKEND_DEVICE_TYPE_CPU) {
        c.steps  = ggml_backend_event_new(dev);
        c.copies = ggml_backend_event_new(dev);
        if (c.steps && c.copies) {
            c.backend.reset(ggml_backend_dev_init(dev, nullptr));
        }
    }
    return c;
}

void llama_expert_hot::upload(const std::vector<change> & changes) {
    for (size_t i = 0; i < changes.size(); ++i) {
        if (i > 0 && changes[i].layer == changes[i - 1].layer) {
            continue;
        }
        const auto & l = layers[changes[i].layer];
        ggml_backend_tensor_set_async(l.backend, l.table, table_of(l), 0, ggml_nbytes(l.table));
        set_tensor(l.backend, l.lookup, l.slots);
    }
}

//
// graph
//

ggml_tensor * llama_expert_hot::build_slots(ggml_context * ctx, size_t i, ggml_tensor * selected) const {
    ggml_tensor * ids   = ggml_is_contiguous(selected) ? selected : ggml_cont(ctx, selected);
    ggml_tensor * slots = ggml_get_rows(ctx, layers[i].lookup, ggml_reshape_1d(ctx, ids, ggml_nelements(ids)));
    return ggml_reshape_2d(ctx, slots, selected->ne[0], selected->ne[1]);
}

// one tensor, because the host waits for the device for each that it gets
ggml_tensor * llama_expert_hot::build_step(ggml_context * ctx, ggml_tensor * x, ggml_tensor * weights, ggml_tensor * selected) {
    ggml_tensor * w   = ggml_reshape_2d(ctx, weights, selected->ne[0], selected->ne[1]);
    ggml_tensor * ids = ggml_cast(ctx, selected, GGML_TYPE_F32); // exact up to 2^24
    return ggml_concat(ctx, x, ggml_concat(ctx, w, ids, 0), 0);
}

ggml_tensor * llama_expert_hot::build_misses(ggml_context * ctx, size_t i, ggml_tensor * step, int32_t n_used_layer) const {
    return ggml_expert_misses(ctx, step, n_used_layer, &layers[i].host);
}

static float op_param(const ggml_tensor * t, int i) {
    float result;
    memcpy(&result, t->op_params + i, sizeof(result));
    return result;
}

// what the device does between gate and up, and down
static ggml_expert_act find_act(const ggml_tensor * activation, float params[2]) {
    switch (activation->op) {
        case GGML_OP_GLU:
            params[0] = op_param(activation, 2);
            params[1] = op_param(activation, 3);
            switch (ggml_get_glu_op(activation)) {
                case GGML_GLU_OP_SWIGLU:       return GGML_EXPERT_ACT_SILU;
                case GGML_GLU_OP_GEGLU:        return GGML_EXPERT_ACT_GELU;
                case GGML_GLU_OP_REGLU:        return GGML_EXPERT_ACT_RELU;
                case GGML_GLU_OP_SWIGLU_OAI:   return GGML_EXPERT_ACT_SWIGLU_OAI;
                case GGML_GLU_OP_SWIGLU_CLAMP: return GGML_EXPERT_ACT_SILU_CLAMP;
                default:                       break;
            }
            break;
        case GGML_OP_UNARY:
            switch (ggml_get_unary_op(activation)) {
                case GGML_UNARY_OP_SILU: return GGML_EXPERT_ACT_SILU;
                case GGML_UNARY_OP_GELU: return GGML_EXPERT_ACT_GELU;
                case GGML_UNARY_OP_RELU: return GGML_EXPERT_ACT_RELU;
                default:                 break;
            }
            break;
        case GGML_OP_SQR:
            return GGML_EXPERT_ACT_RELU_SQR;
        case GGML_OP_MUL: // clamp(silu(gate), -inf, limit)*clamp(up, -limit, limit)
            params[1] = op_param(activation->src[1], 1);
            return GGML_EXPERT_ACT_CLAMP_SILU;
        default:
            break;
    }
    GGML_ABORT("the host does not know the activation %s", activation->name);
}

ggml_tensor * llama_expert_hot::build_ffn(
        ggml_context * ctx, ggml_tensor * misses, const ggml_expert_host_weights & weights, const ggml_tensor * activation, bool weight_first) {
    float params[2] = { 0.0f, 0.0f };
    const ggml_expert_act act = find_act(activation, params);

    ggml_tensor * step = misses->src[0];
    const int32_t n_used_layer = (misses->ne[1] - 1)/step->ne[1];
    return ggml_expert_ffn(ctx, step, misses, n_used_layer, &weights, act, params, weight_first);
}
