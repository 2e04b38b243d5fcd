// Makes a device current for a scope. The caller (torch, another potential) finds its own again.
#pragma once

#include "cuda/gpu.h"

#if !defined(_WIN32) && !defined(__HIP_PLATFORM_AMD__) && !defined(MLFF_CUDA_HOST)
#include <dlfcn.h>

#include <cstring>
#endif

namespace mlff {
namespace gpu {

// Whether this process has work on a device. Making another current would create a context there:
// some 300 MB, on the first GPU, of every LAMMPS rank that uses another.
inline bool has_context(int device) {
#if !defined(_WIN32) && !defined(__HIP_PLATFORM_AMD__) && !defined(MLFF_CUDA_HOST)
  typedef int (*State)(int device, unsigned* flags, int* active);  // of the driver's interface
  static const State state = [] {
    State function = nullptr;
    void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    void* address = driver ? dlsym(driver, "cuDevicePrimaryCtxGetState") : nullptr;
    std::memcpy(&function, &address, sizeof(address));
    return function;
  }();
  unsigned flags = 0;
  int active = 0;
  return state && state(device, &flags, &active) == 0 && active;
#else
  static_cast<void>(device);
  return true;
#endif
}

class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    int before = device;
    check(cudaGetDevice(&before), "asking for the device");
    if (before == device) return;
    if (has_context(before)) before_ = before;
    check(cudaSetDevice(device), "selecting the device");
  }
  ~CurrentDevice() {
    if (before_ >= 0) static_cast<void>(cudaSetDevice(before_));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = -1;  // to go back to
};

}  // namespace gpu
}  // namespace mlff
