// SHA-256 (FIPS 180-4), the same digest as mlff_distiller.files.sha256.
#pragma once

#include <string>

namespace mlff {

// Lower-case hexadecimal digest of a file. Throws InputError if it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace mlff
