// Measuring driver for the expert cache: loads a model once, decodes prompts greedily and writes one JSON line per
// repetition with the time, the cache accesses and a hash of the logits of every step. With --forced it decodes the
// prompts' own tokens instead, so that every arm sees the same input; --trace-out records the routing, and --replay gives
// it, so that every arm has the same.

#include "arg.h"
#include "build-info.h"
#include "common.h"
#include "expert-cache.h"
#include "host-ballast.h"
#include "ggml-cpp.h"
#include "llama-experts.h"
#include "log.h"
#include "result-file.h"
#include "routing-trace.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <clocale>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(_WIN32) && !defined(__linux__)
#include <sys/resource.h>
#endif

using json = nlohmann::ordered_json;

static constexpr int SCHEMA_VERSION = 1;

//
// arguments
//

struct bench_params {
    std::string prompts;               // JSON lines of {"id": ..., "text": ...} or {"id": ..., "tokens": [...]}
    std::string out;                   // empty = standard output
    std::string trace_out;             // empty = no trace
    std::string replay;                // routing trace to follow, empty = the router's own choice
    int32_t     repetitions = 1;
    int32_t     first       = 0;       // so many of the prompts, 0 = all
    int32_t     host_limit  = 0;       // MiB of the host's memory that may be used, 0 = what there is
    int32_t     vram_limit  = 0;       // MiB of each GPU's memory that may be used, 0 = what there is
    bool        forced      = false;   // decode the prompts' tokens, choose none

    std::vector<int32_t> parallel = { 1 }; // numbers of sequences decoded in lockstep

    int32_t most_parallel() const {
        return *std::max_element(parallel.begin(), parallel.end());
    }
};

static void print_usage(int argc, char ** argv) {
    (void) argc;
    LOG("\nmeasure greedy decoding of prompts, with or without the expert cache\n");
    LOG("\n  %s -m model.gguf --prompts prompts.jsonl -n 128 [-r N] [--parallel N,N] [-o out.jsonl] [--expert-cache N]\n", argv[0]);
    LOG("\n  --prompts FNAME    one JSON object per line, {\"id\": ..., \"text\": ...} or {\"id\": ..., \"tokens\": [...]}");
    LOG("\n  --first N          only the first N prompts");
    LOG("\n  -r N               repetitions (default: 1)");
    LOG("\n  --parallel N,N,... prompts decoded together, one token each per step (default: 1); several are run in turn");
    LOG("\n  --forced           decode the prompts' own tokens one by one, at most -n of each, instead of generating");
    LOG("\n  --trace-out FNAME  write the experts selected in every decode step: .npy, int32, (steps, MoE layers, experts)");
    LOG("\n  --replay FNAME     use the experts of such a trace, step by step, instead of the router's; with --forced");
    LOG("\n  --vram-limit N     occupy what is free of each GPU's memory except for N MiB before anything is loaded");
    LOG("\n  --host-limit N     likewise of the host's memory, in a process of its own");
    LOG("\n  -o FNAME           write the results there (default: standard output)\n\n");
}

static int32_t parse_positive(const std::string & arg, const std::string & value) {
    const bool digits = !value.empty() && value.size() < 8 && value.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoi(value) < 1) {
        throw std::invalid_argument(string_format("%s: '%s' is not a number from 1", arg.c_str(), value.c_str()));
    }
    return std::stoi(value);
}

static std::vector<int32_t> parse_list(const std::string & arg, const std::string & value) {
    std::vector<int32_t> result;
    for (const auto & item : string_split<std::string>(value, ',')) {
        result.push_back(parse_positive(arg, item));
    }
    return result;
}

// takes our own arguments out of argv and leaves the common ones
static bench_params parse_own(std::vector<char *> & argv) {
    bench_params params;

    const std::map<std::string, std::function<void(const std::string & arg, const std::string & value)>> own = {
        { "--prompts",   [&](const std::string &,     const std::string & value) { params.prompts     = value;                      } },
        { "--trace-out", [&](const std::string &,     const std::string & value) { params.trace_out   = value;                      } },
        { "--replay",    [&](const std::string &,     const std::string & value) { params.replay      = value;                      } },
        { "-o",          [&](const std::string &,     const std::string & value) { params.out         = value;                      } },
        { "--first",     [&](const std::string & arg, const std::string & value) { params.first       = parse_positive(arg, value); } },
        { "--host-limit", [&](const std::string & arg, const std::string & value) { params.host_limit = parse_positive(arg, value); } },
        { "--vram-limit", [&](const std::string & arg, const std::string & value) { params.vram_limit = parse_positive(arg, value); } },
        { "-r",          [&](const std::string & arg, const std::string & value) { params.repetitions = parse_positive(arg, value); } },
        { "--parallel",  [&](const std::string & arg, const std::string & value) { params.parallel    = parse_list(arg, value);     } },
    };

    std::vector<char *> rest;
    for (size_t i = 0; i < argv.size(); ++i) {
        const std::string arg = argv[i];

        if (arg == "--forced") {
            params.forced = true;
        } else if (own.find(arg) == own.end()) {
            rest.push_back(argv[i]);
        } else if (++i == argv.size()) {
            throw std::invalid_argument(string_format("%s needs a value", arg.c_str()));
        } else {
            own.at(arg)(arg, argv[i]);
        }
    }
    argv = rest;

    if ((params.forced || !params.trace_out.empty()) && params.most_parallel() > 1) {
        throw std::invalid_argument("--forced and --trace-out decode one sequence at a time: leave out --parallel");
    }
    if (!params.trace_out.empty() && params.trace_out == params.out) {
        throw std::invalid_argument("--trace-out and -o name the same file");
    }
    if (!params.replay.empty() && !params.forced) {
        throw std::invalid_argument("--replay needs --forced: the trace is followed token by token");
    }
    return params;
}

//
// prompts
//

struct prompt {
    std::string              id;
    std::vector<llama_token> tokens;
};

// tokens of one line of the prompts; throws std::runtime_error
static std::vector<llama_token> read_tokens(const json & object, const llama_vocab * vocab) {
    const bool is_prompt = object.is_object() && object.contains("id") && object["id"].is_string();
    if (is_prompt && object.contains("text") && object["text"].is_string()) {
        return common_tokenize(vocab, object["text"].get<std::string>(), /*add_special =*/ true);
    }
    if (!is_prompt || !object.contains("tokens") || !object["tokens"].is_array()) {
        throw std::runtime_error("not an object with the string 'id' and the string 'text' or the array 'tokens'");
    }
    std::vector<llama_token> tokens;
    for (const auto & token : object["tokens"]) {
        if (!token.is_number_integer() || token < 0 || token >= llama_vocab_n_tokens(vocab)) {
            throw std::runtime_error(string_format("%s is no token of the model's %d", token.dump().c_str(), llama_vocab_n_tokens(vocab)));
        }
        tokens.push_back(token);
    }
    return tokens;
}

static std::vector<prompt> read_prompts(const std::string & path, size_t first, const llama_vocab * vocab) {
    std::ifstream file(path);
    if (!file) {
        throw std::runtime_error(string_format("cannot read the prompts '%s': %s", path.c_str(), strerror(errno)));
    }

    std::vector<prompt> prompts;
    std::string line;
    for (int n = 1; std::getline(file, line) && (first == 0 || prompts.size() < first); ++n) {
        if (line.empty()) {
            continue;
        }
        const json object = json::parse(line, nullptr, /*allow_exceptions =*/ false);
        try {
            auto tokens = read_tokens(object, vocab);
            prompts.push_back({ object["id"], std::move(tokens) });
        } catch (const std::exception & e) {
            throw std::runtime_error(string_format("%s, line %d: %s", path.c_str(), n, e.what()));
        }
        if (prompts.back().tokens.empty()) {
            throw std::runtime_error(string_format("%s, line %d: no tokens", path.c_str(), n));
        }
    }
    if (prompts.empty() || prompts.size() < first) {
        throw std::runtime_error(string_format("%s: has %zu prompts, not %zu", path.c_str(), prompts.size(), std::max<size_t>(first, 1)));
    }
    return prompts;
}

//
// measuring
//

// counters of each layer
struct counters {
    std::vector<llama_expert_cache_layer_stats> layers;

    static counters read(llama_context * ctx) {
        counters result;
        for (int32_t i = 0; i < llama_expert_cache_n_layers(ctx); ++i) {
            result.layers.push_back(llama_expert_cache_get_layer_stats(ctx, i));
        }
        return result;
    }

    counters since(const counters & before) const {
        counters result = *this;
        for (size_t i = 0; i < layers.size(); ++i) {
            result.layers[i].hits   -= before.layers[i].hits;
            result.layers[i].misses -= before.layers[i].misses;
            result.layers[i].copied   -= before.layers[i].copied;
            result.layers[i].computed -= before.layers[i].computed;
        }
        return result;
    }

    void add(const counters & other) {
        if (layers.empty()) {
            layers = other.layers;
            return;
        }
        for (size_t i = 0; i < layers.size(); ++i) {
            layers[i].hits   += other.layers[i].hits;
            layers[i].misses += other.layers[i].misses;
            layers[i].copied   += other.layers[i].copied;
            layers[i].computed += other.layers[i].computed;
        }
    }

    int64_t hits() const {
        int64_t sum = 0;
        for (const auto & l : layers) { sum += l.hits; }
        return sum;
    }

    int64_t misses() const {
        int64_t sum = 0;
        for (const auto & l : layers) { sum += l.misses; }
        return sum;
    }

    int64_t bytes_moved() const {
        int64_t sum = 0;
        for (const auto & l : layers) { sum += l.copied*(int64_t) l.expert_bytes; }
        return sum;
    }

    int64_t computed() const {
        int64_t sum = 0;
        for (const auto & l : layers) { sum += l.computed; }
        return sum;
    }
};

// What was decoded for one prompt. Of sequences that are decoded in lockstep each has the time and the accesses of the
// whole step.
struct sequence {
    explicit sequence(const prompt * src) : src(src) {}

    const prompt * src;

    int64_t                  prompt_ns = 0;
    std::vector<llama_token> tokens;
    std::vector<int64_t>     token_ns;
    std::vector<std::string> logits_hash;
    std::vector<float>       logits_margin; // between the two best tokens
    std::vector<int64_t>     hits;
    std::vector<int64_t>     misses;
};

static int64_t time_ns() {
    return ggml_time_us()*1000;
}

// FNV-1a
static std::string hash_logits(const float * logits, int32_t n) {
    uint64_t hash = 0xcbf29ce484222325ull;
    const auto * bytes = (const unsigned char *) logits;
    for (size_t i = 0; i < n*sizeof(float); ++i) {
        hash = (hash ^ bytes[i])*0x100000001b3ull;
    }
    return string_format("%016llx", (unsigned long long) hash);
}

// greedy choice from the logits of a step
static void choose(sequence & seq, const float * logits, int32_t n_vocab) {
    if (!std::all_of(logits, logits + n_vocab, [](float x) { return std::isfinite(x); })) {
        throw std::runtime_error(string_format("prompt '%s': the logits of step %zu are not finite", seq.src->id.c_str(), seq.tokens.size()));
    }

    llama_token best   = 0;
    float       second = -INFINITY;
    for (llama_token t = 1; t < n_vocab; ++t) {
        if (logits[t] > logits[best]) {
            second = logits[best];
            best   = t;
        } else {
            second = std::max(second, logits[t]);
        }
    }
    seq.tokens.push_back(best);
    seq.logits_hash.push_back(hash_logits(logits, n_vocab));
    seq.logits_margin.push_back(logits[best] - second);
}

class bench {
public:
    bench(const common_params & params, const bench_params & own, llama_context * ctx, std::vector<prompt> prompts, common_routing_recorder & recorder) :
        params(params), own(own), ctx(ctx), prompts(std::move(prompts)), recorder(recorder),
        n_vocab(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)))),
        batch(ctx) {
        check_fits();
    }

    json run(int32_t repetition, int32_t n_parallel) {
        llama_expert_cache_reset(ctx);
        recorder.clear();

        seen            = counters::read(ctx);
        prompt_counters = {};
        decode_counters = {};
        decode_ns       = 0;
        n_steps         = 0;

        std::vector<sequence> seqs;
        for (size_t first = 0; first < prompts.size(); first += n_parallel) {
            const size_t last = std::min(prompts.size(), first + n_parallel);
            for (auto & seq : own.forced ? run_forced(first) : run_group(first, last)) {
                seqs.push_back(std::move(seq));
            }
            LOG_INF("repetition %d, %d together: %zu of %zu prompts\n", repetition, n_parallel, last, prompts.size());
        }
        return report(repetition, n_parallel, seqs);
    }

    // tokens that follow a given routing; it begins at position 0, so there can be one prompt only
    int64_t n_replay() const {
        if (prompts.size() != 1) {
            throw std::runtime_error(string_format("--replay follows a trace with one prompt, there are %zu: set --first 1", prompts.size()));
        }
        return n_forced(prompts[0]);
    }

    common_routing_trace recorded() const {
        const auto trace = recorder.trace();
        if (trace.n_steps != n_steps) {
            throw std::runtime_error(string_format("the routing of %lld steps was recorded in %lld: the model selects experts more than once in a layer",
                    (long long) trace.n_steps, (long long) n_steps));
        }
        return trace;
    }

private:
    void check_fits() const {
        for (const int32_t n_parallel : own.parallel) {
            for (size_t first = 0; first < prompts.size(); first += n_parallel) {
                size_t need = 0;
                for (size_t i = first; i < std::min(prompts.size(), first + n_parallel); ++i) {
                    need += own.forced ? n_forced(prompts[i]) : prompts[i].tokens.size() + params.n_predict;
                }
                if (need > llama_n_ctx(ctx)) {
                    throw std::runtime_error(string_format("prompt '%s': %d sequences decoded together need a context of %zu, there are %u: set -c %zu",
                            prompts[first].id.c_str(), n_parallel, need, llama_n_ctx(ctx), need));
                }
            }
        }
    }

    // tokens of a prompt that --forced decodes
    size_t n_forced(const prompt & p) const {
        return params.n_predict > 0 ? std::min<size_t>(params.n_predict, p.tokens.size()) : p.tokens.size();
    }

    // what was counted since the last call
    counters advance() {
        const auto now   = counters::read(ctx);
        const auto delta = now.since(seen);
        seen = now;
        return delta;
    }

    void decode() {
        if (llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            throw std::runtime_error("the model could not be evaluated");
        }
        llama_synchronize(ctx);
    }

    // prompts first to last - 1, decoded in lockstep
    std::vector<sequence> run_group(size_t first, size_t last) {
        llama_memory_clear(llama_get_memory(ctx), false);

        std::vector<sequence> seqs;
        for (size_t i = first; i < last; ++i) {
            seqs.emplace_back(&prompts[i]);
            run_prompt(seqs.back(), i - first);
        }
        for (int32_t step = 1; step < params.n_predict; ++step) {
            batch.clear();
            for (size_t s = 0; s < seqs.size(); ++s) {
                batch.add(seqs[s].tokens.back(), seqs[s].src->tokens.size() + seqs[s].tokens.size() - 1, s, true);
            }
            run_step(seqs);
        }
        return seqs;
    }

    // the tokens of one prompt, each in a step of its own
    std::vector<sequence> run_forced(size_t index) {
        llama_memory_clear(llama_get_memory(ctx), false);

        std::vector<sequence> seqs;
        seqs.emplace_back(&prompts[index]);
        for (size_t i = 0; i < n_forced(prompts[index]); ++i) {
            batch.clear();
            batch.add(prompts[index].tokens[i], i, 0, true);
            run_step(seqs);
        }
        return seqs;
    }

    void run_prompt(sequence & seq, llama_seq_id id) {
        const auto & tokens  = seq.src->tokens;
        const auto   t_start = time_ns();

        for (size_t i = 0; i < tokens.size(); i += llama_n_batch(ctx)) {
            const size_t end = std::min(tokens.size(), i + llama_n_batch(ctx));

            batch.clear();
            for (size_t j = i; j < end; ++j) {
                batch.add(tokens[j], j, id, j + 1 == tokens.size());
            }
            decode();
        }

        seq.prompt_ns = time_ns() - t_start;
        prompt_counters.add(advance());

        // the first token belongs to the prompt
        seq.token_ns.push_back(0);
        seq.hits.push_back(0);
        seq.misses.push_back(0);
        choose(seq, llama_get_logits_ith(ctx, -1), n_vocab);
    }

    // the batch, which has one token of each sequence
    void run_step(std::vector<sequence> & seqs) {
        recorder.enable(true);
        const auto t_start = time_ns();
        decode();
        const auto ns    = time_ns() - t_start;
        const auto delta = advance();
        recorder.enable(false);

        decode_ns += ns;
        n_steps++;
        decode_counters.add(delta);

        for (size_t s = 0; s < seqs.size(); ++s) {
            seqs[s].token_ns.push_back(ns);
            seqs[s].hits.push_back(delta.hits());
            seqs[s].misses.push_back(delta.misses());
            choose(seqs[s], llama_get_logits_ith(ctx, s), n_vocab);
        }
    }

    json report(int32_t repetition, int32_t n_parallel, const std::vector<sequence> & seqs) const {
        const json status = json::parse(llama_expert_cache_status(ctx));

        json prompts_json = json::array();
        int64_t prompt_ns = 0;
        size_t  n_prompt  = 0;
        size_t  n_decode  = 0;
        for (const auto & seq : seqs) {
            prompts_json.push_back({
                { "id",            seq.src->id },
                { "n_prompt",      seq.src->tokens.size() },
                { "prompt_ns",     seq.prompt_ns },
                { "tokens",        seq.tokens },
                { "token_ns",      seq.token_ns },
                { "logits_hash",   seq.logits_hash },
                { "logits_margin", seq.logits_margin },
                { "hits",          seq.hits },
                { "misses",        seq.misses },
            });
            prompt_ns += seq.prompt_ns;
            n_prompt  += seq.src->tokens.size();
            n_decode  += seq.tokens.size() - (own.forced ? 0 : 1);
        }

        json layers = json::array();
        for (const auto & l : decode_counters.layers) {
            layers.push_back({ { "layer", l.il }, { "hits", l.hits }, { "misses", l.misses }, { "copied", l.copied }, { "computed", l.computed }, { "expert_bytes", l.expert_bytes } });
        }

        return {
            { "schema",        SCHEMA_VERSION },
            { "tool",          "llama-expert-bench" },
            { "build_commit",  llama_commit() },
            { "repetition",    repetition },
            { "model",         params.model.path },
            { "n_gen",         params.n_predict },
            { "parallel",      n_parallel },
            { "forced",        own.forced },
            { "replay",        own.replay.empty() ? json() : json(own.replay) },
            { "traced",        !own.trace_out.empty() }, // its times are those of a graph computed in pieces
            { "threads",       llama_n_threads(ctx) },
            { "n_ctx",         llama_n_ctx(ctx) },
            { "n_batch",       llama_n_batch(ctx) },
            { "n_ubatch",      llama_n_ubatch(ctx) },
            { "load_ns",       load_ns },
            { "prompts",       prompts_json },
            { "decode_ns",     decode_ns },
            { "decode_tokens", n_decode },
            { "prompt_ns",     prompt_ns },
            { "prompt_tokens", n_prompt },
            { "hits",          decode_counters.hits() },
            { "misses",        decode_counters.misses() },
            { "computed",      decode_counters.computed() },
            { "bytes_moved",   decode_counters.bytes_moved() },
            { "prompt_hits",   prompt_counters.hits() },
            { "prompt_misses", prompt_counters.misses() },
            { "layers",        layers },
            { "memory",        memory(status["cache_bytes"]) },
            { "copy",          copy },
            { "host_limit_bytes", own.host_limit > 0 ? json((int64_t) own.host_limit*1024*1024) : json() },
            { "vram_limit_bytes", own.vram_limit > 0 ? json((int64_t) own.vram_limit*1024*1024) : json() },
            { "status",        status },
        };
    }

    // most memory that this process ever had resident
    static json host_peak() {
#if defined(__linux__)
        // what getrusage says begins with what the parent had when it started this process
        std::ifstream status("/proc/self/status");
        for (std::string line; std::getline(status, line);) {
            long long kib = 0;
            if (sscanf(line.c_str(), "VmHWM: %lld kB", &kib) == 1) {
                return (int64_t) kib*1024;
            }
        }
        return nullptr;
#elif defined(_WIN32)
        return nullptr;
#else
        rusage usage = {};
        getrusage(RUSAGE_SELF, &usage);
        return (int64_t) usage.ru_maxrss; // bytes on macOS
#endif
    }

    static json memory(const json & cache_bytes) {
        json devices = json::array();
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            ggml_backend_dev_t dev = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(dev) != GGML_BACKEND_DEVICE_TYPE_GPU) {
                continue;
            }
            size_t free  = 0;
            size_t total = 0;
            ggml_backend_dev_memory(dev, &free, &total);
            devices.push_back({ { "name", ggml_backend_dev_name(dev) }, { "total_bytes", total }, { "free_bytes", free } });
        }

        return { { "host_peak_bytes", host_peak() }, { "devices", devices }, { "cache_bytes", cache_bytes } };
    }

    const common_params & params;
    const bench_params  & own;

    llama_context * ctx;

    const std::vector<prompt> prompts;
    common_routing_recorder & recorder;
    const int32_t             n_vocab;

    common_batch batch;

    counters seen; // the last reading
    counters prompt_counters;
    counters decode_counters;
    int64_t  decode_ns = 0;
    int64_t  n_steps   = 0;

public:
    int64_t load_ns = 0;
    json    copy;    // see measure_copy
};

// Device memory that the measured program must not have: a card of this machine acts as a smaller one, for the cache and
// for what it is compared with alike.
class vram_ballast {
public:
    explicit vram_ballast(int32_t limit_mib) {
        if (limit_mib == 0) {
            return;
        }
        const size_t limit = (size_t) limit_mib*1024*1024;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            ggml_backend_dev_t dev = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_GPU) {
                occupy(dev, limit);
            }
        }
        if (buffers.empty()) {
            throw std::runtime_error("--vram-limit: there is no GPU whose memory could be limited");
        }
    }

private:
    void occupy(ggml_backend_dev_t dev, size_t limit) {
        size_t free  = 0;
        size_t total = 0;
        ggml_backend_dev_memory(dev, &free, &total);
        if (free < limit) {
            throw std::runtime_error(string_format("--vram-limit: %s has %zu MiB free, fewer than the limit: choose at most that, or free some",
                    ggml_backend_dev_name(dev), free/1024/1024));
        }
        if (free == limit) {
            return;
        }
        buffers.emplace_back(ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(dev), free - limit));
        if (!buffers.back()) {
            throw std::runtime_error(string_format("--vram-limit: cannot occupy %zu MiB of %s", (free - limit)/1024/1024, ggml_backend_dev_name(dev)));
        }
    }

    std::vector<ggml_backend_buffer_ptr> buffers;
};

// What a miss at best costs: copies from pinned host memory to the first GPU, in pieces of the size of an expert.
// null without a GPU, or without room for it
static json measure_copy() {
    constexpr size_t piece    = 4*1024*1024;
    constexpr int    n_pieces = 16;
    constexpr int    n_rounds = 8;

    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
    if (!dev || !ggml_backend_dev_host_buffer_type(dev)) {
        return nullptr;
    }
    ggml_backend_ptr        backend { ggml_backend_dev_init(dev, nullptr) };
    ggml_backend_buffer_ptr host    { ggml_backend_buft_alloc_buffer(ggml_backend_dev_host_buffer_type(dev), n_pieces*piece) };
    ggml_context_ptr        ctx     { ggml_init({ ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_tensor           * device  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, n_pieces*piece);
    ggml_backend_buffer_ptr buffer  { ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()) };
    if (!host || !buffer) {
        return nullptr;
    }
    const char * data = (const char *) ggml_backend_buffer_get_base(host.get());

    int64_t best_ns = INT64_MAX; // the first round is slower
    for (int r = 0; r < n_rounds; ++r) {
        const auto t_start = time_ns();
        for (int i = 0; i < n_pieces; ++i) {
            ggml_backend_tensor_set_async(backend.get(), device, data + i*piece, i*piece, piece);
        }
        ggml_backend_synchronize(backend.get());
        best_ns = std::min<int64_t>(best_ns, time_ns() - t_start);
    }
    return { { "device", ggml_backend_dev_name(dev) }, { "piece_bytes", piece }, { "bytes_per_second", n_pieces*piece*1e9/best_ns } };
}

// standard output, or a file that has its name only when all repetitions are in it
class result_lines {
public:
    explicit result_lines(const std::string & path) : file(path.empty() ? nullptr : std::make_unique<common_result_file>(path)) {}

    void write(const json & object) {
        const std::string line = object.dump() + "\n";
        if (file) {
            file->write(line.data(), line.size());
        } else if (fwrite(line.data(), 1, line.size(), stdout) != line.size() || fflush(stdout) != 0) {
            throw std::runtime_error(string_format("cannot write to standard output: %s", strerror(errno)));
        }
    }

    void commit() {
        if (file) {
            file->commit();
        }
    }

private:
    std::unique_ptr<common_result_file> file;
};

// the last error that the library logged, to say why loading failed
static std::string last_error;

static void log_callback(ggml_log_level level, const char * text, void * user_data) {
    const bool says_why = !std::strstr(text, "failed to load model"); // follows the reason
    if (level == GGML_LOG_LEVEL_ERROR && says_why) {
        last_error = text;
        last_error.erase(last_error.find_last_not_of('\n') + 1);
    }
    common_log_default_callback(level, text, user_data);
}

static void set_routing(llama_context * ctx, const std::string & path, int64_t n_steps) {
    const auto trace = common_routing_trace::read(path);
    if (trace.n_steps < n_steps) {
        throw std::runtime_error(string_format("cannot replay '%s': it has %lld steps, %lld tokens are to be decoded: set -n",
                path.c_str(), (long long) trace.n_steps, (long long) n_steps));
    }
    if (!llama_set_expert_routing(ctx, trace.ids.data(), trace.n_steps, trace.n_layers, trace.n_used)) {
        throw std::runtime_error(string_format("cannot replay '%s': %s", path.c_str(), last_error.c_str()));
    }
}

static void run(common_params & params, const bench_params & own) {
    result_lines out(own.out);

    common_routing_recorder             recorder;
    std::unique_ptr<common_result_file> trace_file;
    if (!own.trace_out.empty()) {
        trace_file = std::make_unique<common_result_file>(own.trace_out);
        recorder.attach(params);
    }

    const host_ballast host(own.host_limit);
    const json         copy = measure_copy();
    const vram_ballast ballast(own.vram_limit);

    const auto t_start = time_ns();

    common_init_result_ptr init = common_init_from_params(params);
    if (!init->model() || !init->context()) {
        throw std::runtime_error(string_format("cannot load '%s': %s", params.model.path.c_str(), last_error.c_str()));
    }

    const auto load_ns = time_ns() - t_start;

    bench b(params, own, init->context(), read_prompts(own.prompts, own.first, llama_model_get_vocab(init->model())), recorder);
    b.load_ns = load_ns;
    b.copy    = copy;

    if (!own.replay.empty()) {
        set_routing(init->context(), own.replay, b.n_replay());
    }

    for (int32_t r = 0; r < own.repetitions; ++r) {
        for (const int32_t n_parallel : own.parallel) {
            out.write(b.run(r, n_parallel));
        }
    }
    if (trace_file) {
        b.recorded().write(*trace_file); // of the last repetition
        trace_file->commit();
    }
    out.commit();
}

int main(int argc, char ** argv) {
    std::setlocale(LC_NUMERIC, "C");

    try {
        common_init();
        llama_log_set(log_callback, nullptr);

        std::vector<char *> args(argv, argv + argc);
        const bench_params own = parse_own(args);

        common_params params;
        params.verbosity = LOG_LEVEL_WARN;
        if (!common_params_parse(args.size(), args.data(), params, LLAMA_EXAMPLE_COMMON, print_usage)) {
            return 1;
        }
        if (own.prompts.empty()) {
            throw std::invalid_argument("--prompts is missing");
        }
        if (params.n_predict < 1 && !(own.forced && params.n_predict == -1)) {
            throw std::invalid_argument("-n must be at least 1");
        }
        if (!own.trace_out.empty() && !own.forced && params.n_predict == 1) {
            throw std::invalid_argument("--trace-out needs a decode step: the first token belongs to the prompt, set -n 2");
        }
        if (std::min(params.n_batch, params.n_ubatch) < own.most_parallel()) {
            throw std::invalid_argument(string_format("--parallel %d needs -b and -ub of at least as much", own.most_parallel()));
        }

        // one context for all sequences; only the last token of a prompt and one token per sequence have logits
        params.n_parallel = own.most_parallel();
        params.kv_unified = true;

        llama_backend_init();
        llama_numa_init(params.numa);

        run(params, own);
    } catch (const std::exception & e) {
        common_log_flush(common_log_main());
        fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }

    llama_backend_free();
    return 0;
}
