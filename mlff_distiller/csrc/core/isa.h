// Which of the compiled kernels (kernels.h) this processor runs.
#pragma once

#include <string>

#include "core/kernels.h"

namespace mlff {

enum class Isa { kAuto, kPortable, kAvx2, kAvx512 };

// "portable", "avx2", "avx512"; "auto".
const char* isa_name(Isa isa);
// Inverse of isa_name; throws InputError.
Isa isa_from_name(const std::string& name);
// True if kernels for `isa` were compiled in and this processor runs them.
bool isa_available(Isa isa);
// The one to use where `wanted` is asked for: kAuto becomes the fastest. Throws InputError for one
// that is not available.
Isa choose_isa(Isa wanted);

// The kernels of an available instruction set.
template <typename T>
const Kernels<T>& kernels_of(Isa isa);
// The fastest that this processor runs.
template <typename T>
const Kernels<T>& best_kernels();

}  // namespace mlff
