#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>

#include "cuda_host.h"
#include "fibre.h"
#include "racecheck.h"
#include "stream.h"

#ifdef CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) \
  (static_cast<void>(address), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) \
  (static_cast<void>(address), static_cast<void>(size))
#endif

namespace cuda_host {
namespace {

constexpr std::size_t kAlignment = 256;  // of cudaMalloc
constexpr std::size_t kRedZone = 1024;   // on both sides
constexpr std::size_t kDefaultLimit = std::size_t{16} << 30;
constexpr unsigned char kZoneByte = 0xC5;

struct Allocation {
  std::size_t bytes;
  std::size_t padded;  // up to where the red zone behind starts to count as padding
  std::int64_t number;
};

std::map<std::uintptr_t, Allocation> g_device;
std::map<std::uintptr_t, std::size_t> g_pinned;
std::size_t g_limit = kDefaultLimit;
std::size_t g_used = 0;
std::int64_t g_number = 0;
int g_open = 0;  // nested DeviceAccess

char* at(std::uintptr_t address) { return reinterpret_cast<char*>(address); }

// The first damaged byte, or null. Red zones are poisoned for everybody else.
#ifdef CUDA_HOST_ASAN
__attribute__((no_sanitize_address))
#endif
const volatile char* damaged(const volatile char* from, const volatile char* to) {
  for (; from < to; ++from) {
    if (static_cast<unsigned char>(*from) != kZoneByte) return from;
  }
  return nullptr;
}

void check_one(std::uintptr_t address, const Allocation& a, const std::string& where) {
  const char* start = at(address);
  const volatile char* hit = damaged(start - kRedZone, start);
  if (hit == nullptr) hit = damaged(start + a.bytes, start + a.padded + kRedZone);
  if (hit == nullptr) return;
  const std::ptrdiff_t offset = const_cast<const char*>(hit) - start;
  // Repair, so that the next test starts clean.
  ASAN_UNPOISON_MEMORY_REGION(start - kRedZone, kRedZone);
  ASAN_UNPOISON_MEMORY_REGION(start + a.bytes, a.padded - a.bytes + kRedZone);
  std::memset(at(address) - kRedZone, kZoneByte, kRedZone);
  std::memset(at(address) + a.bytes, kZoneByte, a.padded - a.bytes + kRedZone);
  ASAN_POISON_MEMORY_REGION(start - kRedZone, kRedZone);
  ASAN_POISON_MEMORY_REGION(start + a.bytes, a.padded - a.bytes + kRedZone);
  throw Error(where + ": device memory was written out of bounds, at byte " +
              std::to_string(offset) + " of allocation " + std::to_string(a.number) + " of " +
              std::to_string(a.bytes) + " bytes");
}

std::map<std::uintptr_t, Allocation>::iterator find(const void* pointer) {
  auto next = g_device.upper_bound(reinterpret_cast<std::uintptr_t>(pointer));
  if (next == g_device.begin()) return g_device.end();
  --next;
  const std::uintptr_t end = next->first + next->second.padded + kRedZone;
  return reinterpret_cast<std::uintptr_t>(pointer) < end ? next : g_device.end();
}

}  // namespace

void fill_poison(void* memory, std::size_t bytes) {
  char* to = static_cast<char*>(memory);
  for (std::size_t i = 0; i < bytes; i += sizeof kPoison) {
    std::memcpy(to + i, &kPoison, bytes - i < sizeof kPoison ? bytes - i : sizeof kPoison);
  }
}

bool is_device(const void* pointer) { return find(pointer) != g_device.end(); }

bool is_pinned(const void* pointer, std::size_t bytes) {
  auto next = g_pinned.upper_bound(reinterpret_cast<std::uintptr_t>(pointer));
  if (next == g_pinned.begin()) return false;
  --next;
  return reinterpret_cast<std::uintptr_t>(pointer) + bytes <= next->first + next->second;
}

void check_range(const void* pointer, std::size_t bytes, const char* what) {
  if (bytes == 0) return;
  const auto found = find(pointer);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (found == g_device.end()) throw Error(std::string(what) + ": not device memory");
  if (address < found->first || address + bytes > found->first + found->second.bytes) {
    throw Error(std::string(what) + ": bytes " +
                std::to_string(static_cast<std::int64_t>(address - found->first)) + " to " +
                std::to_string(static_cast<std::int64_t>(address + bytes - found->first)) +
                " of allocation " + std::to_string(found->second.number) + ", which has " +
                std::to_string(found->second.bytes));
  }
}

void check_red_zones(const std::string& where) {
  for (const auto& entry : g_device) check_one(entry.first, entry.second, where);
}

DeviceAccess::DeviceAccess() {
  if (g_open++ > 0) return;
  for (const auto& entry : g_device) {
    ASAN_UNPOISON_MEMORY_REGION(at(entry.first), entry.second.bytes);
  }
}

DeviceAccess::~DeviceAccess() {
  if (--g_open > 0) return;
  for (const auto& entry : g_device) {
    ASAN_POISON_MEMORY_REGION(at(entry.first), entry.second.bytes);
  }
}

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  if (is_device(to)) ASAN_UNPOISON_MEMORY_REGION(to, bytes);
  if (is_device(from)) ASAN_UNPOISON_MEMORY_REGION(from, bytes);
  std::memmove(to, from, bytes);
  if (g_open > 0) return;
  if (is_device(to)) ASAN_POISON_MEMORY_REGION(to, bytes);
  if (is_device(from)) ASAN_POISON_MEMORY_REGION(from, bytes);
}

void set_bytes(void* to, int value, std::size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(to, bytes);
  std::memset(to, value, bytes);
  if (g_open == 0) ASAN_POISON_MEMORY_REGION(to, bytes);
}

std::int64_t live_allocations() { return static_cast<std::int64_t>(g_device.size()); }

void set_memory_limit(std::size_t bytes) { g_limit = bytes == 0 ? kDefaultLimit : bytes; }

}  // namespace cuda_host

using namespace cuda_host;

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  if (cudaError_t error = begin_call("cudaMalloc", false)) return error;
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const std::size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (g_used + padded > g_limit) return set_last_error(cudaErrorMemoryAllocation);
  char* block = static_cast<char*>(std::aligned_alloc(kAlignment, padded + 2 * kRedZone));
  if (block == nullptr) return set_last_error(cudaErrorMemoryAllocation);
  ++counters().device_allocations;
  g_used += padded;
  char* start = block + kRedZone;
  std::memset(block, kZoneByte, kRedZone);
  fill_poison(start, bytes);
  std::memset(start + bytes, kZoneByte, padded - bytes + kRedZone);
  ASAN_POISON_MEMORY_REGION(block, padded + 2 * kRedZone);
  g_device[reinterpret_cast<std::uintptr_t>(start)] = Allocation{bytes, padded, g_number++};
  race_register(start, bytes, g_number - 1);
  *pointer = start;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) noexcept {
  if (pointer == nullptr) return cudaSuccess;
  return catch_error([&] {
    if (cudaError_t error = begin_call("cudaFree", false)) return error;
    const auto found = g_device.find(reinterpret_cast<std::uintptr_t>(pointer));
    if (found == g_device.end()) throw Error("cudaFree: not the start of a device allocation");
    run_everything();  // the device may still be using it
    ++counters().host_synchronisations;
    ++counters().device_frees;
    const Allocation allocation = found->second;
    char* block = at(found->first) - kRedZone;
    g_device.erase(found);
    race_unregister(pointer);
    const auto release = [&] {
      ASAN_UNPOISON_MEMORY_REGION(block, allocation.padded + 2 * kRedZone);
      g_used -= allocation.padded;
      std::free(block);
    };
    try {
      check_one(reinterpret_cast<std::uintptr_t>(pointer), allocation, "cudaFree");
    } catch (...) {
      release();
      throw;
    }
    release();
    return cudaSuccess;
  });
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  if (cudaError_t error = begin_call("cudaMallocHost", false)) return error;
  *pointer = std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment);
  if (*pointer == nullptr) return set_last_error(cudaErrorMemoryAllocation);
  fill_poison(*pointer, bytes);
  ++counters().pinned_allocations;
  g_pinned[reinterpret_cast<std::uintptr_t>(*pointer)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  return cudaMallocHost(pointer, bytes);
}

cudaError_t cudaFreeHost(void* pointer) noexcept {
  if (pointer == nullptr) return cudaSuccess;
  return catch_error([&] {
    if (cudaError_t error = begin_call("cudaFreeHost", false)) return error;
    if (g_pinned.count(reinterpret_cast<std::uintptr_t>(pointer)) == 0) {
      throw Error("cudaFreeHost: not page-locked memory");
    }
    run_everything();
    ++counters().host_synchronisations;
    g_pinned.erase(reinterpret_cast<std::uintptr_t>(pointer));
    std::free(pointer);
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  if (cudaError_t error = begin_call("cudaMemGetInfo", true)) return error;
  *total = g_limit;
  *available = g_limit > g_used ? g_limit - g_used : 0;
  return cudaSuccess;
}
