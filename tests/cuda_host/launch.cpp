// A launch: its limits and the order of its blocks.
#include "launch.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <vector>

#include "cuda_host.h"
#include "memory.h"
#include "racecheck.h"
#include "stream.h"

namespace cuda_host {

Random& schedule_random();

namespace {

std::map<const void*, std::size_t> g_shared_limits;  // raised by cudaFuncSetAttribute

void check_configuration(const Kernel& k) {
  const auto refuse = [&](const std::string& why) {
    throw Error("kernel " + k.name + " can not be launched: " + why);
  };
  const auto dims = [](dim3 d) {
    return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
  };
  const std::uint64_t threads = std::uint64_t{k.block.x} * k.block.y * k.block.z;
  if (threads == 0 || threads > 1024 || k.block.z > 64) {
    refuse("a block has 1 to 1024 threads, and at most 64 in z; got " + dims(k.block));
  }
  if (k.grid.x == 0 || k.grid.y == 0 || k.grid.z == 0) refuse("empty grid " + dims(k.grid));
  if (k.grid.x > 2147483647u || k.grid.y > 65535 || k.grid.z > 65535) {
    refuse("a grid has at most 2147483647, 65535, 65535 blocks; got " + dims(k.grid));
  }
  const auto raised = g_shared_limits.find(k.function);
  const std::size_t limit = raised == g_shared_limits.end() ? kMaxSharedBytes : raised->second;
  if (k.shared_bytes > limit) {
    refuse(std::to_string(k.shared_bytes) + " bytes of dynamic shared memory, the limit is " +
           std::to_string(limit) +
           (raised == g_shared_limits.end() ? " without cudaFuncSetAttribute" : ""));
  }
}

std::vector<std::uint64_t> block_order(std::uint64_t n) {
  std::vector<std::uint64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (schedule() == 1) std::reverse(order.begin(), order.end());
  if (schedule() > 1) {
    for (std::uint64_t i = n; i > 1; --i) {
      std::swap(order[i - 1], order[schedule_random().below(static_cast<std::uint32_t>(i))]);
    }
  }
  return order;
}

}  // namespace

void enqueue_kernel(Kernel kernel, cudaStream_t stream) {
  if (begin_call(kernel.name.c_str(), true) != cudaSuccess) return;  // cudaGetLastError has it
  check_configuration(kernel);
  Operation operation;
  operation.kernel = kernel.name;
  operation.run = [kernel] { run_kernel(kernel); };
  enqueue(stream, std::move(operation), ("kernel " + kernel.name).c_str());
}

void run_kernel(const Kernel& k) {
  const std::string where = "kernel " + k.name;
  {
    DeviceAccess access;
    race_kernel_begins();
    const std::uint64_t n = std::uint64_t{k.grid.x} * k.grid.y * k.grid.z;
    for (const std::uint64_t b : block_order(n)) {
      const uint3 index{static_cast<unsigned>(b % k.grid.x),
                        static_cast<unsigned>(b / k.grid.x % k.grid.y),
                        static_cast<unsigned>(b / (std::uint64_t{k.grid.x} * k.grid.y))};
      scribble_shared(k.shared_bytes);
      race_block_begins();
      run_block(k.name, index, k.block, k.grid, k.thread, schedule(), schedule_random());
      const std::string block_name = where + ", block (" + std::to_string(index.x) + "," +
                                     std::to_string(index.y) + "," + std::to_string(index.z) + ")";
      check_shared(block_name);
      race_block_ends(block_name);
    }
  }
  check_red_zones(where);
}

cudaError_t set_attribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (cudaError_t error = begin_call("cudaFuncSetAttribute", true)) return error;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<std::size_t>(value) > kMaxSharedBytesOptIn) {
    throw Error("cudaFuncSetAttribute: at most " + std::to_string(kMaxSharedBytesOptIn) +
                " bytes of shared memory, got " + std::to_string(value));
  }
  g_shared_limits[function] =
      std::max<std::size_t>(static_cast<std::size_t>(value), kMaxSharedBytes);
  return cudaSuccess;
}

}  // namespace cuda_host
