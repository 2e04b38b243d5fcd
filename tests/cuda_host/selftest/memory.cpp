// Device, shared and page-locked memory: patterns, red zones, copies, limits.
#include <cmath>

#include "selftest.h"

using selftest::Array;

namespace {

__global__ void write_at(float* out, long long index, float value) { out[index] = value; }

__global__ void copy_at(const float* from, long long index, float* out) { out[0] = from[index]; }

CASE(device_memory_starts_as_nan) {
  Array<float> f(100);
  Array<double> d(100);
  Array<int> i(100);
  for (float v : f.read()) EXPECT(std::isnan(v));
  for (double v : d.read()) EXPECT(std::isnan(v));
  for (int v : i.read()) EXPECT(v > 1000000000);
}

CASE(global_writes_out_of_bounds_are_found) {
  for (const long long index : {-1ll, 100ll, 104ll, -200ll, 300ll}) {
    Array<float> before(100, 0.0f), array(100, 0.0f), after(100, 0.0f);
    MLFF_LAUNCH(write_at, 1, 1, 0, nullptr, array.data(), index, 1.0f);
    EXPECT_ERROR(cudaDeviceSynchronize(), "kernel write_at", "written out of bounds",
                 "of 400 bytes");
    MLFF_LAUNCH(write_at, 1, 1, 0, nullptr, array.data(), 99, 1.0f);  // and is not found twice
    EXPECT(array.read()[99] == 1.0f);
  }
}

CASE(global_read_out_of_bounds) {  // a report under AddressSanitizer, anything else without
  Array<float> array(100, 0.0f), out(1, 0.0f);
  MLFF_LAUNCH(copy_at, 1, 1, 0, nullptr, array.data(), 100, out.data());
  out.read();
}

CASE(host_dereference) {
  Array<float> array(100, 0.0f);
  volatile float* pointer = array.data();
  std::printf("%g\n", static_cast<double>(pointer[3]));
}

// --- shared memory -------------------------------------------------------------------------------
template <class T>
__global__ void leave_behind(T* out) {
  __shared__ T array[4];
  __shared__ T scalar;
  MLFF_SHARED_ARRAY(T, dynamic);
  if (threadIdx.x == 0) {
    out[3 * blockIdx.x] = array[2];
    out[3 * blockIdx.x + 1] = scalar;
    out[3 * blockIdx.x + 2] = dynamic[7];
    array[2] = scalar = dynamic[7] = T(1);
  }
}

CASE(shared_memory_starts_as_nan_in_every_block) {
  cuda_host::for_schedules(4, [&](std::uint64_t) {
    Array<float> f(9, 0.0f);
    Array<double> d(9, 0.0);
    MLFF_LAUNCH((leave_behind<float>), 3, 32, 8 * sizeof(float), nullptr, f.data());
    MLFF_LAUNCH((leave_behind<double>), 3, 32, 8 * sizeof(double), nullptr, d.data());
    for (float v : f.read()) EXPECT(std::isnan(v));
    for (double v : d.read()) EXPECT(std::isnan(v));
  });
}

// volatile: the compiler must not notice.
__global__ void write_shared(volatile int index, bool dynamic) {
  __shared__ volatile float array[8];
  MLFF_SHARED_ARRAY(volatile float, extra);
  volatile float* target = dynamic ? extra : array;
  target[index] = 1.0f;
}

template <class T>
__global__ void write_shared_template(volatile int index) {
  __shared__ volatile T array[8];
  volatile T* target = array;
  target[index] = T(1);
}

CASE(shared_writes_out_of_bounds_are_found) {
  for (const int index : {-1, 8, 10}) {
    for (const bool dynamic : {false, true}) {
      MLFF_LAUNCH(write_shared, 4, 1, 32, nullptr, index, dynamic);
      EXPECT_ERROR(cudaDeviceSynchronize(), "kernel write_shared, block (0,0,0)",
                   "was written out of bounds", dynamic ? "dynamic shared memory of 32" : "array");
    }
    MLFF_LAUNCH((write_shared_template<double>), 1, 1, 0, nullptr, index);
    EXPECT_ERROR(cudaDeviceSynchronize(), "write_shared_template<double>", "out of bounds");
  }
  MLFF_LAUNCH(write_shared, 4, 1, 32, nullptr, 7, false);
  MLFF_LAUNCH(write_shared, 4, 1, 32, nullptr, 7, true);
  cudaDeviceSynchronize();
}

// --- copies --------------------------------------------------------------------------------------
CASE(copies_are_checked) {
  Array<float> array(16, 1.0f), other(16, 2.0f);
  float host[32] = {};
  EXPECT_ERROR(cudaMemcpy(array.data(), host, 17 * 4, cudaMemcpyHostToDevice), "bytes 0 to 68",
               "which has 64");
  EXPECT_ERROR(cudaMemcpy(host, array.data() + 1, 16 * 4, cudaMemcpyDeviceToHost), "bytes 4 to 68");
  EXPECT_ERROR(cudaMemcpy(host, host + 16, 4, cudaMemcpyHostToDevice),
               "destination is not device memory");
  EXPECT_ERROR(cudaMemcpy(array.data(), other.data(), 4, cudaMemcpyHostToDevice),
               "source is device memory");
  EXPECT_ERROR(cudaMemsetAsync(array.data(), 0, 65), "bytes 0 to 65");
  EXPECT_ERROR(cudaMemsetAsync(host, 0, 4), "not device memory");
  cudaMemcpy(array.data(), other.data(), 8, cudaMemcpyDefault);
  cudaMemcpy(host, array.data(), 64, cudaMemcpyDefault);
  EXPECT(host[0] == 2.0f && host[1] == 2.0f && host[2] == 1.0f);
  cudaMemset(array.data(), 0, 4);
  EXPECT(array.read()[0] == 0.0f && array.read()[1] == 2.0f);
}

CASE(memory_runs_out) {
  cuda_host::set_memory_limit(1 << 20);
  std::size_t available = 0, total = 0;
  cudaMemGetInfo(&available, &total);
  EXPECT(total == 1 << 20 && available == total);
  {
    Array<char> half(1 << 19);
    void* more = nullptr;
    EXPECT(cudaMalloc(&more, (1 << 19) + 1) == cudaErrorMemoryAllocation && more == nullptr);
    EXPECT(cudaPeekAtLastError() == cudaErrorMemoryAllocation);
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    cudaMemGetInfo(&available, &total);
    EXPECT(available == 1 << 19);
  }
  cuda_host::set_memory_limit(0);
  bool thrown = false;
  try {
    mlff::gpu::check(cudaErrorMemoryAllocation, "allocating edges");
  } catch (const mlff::DeviceError& error) {
    thrown = std::string(error.what()) ==
             "CUDA error while allocating edges: out of memory; make the system smaller, free the "
             "GPU's memory or use the CPU";
  }
  EXPECT(thrown);
}

CASE(bad_frees_are_reported_by_the_next_call) {
  Array<float> array(16);
  EXPECT(cudaFree(array.data() + 1) == cudaErrorUnknown);  // must not throw: destructors call it
  EXPECT_ERROR(cudaDeviceSynchronize(), "cudaFree: not the start");
  float pageable = 0;
  cudaFreeHost(&pageable);
  EXPECT_ERROR(cudaDeviceSynchronize(), "not page-locked");
  EXPECT(cudaFree(nullptr) == cudaSuccess && cudaFreeHost(nullptr) == cudaSuccess);
  cudaGetLastError();
}

CASE(no_device) {
  cuda_host::set_device_count(0);
  int count = -1;
  EXPECT(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
  void* pointer = nullptr;
  EXPECT(cudaMalloc(&pointer, 4) == cudaErrorNoDevice);
  cudaStream_t stream = nullptr;
  EXPECT(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaErrorNoDevice);
  bool thrown = false;
  try {
    MLFF_LAUNCH(write_at, 1, 1, 0, nullptr, nullptr, 0, 1.0f);
  } catch (const mlff::DeviceError& error) {
    thrown = std::string(error.what()).find("launching write_at: no CUDA-capable") == 0;
  }
  EXPECT(thrown);
  cuda_host::set_device_count(1);
  cudaDeviceProp properties;
  EXPECT(cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.warpSize == 32);
  EXPECT(cudaGetDeviceProperties(&properties, 1) == cudaErrorInvalidDevice);
  EXPECT(cudaSetDevice(1) == cudaErrorInvalidDevice && cudaSetDevice(0) == cudaSuccess);
  cudaGetLastError();
}

}  // namespace
