// _native.testing: parts of the engines, for tests and benchmarks.
#pragma once

#include "bindings/arrays.h"
#include "core/graph.h"

// Adds Engine, measure_fma, measure_gemm and measure_read.
void bind_testing(pybind11::module_& m);
// Adds GpuSystem.
void bind_gpu_testing(pybind11::module_& m);

namespace mlff_bindings {

// None without a request; else its `rows` is a view of the memory of `owner`.
inline py::object request_dict(const mlff::ExchangeRequest* request, bool double_precision,
                               const py::object& owner) {
  if (!request) return py::none();
  const py::ssize_t item = double_precision ? 8 : 4;
  const py::ssize_t width = static_cast<py::ssize_t>(request->row_bytes) / item;
  py::dict out;
  out["rows"] = py::array(py::dtype(double_precision ? "float64" : "float32"),
                          {request->n_rows, width}, {width * item, item}, request->rows, owner);
  out["n_local"] = request->n_local;
  out["layer"] = request->layer;
  out["backward"] = request->backward;
  return out;
}

}  // namespace mlff_bindings
