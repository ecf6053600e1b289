#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

class common_result_file;
struct ggml_tensor;
struct common_params;

// layer of a graph tensor named "<prefix>-<layer>", or -1; views have longer names
int32_t common_tensor_layer(const std::string & name, const std::string & prefix);

// Which experts were selected, as a file: .npy, little-endian int32, C order, shape (steps, MoE layers in ascending order,
// experts per token), the experts in the router's order.
struct common_routing_trace {
    int64_t n_steps  = 0;
    int32_t n_layers = 0;
    int32_t n_used   = 0;

    std::vector<int32_t> ids; // [n_steps][n_layers][n_used]

    // both throw std::runtime_error that names the file
    static common_routing_trace read(const std::string & path);
    void write(common_result_file & file) const;
};

// collects the experts that the router selects, one token a step
class common_routing_recorder {
public:
    // makes a context that is created with these parameters call the recorder, which must outlive it
    void attach(common_params & params);

    void enable(bool on) { enabled = on; }
    void clear();

    // throws std::runtime_error if the layers do not fit together
    common_routing_trace trace() const;

private:
    static bool eval(ggml_tensor * t, bool ask, void * user_data);

    void record(int32_t layer, const ggml_tensor * selected);

    bool enabled = false;

    std::map<int32_t, std::vector<int32_t>> layers; // layer -> [steps][experts per token]

    int64_t n_used = 0;
};
