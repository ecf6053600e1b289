// What --fit and the expert cache make of devices of a given size, without one: a device that computes on the CPU, in
// memory of its own that is no larger than told. Loads a model as the programs do, decodes some tokens, and writes one
// line of JSON: what lies where, the tokens, and the status of the cache. An allocation beyond the size fails, as on a
// real device.
//
//   test-expert-cache-fit MIB[,MIB ...] RESERVE_MIB [options of llama-server]

#include "arg.h"
#include "common.h"
#include "llama-experts.h"
#include "log.h"
#include "speculative.h"

#include "../ggml/src/ggml-backend-impl.h"
#include "../src/llama-ext.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-expert-cache.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

static constexpr int    N_PROMPT = 40; // one step, too large for the slots of a small cache
static constexpr int    N_GEN    = 12;
static constexpr size_t MiB      = 1024*1024;

//
// a device with memory of its own
//

struct fake_device {
    std::string name;
    size_t      total = 0;
    size_t      used  = 0;

    ggml_backend_buffer_type buft = {};
    ggml_backend_device      dev  = {};
};

static std::vector<std::unique_ptr<fake_device>> fake_devices;

static fake_device * get(ggml_backend_buffer_t buffer) {
    return (fake_device *) buffer->buft->context;
}

// a buffer's context is the host buffer that it really is
static ggml_backend_buffer_t host(ggml_backend_buffer_t buffer) {
    return (ggml_backend_buffer_t) buffer->context;
}

static void fake_buffer_free(ggml_backend_buffer_t buffer) {
    get(buffer)->used -= buffer->size;
    ggml_backend_buffer_free(host(buffer));
}

static void * fake_buffer_base(ggml_backend_buffer_t buffer) {
    return ggml_backend_buffer_get_base(host(buffer));
}

static void fake_buffer_memset(ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset((char *) t->data + offset, value, size);
}

static void fake_buffer_set(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    memcpy((char *) t->data + offset, data, size);
}

static void fake_buffer_get(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    memcpy(data, (const char *) t->data + offset, size);
}

static void fake_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    ggml_backend_buffer_clear(host(buffer), value);
}

static const char * fake_buft_name(ggml_backend_buffer_type_t buft) {
    return ((fake_device *) buft->context)->name.c_str();
}

static ggml_backend_buffer_t fake_buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    auto * device = (fake_device *) buft->context;
    if (size > device->total - device->used) {
        return nullptr;
    }
    ggml_backend_buffer_i iface = {};
    iface.free_buffer   = fake_buffer_free;
    iface.get_base      = fake_buffer_base;
    iface.memset_tensor = fake_buffer_memset;
    iface.set_tensor    = fake_buffer_set;
    iface.get_tensor    = fake_buffer_get;
    iface.clear         = fake_buffer_clear;

    ggml_backend_buffer_t memory = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (!memory) {
        return nullptr;
    }
    device->used += size;
    return ggml_backend_buffer_init(buft, iface, memory, size);
}

static size_t fake_buft_alignment(ggml_backend_buffer_type_t) {
    return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type());
}

static const char * fake_backend_name(ggml_backend_t backend) {
    return ggml_backend_dev_name(backend->device);
}

static void fake_backend_free(ggml_backend_t backend) {
    ggml_backend_free((ggml_backend_t) backend->context);
    delete backend;
}

static ggml_status fake_backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    return ggml_backend_graph_compute((ggml_backend_t) backend->context, graph);
}

static ggml_guid_t fake_guid() {
    static ggml_guid guid = { 0xfa, 0x4e };
    return &guid;
}

static ggml_backend_t fake_dev_init(ggml_backend_dev_t dev, const char *) {
    ggml_backend_i iface = {};
    iface.get_name      = fake_backend_name;
    iface.free          = fake_backend_free;
    iface.graph_compute = fake_backend_compute;

    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 1);
    return new ggml_backend { fake_guid(), iface, dev, cpu };
}

static const char * fake_dev_name(ggml_backend_dev_t dev) {
    return ((fake_device *) dev->context)->name.c_str();
}

static void fake_dev_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    const auto * device = (fake_device *) dev->context;
    *free  = device->total - device->used;
    *total = device->total;
}

static enum ggml_backend_dev_type fake_dev_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void fake_dev_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = fake_dev_name(dev);
    props->description = "computes on the CPU";
    props->type        = fake_dev_type(dev);
    fake_dev_memory(dev, &props->memory_free, &props->memory_total);
}

static ggml_backend_buffer_type_t fake_dev_buft(ggml_backend_dev_t dev) {
    return &((fake_device *) dev->context)->buft;
}

// keeps the loader from repacking weights for the CPU
static ggml_backend_buffer_type_t fake_dev_host_buft(ggml_backend_dev_t) {
    return ggml_backend_cpu_buffer_type();
}

static bool fake_dev_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
}

static bool fake_dev_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft == fake_dev_buft(dev);
}

// as on CUDA: the experts of a prompt are copied to the device
static bool fake_dev_offload_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return op->op == GGML_OP_MUL_MAT_ID && op->ne[2] >= 32;
}

static const char * fake_reg_name(ggml_backend_reg_t) {
    return "FAKE";
}

static size_t fake_reg_count(ggml_backend_reg_t) {
    return fake_devices.size();
}

static ggml_backend_dev_t fake_reg_device(ggml_backend_reg_t, size_t i) {
    return &fake_devices.at(i)->dev;
}

static void * fake_reg_proc(ggml_backend_reg_t, const char * name) {
    const ggml_backend_expert_store_map_t map = [](void * base, size_t) { return base; };
    return strcmp(name, "ggml_backend_expert_store_map") == 0 ? (void *) map : nullptr;
}

static ggml_backend_reg fake_reg = {
    GGML_BACKEND_API_VERSION, { fake_reg_name, fake_reg_count, fake_reg_device, fake_reg_proc }, nullptr,
};

static void add_fake_device(size_t bytes) {
    auto device = std::make_unique<fake_device>();

    device->name  = "FAKE" + std::to_string(fake_devices.size());
    device->total = bytes;

    device->buft.iface.get_name      = fake_buft_name;
    device->buft.iface.alloc_buffer  = fake_buft_alloc;
    device->buft.iface.get_alignment = fake_buft_alignment;
    device->buft.device              = &device->dev;
    device->buft.context             = device.get();

    device->dev.iface.get_name             = fake_dev_name;
    device->dev.iface.get_description      = fake_dev_name;
    device->dev.iface.get_memory           = fake_dev_memory;
    device->dev.iface.get_type             = fake_dev_type;
    device->dev.iface.get_props            = fake_dev_props;
    device->dev.iface.init_backend         = fake_dev_init;
    device->dev.iface.get_buffer_type      = fake_dev_buft;
    device->dev.iface.get_host_buffer_type = fake_dev_host_buft;
    device->dev.iface.supports_op          = fake_dev_supports_op;
    device->dev.iface.supports_buft        = fake_dev_supports_buft;
    device->dev.iface.offload_op           = fake_dev_offload_op;
    device->dev.reg                        = &fake_reg;
    device->dev.context                    = device.get();

    fake_devices.push_back(std::move(device));
}

//
// what is reported
//

using json = nlohmann::ordered_json;

static json where_things_lie(const llama_context * ctx) {
    std::map<std::string, llama_memory_breakdown_data> sums;
    for (const auto & [buft, bytes] : llama_get_memory_breakdown(ctx)) {
        auto & sum = sums[ggml_backend_buft_is_host(buft) ? "host" : ggml_backend_buft_name(buft)];
        sum.model   += bytes.model;
        sum.context += bytes.context;
        sum.compute += bytes.compute;
    }
    json result;
    for (const auto & [name, sum] : sums) {
        result[name] = { { "model", sum.model }, { "context", sum.context }, { "compute", sum.compute } };
    }
    for (const auto & device : fake_devices) {
        result[device->name]["free"] = device->total - device->used;
    }
    return result;
}

static std::vector<llama_token> decode(llama_context * ctx) {
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));

    std::vector<llama_token> tokens;
    for (int i = 0; i < N_PROMPT; ++i) {
        tokens.push_back((17 + 31*i) % n_vocab);
    }
    std::vector<llama_token> step = tokens;
    std::vector<llama_token> result;
    while (result.size() < N_GEN) {
        if (llama_decode(ctx, llama_batch_get_one(step.data(), step.size())) != 0) {
            throw std::runtime_error("llama_decode failed");
        }
        const float * logits = llama_get_logits_ith(ctx, -1);
        step = { (llama_token) (std::max_element(logits, logits + n_vocab) - logits) };
        result.push_back(step[0]);
    }
    return result;
}

static json run(common_params & params) {
    auto init = common_init_from_params(params);
    if (!init->context()) {
        throw std::runtime_error("no context");
    }

    common_speculative_init_result_ptr drafts;
    if (params.speculative.has_dft()) {
        common_params params_dft = common_base_params_to_speculative(params);
        drafts = common_speculative_init_from_params(params_dft, init->model(), init->context());
        if (!drafts->context()) {
            throw std::runtime_error("no context for the draft model");
        }
    }

    json result;
    result["n_ctx"]   = llama_n_ctx(init->context());
    result["memory"]  = where_things_lie(init->context());
    result["status"]  = json::parse(llama_expert_cache_status(init->context()));
    result["tokens"]  = decode(init->context());
    return result;
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s MIB[,MIB ...] RESERVE_MIB [options of llama-server]\n", argv[0]);
        return 2;
    }
    for (const auto & size : string_split<std::string>(argv[1], ',')) {
        add_fake_device(std::stoull(size)*MiB);
    }
    ggml_backend_register(&fake_reg);

    common_init();
    common_params params;
    if (!common_params_parse(argc - 2, argv + 2, params, LLAMA_EXAMPLE_SERVER)) {
        return 2;
    }
    params.expert_cache.reserve = std::stoull(argv[2])*MiB; // what the server does for --mmproj

    llama_backend_init();
    int status = 0;
    try {
        printf("%s\n", run(params).dump().c_str());
    } catch (const std::exception & e) {
        fprintf(stderr, "%s: %s\n", argv[0], e.what());
        status = 1;
    }
    common_log_flush(common_log_main());
    llama_backend_free();
    return status;
}
