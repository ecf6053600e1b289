#include "llama-expert-pin-list.h"

#include "llama-impl.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <stdexcept>

namespace {

[[noreturn]] void pin_list_error(const std::string & path, int line, const std::string & what) {
    throw std::runtime_error(format("expert cache: pin list '%s', line %d: %s", path.c_str(), line, what.c_str()));
}

// reads "name value" from a line; the model has expected
uint32_t pin_list_value(const std::string & path, int line, const std::string & text, const char * name, std::initializer_list<uint32_t> expected) {
    std::istringstream is(text);
    std::string key;
    std::string rest;
    int64_t     value = -1;
    if (!(is >> key >> value) || key != name || is >> rest) {
        pin_list_error(path, line, format("expected '%s N'", name));
    }
    if (std::find(expected.begin(), expected.end(), value) == expected.end()) {
        pin_list_error(path, line, format("%s is %" PRId64 ", but the model has %u: the list belongs to another model", name, value, *expected.begin()));
    }
    return value;
}

std::vector<int32_t> pin_list_experts(const std::string & path, int line, std::istringstream & is, uint32_t n_expert) {
    std::vector<int32_t> experts;
    std::vector<bool>    seen(n_expert, false);

    std::string word;
    while (is >> word) {
        size_t  end = 0;
        int64_t id  = -1;
        try {
            id = std::stoll(word, &end);
        } catch (const std::exception &) {
            end = 0;
        }
        if (end != word.size()) {
            pin_list_error(path, line, format("'%s' is not an expert id", word.c_str()));
        }
        if (id < 0 || id >= (int64_t) n_expert) {
            pin_list_error(path, line, format("expert %" PRId64 " is not in 0..%u", id, n_expert - 1));
        }
        if (seen[id]) {
            pin_list_error(path, line, format("expert %" PRId64 " is listed twice", id));
        }
        seen[id] = true;
        experts.push_back(id);
    }

    return experts;
}

} // namespace

llama_expert_pin_list llama_expert_pin_list::read(const std::string & path, uint32_t n_layer, uint32_t n_layer_all, uint32_t n_expert) {
    std::ifstream file(path);
    if (!file) {
        throw std::runtime_error(format("expert cache: cannot read the pin list '%s': %s", path.c_str(), strerror(errno)));
    }

    std::string text;
    int line = 0;
    const auto read_line = [&]() {
        line++;
        return (bool) std::getline(file, text);
    };
    const auto next = [&]() { // fitz-tec writes more comments after the first one
        bool found = read_line();
        while (found && text[0] == '#') {
            found = read_line();
        }
        return found;
    };

    if (!read_line() || text.find("EXPERT_CACHE_PIN_LIST v1") == std::string::npos) {
        pin_list_error(path, line, "expected a comment with 'EXPERT_CACHE_PIN_LIST v1': not a pin list");
    }
    next();
    n_layer = pin_list_value(path, line, text, "n_layer", { n_layer, n_layer_all });
    next();
    pin_list_value(path, line, text, "n_expert", { n_expert });

    llama_expert_pin_list result;
    result.layers.resize(n_layer_all);

    for (uint32_t i = 0; i < n_layer; ++i) {
        if (!next()) {
            pin_list_error(path, line, format("expected 'layer %u: ...': the list is truncated", i));
        }
        std::istringstream is(text);
        std::string key;
        std::string index;
        if (!(is >> key >> index) || key != "layer" || index != std::to_string(i) + ":") {
            pin_list_error(path, line, format("expected 'layer %u: ...'", i));
        }
        result.layers[i] = pin_list_experts(path, line, is, n_expert);
    }
    if (next()) {
        pin_list_error(path, line, format("there is more than the %u layers", n_layer));
    }

    return result;
}
