#include "routing-trace.h"

#include "common.h"
#include "result-file.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <stdexcept>

int32_t common_tensor_layer(const std::string & name, const std::string & prefix) {
    const size_t n = prefix.size() + 1;
    if (name.compare(0, n, prefix + "-") != 0 || name.size() == n || name.find_first_not_of("0123456789", n) != std::string::npos) {
        return -1;
    }
    return std::stoi(name.substr(n));
}

void common_routing_recorder::attach(common_params & params) {
    params.cb_eval           = eval;
    params.cb_eval_user_data = this;
}

void common_routing_recorder::clear() {
    layers.clear();
    n_used = 0;
}

bool common_routing_recorder::eval(ggml_tensor * t, bool ask, void * user_data) {
    auto & recorder = *(common_routing_recorder *) user_data;

    const int32_t layer = recorder.enabled ? common_tensor_layer(t->name, "ffn_moe_topk") : -1;
    if (!ask && layer >= 0) {
        recorder.record(layer, t);
    }
    return !ask || layer >= 0; // what is asked for is computed; whatever was computed, go on
}

void common_routing_recorder::record(int32_t layer, const ggml_tensor * selected) {
    n_used = selected->ne[0];

    auto & ids = layers[layer];
    for (int64_t i = 0; i < selected->ne[1]; ++i) {
        ids.resize(ids.size() + n_used);
        ggml_backend_tensor_get(selected, ids.data() + ids.size() - n_used, i*selected->nb[1], n_used*sizeof(int32_t));
    }
}

common_routing_trace common_routing_recorder::trace() const {
    if (layers.empty()) {
        throw std::runtime_error("no routing was recorded");
    }
    common_routing_trace result;
    result.n_steps  = layers.begin()->second.size()/n_used;
    result.n_layers = layers.size();
    result.n_used   = n_used;

    for (const auto & [layer, ids] : layers) {
        if ((int64_t) ids.size() != result.n_steps*n_used) {
            throw std::runtime_error(string_format("layer %d has the routing of %zu steps, others of %lld", layer, ids.size()/n_used, (long long) result.n_steps));
        }
    }
    for (int64_t step = 0; step < result.n_steps; ++step) {
        for (const auto & [_, ids] : layers) {
            result.ids.insert(result.ids.end(), ids.begin() + step*n_used, ids.begin() + (step + 1)*n_used);
        }
    }
    return result;
}

// the format's version 1.0
static const std::string npy_magic = std::string("\x93NUMPY\x01\x00", 8);

void common_routing_trace::write(common_result_file & file) const {
    // numpy wants the data to begin at a multiple of 64 bytes
    std::string dict = string_format("{'descr': '<i4', 'fortran_order': False, 'shape': (%lld, %d, %d), }", (long long) n_steps, n_layers, n_used);
    dict.append(63 - (npy_magic.size() + 2 + dict.size()) % 64, ' ');
    dict += '\n';

    const std::string size = { (char) (dict.size() & 0xff), (char) (dict.size() >> 8) };
    const std::string head = npy_magic + size + dict;

    file.write(head.data(), head.size());
    file.write(ids.data(),  ids.size()*sizeof(int32_t));
}

common_routing_trace common_routing_trace::read(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(string_format("cannot read the routing trace '%s': %s", path.c_str(), strerror(errno)));
    }
    const std::string content { std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>() };

    const size_t n_before = npy_magic.size() + 2;
    if (content.size() < n_before || content.compare(0, npy_magic.size(), npy_magic) != 0) {
        throw std::runtime_error(string_format("'%s' is no .npy file of version 1.0", path.c_str()));
    }
    const size_t n_dict = (unsigned char) content[n_before - 2] + 256*(unsigned char) content[n_before - 1];
    std::string dict = content.substr(n_before, n_dict);
    const size_t n_head = n_before + dict.size();
    dict.erase(dict.find_last_not_of(" \n") + 1);

    static const std::regex wanted(R"(^\{'descr': '<i4', 'fortran_order': False, 'shape': \((\d{1,12}), (\d{1,6}), (\d{1,6})\), *\}$)");
    std::smatch shape;
    if (dict.size() > 256 || !std::regex_match(dict, shape, wanted)) { // a longer text could exhaust the stack
        throw std::runtime_error(string_format("'%s' is no routing trace: not little-endian int32 in C order of shape (steps, MoE layers, experts)", path.c_str()));
    }
    common_routing_trace result;
    result.n_steps  = std::stoll(shape[1]);
    result.n_layers = std::stoi(shape[2]);
    result.n_used   = std::stoi(shape[3]);

    // the product of the shape could overflow, its quotients cannot
    const int64_t per_step = (int64_t) result.n_layers*result.n_used;
    const size_t  have     = content.size() - n_head;
    const size_t  n_values = have/sizeof(int32_t);
    if (result.n_steps < 1 || per_step < 1 || have % sizeof(int32_t) != 0 || n_values % per_step != 0 || (int64_t) (n_values/per_step) != result.n_steps) {
        throw std::runtime_error(string_format("'%s' has %zu bytes of routing, not those of %lld steps, %d layers and %d experts",
                path.c_str(), have, (long long) result.n_steps, result.n_layers, result.n_used));
    }
    result.ids.resize(n_values);
    memcpy(result.ids.data(), content.data() + n_head, have);
    return result;
}
