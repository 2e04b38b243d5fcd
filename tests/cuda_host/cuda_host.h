// CUDA on the host: kernels compiled by a C++ compiler, executed on fibres. For tests.
//
//   g++ -std=c++17 -DMLFF_CUDA_HOST -I tests/cuda_host -x c++ kernels.cu test.cpp
//   tests/cuda_host/*.cpp
//
// It shows whether a kernel's result is right and whether it depends on the order in which threads,
// warps, blocks and streams run; how fast it is on a device it can not show. Stricter than a device
// where it matters:
//
//   schedules   who runs next at barriers, shuffles, votes, atomics and fences is a function of
//               set_schedule(seed). A result that depends on the seed is a race.
//   streams     work is queued and runs when the host waits for it (in an order, between streams,
//               that depends on the seed), so that reading too early gives the old values. A
//               blocking copy from memory that is not page-locked returns before it has run, as it
//               may.
//   memory      device memory starts as NaN and lies between red zones, checked after every kernel.
//               Shared memory starts as NaN in every block. Under AddressSanitizer device memory is
//               poisoned while the host runs.
//   divergence  a barrier or collective that not all named threads reach is an error, and so is
//   what
//               a device would refuse to launch.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

#include "device.h"
#include "launch.h"
#include "runtime_api.h"
#include "shared.h"
#include "types.h"

namespace cuda_host {

// One line: kernel, block, thread, what went wrong.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// 0: everything in order; 1: everything in reverse; others: random. Pending work is run before.
void set_schedule(std::uint64_t seed);
std::uint64_t schedule();

// Calls f(seed) under the schedules 0 .. n-1 and returns to 0.
template <class F>
void for_schedules(int n, F&& f) {
  for (int seed = 0; seed < n; ++seed) {
    set_schedule(static_cast<std::uint64_t>(seed));
    f(static_cast<std::uint64_t>(seed));
  }
  set_schedule(0);
}

// What the host asked the device to do since reset_counters().
struct Counters {
  std::map<std::string, std::int64_t> launches;  // by kernel; those of launched graphs included
  std::int64_t host_synchronisations = 0;        // the host waited for the device
  std::int64_t device_allocations = 0;
  std::int64_t device_frees = 0;
  std::int64_t pinned_allocations = 0;
  std::int64_t graph_launches = 0;
  std::int64_t graph_instantiations = 0;
  std::int64_t graph_updates = 0;
  std::int64_t pageable_copies = 0;  // asynchronous copies from or to memory that is not pinned
  std::int64_t bytes_to_device = 0;
  std::int64_t bytes_to_host = 0;

  std::int64_t total_launches() const {
    std::int64_t sum = 0;
    for (const auto& entry : launches) sum += entry.second;
    return sum;
  }
};
Counters& counters();
void reset_counters();

// Device allocations that were not freed.
std::int64_t live_allocations();
// cudaMalloc fails with cudaErrorMemoryAllocation beyond this; 0 restores the default of 16 GB.
void set_memory_limit(std::size_t bytes);
// 0 makes every call that needs a device fail with cudaErrorNoDevice.
void set_device_count(int count);
// Drops pending work and pending errors of all streams.
void abandon_work();

}  // namespace cuda_host
