// One face for the device: CUDA, HIP, or the host emulation of the tests (tests/cuda_host).
//
// Kernels and the code that launches them include this file and nothing of a vendor (but for
// float16, which filters.h alone needs). It gives
//   the runtime API under its CUDA names,
//   mlff::gpu::check(error, what)      throws mlff::DeviceError,
//   MLFF_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//   MLFF_SHARED_ARRAY(type, name)      the dynamic shared memory of the block as `type* name`.
// HIP is kept possible (no PTX, no vendor library in here) but was never compiled.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "core/error.h"

#if defined(MLFF_CUDA_HOST)
#include "cuda_host.h"
#elif defined(__HIP_PLATFORM_AMD__)
#include <hip/hip_runtime.h>
#define cudaError_t hipError_t
#define cudaErrorMemoryAllocation hipErrorOutOfMemory
#define cudaErrorNotReady hipErrorNotReady
#define cudaSuccess hipSuccess
#define cudaDevAttrMaxSharedMemoryPerBlockOptin hipDeviceAttributeSharedMemPerBlockOptin
#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaDeviceProp hipDeviceProp_t
#define cudaDeviceSynchronize hipDeviceSynchronize
#define cudaEventCreate hipEventCreate
#define cudaEventCreateWithFlags hipEventCreateWithFlags
#define cudaEventDestroy hipEventDestroy
#define cudaEventDisableTiming hipEventDisableTiming
#define cudaEventElapsedTime hipEventElapsedTime
#define cudaEventRecord hipEventRecord
#define cudaEventSynchronize hipEventSynchronize
#define cudaEvent_t hipEvent_t
#define cudaFree hipFree
#define cudaFreeHost hipHostFree
#define cudaFuncAttributeMaxDynamicSharedMemorySize hipFuncAttributeMaxDynamicSharedMemorySize
#define cudaFuncSetAttribute(f, a, v) hipFuncSetAttribute(reinterpret_cast<const void*>(f), a, v)
#define cudaGetDevice hipGetDevice
#define cudaGetDeviceCount hipGetDeviceCount
#define cudaGetDeviceProperties hipGetDeviceProperties
#define cudaGetErrorString hipGetErrorString
#define cudaGetLastError hipGetLastError
#define cudaGraphDestroy hipGraphDestroy
#define cudaGraphExecDestroy hipGraphExecDestroy
#define cudaGraphExecUpdate hipGraphExecUpdate
#define cudaGraphExecUpdateResult hipGraphExecUpdateResult
#define cudaGraphExec_t hipGraphExec_t
#define cudaGraphInstantiate(exec, graph, flags) hipGraphInstantiateWithFlags(exec, graph, flags)
#define cudaGraphLaunch hipGraphLaunch
#define cudaGraphNode_t hipGraphNode_t
#define cudaGraph_t hipGraph_t
#define cudaMalloc hipMalloc
#define cudaMallocHost hipHostMalloc
#define cudaMemGetInfo hipMemGetInfo
#define cudaMemcpy hipMemcpy
#define cudaMemcpyAsync hipMemcpyAsync
#define cudaMemcpyDefault hipMemcpyDefault
#define cudaMemcpyDeviceToDevice hipMemcpyDeviceToDevice
#define cudaMemcpyDeviceToHost hipMemcpyDeviceToHost
#define cudaMemcpyHostToDevice hipMemcpyHostToDevice
#define cudaMemsetAsync hipMemsetAsync
#define cudaPeekAtLastError hipPeekAtLastError
#define cudaSetDevice hipSetDevice
#define cudaStreamBeginCapture hipStreamBeginCapture
#define cudaStreamCaptureModeRelaxed hipStreamCaptureModeRelaxed
#define cudaStreamCaptureModeThreadLocal hipStreamCaptureModeThreadLocal
#define cudaStreamCreateWithFlags hipStreamCreateWithFlags
#define cudaStreamDestroy hipStreamDestroy
#define cudaStreamEndCapture hipStreamEndCapture
#define cudaStreamNonBlocking hipStreamNonBlocking
#define cudaStreamSynchronize hipStreamSynchronize
#define cudaStreamWaitEvent hipStreamWaitEvent
#define cudaStream_t hipStream_t
#elif defined(__CUDACC__)
#include <cuda_runtime.h>
#else  // host code of a CUDA build
#include <cuda_runtime_api.h>
#endif

#define MLFF_RESTRICT __restrict__

namespace mlff {
namespace gpu {

// Throws DeviceError: what was being done, what the device says, what to do.
[[noreturn]] inline void fail(cudaError_t error, const std::string& doing) {
  static_cast<void>(cudaGetLastError());  // else the next launch would be blamed
  throw DeviceError(doing + ": " + cudaGetErrorString(error) +
                    (error == cudaErrorMemoryAllocation
                         ? "; make the system smaller, free the GPU's memory or use the CPU"
                         : "; see whether nvidia-smi finds the GPU well, or use the CPU"));
}

// `what` completes "CUDA error while ...".
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(error, std::string("CUDA error while ") + what);
}

// Gives an executable the sizes and addresses of a graph of the same work; false if it is not the
// same, after which the executable is of no use.
inline bool update_graph(cudaGraphExec_t exec, cudaGraph_t graph) {
#if defined(MLFF_CUDA_HOST) || (defined(CUDART_VERSION) && CUDART_VERSION >= 12000)
  cudaGraphExecUpdateResultInfo result;
  const cudaError_t error = cudaGraphExecUpdate(exec, graph, &result);
#else
  cudaGraphNode_t node;
  cudaGraphExecUpdateResult result;
  const cudaError_t error = cudaGraphExecUpdate(exec, graph, &node, &result);
#endif
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error == cudaSuccess;
}

#if defined(MLFF_CUDA_HOST) || defined(__CUDACC__) || defined(__HIP_PLATFORM_AMD__)
// Queues the kernel on the stream, converting arguments to the kernel's parameter types. Throws
// DeviceError naming the kernel when the device refuses the launch.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "wrong number of kernel arguments");
#if defined(MLFF_CUDA_HOST)
  cuda_host::launch(name, kernel, grid, block, shared_bytes, stream, static_cast<P>(arguments)...);
#else
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(arguments)...);
  // clang-format on
#endif
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail(error, std::string("launching ") + name);
}
#endif

}  // namespace gpu
}  // namespace mlff

// A kernel with template arguments goes in parentheses: MLFF_LAUNCH((f<float, 4>), grid, ...).
#define MLFF_LAUNCH(kernel, grid, block, shared_bytes, ...) \
  ::mlff::gpu::launch(#kernel, kernel, grid, block, shared_bytes, __VA_ARGS__)

// 16-byte aligned; one declaration of the bytes serves every type in a translation unit.
#if defined(MLFF_CUDA_HOST)
#define MLFF_SHARED_ARRAY(type, name) type* name = ::cuda_host::dynamic_shared_as<type>()
#else
#define MLFF_SHARED_ARRAY(type, name)                                \
  extern __shared__ __align__(16) unsigned char mlff_shared_bytes[]; \
  type* name = reinterpret_cast<type*>(mlff_shared_bytes)
#endif
