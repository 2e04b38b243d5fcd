// Launching a kernel: arguments are copied now, the kernel runs when the stream does.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <tuple>
#include <utility>

#include "runtime_api.h"
#include "types.h"

namespace cuda_host {

struct Kernel {
  std::string name;
  const void* function;
  dim3 grid, block;
  std::size_t shared_bytes;
  std::function<void()> thread;  // calls the kernel with copies of its arguments
};

// Checks the configuration (throws Error) and queues the kernel.
void enqueue_kernel(Kernel kernel, cudaStream_t stream);
// Runs all blocks now.
void run_kernel(const Kernel& kernel);

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "wrong number of kernel arguments");
  std::string plain = name;
  if (plain.size() > 1 && plain.front() == '(' && plain.back() == ')') {
    plain = plain.substr(1, plain.size() - 2);
  }
  std::tuple<P...> values(static_cast<P>(std::forward<A>(args))...);
  enqueue_kernel(Kernel{plain, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
                        [kernel, values] { std::apply(kernel, values); }},
                 stream);
}

}  // namespace cuda_host
