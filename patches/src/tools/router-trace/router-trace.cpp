// Records the routing of a model: for every token and MoE layer the scores from which the experts are selected.
//
// Format RTRACE01, little endian: 8 bytes "RTRACE01", int32 n_expert, int32 version (0), then records of int32 token,
// int32 layer, float32[n_expert]. The top-K of the scores are the selected experts.

#include "arg.h"
#include "common.h"
#include "log.h"
#include "result-file.h"
#include "routing-trace.h"

#include <algorithm>
#include <clocale>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

static void print_usage(int argc, char ** argv) {
    (void) argc;
    LOG("\nrecord which experts the router selects\n");
    LOG("\n  ROUTER_TRACE_OUT=trace.bin %s -m model.gguf -p \"prompt\" -n 128\n\n", argv[0]);
}

class trace_file {
public:
    trace_file(const std::string & path, int32_t n_expert) : file(path) {
        const int32_t version = 0;
        file.write("RTRACE01", 8);
        file.write(&n_expert, sizeof(n_expert));
        file.write(&version,  sizeof(version));
    }

    void record(int32_t token, int32_t layer, const std::vector<float> & scores) {
        file.write(&token, sizeof(token));
        file.write(&layer, sizeof(layer));
        file.write(scores.data(), scores.size()*sizeof(float));
        n_records++;
    }

    void commit() {
        file.commit();
    }

    size_t n_records = 0;

private:
    common_result_file file;
};

// collects the scores of one batch
struct collector {
    // layer -> [n_tokens of the batch][n_expert]
    std::map<int32_t, std::vector<std::vector<float>>> layers;

    std::string failure; // an exception must not pass through the scheduler

    // layer -> scores of the current ubatch: what comes last before the selection
    std::map<int32_t, std::vector<std::vector<float>>> pending;

    static int32_t scores_layer(const char * name) {
        int32_t result = -1;
        for (const char * prefix : { "ffn_moe_probs", "ffn_moe_probs_biased", "ffn_moe_probs_masked" }) {
            result = std::max(result, common_tensor_layer(name, prefix));
        }
        return result;
    }

    bool eval(ggml_tensor * t, bool ask) {
        const int32_t scores   = scores_layer(t->name);
        const int32_t selected = common_tensor_layer(t->name, "ffn_moe_topk");
        if (ask) {
            return scores >= 0 || selected >= 0;
        }
        if (scores >= 0) {
            pending[scores] = read(t);
        }
        if (selected >= 0) {
            check_selected(selected, t);
            auto & all = layers[selected];
            all.insert(all.end(), pending[selected].begin(), pending[selected].end());
            pending.erase(selected);
        }
        return true;
    }

    // the reader takes the top-K of the scores for the selected experts: so they must be
    void check_selected(int32_t layer, const ggml_tensor * t) {
        const auto & rows = pending[layer];
        std::vector<int32_t> ids(t->ne[0]);
        for (int64_t i = 0; i < t->ne[1] && i < (int64_t) rows.size(); ++i) {
            ggml_backend_tensor_get(t, ids.data(), i*t->nb[1], ids.size()*sizeof(int32_t));

            float worst = INFINITY;
            for (const int32_t id : ids) {
                worst = std::min(worst, rows[i].at(id));
            }
            const int64_t n_better = std::count_if(rows[i].begin(), rows[i].end(), [worst](float score) { return score > worst; });
            if (n_better >= t->ne[0]) {
                failure = string_format("layer %d does not select the experts with the best scores: this routing has no place in the format", layer);
            }
        }
    }

    static std::vector<std::vector<float>> read(const ggml_tensor * t) {
        std::vector<std::vector<float>> rows(t->ne[1], std::vector<float>(t->ne[0]));
        for (int64_t i = 0; i < t->ne[1]; ++i) {
            ggml_backend_tensor_get(t, rows[i].data(), i*t->nb[1], t->ne[0]*sizeof(float));
        }
        return rows;
    }
};

static bool collect(ggml_tensor * t, bool ask, void * user_data) {
    return ((collector *) user_data)->eval(t, ask);
}

static int32_t model_n_expert(const llama_model * model) {
    char arch[64];
    char value[32];
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof(arch));
    if (llama_model_meta_val_str(model, (std::string(arch) + ".expert_count").c_str(), value, sizeof(value)) < 0 || atoi(value) < 1) {
        throw std::runtime_error("the model has no experts: there is no routing to record");
    }
    return atoi(value);
}

static llama_token greedy(llama_context * ctx) {
    const float * logits  = llama_get_logits_ith(ctx, -1);
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    return std::max_element(logits, logits + n_vocab) - logits;
}

static void run(common_params & params, const std::string & path) {
    collector scores;
    params.cb_eval           = collect;
    params.cb_eval_user_data = &scores;
    params.warmup            = false; // selects all experts

    common_init_result_ptr init = common_init_from_params(params);
    llama_model   * model = init->model();
    llama_context * ctx   = init->context();
    if (!model || !ctx) {
        throw std::runtime_error(string_format("cannot load '%s' with these settings, see above", params.model.path.c_str()));
    }

    std::vector<llama_token> tokens = common_tokenize(ctx, params.prompt, /*add_special =*/ true, /*parse_special =*/ true);
    if (tokens.empty()) {
        throw std::runtime_error("the prompt has no tokens: set -p or -f");
    }
    if (tokens.size() + params.n_predict > llama_n_ctx(ctx)) {
        throw std::runtime_error(string_format("the prompt of %zu tokens and %d more do not fit the context of %u: set -c",
                tokens.size(), params.n_predict, llama_n_ctx(ctx)));
    }

    const int32_t n_expert = model_n_expert(model);
    trace_file file(path, n_expert);

    int32_t n_past = 0;
    common_batch batch(ctx);
    const auto step = [&](const llama_token * data, int32_t n) {
        batch.clear();
        for (int32_t i = 0; i < n; ++i) {
            // with logits for all tokens: the last layer computes only what has outputs
            batch.add(data[i], n_past + i, 0, true);
        }
        scores.layers.clear();
        if (llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            throw std::runtime_error("the model could not be evaluated");
        }
        if (!scores.failure.empty()) {
            throw std::runtime_error(scores.failure);
        }
        for (int32_t i = 0; i < n; ++i) {
            for (const auto & [layer, rows] : scores.layers) {
                if ((int32_t) rows.size() != n || (int32_t) rows[i].size() != n_expert) {
                    throw std::runtime_error(string_format("layer %d: %zu tokens of %zu experts, expected %d of %d",
                            layer, rows.size(), rows[0].size(), n, n_expert));
                }
                file.record(n_past + i, layer, rows[i]);
            }
        }
        n_past += n;
    };

    for (size_t i = 0; i < tokens.size(); i += llama_n_batch(ctx)) {
        step(tokens.data() + i, std::min<size_t>(llama_n_batch(ctx), tokens.size() - i));
    }
    for (int32_t i = 0; i < params.n_predict; ++i) {
        const llama_token token = greedy(ctx);
        step(&token, 1);
    }

    if (file.n_records == 0) {
        throw std::runtime_error("no routing seen");
    }
    file.commit();
    LOG("%zu records of %d tokens in %s\n", file.n_records, n_past, path.c_str());
}

int main(int argc, char ** argv) {
    std::setlocale(LC_NUMERIC, "C");

    try {
        common_init();

        common_params params;
        params.n_predict = 128;
        params.verbosity = LOG_LEVEL_WARN;
        if (!common_params_parse(argc, argv, params, LLAMA_EXAMPLE_COMMON, print_usage)) {
            return 1;
        }

        const char * path = getenv("ROUTER_TRACE_OUT");
        if (!path || !*path) {
            throw std::invalid_argument("ROUTER_TRACE_OUT is not set: it names the file to write");
        }
        if (params.n_predict < 0) {
            throw std::invalid_argument("-n must not be negative");
        }

        llama_backend_init();
        llama_numa_init(params.numa);

        run(params, path);
        common_log_flush(common_log_main());
    } catch (const std::exception & e) {
        common_log_flush(common_log_main());
        fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }

    llama_backend_free();
    return 0;
}
