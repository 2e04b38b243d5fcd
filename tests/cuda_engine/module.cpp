// The GPU engine under host emulation as a Python module, for tests/test_cuda_engine.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/errors.h"
#include "bindings/gpu_python.h"
#include "bindings/testing.h"
#include "core/error.h"
#include "cuda/dense.h"
#include "cuda/potential.h"
#include "cuda_host.h"

namespace py = pybind11;

void bind_messages(py::module_& m);  // messages.cpp

namespace {

// cuBLAS' column-major product, enqueued like it, to prove that we pass it the right arguments.
template <typename T>
__global__ void column_major(int m, int n, int k, const T* a, int lda, const T* b, int ldb, T beta,
                             T* c, int ldc) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), j = blockIdx.y;
  if (i >= m || j >= n) return;
  T sum = 0;
  for (int p = 0; p < k; ++p) sum += a[i + p * lda] * b[p + j * ldb];
  c[i + j * ldc] = sum + (beta != T(0) ? beta * c[i + j * ldc] : T(0));
}

struct FakeCublas : mlff::gpu::Cublas {
  static inline cudaStream_t stream = nullptr;
  static inline int compute = 0;

  FakeCublas() {
    path = "of the tests";
    version = "0.0.0";
    create = [](void** handle) {
      *handle = &stream;
      return 0;
    };
    destroy = [](void*) { return 0; };
    set_stream = [](void*, cudaStream_t s) {
      stream = s;
      return 0;
    };
    set_workspace = [](void*, void*, size_t) { return 0; };
    gemm = [](void*, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
              int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c,
              int type_c, int ldc, int how, int) {
      if (op_a || op_b || type_a != type_b || type_a != type_c) return 15;  // not supported
      compute = how;
      const dim3 grid((m + 63) / 64, n);
      if (type_a == 0 && *static_cast<const float*>(alpha) == 1.0f) {
        MLFF_LAUNCH(column_major<float>, grid, dim3(64), 0, stream, m, n, k,
                    static_cast<const float*>(a), lda, static_cast<const float*>(b), ldb,
                    *static_cast<const float*>(beta), static_cast<float*>(c), ldc);
        return 0;
      }
      if (type_a == 1 && *static_cast<const double*>(alpha) == 1.0) {
        MLFF_LAUNCH(column_major<double>, grid, dim3(64), 0, stream, m, n, k,
                    static_cast<const double*>(a), lda, static_cast<const double*>(b), ldb,
                    *static_cast<const double*>(beta), static_cast<double*>(c), ldc);
        return 0;
      }
      return 7;  // invalid value
    };
  }
};

// a (m, lda) and b (k, n); c (m, ldc) is returned, added to where `accumulate`.
template <typename T>
py::array_t<T> product_of(const py::array_t<T>& a, int k, const py::array_t<T>& b,
                          const py::array_t<T>& c, bool accumulate, const std::string& math,
                          bool cublas) {
  static const FakeCublas fake;
  mlff::gpu::Dense dense(mlff::gpu::math_from_name(math), cublas ? &fake : nullptr);
  mlff::gpu::DeviceMemory<T> a_, b_, c_;
  a_.assign(a.data(), a.size());
  b_.assign(b.data(), b.size());
  c_.assign(c.data(), c.size());
  mlff::gpu::GemmCall<T> product;
  product.m = a.shape(0);
  product.n = static_cast<int>(b.shape(1));
  product.k = k;
  product.a = a_.data();
  product.lda = static_cast<int>(a.shape(1));
  product.b = b_.data();
  product.c = c_.data();
  product.ldc = static_cast<int>(c.shape(1));
  product.accumulate = accumulate;
  dense.multiply(product, nullptr);
  py::array_t<T> out({c.shape(0), c.shape(1)});
  if (out.size() > 0) {
    mlff::gpu::check(
        cudaMemcpy(out.mutable_data(), c_.data(), out.size() * sizeof(T), cudaMemcpyDeviceToHost),
        "reading a product");
  }
  return out;
}

py::object multiply(const py::array& a, int k, const py::array& b, const py::array& c,
                    bool accumulate, const std::string& math, bool cublas) {
  if (py::isinstance<py::array_t<float>>(a)) {
    return product_of<float>(a, k, b, c, accumulate, math, cublas);
  }
  return product_of<double>(a, k, b, c, accumulate, math, cublas);
}

// (m, n, k, C is read) of every product that a step asks cuBLAS for, in order. None is computed.
std::vector<std::array<int64_t, 4>> product_shapes(const std::string& path,
                                                   const py::array_t<int64_t>& numbers,
                                                   const py::array_t<double>& positions,
                                                   const py::array_t<double>& cell, bool fuse) {
  static std::vector<std::array<int64_t, 4>> seen;
  struct Recorder : FakeCublas {
    Recorder() {
      gemm = [](void*, int, int, int m, int n, int k, const void*, const void*, int, int,
                const void*, int, int, const void* beta, void*, int, int, int, int) {
        seen.push_back({n, m, k, *static_cast<const float*>(beta) != 0.0f});  // column-major
        return 0;
      };
    }
  };
  static const Recorder recorder;
  mlff::gpu::SystemOptions options;
  options.library = &recorder;
  options.graph = false;
  options.fuse = fuse;
  mlff::gpu::Potential potential(path, options);
  mlff::PotentialResult result;
  seen.clear();
  potential.compute(numbers.size(), numbers.data(), positions.data(), cell.data(),
                    {true, true, true}, result);
  return seen;
}

// The devices that were current when a potential on `device`, made and used by a thread on device
// 0, made and destroyed its handle of cuBLAS; and the one that is current afterwards.
// `error` if there was no memory.
py::dict devices_of_a_potential(const std::string& path, int device,
                                const py::array_t<int64_t>& numbers,
                                const py::array_t<double>& positions) {
  static std::vector<int> made, destroyed;
  struct Recorder : FakeCublas {
    static int current() {
      int device = -1;
      mlff::gpu::check(cudaGetDevice(&device), "asking");
      return device;
    }
    Recorder() {
      create = [](void** handle) {
        made.push_back(current());
        *handle = &stream;
        return 0;
      };
      destroy = [](void*) {
        destroyed.push_back(current());
        return 0;
      };
    }
  };
  static const Recorder recorder;
  made.clear();
  destroyed.clear();
  mlff::gpu::SystemOptions options;
  options.library = &recorder;
  options.device = device;
  std::string error;
  std::vector<int> after;
  try {
    mlff::gpu::Potential potential(path, options);
    after.push_back(Recorder::current());
    mlff::PotentialResult result;
    const std::vector<double> cell(9, 0.0);
    for (int step = 0; step < 3; ++step) {
      potential.compute(numbers.size(), numbers.data(), positions.data(), cell.data(),
                        {false, false, false}, result);
      after.push_back(Recorder::current());
    }
  } catch (const mlff::DeviceError& caught) {
    error = caught.what();
  }
  after.push_back(Recorder::current());
  py::dict out;
  out["made"] = made;
  out["destroyed"] = destroyed;
  out["after"] = after;
  out["error"] = error;
  return out;
}

// Whether a kernel on a stream of its own sees what assign() has just copied.
bool assigned_before_a_kernel() {
  mlff::gpu::DeviceMemory<double> from, to;
  to.require(1);
  const double value = 3.0;
  from.assign(&value, 1);
  cudaStream_t stream = nullptr;
  mlff::gpu::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  mlff::gpu::check(
      cudaMemcpyAsync(to.data(), from.data(), sizeof(value), cudaMemcpyDeviceToDevice, stream),
      "copying");
  mlff::gpu::check(cudaStreamSynchronize(stream), "waiting");
  double found = 0.0;
  mlff::gpu::check(cudaMemcpy(&found, to.data(), sizeof(found), cudaMemcpyDeviceToHost), "reading");
  mlff::gpu::check(cudaStreamDestroy(stream), "destroying a stream");
  return found == value;
}

}  // namespace

PYBIND11_MODULE(_cuda_emulated, m) {
  mlff_bindings::register_errors();
  bind_gpu(m);
  bind_gpu_testing(m);
  m.def("set_schedule", [](std::uint64_t seed) { cuda_host::set_schedule(seed); });
  m.def("set_device_count", [](int count) { cuda_host::set_device_count(count); });
  m.def("set_memory_limit", [](std::size_t bytes) { cuda_host::set_memory_limit(bytes); });
  m.def("memory_in_use", [] {
    size_t available = 0, total = 0;
    mlff::gpu::check(cudaMemGetInfo(&available, &total), "asking for memory");
    return total - available;
  });
  m.def("reset_counters", [] { cuda_host::reset_counters(); });
  m.def("counters", [] {
    const cuda_host::Counters& c = cuda_host::counters();
    py::dict out;
    out["launches"] = c.launches;
    out["host_synchronisations"] = c.host_synchronisations;
    out["device_allocations"] = c.device_allocations;
    out["pinned_allocations"] = c.pinned_allocations;
    out["graph_launches"] = c.graph_launches;
    out["graph_instantiations"] = c.graph_instantiations;
    out["graph_updates"] = c.graph_updates;
    out["pageable_copies"] = c.pageable_copies;
    out["bytes_to_device"] = c.bytes_to_device;
    out["bytes_to_host"] = c.bytes_to_host;
    return out;
  });
  m.def("multiply", &multiply);
  m.def("product_shapes", &product_shapes, py::arg("path"), py::arg("numbers"),
        py::arg("positions"), py::arg("cell"), py::arg("fuse"));
  m.def("devices_of_a_potential", &devices_of_a_potential);
  m.def("assigned_before_a_kernel", &assigned_before_a_kernel);
  bind_messages(m);
}
