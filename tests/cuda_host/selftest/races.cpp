// What racecheck.h promises; run when kernels are instrumented.
#include "racecheck.h"
#include "selftest.h"

using selftest::Array;

namespace {

// Correct kernels: none of these may be reported.
__global__ void orderly(int* out, int* sum) {
  __shared__ int tile[64];
  __shared__ unsigned char flags[64];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = i;
  flags[i] = 1;  // neighbours in one word
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = tile[63 - i] + flags[63 - i];
  __syncthreads();
  tile[i] = 5;  // after everybody has read
  __syncwarp();
  const int near = tile[i ^ 1];
  __syncwarp(i % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  tile[i ^ 1] = near + 1;
  atomicAdd(sum, near);
}

CASE(races_none_where_everything_is_ordered) {
  cuda_host::for_schedules(4, [&](std::uint64_t) {
    Array<int> out(256, 0), sum(1, 0);
    for (int step = 0; step < 2; ++step) {  // a launch is ordered with the one before
      MLFF_LAUNCH(orderly, 4, 64, 0, nullptr, out.data(), sum.data());
    }
    EXPECT(sum.read()[0] == 2 * 4 * 64 * 5);
  });
}

__global__ void racy(int what, int* out) {
  __shared__ int tile[64];
  MLFF_SHARED_ARRAY(int, dynamic);
  const int i = static_cast<int>(threadIdx.x);
  if (what == 0) {  // read before the barrier
    tile[i] = i;
    out[64 * blockIdx.x + i] = tile[63 - i];
  }
  if (what == 1) {  // overwritten before all have read
    dynamic[i] = i;
    __syncthreads();
    const int other = dynamic[63 - i];
    dynamic[i] = other;
  }
  if (what == 2 && i == 0) out[0] = 1;  // by every block
  if (what == 3 && i == static_cast<int>(blockIdx.x)) out[5] += 1;
  if (what == 4) {  // a shuffle does not order memory
    tile[i] = i;
    const int there = __shfl_xor_sync(0xffffffffu, i, 1);
    out[64 * blockIdx.x + i] = tile[there];
  }
  if (what == 5) {  // an atomic and a plain read
    atomicAdd(&out[3], 1);
    if (i == 40) dynamic[0] = out[3];
  }
  if (what == 6) {  // __syncwarp of others
    tile[i] = i;
    __syncwarp(i % 2 == 0 ? 0x55555555u : 0xaaaaaaaau);
    dynamic[i] = tile[i ^ 1];
  }
  if (what == 7 && i == 0) dynamic[1] = out[256];
  if (what == 8 && i == 0) dynamic[1] = out[-3];
}

CASE(races_are_found_in_every_schedule) {
  EXPECT(cuda_host::race_enabled());
  Array<int> out(256, 0);
  const auto run = [&](int what) {
    MLFF_LAUNCH(racy, 4, 64, 256, nullptr, what, out.data());
    cudaDeviceSynchronize();
  };
  cuda_host::for_schedules(8, [&](std::uint64_t) {
    EXPECT_ERROR(run(0), "kernel racy, block (",
                 "of a shared array at races.cpp:", "nothing orders them");
    EXPECT_ERROR(run(1), "of a shared array", "nothing orders them");
    EXPECT_ERROR(run(2), "writes byte 0 of device allocation", "which another block writes");
    EXPECT_ERROR(run(3), "byte 20 of device allocation", "which another block");
    EXPECT_ERROR(run(4), "of a shared array");
    EXPECT_ERROR(run(5), "byte 12 of device allocation", "updates (atomically)");
    EXPECT_ERROR(run(6), "of a shared array");
    EXPECT_ERROR(run(7), "reads byte 1024 of device allocation", "out of bounds");
    EXPECT_ERROR(run(8), "reads byte -12 of device allocation", "out of bounds");
    run(9);
  });
}

}  // namespace
