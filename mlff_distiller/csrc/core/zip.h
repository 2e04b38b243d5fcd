// The few parts of the zip format that exported students need. Private to model_file.cpp.
#pragma once

#include <cstdint>
#include <string>

namespace mlff {

// The number in the first `bytes` bytes at p.
uint64_t little_endian(const char* p, int bytes);

[[noreturn]] void fail_damaged(const std::string& path, const std::string& what);

// The bytes of the entry whose name ends in `tail`, which must be stored uncompressed; its CRC-32
// is checked. `path` names the file in messages. Throws InputError.
std::string unzip_entry(const std::string& zip, const std::string& tail, const std::string& path);

// The same into `bytes`; false if there is no such entry.
bool find_entry(const std::string& zip, const std::string& tail, const std::string& path,
                std::string& bytes);

}  // namespace mlff
