// Device memory and page-locked memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_host {

// Not a number as a float, double or half, and far out of bounds as an index.
constexpr std::uint32_t kPoison = 0x7FF7FFF7u;
void fill_poison(void* memory, std::size_t bytes);

bool is_device(const void* pointer);
bool is_pinned(const void* pointer, std::size_t bytes);
// Throws Error unless [pointer, pointer + bytes) lies within one live allocation.
void check_range(const void* pointer, std::size_t bytes, const char* what);
// Throws Error if a red zone was written to; `where` says after what.
void check_red_zones(const std::string& where);

// Under AddressSanitizer device memory is poisoned except while one of these lives.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

// For host code that copies: the rest stays poisoned.
void copy_bytes(void* to, const void* from, std::size_t bytes);
void set_bytes(void* to, int value, std::size_t bytes);

}  // namespace cuda_host
