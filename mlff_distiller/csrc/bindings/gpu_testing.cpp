#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/potential_python.h"
#include "bindings/testing.h"
#include "core/model_file.h"
#include "cuda/captured_step.h"
#include "cuda/cublas.h"
#include "cuda/particles.h"
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

typedef py::array_t<float, py::array::c_style | py::array::forcecast> Floats;

// Arrays of OpenMM's CUDA platform and a stream beside that of the model, for tests.
class PyParticles {
 public:
  // length: Angstrom in the unit of positions; energy: that unit in eV.
  PyParticles(const std::string& path, const std::vector<int64_t>& numbers,
              const std::vector<int>& particles, double length, double energy,
              const std::string& dtype, double skin, bool graph) {
    mlff::gpu::ParticleOptions options;
    options.system.precision = precision_of(dtype);
    options.system.skin = skin;
    options.system.graph = graph;
    options.atomic_numbers = numbers;
    options.particles = particles;
    options.angstrom = length;
    options.energy_per_ev = energy;
    potential_ = std::make_unique<mlff::gpu::ParticlePotential>(path, options);
  }

  // positions, corrections (n_slots, 4); forces (3, stride) of which the result is a copy.
  py::tuple compute(const py::array& positions, const Floats& corrections, const Int32s& order,
                    const Doubles& cell, bool periodic, bool forces, const Int64s& before) {
    start(positions, corrections, order, cell, periodic, forces, before);
    const double energy = potential_->finish(arrays_, stream_.get());
    Int64s after({before.shape(0), before.shape(1)});
    mlff::gpu::check(
        cudaMemcpyAsync(after.mutable_data(), forces_.data(), static_cast<size_t>(after.nbytes()),
                        cudaMemcpyDeviceToHost, stream_.get()),
        "reading forces");
    stream_.wait();
    return py::make_tuple(energy, after);
  }

  void start(const py::array& positions, const Floats& corrections, const Int32s& order,
             const Doubles& cell, bool periodic, bool forces, const Int64s& before) {
    order_.assign(order.data(), order.size());
    forces_.assign(reinterpret_cast<const unsigned long long*>(before.data()), before.size());
    arrays_ = mlff::gpu::ParticleArrays();
    arrays_.n_particles = order.size();
    arrays_.particle_of_slot = order_.data();
    arrays_.forces = forces_.data();
    arrays_.stride = before.shape(1);
    if (py::isinstance<py::array_t<double>>(positions)) {
      doubles_.assign(static_cast<const double*>(positions.data()), positions.size());
      arrays_.double_positions = doubles_.data();
    } else {
      singles_.assign(static_cast<const float*>(positions.data()), positions.size());
      arrays_.positions = singles_.data();
    }
    if (corrections.size()) {
      corrections_.assign(corrections.data(), corrections.size());
      arrays_.corrections = corrections_.data();
    }
    potential_->start(arrays_, cell.data(), {periodic, periodic, periodic}, forces, stream_.get());
  }

  const mlff::gpu::System& system() const { return potential_->system(); }

 private:
  mlff::gpu::Stream stream_;
  mlff::gpu::DeviceMemory<int> order_;
  mlff::gpu::DeviceMemory<float> singles_, corrections_;
  mlff::gpu::DeviceMemory<double> doubles_;
  mlff::gpu::DeviceMemory<unsigned long long> forces_;
  mlff::gpu::ParticleArrays arrays_;
  std::unique_ptr<mlff::gpu::ParticlePotential> potential_;
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

  py::class_<PyParticles>(m, "GpuParticles")
      .def(py::init<const std::string&, const std::vector<int64_t>&, const std::vector<int>&,
                    double, double, const std::string&, double, bool>(),
           py::arg("path"), py::arg("numbers"), py::arg("particles"), py::arg("length"),
           py::arg("energy"), py::arg("dtype"), py::arg("skin"), py::arg("graph") = true)
      .def("compute", &PyParticles::compute)
      .def("start", &PyParticles::start)
      .def_property_readonly("num_builds", [](PyParticles& p) { return p.system().num_builds(); })
      .def_property_readonly("num_graph_launches",
                             [](PyParticles& p) { return p.system().num_graph_launches(); });

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
