// The GPU engine under host emulation as a Python module, for tests/test_cuda_engine.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "cuda_host.h"
#include "error.h"
#include "gpu_python.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda_emulated, m) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const mlff::InputError& error) {
      py::object type = py::module_::import("mlff_distiller.errors").attr("InputError");
      PyErr_SetString(type.ptr(), error.what());
    }
  });
  bind_gpu(m);
  m.def("set_schedule", [](std::uint64_t seed) { cuda_host::set_schedule(seed); });
}
