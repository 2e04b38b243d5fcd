// Copies, and questions about the device.
#include <cstring>
#include <memory>
#include <vector>

#include "cuda_host.h"
#include "memory.h"
#include "stream.h"

using namespace cuda_host;

namespace {

struct Direction {
  bool to_device, from_device;
};

// Where the copy goes; Error when a pointer is not on the side that `kind` says.
Direction direction_of(const void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  Direction d{is_device(to), is_device(from)};
  if (kind != cudaMemcpyDefault) {
    const bool want_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool want_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (d.to_device != want_to || d.from_device != want_from) {
      throw Error(std::string("cudaMemcpy: ") +
                  (d.to_device != want_to ? "destination" : "source") + " is " +
                  ((d.to_device != want_to ? d.to_device : d.from_device) ? "" : "not ") +
                  "device memory");
    }
  }
  if (d.to_device) check_range(to, bytes, "cudaMemcpy to device");
  if (d.from_device) check_range(from, bytes, "cudaMemcpy from device");
  return d;
}

void count(Direction d, std::size_t bytes) {
  if (d.to_device && !d.from_device) {
    counters().bytes_to_device += static_cast<std::int64_t>(bytes);
  }
  if (d.from_device && !d.to_device) counters().bytes_to_host += static_cast<std::int64_t>(bytes);
}

}  // namespace

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (cudaError_t error = begin_call("cudaMemcpyAsync", true)) return error;
  if (bytes == 0) return cudaSuccess;
  const Direction d = direction_of(to, from, bytes, kind);
  const bool pageable_to = !d.to_device && !is_pinned(to, bytes);
  const bool pageable_from = !d.from_device && !is_pinned(from, bytes);
  count(d, bytes);
  if (pageable_to || pageable_from) {
    if (is_capturing(stream)) {
      throw Error("cudaMemcpyAsync: copy of pageable host memory in a captured stream");
    }
    ++counters().pageable_copies;
  }
  std::shared_ptr<std::vector<char>> staged;
  if (pageable_from) {  // staged by the driver before the call returns
    const char* source = static_cast<const char*>(from);
    staged = std::make_shared<std::vector<char>>(source, source + bytes);
  }
  Operation operation;
  operation.run = [=] {
    if (d.to_device) check_range(to, bytes, "cudaMemcpyAsync to device, when it ran");
    if (d.from_device) check_range(from, bytes, "cudaMemcpyAsync from device, when it ran");
    copy_bytes(to, staged ? staged->data() : from, bytes);
  };
  enqueue(stream, std::move(operation), "cudaMemcpyAsync");
  if (pageable_to) {  // returns only when the copy is done
    ++counters().host_synchronisations;
    run_stream(stream);
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (cudaError_t error = begin_call("cudaMemcpy", false)) return error;
  if (bytes == 0) return cudaSuccess;
  const Direction d = direction_of(to, from, bytes, kind);
  count(d, bytes);
  if (d.to_device && !d.from_device && !is_pinned(from, bytes)) {
    // Returns once the driver has a copy, which may be before it has arrived.
    ++counters().host_synchronisations;
    run_stream(nullptr);
    const char* source = static_cast<const char*>(from);
    const auto staged = std::make_shared<std::vector<char>>(source, source + bytes);
    enqueue(nullptr, Operation{[=] { copy_bytes(to, staged->data(), bytes); }, {}, {}, 0},
            "cudaMemcpy");
    return cudaSuccess;
  }
  enqueue(nullptr, Operation{[=] { copy_bytes(to, from, bytes); }, {}, {}, 0}, "cudaMemcpy");
  if (d.to_device && d.from_device) return cudaSuccess;  // asynchronous, as on a device
  ++counters().host_synchronisations;
  run_stream(nullptr);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (cudaError_t error = begin_call("cudaMemsetAsync", true)) return error;
  if (bytes == 0) return cudaSuccess;
  check_range(to, bytes, "cudaMemset");
  Operation operation;
  operation.run = [=] {
    check_range(to, bytes, "cudaMemset, when it ran");
    set_bytes(to, value, bytes);
  };
  enqueue(stream, std::move(operation), "cudaMemset");
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorGraphExecUpdateFailure:
      return "cudaErrorGraphExecUpdateFailure";
    default:
      return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorGraphExecUpdateFailure:
      return "the graph update was not performed because it included changes which violated "
             "constraints specific to instantiated graph update";
    default:
      return "unknown error";
  }
}

cudaError_t cudaGetDevice(int* device) {
  if (cudaError_t error = begin_call("cudaGetDevice", true)) return error;
  *device = current_device();
  return cudaSuccess;
}

// An H100's limits, with few multiprocessors so that grids sized by their number stay small.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (cudaError_t error = begin_call("cudaGetDeviceProperties", true)) return error;
  int devices = 0;
  cudaGetDeviceCount(&devices);
  if (device < 0 || device >= devices) return set_last_error(cudaErrorInvalidDevice);
  *p = cudaDeviceProp{};
  std::strcpy(p->name, "host emulation");
  std::size_t available = 0;
  cudaMemGetInfo(&available, &p->totalGlobalMem);
  p->sharedMemPerBlock = kMaxSharedBytes;
  p->sharedMemPerBlockOptin = kMaxSharedBytesOptIn;
  p->sharedMemPerMultiprocessor = kMaxSharedBytesOptIn + 1024;
  p->major = 9;
  p->minor = 0;
  p->warpSize = 32;
  p->multiProcessorCount = 4;
  p->regsPerBlock = 65536;
  p->l2CacheSize = 50 << 20;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return set_last_error(cudaErrorInvalidValue);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
