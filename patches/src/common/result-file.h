#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>

// A file that has its name only when it is complete: it is written beside it and renamed by commit().
// All functions throw std::runtime_error that names the file.
class common_result_file {
public:
    explicit common_result_file(const std::string & path) : path(path), part(path + ".part") {
        if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path)) {
            throw std::runtime_error("'" + path + "' is not a regular file");
        }
        file = fopen(part.c_str(), "wb");
        if (!file) {
            fail(part);
        }
    }

    ~common_result_file() {
        if (file) {
            fclose(file);
            remove(part.c_str());
        }
    }

    common_result_file(const common_result_file &) = delete;
    common_result_file & operator=(const common_result_file &) = delete;

    void write(const void * data, size_t size) {
        if (fwrite(data, 1, size, file) != size) {
            fail(part);
        }
    }

    void commit() {
        const bool ok = fclose(file) == 0 && rename(part.c_str(), path.c_str()) == 0;
        file = nullptr;
        if (!ok) {
            const int error = errno;
            remove(part.c_str());
            errno = error;
            fail(path);
        }
    }

private:
    [[noreturn]] static void fail(const std::string & name) {
        throw std::runtime_error("cannot write '" + name + "': " + strerror(errno));
    }

    const std::string path;
    const std::string part;

    FILE * file = nullptr;
};
