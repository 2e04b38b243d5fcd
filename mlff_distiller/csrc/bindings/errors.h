// Our exceptions as those of mlff_distiller.errors.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

#include "core/error.h"

namespace mlff_bindings {

inline void set_error(const char* name, const mlff::Error& error) {
  pybind11::object type = pybind11::module_::import("mlff_distiller.errors").attr(name);
  PyErr_SetString(type.ptr(), error.what());
}

inline void register_errors() {
  pybind11::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const mlff::InputError& error) {
      set_error("InputError", error);
    } catch (const mlff::DeviceError& error) {
      set_error("DeviceError", error);
    }
  });
}

}  // namespace mlff_bindings
