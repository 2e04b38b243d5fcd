#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/potential_python.h"
#include "bindings/testing.h"
#include "core/model_file.h"
#include "cuda/cublas.h"
#include "cuda/system.h"

using namespace mlff_bindings;

namespace {

// A system with ghosts: what LAMMPS uses, for tests.
class PyGpuSystem {
 public:
  PyGpuSystem(const std::string& path, const std::string& dtype, double skin, bool graph,
              bool cublas, bool device_exchange, bool fuse)
      : double_(dtype == "float64"),
        model_(mlff::read_model_file(path)),
        system_(model_, options(dtype, skin, graph, cublas, device_exchange, fuse)) {}

  // sources, sent, n_received: see GhostPlan. A step goes in stages, with advance(), if rows are
  // exchanged or there are no ghosts.
  void begin(py::ssize_t n_local, const Int32s& species, const Doubles& positions,
             const Int32s& sources, const Doubles& weights, bool new_list, bool atom_virials,
             const Int32s& sent, py::ssize_t n_received) {
    species_ = species;
    positions_ = positions;
    sources_ = sources;
    sent_ = sent;
    weights_ = weights;
    input_ = mlff::gpu::StepInput();
    input_.n_local = n_local;
    input_.n_rows = species.size();
    check_shape("positions", positions, {species.size(), 3});
    input_.species = species_.data();
    input_.positions = positions_.data();
    check_shape("sources", sources, {species.size() - n_local});
    input_.ghosts.sources = sources_.data();
    input_.ghosts.n_received = n_received;
    input_.ghosts.sent = sent_.data();
    input_.ghosts.n_sent = sent.size();
    in_stages_ = sources.size() == 0 || sent.size() + n_received > 0;
    input_.energy_weights = weights.size() ? weights_.data() : nullptr;
    input_.new_atoms = input_.new_list = new_list;
    input_.keep_list = true;
    input_.atom_virials = atom_virials;
    if (in_stages_) system_.begin(input_);
  }

  // None after the last; else `sent` and `received` are views of memory of this object.
  py::object advance() {
    const mlff::gpu::RowExchange* rows = system_.advance();
    if (!rows) return py::none();
    const auto view = [&](const void* data, py::ssize_t count) {
      return view_of_rows(data, count, rows->row_bytes, double_, py::cast(this));
    };
    py::dict out;
    out["sent"] = view(rows->sent, rows->n_sent);
    out["received"] = view(rows->received, rows->n_received);
    out["layer"] = rows->layer;
    out["backward"] = rows->backward;
    return out;
  }

  py::dict finish() {
    const mlff::gpu::StepResult& result = in_stages_ ? system_.finish() : system_.compute(input_);
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

  const mlff::gpu::System& system() const { return system_; }

 private:
  static mlff::gpu::SystemOptions options(const std::string& dtype, double skin, bool graph,
                                          bool cublas, bool device_exchange, bool fuse) {
    mlff::gpu::SystemOptions options;
    options.precision = precision_of(dtype);
    options.skin = skin;
    options.graph = graph;
    options.cublas = cublas;
    options.device_exchange = device_exchange;
    options.fuse = fuse;
    return options;
  }

  bool double_;
  mlff::ModelFile model_;
  mlff::gpu::System system_;
  mlff::gpu::StepInput input_;
  bool in_stages_ = false;
  Int32s species_, sources_, sent_;
  Doubles positions_, weights_;
};

}  // namespace

void bind_gpu_testing(py::module_& m) {
  py::class_<PyGpuSystem>(m, "GpuSystem")
      .def(py::init<const std::string&, const std::string&, double, bool, bool, bool, bool>(),
           py::arg("path"), py::arg("dtype"), py::arg("skin"), py::arg("graph") = true,
           py::arg("cublas") = true, py::arg("device_exchange") = false, py::arg("fuse") = true)
      .def("begin", &PyGpuSystem::begin, py::arg("n_local"), py::arg("species"),
           py::arg("positions"), py::arg("sources"), py::arg("weights"), py::arg("new_list") = true,
           py::arg("atom_virials") = false, py::arg("sent") = Int32s(0), py::arg("n_received") = 0)
      .def("advance", &PyGpuSystem::advance)
      .def("finish", &PyGpuSystem::finish)
      .def_property_readonly("num_builds", [](PyGpuSystem& s) { return s.system().num_builds(); })
      .def_property_readonly("num_graph_launches",
                             [](PyGpuSystem& s) { return s.system().num_graph_launches(); });

  m.def("cublas_candidates", &mlff::gpu::cublas_candidates, py::arg("wish"), py::arg("own_library"),
        py::arg("toolkits"));
  // Name of the first that can be used. Raises InputError with the reason.
  m.def("open_cublas", [](const std::vector<std::string>& candidates) {
    mlff::gpu::Cublas found;
    std::string reason;
    if (!mlff::gpu::open_cublas(candidates, found, reason)) throw mlff::InputError(reason);
    return found.name();
  });
}
