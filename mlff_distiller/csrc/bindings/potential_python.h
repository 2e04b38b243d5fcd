// mlff::Potential and mlff::gpu::Potential for Python: what both have in common.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "bindings/arrays.h"
#include "core/engine.h"
#include "core/error.h"
#include "core/potential.h"

namespace mlff_bindings {

inline mlff::Precision precision_of(const std::string& dtype) {
  if (dtype != "float32" && dtype != "float64") {
    throw mlff::InputError("dtype must be float32 or float64, got " + dtype);
  }
  return dtype == "float32" ? mlff::Precision::kFloat32 : mlff::Precision::kFloat64;
}

inline mlff::EngineOptions engine_options(const std::string& dtype, int threads, bool tabulate,
                                          const std::string& isa) {
  mlff::EngineOptions options;
  options.precision = precision_of(dtype);
  if (threads < 0) {
    throw mlff::InputError("threads must be >= 0, got " + std::to_string(threads) +
                           "; 0 takes OpenMP's default");
  }
  options.num_threads = threads;
  options.tabulate = tabulate;
  options.isa = mlff::isa_from_name(isa);
  return options;
}

// The GIL is released while the engine works, so calls from several threads have to queue.
template <class P>
class PyPotential {
 public:
  template <class Options>
  PyPotential(const std::string& path, const Options& options) {
    py::gil_scoped_release release;
    potential_ = std::make_unique<P>(path, options);
  }

  py::dict compute(const Int64s& atomic_numbers, const Doubles& positions, const Doubles& cell,
                   const Bools& pbc, bool forces, bool atom_virials, bool uncertainties) {
    const SystemArrays system(atomic_numbers, positions, cell, pbc);
    const unsigned outputs = output_flags(forces, atom_virials, uncertainties);
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    {
      py::gil_scoped_release release;
      lock.lock();
      potential_->compute(system.n, atomic_numbers.data(), positions.data(), cell.data(),
                          system.pbc, result_, outputs);
    }
    return result_dict(result_, system.n, outputs);
  }

  P& get() { return *potential_; }

 private:
  std::unique_ptr<P> potential_;
  mlff::PotentialResult result_;
  std::mutex mutex_;
};

// get(potential) as the read-only property `name`.
template <class P, class Get>
void bind_property(py::class_<PyPotential<P>>& c, const char* name, Get get) {
  c.def_property_readonly(name, [get](PyPotential<P>& self) { return get(self.get()); });
}

template <class P>
py::class_<PyPotential<P>> bind_potential(py::module_& m, const char* name) {
  py::class_<PyPotential<P>> c(m, name);
  c.def("compute", &PyPotential<P>::compute, py::arg("atomic_numbers"), py::arg("positions"),
        py::arg("cell"), py::arg("pbc"), py::arg("forces") = true, py::arg("atom_virials") = false,
        py::arg("uncertainties") = false);
  bind_property<P>(c, "table", [](P& p) { return table_dict(p.table_report()); });
  bind_property<P>(c, "cutoff", [](P& p) { return p.model().cutoff; });
  bind_property<P>(c, "elements", [](P& p) { return p.model().elements; });
  bind_property<P>(c, "skin", [](P& p) { return p.skin(); });
  bind_property<P>(c, "num_builds", [](P& p) { return p.num_builds(); });
  bind_property<P>(c, "num_edges", [](P& p) { return p.num_edges(); });
  bind_property<P>(c, "memory_bytes", [](P& p) { return p.memory_bytes(); });
  return c;
}

}  // namespace mlff_bindings
