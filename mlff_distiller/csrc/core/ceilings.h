// What one core can do at most, for benchmarks to compare with.
#pragma once

#include <cstdint>

namespace mlff {

// GFLOP/s (a fused multiply-add counts two) of independent FMAs on registers, float32, with the
// widest instruction set that runs here. Best of repetitions over `seconds`.
double measure_fma(double seconds);

// GFLOP/s of the engine's matrix product [m, k] x [k, n], float32. Best of repetitions.
double measure_gemm(int64_t m, int64_t k, int64_t n, double seconds);

// GB/s reading `bytes` again and again: L2 or memory by size. Best of repetitions.
double measure_read(int64_t bytes, double seconds);

}  // namespace mlff
