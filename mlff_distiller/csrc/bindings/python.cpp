// mlff_distiller._native: the engine for Python. numpy in, numpy out, no torch; arguments are
// checked and documented by mlff_distiller/ops/engine.py, which wraps this module.

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/errors.h"
#include "core/ceilings.h"
#include "core/engine.h"
#include "core/error.h"
#include "core/lattice.h"
#include "core/model_file.h"
#include "core/potential.h"
#include "core/units.h"
#if defined(MLFF_CUDA)
#include "bindings/gpu_python.h"
#endif

using namespace mlff_bindings;

namespace {

mlff::EngineOptions engine_options(const std::string& dtype, int threads, bool tabulate,
                                   const std::string& isa) {
  mlff::EngineOptions options;
  if (dtype != "float32" && dtype != "float64") {
    throw mlff::InputError("dtype must be float32 or float64, got " + dtype);
  }
  if (threads < 0) {
    throw mlff::InputError("threads must be >= 0, got " + std::to_string(threads) +
                           "; 0 takes OpenMP's default");
  }
  options.precision = dtype == "float32" ? mlff::Precision::kFloat32 : mlff::Precision::kFloat64;
  options.num_threads = threads;
  options.tabulate = tabulate;
  options.isa = mlff::isa_from_name(isa);
  return options;
}

py::dict profile_dict(const mlff::Profile& profile) {
  py::dict out;
  out["geometry"] = profile.geometry;
  out["edges_forward"] = profile.edges_forward;
  out["dense_forward"] = profile.dense_forward;
  out["dense_backward"] = profile.dense_backward;
  out["edges_backward"] = profile.edges_backward;
  return out;
}

// The GIL is released while the engine works, so calls from several threads have to queue.
class PyPotential {
 public:
  PyPotential(const std::string& path, const std::string& dtype, int threads, bool tabulate,
              double skin, const std::string& isa) {
    mlff::PotentialOptions options;
    options.engine = engine_options(dtype, threads, tabulate, isa);
    options.skin = skin;
    py::gil_scoped_release release;
    potential_ = std::make_unique<mlff::Potential>(path, options);
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

  mlff::Potential& get() { return *potential_; }

 private:
  std::unique_ptr<mlff::Potential> potential_;
  mlff::PotentialResult result_;
  std::mutex mutex_;
};

// The engine on a graph, all at once or stage by stage.
class PyEngine {
 public:
  PyEngine(const std::string& path, const std::string& dtype, int threads, bool tabulate,
           const std::string& isa)
      : double_(dtype == "float64") {
    const mlff::EngineOptions options = engine_options(dtype, threads, tabulate, isa);
    py::gil_scoped_release release;
    model_ = mlff::read_model_file(path);
    engine_ = std::make_unique<mlff::Engine>(model_, options);
  }

  void begin(const Int32s& species, const Int64s& offsets, const Int32s& senders,
             const Doubles& edge_vectors, bool gradients) {
    const py::ssize_t n_local = offsets.size() - 1, edges = senders.size();
    if (n_local < 0) throw mlff::InputError("offsets must have shape (n_local + 1,), got (0,)");
    check_shape("edge_vectors", edge_vectors, {edges, 3});
    if (offsets.at(0) != 0 || offsets.at(n_local) != edges) {
      throw mlff::InputError("offsets must run from 0 to the number of senders, " +
                             std::to_string(edges));
    }
    for (py::ssize_t i = 0; i < n_local; ++i) {
      if (offsets.at(i) > offsets.at(i + 1)) {
        throw mlff::InputError("offsets must not decrease, they do after entry " +
                               std::to_string(i));
      }
    }
    species_ = species;
    offsets_ = offsets;
    senders_ = senders;
    edge_vectors_ = edge_vectors;
    energies_ = py::array_t<double>(n_local);
    gradients_ = py::array_t<double>(std::vector<py::ssize_t>{gradients ? edges : 0, 3});
    mlff::Graph graph;
    graph.n_local = n_local;
    graph.n_rows = species.size();
    graph.species = species_.data();
    graph.offsets = offsets_.data();
    graph.senders = senders_.data();
    graph.edge_vectors = edge_vectors_.data();
    mlff::Outputs outputs;
    outputs.atomic_energies = energies_.mutable_data();
    if (gradients) outputs.pair_gradients = gradients_.mutable_data();
    py::gil_scoped_release release;
    engine_->begin(graph, outputs);
  }

  // None when done, else the request; its `rows` is a view of the engine's memory.
  py::object advance() {
    const mlff::ExchangeRequest* request;
    {
      py::gil_scoped_release release;
      request = engine_->advance();
    }
    if (!request) return py::none();
    const py::ssize_t item = double_ ? 8 : 4;
    const py::ssize_t width = static_cast<py::ssize_t>(request->row_bytes) / item;
    py::dict out;
    out["rows"] = py::array(py::dtype(double_ ? "float64" : "float32"), {request->n_rows, width},
                            {width * item, item}, request->rows, py::cast(this));
    out["n_local"] = request->n_local;
    out["layer"] = request->layer;
    out["backward"] = request->backward;
    return out;
  }

  py::array_t<double> energies() { return energies_; }
  py::array_t<double> gradients() { return gradients_; }
  mlff::Engine& get() { return *engine_; }
  const mlff::ModelFile& model() const { return model_; }

 private:
  bool double_;
  mlff::ModelFile model_;
  std::unique_ptr<mlff::Engine> engine_;
  Int32s species_, senders_;
  Int64s offsets_;
  Doubles edge_vectors_;
  py::array_t<double> energies_, gradients_;
};

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native PaiNN engine; use mlff_distiller.ops.engine";

  register_errors();
#if defined(MLFF_CUDA)
  bind_gpu(m);
#endif

  py::dict constants;  // of which Python has its own, tests/test_limits.py
  constants["flat_cell"] = mlff::kFlatCell;
  constants["same_point"] = mlff::kSamePoint;
  constants["most_images"] = mlff::kMostImages;
  constants["most_threads"] = mlff::kMostThreads;
  constants["num_elements"] = mlff::kNumElements;
  constants["default_skin"] = mlff::kDefaultSkin;
  m.attr("constants") = constants;

  m.def("available_isas", [] {
    std::vector<std::string> out;
    for (mlff::Isa isa : {mlff::Isa::kPortable, mlff::Isa::kAvx2, mlff::Isa::kAvx512}) {
      if (mlff::isa_available(isa)) out.push_back(mlff::isa_name(isa));
    }
    return out;
  });
  m.def("measure_fma", &mlff::measure_fma, py::arg("seconds"),
        "GFLOP/s of one core on registers, float32, widest instruction set.");
  m.def("measure_gemm", &mlff::measure_gemm, py::arg("m"), py::arg("k"), py::arg("n"),
        py::arg("seconds"), "GFLOP/s of the engine's matrix product on one core, float32.");
  m.def("measure_read", &mlff::measure_read, py::arg("bytes"), py::arg("seconds"),
        "GB/s of one core reading an array of that size again and again.");

  py::class_<PyPotential> potential(m, "Potential");
  potential
      .def(
          py::init<const std::string&, const std::string&, int, bool, double, const std::string&>(),
          py::arg("path"), py::arg("dtype") = "float32", py::arg("threads") = 0,
          py::arg("tabulate") = true, py::arg("skin") = mlff::kDefaultSkin, py::arg("isa") = "auto")
      .def("compute", &PyPotential::compute, py::arg("atomic_numbers"), py::arg("positions"),
           py::arg("cell"), py::arg("pbc"), py::arg("forces") = true,
           py::arg("atom_virials") = false)
      .def_property(
          "threads", [](PyPotential& self) { return self.get().engine().num_threads(); },
          [](PyPotential& self, int threads) { self.get().engine().set_num_threads(threads); })
      .def_property_readonly(
          "isa", [](PyPotential& self) { return mlff::isa_name(self.get().engine().isa()); })
      .def_property_readonly(
          "table", [](PyPotential& self) { return table_dict(self.get().engine().table_report()); })
      .def_property_readonly("cutoff", [](PyPotential& self) { return self.get().model().cutoff; })
      .def_property_readonly("elements",
                             [](PyPotential& self) { return self.get().model().elements; })
      .def_property_readonly("skin", [](PyPotential& self) { return self.get().skin(); })
      .def_property_readonly("num_builds",
                             [](PyPotential& self) { return self.get().num_builds(); })
      .def_property_readonly("num_edges", [](PyPotential& self) { return self.get().num_edges(); })
      .def_property_readonly("neighbor_seconds",
                             [](PyPotential& self) { return self.get().neighbor_seconds(); })
      .def_property_readonly("memory_bytes",
                             [](PyPotential& self) { return self.get().memory_bytes(); })
      .def_property_readonly(
          "profile", [](PyPotential& self) { return profile_dict(self.get().engine().profile()); })
      .def("set_profiling",
           [](PyPotential& self, bool on) { self.get().engine().set_profiling(on); });

  py::class_<PyEngine> engine(m, "Engine");
  engine
      .def(py::init<const std::string&, const std::string&, int, bool, const std::string&>(),
           py::arg("path"), py::arg("dtype") = "float32", py::arg("threads") = 1,
           py::arg("tabulate") = true, py::arg("isa") = "auto")
      .def("begin", &PyEngine::begin, py::arg("species"), py::arg("offsets"), py::arg("senders"),
           py::arg("edge_vectors"), py::arg("gradients") = true)
      .def("advance", &PyEngine::advance)
      .def_property_readonly("atomic_energies", &PyEngine::energies)
      .def_property_readonly("pair_gradients", &PyEngine::gradients)
      .def_property_readonly("max_exchange_bytes",
                             [](PyEngine& self) { return self.get().max_exchange_bytes(); })
      .def_property_readonly("elements", [](PyEngine& self) { return self.model().elements; })
      .def_property_readonly("isa", [](PyEngine& self) { return mlff::isa_name(self.get().isa()); })
      .def_property_readonly("table",
                             [](PyEngine& self) { return table_dict(self.get().table_report()); });
}
