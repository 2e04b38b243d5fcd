// _native.testing: parts of the engines, for tests and benchmarks.
#pragma once

#include "bindings/arrays.h"
#include "core/graph.h"

// Adds Engine, measure_fma, measure_gemm and measure_read.
void bind_testing(pybind11::module_& m);
// Adds GpuSystem.
void bind_gpu_testing(pybind11::module_& m);

namespace mlff_bindings {

// Rows of float64 or float32 in memory of `owner`.
inline py::array view_of_rows(const void* data, py::ssize_t count, size_t row_bytes,
                              bool double_precision, const py::object& owner) {
  const py::ssize_t item = double_precision ? 8 : 4;
  const py::ssize_t width = static_cast<py::ssize_t>(row_bytes) / item;
  return py::array(py::dtype(double_precision ? "float64" : "float32"), {count, width},
                   {width * item, item}, data, owner);
}

// None without a request; else its `rows` is a view of the memory of `owner`.
inline py::object request_dict(const mlff::ExchangeRequest* request, bool double_precision,
                               const py::object& owner) {
  if (!request) return py::none();
  py::dict out;
  out["rows"] =
      view_of_rows(request->rows, request->n_rows, request->row_bytes, double_precision, owner);
  out["n_local"] = request->n_local;
  out["layer"] = request->layer;
  out["backward"] = request->backward;
  return out;
}

}  // namespace mlff_bindings
