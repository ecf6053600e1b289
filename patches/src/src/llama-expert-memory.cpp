#include "llama-expert-memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

size_t llama_meminfo(const char * field) {
    std::ifstream meminfo("/proc/meminfo");
    std::string   name;
    size_t        kib = 0;
    while (meminfo >> name >> kib && meminfo.ignore(64, '\n')) {
        if (name == std::string(field) + ":") {
            return kib*1024;
        }
    }
    return SIZE_MAX;
}

namespace {

// files of a control group that say what its memory is, of version 2 and of version 1
struct cgroup_files {
    const char * mount;
    const char * limit;
    const char * usage;
    const char * cache[2]; // fields of memory.stat: file pages, which are given back when memory is short
};

constexpr cgroup_files CGROUP_V2 = { "/sys/fs/cgroup",        "memory.max",            "memory.current",        { "inactive_file",       "active_file"       } };
constexpr cgroup_files CGROUP_V1 = { "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", { "total_inactive_file", "total_active_file" } };

struct cgroup_memory {
    size_t limit     = SIZE_MAX;
    size_t available = SIZE_MAX;
};

size_t read_number(const std::string & path, size_t otherwise) {
    std::ifstream file(path);
    size_t value = 0;
    return file >> value ? value : otherwise; // "max" = no limit is no number
}

size_t read_cache(const std::string & path, const cgroup_files & files) {
    std::ifstream stat(path);
    std::string   name;
    size_t        value  = 0;
    size_t        result = 0;
    while (stat >> name >> value) {
        result += name == files.cache[0] || name == files.cache[1] ? value : 0;
    }
    return result;
}

cgroup_memory read_cgroup(const std::string & folder, const cgroup_files & files) {
    cgroup_memory result;
    result.limit = read_number(folder + "/" + files.limit, SIZE_MAX);
    if (result.limit != SIZE_MAX) {
        const size_t usage = read_number(folder + "/" + files.usage, 0);
        const size_t cache = read_cache(folder + "/memory.stat", files);
        const size_t used  = usage > cache ? usage - cache : 0;
        result.available = result.limit > used ? result.limit - used : 0;
    }
    return result;
}

// the group of this process and those that it is in, with the path that the process sees or, in a container, the root's
std::vector<std::pair<std::string, cgroup_files>> cgroups() {
    std::vector<std::pair<std::string, cgroup_files>> result;

    std::ifstream lines("/proc/self/cgroup"); // id:controllers:path
    std::string   line;
    while (std::getline(lines, line)) {
        const size_t first  = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) {
            continue;
        }
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";

        const bool v2 = controllers == ",,";
        if (!v2 && controllers.find(",memory,") == std::string::npos) {
            continue;
        }
        const cgroup_files & files = v2 ? CGROUP_V2 : CGROUP_V1;

        std::string path = line.substr(second + 1);
        while (!path.empty() && path != "/") {
            result.emplace_back(files.mount + path, files);
            path.erase(path.rfind('/'));
        }
        result.emplace_back(files.mount, files);
    }
    return result;
}

cgroup_memory cgroup_memory_least() {
    cgroup_memory result;
    for (const auto & [folder, files] : cgroups()) {
        const auto memory = read_cgroup(folder, files);
        result.limit     = std::min(result.limit,     memory.limit);
        result.available = std::min(result.available, memory.available);
    }
    return result;
}

} // namespace

size_t llama_host_memory_available() {
    return std::min(llama_meminfo("MemAvailable"), cgroup_memory_least().available);
}

size_t llama_host_memory_total() {
    return std::min(llama_meminfo("MemTotal"), cgroup_memory_least().limit);
}

size_t llama_device_memory_free(ggml_backend_dev_t dev) {
    size_t free  = 0;
    size_t total = 0;
    ggml_backend_dev_memory(dev, &free, &total);

    return ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU ? std::min(free, llama_host_memory_available()) : free;
}
