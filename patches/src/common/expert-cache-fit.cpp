#include "expert-cache-fit.h"

#include "common.h"
#include "log.h"
#include "speculative.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <vector>

namespace {

// what a model and its context would take; measured without loading it, with the fewest slots if the capacity is "auto"
struct probe {
    std::vector<ggml_backend_dev_t> devs;
    common_device_memory_data_vec   memory; // of devs, then of the host

    uint32_t n_gpu_layers = 0;
    uint32_t n_ctx_train  = 0;
    uint32_t n_expert     = 0;

    probe(const char * path, const llama_model_params & mparams, const llama_context_params & cparams, ggml_log_level log_level) {
        memory = common_get_device_memory_data(path, &mparams, &cparams, devs, n_gpu_layers, n_ctx_train, n_expert, log_level);
    }

    int64_t used(size_t i) const { return memory[i].model + memory[i].context + memory[i].compute; }

    // bytes that a device has more than it should keep
    int64_t room(size_t i, const std::vector<int64_t> & keep) const { return memory[i].free - used(i) - keep[i]; }
};

bool has_overrides(const llama_model_params & mparams) {
    return mparams.tensor_buft_overrides && mparams.tensor_buft_overrides->pattern;
}

bool has_cache(const llama_context_params & cparams) {
    return cparams.expert_cache_capacity != LLAMA_EXPERT_CACHE_OFF;
}

// the smallest context that common_fit_params chooses, or the one that was asked for
uint32_t smallest_n_ctx(const llama_context_params & cparams, uint32_t n_ctx_min, uint32_t n_ctx_train) {
    const uint64_t n_streams = cparams.kv_unified ? 1 : std::max<uint32_t>(1, cparams.n_seq_max);
    return cparams.n_ctx > 0 ? cparams.n_ctx : std::min<uint64_t>(UINT32_MAX, std::min(n_ctx_min, n_ctx_train)*n_streams);
}

// bytes that a second model takes, by device; in host memory by null, if there are no devices
std::map<ggml_backend_dev_t, int64_t> extra_memory(const common_fit_extra_model & extra, uint32_t n_ctx, ggml_log_level log_level) {
    extra.cparams->n_ctx = n_ctx;

    std::map<ggml_backend_dev_t, int64_t> result;
    try {
        probe p(extra.path_model, *extra.mparams, *extra.cparams, log_level);
        if (p.devs.empty()) {
            p.devs.push_back(nullptr);
        }
        for (size_t i = 0; i < p.devs.size(); ++i) {
            result[p.devs[i]] = p.used(i) - (extra.shares_model ? p.memory[i].model : 0);
        }
    } catch (const std::runtime_error & e) {
        LOG_WRN("expert cache: leaving no room for the drafts: cannot measure what they take: %s\n", e.what());
    }
    return result;
}

// bytes that each device is to have left beside the model: its margin, and what the drafts take
std::vector<int64_t> to_keep(
        const std::vector<ggml_backend_dev_t> & devs, const size_t * margins, const common_fit_extra_model * extra, uint32_t n_ctx,
        ggml_log_level log_level) {
    std::vector<int64_t> result(margins, margins + devs.size());
    if (extra) {
        const auto drafts = extra_memory(*extra, n_ctx, log_level);
        for (size_t i = 0; i < devs.size(); ++i) {
            const auto it = drafts.find(devs[i]);
            result[i] += it != drafts.end() ? it->second : 0;
        }
    }
    return result;
}

// over all devices: common_fit_params moves layers between them
bool fits_in_sum(const probe & p, const std::vector<int64_t> & keep) {
    int64_t room = 0;
    for (size_t i = 0; i < keep.size(); ++i) {
        room += p.room(i, keep);
    }
    return room >= 0;
}

bool fits_everywhere(const probe & p, const std::vector<int64_t> & keep) {
    for (size_t i = 0; i < keep.size(); ++i) {
        if (p.room(i, keep) < 0) {
            LOG_WRN("expert cache: %s lacks %.1f MiB for all that is not experts and the fewest slots: not all layers can be served\n",
                ggml_backend_dev_name(p.devs[i]), -p.room(i, keep)/1024.0/1024.0);
            return false;
        }
    }
    return true;
}

} // namespace

bool common_expert_cache_fit_placed(const llama_model_params & mparams, const llama_context_params & cparams) {
    return has_cache(cparams) && has_overrides(mparams);
}

void common_expert_cache_fit(
        const char * path_model, llama_model_params * mparams, const llama_context_params * cparams,
        llama_model_tensor_buft_override * tensor_buft_overrides, size_t * margins, uint32_t n_ctx_min,
        const common_fit_extra_model * extra, ggml_log_level log_level) {
    if (!has_cache(*cparams) || !tensor_buft_overrides || mparams->split_mode == LLAMA_SPLIT_MODE_TENSOR) {
        return;
    }

    llama_context_params smallest = *cparams;
    smallest.expert_cache_capacity = LLAMA_EXPERT_CACHE_AUTO; // more slots than fit are refused later, with the number that does

    const probe given(path_model, *mparams, smallest, log_level);
    if (given.devs.empty() || given.n_expert == 0) {
        return;
    }
    smallest.n_ctx = smallest_n_ctx(*cparams, n_ctx_min, given.n_ctx_train);

    const auto keep = to_keep(given.devs, margins, extra, smallest.n_ctx, log_level);

    const bool by_user = has_overrides(*mparams);
    auto       placed  = *mparams;
    if (!by_user) {
        if (fits_in_sum(probe(path_model, placed, smallest, log_level), keep)) {
            return;
        }
        tensor_buft_overrides[0] = llm_ffn_exps_cpu_override();
        tensor_buft_overrides[1] = { nullptr, nullptr };
        placed.tensor_buft_overrides = tensor_buft_overrides;
    }

    const probe fewest(path_model, placed, smallest, log_level);
    if (!fits_everywhere(fewest, keep)) {
        if (!by_user) {
            tensor_buft_overrides[0] = { nullptr, nullptr };
        }
        return;
    }
    if (!by_user) {
        LOG_INF("expert cache: the model does not fit in device memory, its experts stay in host memory\n");
        mparams->tensor_buft_overrides = tensor_buft_overrides;
    }

    if (cparams->n_ctx == 0 && cparams->expert_cache_capacity == LLAMA_EXPERT_CACHE_AUTO) {
        smallest.expert_cache_capacity = given.n_expert;
        const probe all(path_model, placed, smallest, log_level);
        for (size_t i = 0; i < keep.size(); ++i) {
            margins[i] += std::min(all.used(i) - fewest.used(i), fewest.room(i, keep))/2;
        }
    }
}

void common_expert_cache_reserve_drafts(const common_params & params, const llama_model * model, llama_context_params & cparams) {
    const auto & types     = params.speculative.types;
    const bool   has_draft = params.speculative.has_dft();
    const bool   has_mtp   = std::find(types.begin(), types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_MTP) != types.end();
    if (!has_cache(cparams) || (!has_draft && !has_mtp)) {
        return;
    }
    if (has_draft) {
        LOG_INF("expert cache: none for the draft model, the settings are for the main model\n");
    }

    common_params params_dft = common_base_params_to_speculative(params);

    auto mparams_dft = common_model_params_to_llama(params_dft);
    auto cparams_dft = common_context_params_to_llama(params_dft);
    cparams_dft.n_rs_seq = 0;
    if (has_mtp) {
        cparams_dft.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    }
    const common_fit_extra_model drafts = { params_dft.model.path.c_str(), &mparams_dft, &cparams_dft, /*.shares_model =*/ !has_draft };

    int64_t most = 0;
    for (const auto & [_, bytes] : extra_memory(drafts, cparams.n_ctx > 0 ? cparams.n_ctx : llama_model_n_ctx_train(model), GGML_LOG_LEVEL_ERROR)) {
        most = std::max(most, bytes);
    }
    cparams.expert_cache_reserve += most;
}
