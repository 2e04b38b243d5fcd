#include "bindings/gpu_python.h"

#include <memory>
#include <mutex>
#include <string>

#include "bindings/arrays.h"
#include "cuda/potential.h"

using namespace mlff_bindings;

namespace {

mlff::gpu::SystemOptions system_options(const std::string& dtype, const std::string& math,
                                        double skin, int device, bool graph, bool cublas) {
  mlff::gpu::SystemOptions options;
  if (dtype != "float32" && dtype != "float64") {
    throw mlff::InputError("dtype must be float32 or float64, got " + dtype);
  }
  options.precision = dtype == "float32" ? mlff::Precision::kFloat32 : mlff::Precision::kFloat64;
  options.math = mlff::gpu::math_from_name(math);
  options.skin = skin;
  options.device = device;
  options.graph = graph;
  options.cublas = cublas;
  return options;
}

class PyGpuPotential {
 public:
  PyGpuPotential(const std::string& path, const std::string& dtype, double skin,
                 const std::string& math, int device, bool graph, bool cublas) {
    const auto options = system_options(dtype, math, skin, device, graph, cublas);
    py::gil_scoped_release release;
    potential_ = std::make_unique<mlff::gpu::Potential>(path, options);
  }

  py::dict compute(const Int64s& atomic_numbers, const Doubles& positions, const Doubles& cell,
                   const Bools& pbc, bool forces, bool atom_virials) {
    const SystemArrays system(atomic_numbers, positions, cell, pbc);
    const unsigned outputs = output_flags(forces, atom_virials);
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    {
      py::gil_scoped_release release;
      lock.lock();
      potential_->compute(system.n, atomic_numbers.data(), positions.data(), cell.data(),
                          system.pbc, result_, outputs);
    }
    return result_dict(result_, system.n, outputs);
  }

  mlff::gpu::Potential& get() { return *potential_; }

 private:
  std::unique_ptr<mlff::gpu::Potential> potential_;
  mlff::PotentialResult result_;
  std::mutex mutex_;
};

// A system with ghosts: what LAMMPS uses, for tests.
class PyGpuSystem {
 public:
  PyGpuSystem(const std::string& path, const std::string& dtype, double skin)
      : double_(dtype == "float64"),
        model_(mlff::read_model_file(path)),
        system_(model_, system_options(dtype, "float32", skin, 0, false, false)) {}

  // ghost_owners: (n_rows - n_local,), or empty when another process has them.
  void begin(py::ssize_t n_local, const Int32s& species, const Doubles& positions,
             const Int32s& ghost_owners, const Doubles& weights, bool new_list, bool atom_virials) {
    species_ = species;
    positions_ = positions;
    owners_ = ghost_owners;
    weights_ = weights;
    input_ = mlff::gpu::StepInput();
    input_.n_local = n_local;
    input_.n_rows = species.size();
    check_shape("positions", positions, {species.size(), 3});
    input_.species = species_.data();
    input_.positions = positions_.data();
    input_.ghost_owners = ghost_owners.size() ? owners_.data() : nullptr;
    input_.energy_weights = weights.size() ? weights_.data() : nullptr;
    input_.new_atoms = input_.new_list = new_list;
    input_.keep_list = true;
    input_.atom_virials = atom_virials;
    if (!input_.ghost_owners) system_.begin(input_);
  }

  // None when done, else the request; its `rows` is a view of the system's memory.
  py::object advance() {
    const mlff::ExchangeRequest* request = system_.advance();
    if (!request) return py::none();
    const py::ssize_t item = double_ ? 8 : 4;
    const py::ssize_t width = static_cast<py::ssize_t>(request->row_bytes) / item;
    py::dict out;
    out["rows"] = py::array(py::dtype(double_ ? "float64" : "float32"), {request->n_rows, width},
                            {width * item, item}, request->rows, py::cast(this));
    out["n_local"] = request->n_local;
    return out;
  }

  py::dict finish() {
    const mlff::gpu::StepResult& result =
        input_.ghost_owners ? system_.compute(input_) : system_.finish();
    const py::ssize_t rows = input_.n_rows;
    py::dict out;
    out["energy"] = result.energy;
    out["energies"] = py::array_t<double>(input_.n_local, result.energies);
    out["forces"] = py::array_t<double>({rows, py::ssize_t{3}}, result.forces);
    out["virial"] = py::array_t<double>({3, 3}, result.virial.data());
    if (result.atom_virials) {
      out["atom_virials"] =
          py::array_t<double>({rows, py::ssize_t{3}, py::ssize_t{3}}, result.atom_virials);
    }
    return out;
  }

 private:
  bool double_;
  mlff::ModelFile model_;
  mlff::gpu::System system_;
  mlff::gpu::StepInput input_;
  Int32s species_, owners_;
  Doubles positions_, weights_;
};

}  // namespace

void bind_gpu(py::module_& m) {
  m.def("gpu_count", &mlff::gpu::device_count, "Number of usable GPUs.");
  m.def("gpu_name", &mlff::gpu::device_name, py::arg("device"));

  py::class_<PyGpuPotential>(m, "GpuPotential")
      .def(py::init<const std::string&, const std::string&, double, const std::string&, int, bool,
                    bool>(),
           py::arg("path"), py::arg("dtype") = "float32", py::arg("skin") = mlff::kDefaultSkin,
           py::arg("math") = "float32", py::arg("device") = 0, py::arg("graph") = true,
           py::arg("cublas") = true)
      .def("compute", &PyGpuPotential::compute, py::arg("atomic_numbers"), py::arg("positions"),
           py::arg("cell"), py::arg("pbc"), py::arg("forces") = true,
           py::arg("atom_virials") = false)
      .def_property_readonly(
          "table",
          [](PyGpuPotential& self) { return table_dict(self.get().system().table_report()); })
      .def_property_readonly("cutoff",
                             [](PyGpuPotential& self) { return self.get().model().cutoff; })
      .def_property_readonly("elements",
                             [](PyGpuPotential& self) { return self.get().model().elements; })
      .def_property_readonly("skin", [](PyGpuPotential& self) { return self.get().skin(); })
      .def_property_readonly("cublas",
                             [](PyGpuPotential& self) { return self.get().system().uses_cublas(); })
      .def_property_readonly("num_builds",
                             [](PyGpuPotential& self) { return self.get().system().num_builds(); })
      .def_property_readonly("num_edges",
                             [](PyGpuPotential& self) { return self.get().system().num_edges(); })
      .def_property_readonly(
          "num_graph_launches",
          [](PyGpuPotential& self) { return self.get().system().num_graph_launches(); })
      .def_property_readonly(
          "memory_bytes", [](PyGpuPotential& self) { return self.get().system().memory_bytes(); });

  py::class_<PyGpuSystem>(m, "GpuSystem")
      .def(py::init<const std::string&, const std::string&, double>(), py::arg("path"),
           py::arg("dtype"), py::arg("skin"))
      .def("begin", &PyGpuSystem::begin, py::arg("n_local"), py::arg("species"),
           py::arg("positions"), py::arg("ghost_owners"), py::arg("weights"),
           py::arg("new_list") = true, py::arg("atom_virials") = false)
      .def("advance", &PyGpuSystem::advance)
      .def("finish", &PyGpuSystem::finish);
}
