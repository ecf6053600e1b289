// Lists the tensors that a model of given metadata has: name and shape, one JSON object per line.
//
// The metadata is a GGUF file without tensors. No weights are allocated, so the size of the model does not matter.

#include "common.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-cpp.h"
#include "llama.h"

#include "../src/llama-model-loader.h"
#include "../src/llama-model.h"

#include <nlohmann/json.hpp>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;

struct list_params {
    std::string              model;
    std::vector<std::string> without;
};

static void print_usage(const char * program) {
    printf("list the tensors that a model has by its metadata\n\n");
    printf("  %s -m keys.gguf [--without REGEX]...\n\n", program);
    printf("  -m FNAME          GGUF file without tensors\n");
    printf("  --without REGEX   optional tensors whose name it is found in are left out\n");
}

static list_params parse_params(int argc, char ** argv) {
    list_params params;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg == "-h" || arg == "--help") {
            print_usage(argv[0]);
            exit(0);
        }
        if (arg != "-m" && arg != "--without") {
            throw std::invalid_argument(string_format("unknown argument '%s'", arg.c_str()));
        }
        if (++i == argc) {
            throw std::invalid_argument(string_format("%s needs a value", arg.c_str()));
        }
        if (arg == "-m") {
            params.model = argv[i];
        } else {
            params.without.push_back(argv[i]);
        }
    }
    if (params.model.empty()) {
        throw std::invalid_argument("-m is not set: it names the GGUF file with the metadata");
    }
    return params;
}

// what llama.cpp logged as an error; the first one has the reason
static std::string first_error;

static void keep_error(ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level == GGML_LOG_LEVEL_ERROR && first_error.empty()) {
        first_error = string_strip(text);
    }
}

// metadata that no model can have ends in an assertion
static void fail_assertion(const char * message) {
    fprintf(stderr, "error: the metadata makes no model: %s\n", message);
    _Exit(1);
}

static gguf_context_ptr read_metadata(const list_params & params) {
    gguf_context_ptr metadata(gguf_init_from_file(params.model.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ nullptr }));
    if (!metadata) {
        throw std::runtime_error(string_format("cannot read '%s' as GGUF", params.model.c_str()));
    }
    if (gguf_get_n_tensors(metadata.get()) > 0) {
        throw std::runtime_error(string_format("'%s' has tensors: only the metadata is wanted", params.model.c_str()));
    }
    std::vector<const char *> patterns;
    for (const auto & pattern : params.without) {
        patterns.push_back(pattern.c_str());
    }
    if (!patterns.empty()) {
        gguf_set_arr_str(metadata.get(), llama_model_loader::KEY_ABSENT_TENSORS, patterns.data(), patterns.size());
    }
    return metadata;
}

static void check_optional(const std::string & name, const list_params & params) {
    for (const auto & pattern : params.without) {
        if (std::regex_search(name, std::regex(pattern))) {
            throw std::runtime_error(string_format("--without %s: '%s' is not optional", pattern.c_str(), name.c_str()));
        }
    }
}

static void list_tensors(const llama_model * model, const list_params & params) {
    std::map<std::string, const ggml_tensor *> tensors; // tied weights are there twice
    std::vector<std::string> names;
    for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
        check_optional(name, params);
        if (tensors.emplace(name, tensor).second) {
            names.push_back(name);
        }
    }
    for (const auto & name : names) {
        const ggml_tensor * tensor = tensors.at(name);
        printf("%s\n", json({
            { "name",  name },
            { "shape", std::vector<int64_t>(tensor->ne, tensor->ne + ggml_n_dims(tensor)) },
        }).dump().c_str());
    }
}

static void run(const list_params & params) {
    gguf_context_ptr metadata = read_metadata(params);

    llama_model_params mparams = llama_model_default_params();
    mparams.no_alloc     = true;
    mparams.n_gpu_layers = 0;

    llama_model_ptr model(llama_model_init_from_user(metadata.get(), [](ggml_tensor *, void *) {}, nullptr, mparams));
    if (!model) {
        throw std::runtime_error(first_error.empty() ? "the model could not be created" : first_error);
    }
    list_tensors(model.get(), params);
}

int main(int argc, char ** argv) {
    std::setlocale(LC_NUMERIC, "C");

    try {
        const list_params params = parse_params(argc, argv);

        llama_log_set(keep_error, nullptr);
        ggml_set_abort_callback(fail_assertion);
        llama_backend_init();

        run(params);
    } catch (const std::exception & e) {
        fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }

    llama_backend_free();
    return 0;
}
