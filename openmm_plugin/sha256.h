// SHA-256 (FIPS 180-4), the same digest as mlff_distiller.files.sha256.
#ifndef MLFF_OPENMM_SHA256_H_
#define MLFF_OPENMM_SHA256_H_

#include <string>

namespace mlff {

// Lower-case hexadecimal digest of a file. Throws InputError if it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace mlff

#endif  // MLFF_OPENMM_SHA256_H_
