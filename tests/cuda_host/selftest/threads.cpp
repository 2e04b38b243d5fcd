// Indices, barriers, warp collectives, atomics, schedules, divergence.
#include <cmath>
#include <limits>
#include <set>

#include "selftest.h"

using selftest::Array;

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kSchedules = 12;

void finish() { cudaDeviceSynchronize(); }

// --- indices -------------------------------------------------------------------------------------
__global__ void count_visits(int* visits, int* wrong) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  atomicAdd(&visits[block * (blockDim.x * blockDim.y * blockDim.z) + thread], 1);
  const unsigned lane = static_cast<unsigned>(__ffs(static_cast<int>(__activemask())) - 1);
  if (lane != thread % warpSize) atomicAdd(wrong, 1);
}

CASE(every_thread_of_every_block_runs_once) {
  const dim3 grid(3, 2, 4), block(5, 7, 2);
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    Array<int> visits(24 * 70, 0), wrong(1, 0);
    MLFF_LAUNCH(count_visits, grid, block, 0, nullptr, visits.data(), wrong.data());
    for (int v : visits.read()) EXPECT(v == 1);
    EXPECT(wrong.read()[0] == 0);
  });
}

// --- barriers ------------------------------------------------------------------------------------
template <class T>
__global__ void sum_tree(const T* values, T* sums) {
  __shared__ T tile[128];
  tile[threadIdx.x] = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = tile[0];
}

template <class T>
void check_sum_tree() {
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    Array<T> values(5 * 128, T(3)), sums(5);
    MLFF_LAUNCH((sum_tree<T>), 5, 128, 0, nullptr, values.data(), sums.data());
    for (T s : sums.read()) EXPECT(s == T(3 * 128));
  });
}

CASE(barriers_order_shared_memory) {
  check_sum_tree<float>();
  check_sum_tree<long long>();
}

__global__ void barrier_votes(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= 90) return;  // threads that have exited do not count
  const int any = __syncthreads_or(i == 77 ? 4 : 0), none = __syncthreads_or(0);
  const int all = __syncthreads_and(i + 1), not_all = __syncthreads_and(i);
  const int count = __syncthreads_count(i % 3 == 0);
  out[i] = (any != 0) + 10 * (none != 0) + 100 * (all != 0) + 1000 * (not_all != 0) + 10000 * count;
}

CASE(barriers_vote) {
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    Array<int> out(90, 0);
    MLFF_LAUNCH(barrier_votes, 1, 100, 0, nullptr, out.data());
    for (int v : out.read()) EXPECT(v == 1 + 100 + 30 * 10000);
  });
}

// --- warp collectives ----------------------------------------------------------------------------
template <class T>
__global__ void shuffle_all(T* out) {
  const int l = static_cast<int>(threadIdx.x % 32);
  const T mine = static_cast<T>(1000 + l);
  T* row = out + threadIdx.x * 8;
  row[0] = __shfl_sync(kAll, mine, 5);
  row[1] = __shfl_sync(kAll, mine, 9, 8);  // lane 1 of each group of 8
  row[2] = __shfl_xor_sync(kAll, mine, 16);
  row[3] = __shfl_xor_sync(kAll, mine, 9, 8);  // into a later group: own value, earlier: theirs
  row[4] = __shfl_up_sync(kAll, mine, 3);
  row[5] = __shfl_up_sync(kAll, mine, 3, 16);
  row[6] = __shfl_down_sync(kAll, mine, 3);
  row[7] = __shfl_down_sync(kAll, mine, 3, 16);
}

template <class T>
void check_shuffles() {
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    Array<T> out(64 * 8);
    MLFF_LAUNCH((shuffle_all<T>), 1, 64, 0, nullptr, out.data());
    const std::vector<T> values = out.read();
    for (int i = 0; i < 64; ++i) {
      const int l = i % 32;
      const int later = (l ^ 9) / 8 > l / 8;
      const int expected[8] = {5,
                               l / 8 * 8 + 1,
                               l ^ 16,
                               later ? l : l ^ 9,
                               l < 3 ? l : l - 3,
                               l % 16 < 3 ? l : l - 3,
                               l > 28 ? l : l + 3,
                               l % 16 > 12 ? l : l + 3};
      for (int k = 0; k < 8; ++k) {
        EXPECT(values[static_cast<std::size_t>(i * 8 + k)] == static_cast<T>(1000 + expected[k]));
      }
    }
  });
}

CASE(shuffles_of_every_type) {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<long long>();
  check_shuffles<unsigned long long>();
  check_shuffles<float>();
  check_shuffles<double>();
}

__global__ void votes(unsigned* out) {
  const int l = static_cast<int>(threadIdx.x);
  unsigned* row = out + 10 * l;
  row[0] = __ballot_sync(kAll, l % 2);
  row[1] = static_cast<unsigned>(__any_sync(kAll, l == 9));
  row[2] = static_cast<unsigned>(__all_sync(kAll, l < 32));
  row[3] = static_cast<unsigned>(__all_sync(kAll, l < 31));
  row[4] = __match_any_sync(kAll, l / 16);
  row[5] = __reduce_add_sync(kAll, static_cast<unsigned>(l));
  row[6] = static_cast<unsigned>(__reduce_min_sync(kAll, l - 5));
  row[7] = static_cast<unsigned>(__reduce_max_sync(kAll, l - 50));
  // Two halves at different places, as after a branch.
  if (l < 16) {
    row[8] = __ballot_sync(0x0000ffffu, 1);
  } else {
    row[8] = __ballot_sync(0xffff0000u, l > 16);
  }
  __syncwarp();
  int same = -1;
  row[9] = __match_all_sync(kAll, 7, &same) + static_cast<unsigned>(same);
}

CASE(votes_matches_and_reductions) {
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    Array<unsigned> out(320);
    MLFF_LAUNCH(votes, 1, 32, 0, nullptr, out.data());
    const std::vector<unsigned> v = out.read();
    for (unsigned l = 0; l < 32; ++l) {
      const unsigned* row = v.data() + 10 * l;
      EXPECT(row[0] == 0xaaaaaaaau && row[1] == 1 && row[2] == 1 && row[3] == 0);
      EXPECT(row[4] == (l < 16 ? 0x0000ffffu : 0xffff0000u));
      EXPECT(row[5] == 496 && row[6] == static_cast<unsigned>(-5) &&
             row[7] == static_cast<unsigned>(-19));
      EXPECT(row[8] == (l < 16 ? 0x0000ffffu : 0xfffe0000u));
      EXPECT(row[9] == 0u);  // 0xffffffff + 1
    }
  });
}

// --- atomics -------------------------------------------------------------------------------------
template <class T>
__global__ void add_one(T* sum, int* order) {
  order[atomicAdd(&order[256], 1)] = static_cast<int>(threadIdx.x);
  atomicAdd(sum, T(1));
}

template <class T>
void check_atomic_add() {
  std::set<std::vector<int>> orders;
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    Array<T> sum(1, T(0));
    Array<int> order(257, 0);
    MLFF_LAUNCH((add_one<T>), 4, 64, 0, nullptr, sum.data(), order.data());
    EXPECT(sum.read()[0] == T(256));
    orders.insert(order.read());
  });
  EXPECT(orders.size() > kSchedules / 2);  // who comes first is up to the schedule
}

__global__ void other_atomics(int* i, unsigned* u, long long* l, unsigned long long* ul, float* f) {
  const int t = static_cast<int>(threadIdx.x);
  atomicMin(&i[0], t - 10);
  atomicMax(&i[1], t);
  atomicSub(&i[2], 1);
  atomicMin(&u[0], static_cast<unsigned>(t + 3));
  atomicMax(&u[1], static_cast<unsigned>(t));
  atomicOr(&u[2], 1u << (t % 32));
  atomicAnd(&u[3], ~(1u << (t % 32)));
  atomicXor(&u[4], 1u << (t % 32));
  atomicInc(&u[5], 9u);
  atomicDec(&u[6], 9u);
  atomicMin(&l[0], static_cast<long long>(-t));
  atomicMax(&l[1], static_cast<long long>(t));
  atomicMin(&ul[0], static_cast<unsigned long long>(t));
  atomicMax(&ul[1], static_cast<unsigned long long>(t));
  if (atomicExch(&i[3], 1) == 0) atomicAdd(&i[4], 1);  // one winner
  // A lock: needs a fair schedule.
  while (atomicCAS(&i[5], 0, 1) != 0) {
  }
  const float old = f[0];
  __threadfence();
  f[0] = old + 1.0f;
  atomicExch(&i[5], 0);
}

CASE(atomics) {
  check_atomic_add<int>();
  check_atomic_add<unsigned>();
  check_atomic_add<unsigned long long>();
  check_atomic_add<float>();
  check_atomic_add<double>();
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    Array<int> i(6, 0);
    Array<unsigned> u(7, 0u);
    Array<long long> l(2, 0);
    Array<unsigned long long> ul(2, 5ull);
    Array<float> f(1, 0.0f);
    cudaMemset(u.data(), 0xff, sizeof(unsigned));
    cudaMemset(u.data() + 3, 0xff, sizeof(unsigned));
    MLFF_LAUNCH(other_atomics, 1, 64, 0, nullptr, i.data(), u.data(), l.data(), ul.data(),
                f.data());
    const std::vector<int> iv = i.read();
    EXPECT(iv[0] == -10 && iv[1] == 63 && iv[2] == -64 && iv[3] == 1 && iv[4] == 1 && iv[5] == 0);
    const std::vector<unsigned> uv = u.read();
    EXPECT(uv[0] == 3 && uv[1] == 63 && uv[2] == kAll && uv[3] == 0 && uv[4] == 0);
    EXPECT(uv[5] == 4 && uv[6] == 6);  // 64 mod 10, and down from 0
    EXPECT(l.read()[0] == -63 && l.read()[1] == 63);
    EXPECT(ul.read()[0] == 0 && ul.read()[1] == 63);
    EXPECT(f.read()[0] == 64.0f);
  });
}

__global__ void intrinsics(int* wrong) {
  const bool right[] = {
      __popc(0xf0f0u) == 8,
      __popcll(1ull << 40 | 1) == 2,
      __ffs(0) == 0 && __ffs(8) == 4,
      __ffsll(1ll << 40) == 41,
      __clz(0) == 32 && __clz(1) == 31,
      __clzll(0) == 64 && __clzll(1) == 63,
      __brev(1u) == 0x80000000u,
      __float_as_int(1.0f) == 0x3f800000 && __int_as_float(0x3f800000) == 1.0f,
      __double_as_longlong(__longlong_as_double(77)) == 77,
      min(1, 2) == 1 && max(1u, 2u) == 2u && min(1.0f, 2.0f) == 1.0f && max(1ll, 2ll) == 2ll,
      max(nanf(""), 1.0f) == 1.0f && min(1.0, static_cast<double>(NAN)) == 1.0,
      rsqrtf(4.0f) == 0.5f && rsqrt(4.0) == 0.5,
      fmaf(2.0f, 3.0f, 1.0f) == 7.0f && fma(2.0, 3.0, 1.0) == 7.0,
      __expf(0.0f) == 1.0f,
      __float2int_rd(-0.5f) == -1,
      make_float4(1, 2, 3, 4).w == 4 && make_double2(1, 2).y == 2 && make_int4(1, 2, 3, 4).z == 3,
      alignof(float4) == 16 && sizeof(float3) == 12 && sizeof(double4) == 32,
  };
  for (bool r : right) {
    if (!r) atomicAdd(wrong, 1);
  }
}

CASE(intrinsics_and_vectors) {
  Array<int> wrong(1, 0);
  MLFF_LAUNCH(intrinsics, 1, 1, 0, nullptr, wrong.data());
  EXPECT(wrong.read()[0] == 0);
}

// --- schedules find races ------------------------------------------------------------------------
__global__ void reverse(int* out, bool barrier) {
  __shared__ int tile[64];
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void between_warps(int* out, bool barrier) {
  __shared__ int slot;
  if (threadIdx.x == 32) slot = 1;
  if (barrier) __syncthreads();
  __syncwarp();
  if (threadIdx.x == 0) out[0] = slot;
}

__global__ void between_blocks(int* out) {
  out[1] = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0) out[0] = out[1];
}

template <class F>
std::size_t distinct_results(F&& f) {
  std::set<std::vector<int>> results;
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) { results.insert(f()); });
  return results.size();
}

CASE(a_missing_barrier_changes_results) {
  for (const bool barrier : {true, false}) {
    const std::size_t reversed = distinct_results([&] {
      Array<int> out(64, 0);
      MLFF_LAUNCH(reverse, 1, 64, 0, nullptr, out.data(), barrier);
      return out.read();
    });
    EXPECT(barrier ? reversed == 1 : reversed > 2);
    const std::size_t between = distinct_results([&] {
      Array<int> out(1, 0);
      MLFF_LAUNCH(between_warps, 1, 64, 0, nullptr, out.data(), barrier);
      return out.read();
    });
    EXPECT(barrier ? between == 1 : between == 2);
  }
  const std::size_t blocks = distinct_results([&] {
    Array<int> out(2, 0);
    MLFF_LAUNCH(between_blocks, 5, 32, 0, nullptr, out.data());
    return out.read();
  });
  EXPECT(blocks > 2);
}

CASE(a_schedule_is_reproducible) {
  for (std::uint64_t seed : {0ull, 1ull, 2ull, 3ull, 99ull}) {
    std::set<std::vector<int>> results;
    for (int repeat = 0; repeat < 3; ++repeat) {
      cuda_host::set_schedule(seed);
      Array<int> sum(1, 0), order(257, 0);
      MLFF_LAUNCH((add_one<int>), 4, 64, 0, nullptr, sum.data(), order.data());
      results.insert(order.read());
    }
    EXPECT(results.size() == 1);
  }
}

// --- divergence ----------------------------------------------------------------------------------
__global__ void diverge(int what, int* out) {
  const int i = static_cast<int>(threadIdx.x);
  if (what == 0 && i == 5) return;
  if (what == 0) out[i] = __shfl_sync(kAll, i, 0);
  if (what == 1) {
    if (i < 8) {
      out[i] = __shfl_xor_sync(kAll, i, 1);
    } else {
      out[i] = static_cast<int>(__ballot_sync(kAll, i));
    }
  }
  if (what == 2 && i < 8) __syncthreads();
  if (what == 2) __syncwarp();
  if (what == 3) {
    if (i < 40) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (what == 4) out[i] = __shfl_sync(0xffu, i, 0);
  if (what == 5) out[i] = __shfl_sync(1u << (i % 32), i, 3);
  if (what == 6) __ballot_sync(i % 32 < 16 ? kAll : kAll - 1, 1);
  if (what == 7) __trap();
  if (what == 8) {
    if (i % 2 == 0) __syncthreads();
    if (i % 2 == 1) __syncthreads_or(1);
  }
  if (what == 9) out[i] = __shfl_sync(kAll, i, 0, 12);
}

CASE(divergence_is_an_error) {
  Array<int> out(64, 0);
  const auto run = [&](int what, unsigned threads = 64) {
    MLFF_LAUNCH(diverge, 1, threads, 0, nullptr, what, out.data());
    finish();
  };
  cuda_host::for_schedules(kSchedules, [&](std::uint64_t) {
    EXPECT_ERROR(run(0), "kernel diverge, block (0,0,0), thread (",
                 "__shfl_sync at threads.cpp:", "names thread (5,0,0)", "has exited");
    EXPECT_ERROR(run(1), "__shfl_xor_sync", "waits at __ballot_sync");
    EXPECT_ERROR(run(2), "names thread (", "waits at __syncthreads at threads.cpp:");
    EXPECT_ERROR(run(3), "__syncthreads", "while others wait at __syncthreads");
    EXPECT_ERROR(run(4), "called by a lane not in its mask");
    EXPECT_ERROR(run(5), "reads lane 3, which is not in the mask");
    EXPECT_ERROR(run(6), "came there with another mask");
    EXPECT_ERROR(run(7), "thread (", "__trap");
    EXPECT_ERROR(run(8), "while others wait at __syncthreads");
    EXPECT_ERROR(run(9), "power of two up to 32, got 12");
    EXPECT_ERROR(run(0, 40), "names lane", "block of 40 threads");
    run(10);  // and a good launch still works afterwards
  });
  EXPECT_ERROR(__syncthreads(), "outside of a kernel");
}

__global__ void fill(int* out, int value) { out[threadIdx.x] = value; }

CASE(impossible_launches_are_refused) {
  Array<int> out(1024, 0);
  const auto run = [&](dim3 grid, dim3 block, std::size_t shared) {
    MLFF_LAUNCH(fill, grid, block, shared, nullptr, out.data(), 3);
  };
  EXPECT_ERROR(run(1, 1025, 0), "kernel fill can not be launched", "(1025,1,1)");
  EXPECT_ERROR(run(1, dim3(32, 33), 0), "1024 threads");
  EXPECT_ERROR(run(1, 0, 0), "threads");
  EXPECT_ERROR(run(0, 32, 0), "empty grid");
  EXPECT_ERROR(run(dim3(1, 65536), 32, 0), "65535");
  EXPECT_ERROR(run(dim3(1, 1, 65536), 32, 0), "65535");
  EXPECT_ERROR(run(1, 32, 49153), "49152 without cudaFuncSetAttribute");
  cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000);
  run(1, 32, 100000);
  EXPECT_ERROR(run(1, 32, 100001), "the limit is 100000");
  EXPECT_ERROR(
      cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024 + 1),
      "at most 232448");
  run(1, 1024, 0);
  for (int v : out.read()) EXPECT(v == 3);
}

// A thousand blocks of 128 threads with 14 suspensions each: the budget of a launch.
__global__ void many_switches(float* out) {
  __shared__ float tile[4];
  float v = 1.0f;
  for (int r = 0; r < 10; ++r) v += __shfl_xor_sync(kAll, v, 1 << (r % 5));
  for (int r = 0; r < 4; ++r) {
    if (threadIdx.x % 32 == 0) tile[threadIdx.x / 32] = v;
    __syncthreads();
  }
  if (threadIdx.x == 0) atomicAdd(out, tile[0] + tile[1] + tile[2] + tile[3]);
}

CASE(a_large_launch_is_quick) {
  Array<float> out(1, 0.0f);
  MLFF_LAUNCH(many_switches, 1000, 128, 0, nullptr, out.data());
  EXPECT(out.read()[0] == 4096.0f * 1000.0f);
}

}  // namespace
