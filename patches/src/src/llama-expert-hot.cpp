#include "llama-expert-hot.h"

#include "llama-expert-memory.h"

#include "ggml-backend.h"

#include <algorithm>

static void set_tensor(ggml_backend_t backend, ggml_tensor * t, const std::vector<int32_t> & data) {
    ggml_backend_tensor_set_async(backend, t, data.data(), 0, data.size()*sizeof(data[0]));
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
        l.score.assign(l.order.size(), 0);

        l.n_resident = 0;
        for (int32_t s = 0; s < l.n_slots; ++s) {
            l.slots[l.owner[s]] = s;
        }
        ggml_backend_tensor_memset(l.host.uses,     0, 0, ggml_nbytes(l.host.uses));
        ggml_backend_tensor_memset(l.host.counters, 0, 0, ggml_nbytes(l.host.counters));

        upload(l);
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

int64_t llama_expert_hot::counter(size_t i, ggml_expert_host_counter which) const {
    int64_t result;
    ggml_backend_tensor_get(layers[i].host.counters, &result, which*sizeof(result), sizeof(result));
    return result;
}

int64_t llama_expert_hot::hits(size_t i) const {
    return counter(i, GGML_EXPERT_HOST_HITS) + layers[i].n_resident;
}

int64_t llama_expert_hot::misses(size_t i) const {
    return counter(i, GGML_EXPERT_HOST_MISSES);
}

//
// choice and copies
//

void llama_expert_hot::begin_step(int64_t n_tokens) {
    if (!serves(n_tokens)) {
        return;
    }
    for (auto & l : layers) {
        if (l.resident()) { // nothing in its graph counts
            l.n_resident += n_tokens*n_used;
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
        l.owner[change.slot]   = change.expert;
        l.slots[change.expert] = change.slot;
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

    std::vector<int32_t> uses(l.order.size());
    ggml_backend_tensor_get(l.host.uses, uses.data(), 0, ggml_nbytes(l.host.uses));
    ggml_backend_tensor_memset(l.host.uses, 0, 0, ggml_nbytes(l.host.uses));
    for (size_t e = 0; e < uses.size(); ++e) {
        l.score[e] = l.score[e]/2 + uses[e];
    }
    std::stable_sort(l.order.begin() + l.n_pinned, l.order.end(), [&l](int32_t a, int32_t b) { return l.score[a] > l.score[b]; });

    // the most used of the new ones takes the place of the least used of the old ones
    auto leaving = l.order.rbegin();
    for (int32_t place = 0; place < l.n_slots; ++place) {
        if (l.has_slot(l.order[place])) {
            continue;
        }
        while (!l.has_slot(*leaving)) {
            ++leaving;
        }
        chosen.push_back({ i, l.order[place], l.slots[*leaving] });
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
    if (is_new && !llama_device_is_cpu(dev)) {
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
        upload(layers[changes[i].layer]);
    }
}

// the host's table is on the device too if the device asks through a mailbox
void llama_expert_hot::upload(layer & l) {
    l.placed = l.slots;
    std::replace(l.placed.begin(), l.placed.end(), l.n_slots, -1);

    set_tensor(l.backend, l.table,  l.placed);
    set_tensor(l.backend, l.lookup, l.slots);
    if (l.host.table != l.table) {
        ggml_backend_tensor_set(l.host.table, l.placed.data(), 0, ggml_nbytes(l.host.table));
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
