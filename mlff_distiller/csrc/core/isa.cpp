#include "core/isa.h"

#include "core/error.h"

namespace mlff {
namespace {

bool cpu_runs(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::kPortable;
}

template <typename T>
const Kernels<T>* compiled_kernels(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return avx512_kernels<T>();
    case Isa::kAvx2:
      return avx2_kernels<T>();
    default:
      return portable_kernels<T>();
  }
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "auto";
  }
}

Isa isa_from_name(const std::string& name) {
  for (Isa isa : {Isa::kAuto, Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (name == isa_name(isa)) return isa;
  }
  throw InputError("instruction set must be auto, portable, avx2 or avx512, got " + name);
}

bool isa_available(Isa isa) {
  return isa == Isa::kAuto || (cpu_runs(isa) && compiled_kernels<float>(isa) != nullptr);
}

Isa choose_isa(Isa wanted) {
  if (wanted != Isa::kAuto) {
    if (isa_available(wanted)) return wanted;
    throw InputError(std::string("instruction set must be one that this machine runs, got ") +
                     isa_name(wanted) + "; use auto");
  }
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (isa_available(isa)) return isa;
  }
  return Isa::kPortable;
}

template <typename T>
const Kernels<T>& kernels_of(Isa isa) {
  return *compiled_kernels<T>(isa);
}

template <typename T>
const Kernels<T>& best_kernels() {
  static const Kernels<T>& best = kernels_of<T>(choose_isa(Isa::kAuto));
  return best;
}

template const Kernels<float>& kernels_of<float>(Isa);
template const Kernels<double>& kernels_of<double>(Isa);
template const Kernels<float>& best_kernels<float>();
template const Kernels<double>& best_kernels<double>();

}  // namespace mlff
