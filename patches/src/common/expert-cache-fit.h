#pragma once

#include "fit.h"

struct common_params;

// sizing of what shares the devices with the expert cache

// For common_fit_params, which knows nothing of the cache and would fill the devices with experts, front to back. Changes
// nothing without a cache, or if the model fits as it is. If it does not:
//   - its experts stay in host memory, as with --cpu-moe, unless there are overrides already
//   - with a capacity of "auto", what the other weights leave is shared by the slots and a context that nobody asked for:
//     the margins grow by half of it, but not by more than slots for half of the experts
// If not even that has room for the fewest slots, the plan is left to common_fit_params, with a line that says so.
//
//   margins: bytes to leave per device, at least llama_max_devices(); the rest as for common_fit_params
//
// throws std::runtime_error if the model cannot be measured
void common_expert_cache_fit(
                         const char * path_model,
                 llama_model_params * mparams,
         const llama_context_params * cparams,
   llama_model_tensor_buft_override * tensor_buft_overrides,
                             size_t * margins,
                           uint32_t   n_ctx_min,
       const common_fit_extra_model * extra,
                     ggml_log_level   log_level);

// whether the place of the weights is settled, so that only the context remains to be fitted
bool common_expert_cache_fit_placed(const llama_model_params & mparams, const llama_context_params & cparams);

// Drafts are made by a model or a context that is loaded after the main context: with a cache, adds what it takes on the
// device where it takes most to cparams.expert_cache_reserve, of the main context. What cannot be measured is logged.
void common_expert_cache_reserve_drafts(const common_params & params, const llama_model * model, llama_context_params & cparams);
