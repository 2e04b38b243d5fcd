// Work buffers that are aligned, kept, and backed by huge pages where the system offers them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mlff {

// Grows and never shrinks; growing does not keep the contents. Uninitialised.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  // At least `count` numbers. Grows by an eighth more than asked for when it grows again, so that a
  // slowly growing ghost shell does not allocate every step.
  T* require(int64_t count) {
    const size_t wanted = static_cast<size_t>(count) * sizeof(T);
    if (wanted > bytes_) allocate(bytes_ ? wanted + wanted / 8 : wanted);
    return data_;
  }
  T* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  // Huge pages: the first touch of each 4 kB page costs about as much as computing on it, and
  // gathering neighbours' rows at random misses the TLB.
  void allocate(size_t bytes) {
    constexpr size_t kHuge = size_t{1} << 21;
    const size_t alignment = bytes >= kHuge ? kHuge : 64;
    bytes = (bytes + 63) / 64 * 64;
    std::free(data_);
    data_ = nullptr;
    bytes_ = 0;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
    data_ = static_cast<T*>(memory);
    bytes_ = bytes;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kHuge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  }

  T* data_ = nullptr;
  size_t bytes_ = 0;
};

// Owners of buffers list them once, as each(f) with f(buffer, count), for these two: `require`
// makes room for count items (-1: the buffer is not needed), and Bytes counts what there is.
constexpr auto require = [](auto& buffer, int64_t count) {
  if (count >= 0) buffer.require(count);
};

struct Bytes {
  size_t total = 0;
  template <typename T>
  void operator()(const Buffer<T>& buffer, int64_t = 0) {
    total += buffer.bytes();
  }
  template <typename T>
  void operator()(const std::vector<T>& values, int64_t = 0) {
    total += values.capacity() * sizeof(T);
  }
};

}  // namespace mlff
