#pragma once

#include "llama-expert-budget.h"
#include "llama-mmap.h"
#include "llama.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

struct llama_model;
struct llama_model_loader;
struct LLM_TN_IMPL;

// Unified memory: a model that is larger than host memory, in the memory of host and devices together.
//
// The weights of experts in host memory have their full size in address space, so that an expert has its address as always
// (data + id*nb), but no memory. The contexts have the experts loaded: those that they pin from the file to their slots, the
// others to their place in the tensor. A place where nothing was loaded cannot be read: whoever tries is stopped.
class llama_expert_unified {
public:
    // settings that no memory could satisfy throw std::runtime_error
    llama_expert_unified(const llama_model_params & params, llama_model_loader & ml);
    ~llama_expert_unified();

    llama_expert_unified(const llama_expert_unified &) = delete;
    llama_expert_unified & operator=(const llama_expert_unified &) = delete;

    // throws std::runtime_error if the context would read experts that may be in no memory
    static void check_context(const llama_model & model, const llama_context_params & params);

    // where to create a tensor that would get a buffer of type buft; null if that is not for this object to say
    ggml_context * context_for(const LLM_TN_IMPL & tn, ggml_backend_buffer_type_t buft);

    // when all tensors are created: gives those of this object their addresses
    // throws std::runtime_error with the numbers if the model cannot fit
    void prepare(llama_model_loader & ml, llama_model & model);

    // when all others are loaded
    void keep_files(llama_model_loader & ml);

    bool has(const ggml_tensor * store) const;

    // slots of a tensor whose experts live only there: slot i has experts[i], i < n
    struct pins {
        ggml_tensor   * slots;
        const int32_t * experts;
        int32_t         n;
    };

    // the experts of these layers: pinned ones to their slots, others where they are not yet
    //   pinned: by the tensor in the store; experts of a tensor that is not in there are all loaded to the store
    // throws std::runtime_error
    void load(int il_begin, int il_end, const std::map<const ggml_tensor *, pins> & pinned);

    // lets a device read what is loaded, at the same addresses as the host; throws std::runtime_error if it cannot
    void map(ggml_backend_dev_t dev);

    // how a layer is served
    struct served {
        int32_t n_listed;
        bool    slots_in_host;
    };

    // sizes of the experts of these layers; a layer that is not in there is not served
    std::vector<llama_expert_budget::layer> sizes(int il_begin, int il_end, const std::map<int, served> & layers) const;

    // host memory that there is for experts, what they have already included
    size_t host_budget() const;

    size_t host_bytes()   const; // of experts in host memory
    size_t mapped_bytes() const; // of host memory that devices read

private:
    struct weights {
        ggml_tensor     * store;
        int               il;
        uint16_t          file;    // index in files
        size_t            offs;    // in the file
        std::vector<bool> present; // experts in host memory

        size_t expert_bytes() const { return store->nb[2]; }
    };

    using ranges = std::vector<std::pair<char *, char *>>; // [first, last), ascending, apart

    struct mapping {
        ggml_backend_reg_t reg;
        ranges             pages;
    };

    void   reserve();
    void   check(const llama_model_loader & ml, const llama_model & model) const;
    void   read(const weights & w, int64_t first, int64_t last, char * dst);
    void   load(weights & w, const pins * pinned);
    ranges loaded_pages() const;

    const llama_model_params & params;

    const bool           check_tensors;
    ggml_context_ptr     ctx;
    std::vector<weights> tensors; // in the order of the files
    llama_files          files;

    char                  * base = nullptr; // of the address space
    size_t                  size = 0;
    ggml_backend_buffer_ptr buffer;
    std::vector<mapping>    mappings;

    std::vector<char> staging; // an expert on its way to a slot

    struct progress {
        size_t  done   = 0;
        size_t  total  = 0;
        int64_t start  = 0; // us
        int64_t spoken = 0;

        void add(size_t bytes);
    } progress;
};
