// Memory on the device, and page-locked memory of the host, that grow and never shrink.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

enum class Where { kDevice, kPinned };

// Growing does not keep the contents and waits for the device; a captured graph that used the old
// memory is stale (see generation()).
template <typename T, Where where = Where::kDevice>
class Memory {
 public:
  Memory() = default;
  ~Memory() { release(); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }

  // At least `count` items; an eighth more than asked for when it grows again.
  T* require(int64_t count) {
    if (count < 1) count = 1;  // never null
    if (count > count_) {
      const int64_t wanted = count_ ? count + count / 8 : count;
      release();
      void* memory = nullptr;
      const size_t bytes = static_cast<size_t>(wanted) * sizeof(T);
      if (where == Where::kDevice) {
        check(cudaMalloc(&memory, bytes), "allocating device memory");
      } else {
        check(cudaMallocHost(&memory, bytes), "allocating page-locked memory");
      }
      data_ = static_cast<T*>(memory);
      count_ = wanted;
    }
    return data_;
  }
  T* data() const { return data_; }
  int64_t count() const { return count_; }
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }

  // Blocking copies, for weights and tests. Not cudaMemcpy: from memory that is not page-locked it
  // returns as soon as the driver has a copy, and streams of ours do not wait for its stream.
  void assign(const T* from, int64_t count) {
    require(count);
    if (count > 0) {
      check(cudaMemcpyAsync(data_, from, static_cast<size_t>(count) * sizeof(T),
                            cudaMemcpyHostToDevice, nullptr),
            "copying to the device");
      check(cudaStreamSynchronize(nullptr), "copying to the device");
    }
  }
  void assign(const std::vector<T>& from) {
    assign(from.data(), static_cast<int64_t>(from.size()));
  }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
  }
  void release() {
    // Errors cannot be reported from a destructor, and a device that is gone has freed everything.
    if (data_) static_cast<void>(where == Where::kDevice ? cudaFree(data_) : cudaFreeHost(data_));
    data_ = nullptr;
    count_ = 0;
  }

  T* data_ = nullptr;
  int64_t count_ = 0;
};

template <typename T>
using DeviceMemory = Memory<T, Where::kDevice>;
template <typename T>
using PinnedMemory = Memory<T, Where::kPinned>;

// As Bytes in core/memory.h, of the device.
struct BytesOnDevice {
  size_t total = 0;
  template <typename T>
  void operator()(const DeviceMemory<T>& buffer, int64_t) {
    total += buffer.bytes();
  }
  template <typename T>
  void operator()(const PinnedMemory<T>&, int64_t) {}
};

// Blocks of `threads` that cover `count` items.
inline unsigned blocks_for(int64_t count, int64_t threads) {
  return static_cast<unsigned>(count > 0 ? (count + threads - 1) / threads : 1);
}

}  // namespace gpu
}  // namespace mlff
