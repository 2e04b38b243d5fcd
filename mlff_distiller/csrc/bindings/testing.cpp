#include "bindings/testing.h"

#include <memory>
#include <string>
#include <vector>

#include "bindings/potential_python.h"
#include "core/ceilings.h"
#include "core/cpus.h"

using namespace mlff_bindings;

namespace {

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
             const Doubles& edge_vectors, bool gradients, bool uncertainties) {
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
    uncertainties_ = py::array_t<double>(uncertainties ? n_local : 0);
    if (uncertainties) outputs.uncertainties = uncertainties_.mutable_data();
    py::gil_scoped_release release;
    engine_->begin(graph, outputs);
  }

  py::object advance() {
    const mlff::ExchangeRequest* request;
    {
      py::gil_scoped_release release;
      request = engine_->advance();
    }
    return request_dict(request, double_, py::cast(this));
  }

  py::array_t<double> energies() { return energies_; }
  py::array_t<double> gradients() { return gradients_; }
  py::array_t<double> uncertainties() { return uncertainties_; }
  mlff::Engine& get() { return *engine_; }
  const mlff::ModelFile& model() const { return model_; }

 private:
  bool double_;
  mlff::ModelFile model_;
  std::unique_ptr<mlff::Engine> engine_;
  Int32s species_, senders_;
  Int64s offsets_;
  Doubles edge_vectors_;
  py::array_t<double> energies_, gradients_, uncertainties_;
};

}  // namespace

void bind_testing(py::module_& m) {
  m.def("cpu_quota", &mlff::cpu_quota, py::arg("mounted"), py::arg("groups"));
  m.def("default_threads", &mlff::default_threads);
  m.def("measure_fma", &mlff::measure_fma, py::arg("seconds"),
        "GFLOP/s of one core on registers, float32, widest instruction set.");
  m.def("measure_gemm", &mlff::measure_gemm, py::arg("m"), py::arg("k"), py::arg("n"),
        py::arg("seconds"), "GFLOP/s of the engine's matrix product on one core, float32.");
  m.def("measure_read", &mlff::measure_read, py::arg("bytes"), py::arg("seconds"),
        "GB/s of one core reading an array of that size again and again.");

  py::class_<PyEngine> engine(m, "Engine");
  engine
      .def(py::init<const std::string&, const std::string&, int, bool, const std::string&>(),
           py::arg("path"), py::arg("dtype") = "float32", py::arg("threads") = 1,
           py::arg("tabulate") = true, py::arg("isa") = "auto")
      .def("begin", &PyEngine::begin, py::arg("species"), py::arg("offsets"), py::arg("senders"),
           py::arg("edge_vectors"), py::arg("gradients") = true, py::arg("uncertainties") = false)
      .def("advance", &PyEngine::advance)
      .def_property_readonly("atomic_energies", &PyEngine::energies)
      .def_property_readonly("pair_gradients", &PyEngine::gradients)
      .def_property_readonly("uncertainties", &PyEngine::uncertainties)
      .def_property_readonly("max_exchange_bytes",
                             [](PyEngine& self) { return self.get().max_exchange_bytes(); })
      .def_property_readonly("elements", [](PyEngine& self) { return self.model().elements; })
      .def_property_readonly("isa", [](PyEngine& self) { return mlff::isa_name(self.get().isa()); })
      .def_property_readonly("table",
                             [](PyEngine& self) { return table_dict(self.get().table_report()); });
}
