// The emulation's own tests. A case throws to fail; main.cpp runs one by name.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/gpu.h"

namespace selftest {

using Case = void (*)();

inline std::map<std::string, Case>& cases() {
  static std::map<std::string, Case> all;
  return all;
}

struct Register {
  Register(const char* name, Case f) { cases()[name] = f; }
};

inline void expect(bool condition, const char* text, const char* file, int line) {
  if (condition) return;
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": expected " + text);
}

// f() must throw a cuda_host::Error whose message contains every one of `parts`.
template <class F>
void expect_error(F&& f, std::initializer_list<const char*> parts, const char* file, int line) {
  const std::string at = std::string(file) + ":" + std::to_string(line) + ": ";
  std::string message;
  try {
    f();
  } catch (const cuda_host::Error& error) {
    message = error.what();
  }
  if (message.empty()) throw std::runtime_error(at + "no error was thrown");
  for (const char* part : parts) {
    if (message.find(part) == std::string::npos) {
      throw std::runtime_error(at + "expected '" + part + "' in: " + message);
    }
  }
  if (message.find('\n') != std::string::npos) throw std::runtime_error(at + "more than one line");
  std::printf("%s\n", message.c_str());
}

// An array on the device, freed in time, read with a blocking copy.
template <class T>
class Array {
 public:
  explicit Array(std::size_t n) : size_(n) { cudaMalloc(&data_, n * sizeof(T)); }
  Array(std::size_t n, T value) : Array(n) {
    const std::vector<T> values(n, value);
    cudaMemcpy(data_, values.data(), n * sizeof(T), cudaMemcpyHostToDevice);
    cudaStreamSynchronize(nullptr);  // other streams may use it
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace selftest

#define CASE(name)                                                        \
  static void case_##name();                                              \
  static const ::selftest::Register register_##name(#name, &case_##name); \
  static void case_##name()
#define EXPECT(condition) ::selftest::expect((condition), #condition, __FILE__, __LINE__)
#define EXPECT_ERROR(statement, ...) \
  ::selftest::expect_error([&] { statement; }, {__VA_ARGS__}, __FILE__, __LINE__)
