// numpy arrays in and out of the bindings.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/engine.h"
#include "core/error.h"
#include "core/potential.h"

namespace mlff_bindings {

namespace py = pybind11;

typedef py::array_t<double, py::array::c_style | py::array::forcecast> Doubles;
typedef py::array_t<int64_t, py::array::c_style | py::array::forcecast> Int64s;
typedef py::array_t<int32_t, py::array::c_style | py::array::forcecast> Int32s;
typedef py::array_t<bool, py::array::c_style | py::array::forcecast> Bools;

inline std::string shape_of(const py::array& array) {
  std::string out = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    out += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return out + ")";
}

inline void check_shape(const char* name, const py::array& array, std::vector<py::ssize_t> shape) {
  bool good = array.ndim() == static_cast<py::ssize_t>(shape.size());
  std::string wanted = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    good = good && array.shape(static_cast<py::ssize_t>(i)) == shape[i];
    wanted += (i ? ", " : "") + std::to_string(shape[i]);
  }
  if (!good) {
    throw mlff::InputError(std::string(name) + " must have shape " + wanted + "), got " +
                           shape_of(array));
  }
}

inline py::array_t<double> to_array(const std::vector<double>& values,
                                    std::vector<py::ssize_t> shape) {
  py::array_t<double> out(shape);
  std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

inline py::dict table_dict(const mlff::TableReport& report) {
  py::dict out;
  out["tabulated"] = report.tabulated;
  out["intervals"] = report.intervals;
  out["value_error"] = report.value_error;
  out["derivative_error"] = report.derivative_error;
  out["bytes"] = report.bytes;
  return out;
}

// The checked input of Potential::compute: energy, forces and virial of n atoms.
struct SystemArrays {
  py::ssize_t n;
  std::array<bool, 3> pbc;

  SystemArrays(const Int64s& atomic_numbers, const Doubles& positions, const Doubles& cell,
               const Bools& periodic)
      : n(atomic_numbers.ndim() == 1 ? atomic_numbers.shape(0) : -1) {
    if (n < 0) {
      throw mlff::InputError("atomic_numbers must have shape (n,), got " +
                             shape_of(atomic_numbers));
    }
    check_shape("positions", positions, {n, 3});
    check_shape("cell", cell, {3, 3});
    check_shape("pbc", periodic, {3});
    pbc = {periodic.at(0), periodic.at(1), periodic.at(2)};
  }
};

inline unsigned output_flags(bool forces, bool atom_virials, bool uncertainties) {
  unsigned outputs = forces ? mlff::kForces : mlff::kEnergy;
  if (atom_virials) outputs |= mlff::kForces | mlff::kAtomVirials;
  if (uncertainties) outputs |= mlff::kUncertainties;
  return outputs;
}

inline py::dict result_dict(const mlff::PotentialResult& result, py::ssize_t n, unsigned outputs) {
  py::dict out;
  out["energy"] = result.energy;
  out["energies"] = to_array(result.energies, {n});
  if (outputs & mlff::kForces) {
    out["forces"] = to_array(result.forces, {n, 3});
    out["virial"] =
        to_array(std::vector<double>(result.virial.begin(), result.virial.end()), {3, 3});
  }
  if (outputs & mlff::kAtomVirials) out["atom_virials"] = to_array(result.atom_virials, {n, 3, 3});
  if (outputs & mlff::kUncertainties) out["uncertainties"] = to_array(result.uncertainties, {n});
  return out;
}

}  // namespace mlff_bindings
