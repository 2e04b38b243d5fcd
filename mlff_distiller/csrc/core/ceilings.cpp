#include "core/ceilings.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/gemm.h"
#include "core/isa.h"
#include "core/kernels.h"
#include "core/memory.h"

namespace mlff {
namespace {

// Shortest time of one call within `budget` seconds.
template <typename Function>
double best_time(double budget, Function&& function) {
  typedef std::chrono::steady_clock Clock;
  const Clock::time_point start = Clock::now();
  double best = 1e30;
  do {
    const Clock::time_point before = Clock::now();
    function();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - before).count());
  } while (std::chrono::duration<double>(Clock::now() - start).count() < budget);
  return best;
}

}  // namespace

double measure_fma(double seconds) {
  const int64_t rounds = 200000;
  double flops = 0.0;
  const double time = best_time(seconds, [&] { flops = best_kernels<float>().fma_rounds(rounds); });
  return flops / time * 1e-9;
}

double measure_gemm(int64_t m, int64_t k, int64_t n, double seconds) {
  const Kernels<float>& kernels = best_kernels<float>();
  n = (n + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  PackedMatrix<float> matrix;
  matrix.pack(kernels, k, n, std::vector<double>(static_cast<size_t>(k * n), 0.01));
  Buffer<float> a, c;
  std::fill_n(a.require(m * k), m * k, 0.5f);
  GemmCall<float> call;
  matrix.fill(call);
  call.m = m;
  call.a = a.data();
  call.lda = k;
  call.c = c.require(m * n);
  call.ldc = n;
  const int repeats = 1 + static_cast<int>(20000000 / (m * k * n));
  const double time = best_time(seconds, [&] {
    for (int i = 0; i < repeats; ++i) kernels.gemm(call);
  });
  return 2e-9 * static_cast<double>(m * k * n) * repeats / time;
}

double measure_read(int64_t bytes, double seconds) {
  const Kernels<float>& kernels = best_kernels<float>();
  Buffer<float> data;
  const int64_t count = std::max<int64_t>(bytes / 4 / 256, 1) * 256;
  std::fill_n(data.require(count), count, 1.0f);
  const int repeats = 1 + static_cast<int>((1 << 24) / count);
  volatile float sink = 0.0f;
  const double time = best_time(seconds, [&] {
    for (int i = 0; i < repeats; ++i) sink = sink + kernels.read_sum(count, data.data());
  });
  return 4e-9 * static_cast<double>(count) * repeats / time;
}

}  // namespace mlff
