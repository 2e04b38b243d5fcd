// SHA-256, as exported students note it of their native.bin.
#pragma once

#include <cstddef>
#include <string>

namespace mlff {

// 64 lower case hexadecimal digits (FIPS 180-4).
std::string sha256(const char* data, size_t size);

}  // namespace mlff
