#include "llama-expert-worker.h"

#include "llama-expert-memory.h"

#include "ggml-backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <tuple>

#if defined(__linux__)
#include <sched.h>
#endif

//
// llama_expert_ffn
//

static auto as_tuple(const llama_expert_ffn & f) {
    const auto & w = f.weights;
    return std::make_tuple(w.gate, w.up, w.down, w.gate_b, w.up_b, w.down_b, w.scales, w.gate_up,
            f.act, f.params[0], f.params[1], f.weight_first, f.n_used);
}

bool llama_expert_ffn::operator==(const llama_expert_ffn & other) const {
    return as_tuple(*this) == as_tuple(other);
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

void llama_expert_ffn::set_activation(const ggml_tensor * activation) {
    params[0] = 0.0f;
    params[1] = 0.0f;
    act       = find_act(activation, params);
}

ggml_tensor * llama_expert_ffn::build(ggml_context * ctx, ggml_tensor * misses) const {
    return ggml_expert_ffn(ctx, misses->src[0], misses, n_used, &weights, act, params, weight_first);
}

//
// llama_expert_worker
//

// memory that the device can write too: that of the CPU only if it is the device
static ggml_backend_buffer_ptr allocate(ggml_backend_dev_t dev, size_t size) {
    const bool is_cpu = llama_device_is_cpu(dev);
    const auto buft   = is_cpu ? ggml_backend_cpu_buffer_type() : ggml_backend_dev_host_buffer_type(dev);

    ggml_backend_buffer_ptr result { buft ? ggml_backend_buft_alloc_buffer(buft, size) : nullptr };
    if (result && !is_cpu && ggml_backend_buffer_get_type(result.get()) == ggml_backend_cpu_buffer_type()) {
        return nullptr; // pinning was refused
    }
    return result;
}

template <typename T>
static T cpu_function(const char * name) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return cpu ? (T) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), name) : nullptr;
}

std::unique_ptr<llama_expert_worker> llama_expert_worker::create(ggml_backend_dev_t dev, size_t n_request, size_t n_answer) {
    const size_t n_header = sizeof(ggml_expert_mailbox)/sizeof(float);
    const size_t n_padded = GGML_PAD(n_request, n_header); // keeps the answer in lines of its own

    std::unique_ptr<llama_expert_worker> result(new llama_expert_worker());
    result->buffer = allocate(dev, (n_header + n_padded + n_answer)*sizeof(float));
    result->list_misses = cpu_function<ggml_backend_cpu_expert_misses_t>       ("ggml_backend_cpu_expert_misses");
    result->compute     = cpu_function<ggml_backend_cpu_expert_ffn_t>          ("ggml_backend_cpu_expert_ffn");
    result->work_size   = cpu_function<ggml_backend_cpu_expert_ffn_work_size_t>("ggml_backend_cpu_expert_ffn_work_size");
    if (!result->buffer || !result->list_misses || !result->compute || !result->work_size) {
        return nullptr;
    }

    result->ctx.reset(ggml_init({ ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }));
    ggml_tensor * memory = ggml_new_tensor_1d(result->ctx.get(), GGML_TYPE_F32, n_header + n_padded + n_answer);
    ggml_backend_tensor_alloc(result->buffer.get(), memory, ggml_backend_buffer_get_base(result->buffer.get()));

    const auto address = [&](const void * base) {
        float * begin = (float *) const_cast<void *>(base);
        return ggml_expert_post_address { (ggml_expert_mailbox *) begin, begin + n_header, begin + n_header + n_padded };
    };
    const void * mapped = result->store.map(dev, memory);
    if (!mapped) {
        return nullptr;
    }
    result->host   = address(memory->data);
    result->device = address(mapped);
    result->room   = n_padded;
    memset(memory->data, 0, ggml_nbytes(memory));
    result->thread = std::thread([worker = result.get()]() { worker->run(); });
    return result;
}

llama_expert_worker::~llama_expert_worker() {
    if (thread.joinable()) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            stopped = true;
            active  = false;
        }
        changed.notify_one();
        thread.join();
    }
    store.clear();
}

uint32_t llama_expert_worker::n_answered() const {
    return host.mailbox->answered;
}

void llama_expert_worker::set_layer(int32_t i, const llama_expert_ffn & ffn) {
    std::lock_guard<std::mutex> lock(layers_mutex);
    const auto it = layers.find(i);
    if (it != layers.end() && it->second == ffn) {
        return;
    }
    layers[i] = ffn;
    for (auto job = jobs.begin(); job != jobs.end();) {
        job = job->first.first == i ? jobs.erase(job) : std::next(job);
    }
}

// that this thread may run on
static int32_t n_processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    return std::thread::hardware_concurrency(); // 0 if unknown
}

void llama_expert_worker::begin(int32_t n) {
    {
        std::lock_guard<std::mutex> lock(mutex);
        n_threads = n;
        active    = true;
    }
    changed.notify_one();
}

void llama_expert_worker::end() {
    active = false;
}

void llama_expert_worker::run() {
    // One processor is left to the thread that looks whether the device is done: it would take turns with one of these. This
    // one may run where the program may; a thread that has computed may be tied to one.
    const int32_t n = n_processors();
    n_most = n > 1 ? n - 1 : std::numeric_limits<int32_t>::max();

    uint32_t number = 0;
    while (wait(number)) {
        answer();
        ggml_expert_mailbox_answer(host.mailbox, number);
    }
}

// the next request; returns false when there will be none
bool llama_expert_worker::wait(uint32_t & number) {
    while (true) {
        for (llama_expert_looking look; active; ) {
            const uint32_t posted = ggml_expert_mailbox_posted(host.mailbox);
            if (posted != number) {
                number = posted;
                return true;
            }
            if (look.time() < llama_expert_team::EAGER) {
                look.look();
            } else {
                std::this_thread::sleep_for(std::chrono::microseconds(50)); // a long prompt, or nobody waits for the step
            }
        }
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [this]() { return active || stopped; });
        if (stopped) {
            return false;
        }
    }
}

void llama_expert_worker::answer() {
    const std::pair<int32_t, int32_t> key = { host.mailbox->layer, host.mailbox->n_tokens };

    std::lock_guard<std::mutex> lock(layers_mutex);
    auto it = jobs.find(key);
    if (it == jobs.end()) {
        it = jobs.emplace(key, build(layers.at(key.first), key.second)).first;
    }
    const job & j = it->second;
    const int32_t n = std::clamp<int32_t>(n_threads, 1, n_most);
    if (!team || team->size() != n) {
        team = std::make_unique<llama_expert_team>(n);
    }
    work.resize(std::max(work.size(), work_size(j.ffn, team->size())/sizeof(cache_line) + 1));
    list_misses(j.misses);
    team->run([this, &j](int32_t i) {
        const ggml_expert_host_thread thread = {
            /*.ith  =*/ i,
            /*.work =*/ work.data(),
        };
        compute(j.ffn, &thread);
    });
}

llama_expert_worker::job llama_expert_worker::build(const llama_expert_ffn & ffn, int32_t n_tokens) const {
    const int64_t n_embd = ffn.weights.up->ne[0];

    job result;
    result.ctx.reset(ggml_init({ 4*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }));
    ggml_context * ctx = result.ctx.get();

    ggml_tensor * step = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd + 2*ffn.n_used, n_tokens);
    result.misses = ggml_expert_misses(ctx, step, ffn.n_used, nullptr);
    result.ffn    = ffn.build(ctx, result.misses);

    step->data          = host.request;
    result.ffn->data    = host.answer;
    result.list.resize(ggml_nelements(result.misses));
    result.misses->data = result.list.data();
    return result;
}
