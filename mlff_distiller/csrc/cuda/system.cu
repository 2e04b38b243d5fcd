#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <sstream>
#include <string>

#include "core/engine.h"
#include "core/error.h"
#include "core/lattice.h"
#include "cuda/captured_step.h"
#include "cuda/current_device.h"
#include "cuda/device_memory.h"
#include "cuda/ghosts.h"
#include "cuda/network.h"
#include "cuda/system.h"

namespace mlff {
namespace gpu {
namespace {

int64_t address(const void* pointer) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer));
}

template <typename T, Where where>
void copy_down(T* to, const Memory<T, where>& from, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  check(cudaMemcpyAsync(to, from.data(), static_cast<size_t>(count) * sizeof(T),
                        cudaMemcpyDeviceToHost, stream),
        "copying results from the device");
}

std::string describe(const State& state, const int64_t* names) {
  std::ostringstream out;
  const auto name = [names](int row) { return names ? names[row] : static_cast<int64_t>(row); };
  if (state.fault_atom != INT_MAX) {
    out << "positions must be finite and within 5e8 cells, got another for atom "
        << name(state.fault_atom) << "; the simulation has blown up or its input is damaged";
  } else if (state.faults & kNotFinite) {
    out << "positions must be finite, got an edge that is not between atoms "
        << name(state.fault_centre) << " and " << name(state.fault_sender)
        << "; the simulation has blown up or its input is damaged";
  } else {
    out << "atoms " << name(state.fault_centre) << " and " << name(state.fault_sender)
        << " are at one point (less than " << kSamePoint << " Å apart); remove duplicate atoms";
  }
  return out.str();
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // no driver is no error
    return 0;
  }
  return count;
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for the device's name");
  return std::string(properties.name) + " (" + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ")";
}

class System::Impl {
 public:
  virtual ~Impl() = default;
  virtual const StepResult& compute(const StepInput& input) = 0;
  virtual void begin(const StepInput& input) = 0;
  virtual const RowExchange* advance() = 0;
  virtual const StepResult& finish() = 0;
  virtual const double* uncertainties() = 0;
  virtual const State& state() const = 0;  // after the last wait
  virtual const TableReport& table_report() const = 0;
  virtual size_t memory_bytes() const = 0;

  bool uses_cublas = false;
  std::string products;
  int64_t num_builds = 0, num_edges = 0, num_graph_launches = 0;
};

namespace {

template <typename T>
class TypedSystem : public System::Impl {
 public:
  TypedSystem(const ModelFile& model, const SystemOptions& options)
      : options_(options),
        dense_(options.math, !options.cublas   ? nullptr
                             : options.library ? options.library
                                               : load_cublas()),
        list_(model.cutoff, options.skin),
        network_(model, dense_, options.math != Math::kFloat32, options.fuse),
        ghosts_(options.device_exchange) {
    uses_cublas = dense_.uses_cublas();
    products = dense_.products();
  }

  // Without other processes' ghosts. A list that overflows is noticed at the end, and the step
  // taken again with more room: the steady state has one wait.
  const StepResult& compute(const StepInput& input) override {
    if (input.ghosts.n_sent + input.ghosts.n_received > 0) {
      throw InputError("rows of other processes need begin(), advance() and finish()");
    }
    const CurrentDevice current(options_.device);
    prepare(input);
    for (;;) {
      run_step();
      stream_.wait();
      if (!grow_after_overflow()) break;
    }
    name_edges();
    return results();
  }

  void begin(const StepInput& input) override {
    const CurrentDevice current(options_.device);
    prepare(input);
    const cudaStream_t stream = stream_.get();
    do {
      upload();
      list_.update(stream);
      network_.begin(list_.view(), weights(), input_.forces, options_.warn_distance, stream);
      list_.download_state(stream);
      stream_.wait();
    } while (grow_after_overflow());
    name_edges();
    check_faults();
    stage_ = 0;
    exchanging_ = false;
  }

  const RowExchange* advance() override {
    const CurrentDevice current(options_.device);
    const cudaStream_t stream = stream_.get();
    for (; stage_ < stages(); ++stage_) {
      const Stage now = stage(stage_);
      if (now.rows && !exchanging_) {
        exchange_ = ghosts_.pack(now.rows, now.row_bytes, stream);
        exchange_.layer = static_cast<int>(now.layer);
        exchange_.backward = now.backward;
        stream_.wait();
        exchanging_ = true;
        return &exchange_;
      }
      exchanging_ = false;
      run_stage(now);
    }
    return nullptr;
  }

  const StepResult& finish() override {
    const CurrentDevice current(options_.device);
    download();
    stream_.wait();
    return results();
  }

  const double* uncertainties() override {
    const CurrentDevice current(options_.device);
    const cudaStream_t stream = stream_.get();
    const double* found = network_.uncertainties(stream);
    if (!found) throw InputError(kNoUncertainty);
    const int64_t n = input_.n_local;
    double* host = host_uncertainties_.require(std::max<int64_t>(1, n));
    if (n > 0) {
      check(cudaMemcpyAsync(host, found, static_cast<size_t>(n) * sizeof(double),
                            cudaMemcpyDeviceToHost, stream),
            "copying uncertainties from the device");
    }
    stream_.wait();
    return host;
  }

  const State& state() const override { return list_.host_state(); }
  const TableReport& table_report() const override { return network_.table_report(); }
  size_t memory_bytes() const override {
    return dense_.bytes() + list_.bytes() + network_.bytes() + forces_.bytes() +
           atom_virials_.bytes() + weights_.bytes() + ghosts_.bytes() + totals_.bytes();
  }

 private:
  int64_t stages() const {
    const int64_t layers = network_.num_interactions();
    return input_.forces ? 2 * layers : layers;
  }
  const double* weights() const { return input_.energy_weights ? weights_.data() : nullptr; }

  // Layer after layer forward, then in reverse; all but the ends read rows of ghosts.
  struct Stage {
    int64_t layer = 0;
    bool backward = false;
    T* rows = nullptr;  // null: none
    size_t row_bytes = 0;
  };
  Stage stage(int64_t index) {
    const int64_t layers = network_.num_interactions();
    Stage now;
    now.backward = index >= layers;
    now.layer = now.backward ? 2 * layers - 1 - index : index;
    if (now.layer == 0) return now;
    now.rows = now.backward ? network_.adjoints(now.layer) : network_.features(now.layer);
    now.row_bytes = row_bytes(now.backward ? 4 : 5);
    return now;
  }
  size_t row_bytes(size_t blocks) const {
    return blocks * static_cast<size_t>(network_.num_channels()) * sizeof(T);
  }
  void run_stage(const Stage& now) {
    const cudaStream_t stream = stream_.get();
    if (now.rows) ghosts_.fill(now.rows, now.row_bytes, stream);
    now.backward ? network_.backward(now.layer, stream) : network_.forward(now.layer, stream);
  }

  // Rows on the device. Ghosts that this process owns come and go with every list of LAMMPS, and a
  // captured step serves many lists only if its sizes stay: they are rounded up by a sixteenth, and
  // kept while they fit and a quarter of them at most is idle.
  int64_t rows_for(const StepInput& input) const {
    const int64_t n = input.n_local, ghosts = input.n_rows - n;
    if (ghosts == 0 || !options_.graph) return input.n_rows;
    const int64_t room = n == input_.n_local ? rows_ - n : 0;
    constexpr int64_t kLeast = 64;
    if (ghosts <= room && 3 * room <= 4 * ghosts + 3 * kLeast) return rows_;
    return n + ghosts + ghosts / 16 + kLeast / 4;
  }

  // Everything of a step that may allocate, or that the graph does not repeat.
  void prepare(const StepInput& input) {
    const int64_t n = input.n_local, given = input.n_rows;
    if (n < 0 || given < n) {
      throw InputError("a system must have 0 <= n_local <= n_rows, got " + std::to_string(n) +
                       " and " + std::to_string(given));
    }
    if (given > n && !input.ghosts.sources) throw InputError("ghosts need their sources, got none");
    const bool sizes =
        !prepared_ || input.new_atoms || n != input_.n_local || given != input_.n_rows;
    const int64_t rows = sizes ? rows_for(input) : rows_;
    prepared_ = false;  // until all of it is there: memory may run out halfway
    input_ = input;
    input_.forces = input.forces || input.atom_virials;
    rows_ = rows;
    list_.set_skin(input.skin >= 0.0 ? input.skin : options_.skin);
    if (given == n) {
      *list_.host_box() = make_box(input.cell, input.pbc, list_.cutoff() + list_.skin());
    } else {
      *list_.host_box() = make_box(nullptr, {false, false, false}, 0.0);
    }
    // A first guess, the density of water; grow_after_overflow() knows better.
    constexpr int64_t kNeighbors = 64;
    if (sizes) {
      list_.resize(n, rows, input.keep_list);
      list_.reserve_edges(n * kNeighbors);
    }
    network_.resize(list_.view(), input_.forces);
    if (input_.forces) {
      forces_.require(3 * rows);
      host_forces_.require(3 * rows);
    }
    if (input.atom_virials) {
      atom_virials_.require(9 * rows);
      host_atom_virials_.require(9 * rows);
    }
    host_energies_.require(n);
    totals_.require(kTotals * total_shares(n));
    host_totals_.require(kTotals * total_shares(n));
    if (input.energy_weights) {
      weights_.require(n);
      std::memcpy(host_weights_.require(n), input.energy_weights,
                  static_cast<size_t>(n) * sizeof(double));
    }
    ghosts_.resize(input.ghosts, n, rows - n, row_bytes(5));
    copy_positions();
    if (sizes || input.new_list) copy_atoms(sizes);
    prepared_ = true;
  }

  // To page-locked memory, which no copy is reading: every step ends with a wait. Rows that are
  // only there for the size lie where the first atom is and have no species, so nothing sees them.
  void copy_positions() {
    const int64_t given = input_.n_rows;
    if (input_.device_positions || given == 0) return;
    double* to = list_.host_positions();
    std::memcpy(to, input_.positions, static_cast<size_t>(3 * given) * sizeof(double));
    for (int64_t i = 3 * given; i < 3 * rows_; ++i) to[i] = to[i % 3];
  }

  // What only changes with the list, on the step's stream.
  void copy_atoms(bool species) {
    const cudaStream_t stream = stream_.get();
    const int64_t n = input_.n_local, given = input_.n_rows;
    if (species && given > 0) {
      std::copy_n(input_.species, given, list_.host_species());
      std::fill_n(list_.host_species() + given, rows_ - given, -1);
      list_.upload_species(stream);
    }
    ghosts_.upload(input_.ghosts, given - n, stream);
    list_.force_rebuild(stream);
  }

  void upload() {
    const cudaStream_t stream = stream_.get();
    list_.upload(input_.device_positions, stream);
    if (input_.energy_weights && input_.n_local > 0) {
      check(cudaMemcpyAsync(weights_.data(), host_weights_.data(),
                            static_cast<size_t>(input_.n_local) * sizeof(double),
                            cudaMemcpyHostToDevice, stream),
            "copying weights to the device");
    }
  }

  // The whole step, enqueued; the same calls in the same order for the same key of a graph.
  void enqueue() {
    const cudaStream_t stream = stream_.get();
    upload();
    list_.update(stream);
    network_.begin(list_.view(), weights(), input_.forces, options_.warn_distance, stream);
    for (int64_t index = 0; index < stages(); ++index) run_stage(stage(index));
    download();
  }

  void download() {
    const cudaStream_t stream = stream_.get();
    network_.finish(forces_.data(), input_.atom_virials ? atom_virials_.data() : nullptr,
                    totals_.data(), stream);
    const int64_t rows = rows_, n = input_.n_local;
    if (n > 0) {
      check(
          cudaMemcpyAsync(host_energies_.data(), network_.energies(),
                          static_cast<size_t>(n) * sizeof(double), cudaMemcpyDeviceToHost, stream),
          "copying energies from the device");
    }
    if (input_.forces) copy_down(host_forces_.data(), forces_, 3 * rows, stream);
    if (input_.atom_virials) copy_down(host_atom_virials_.data(), atom_virials_, 9 * rows, stream);
    copy_down(host_totals_.data(), totals_, kTotals * total_shares(n), stream);
    list_.download_state(stream);
  }

  CapturedStep::Key key() const {
    return {list_.generation(),
            network_.generation(),
            input_.n_local,
            rows_,
            input_.forces | input_.atom_virials << 1 | (input_.energy_weights != nullptr) << 2,
            address(input_.device_positions),
            address(forces_.data()),
            address(atom_virials_.data()),
            address(weights_.data()),
            address(ghosts_.sources()),
            address(host_forces_.data()),
            address(host_atom_virials_.data()),
            address(host_energies_.data()),
            address(host_weights_.data())};
  }

  // Captures a step once nothing it depends on has changed since the step before: what is loaded or
  // allocated at first use (cuBLAS does) is there by then.
  void run_step() {
    if (!options_.graph || !step_.same_as_before(key())) {
      enqueue();
      return;
    }
    const cudaStream_t stream = stream_.get();
    if (!step_.valid()) {
      cudaGraph_t graph = nullptr;
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a step");
      try {
        enqueue();
      } catch (...) {
        static_cast<void>(cudaStreamEndCapture(stream, &graph));
        if (graph) static_cast<void>(cudaGraphDestroy(graph));
        throw;
      }
      check(cudaStreamEndCapture(stream, &graph), "capturing a step");
      step_.set(graph);
    }
    step_.launch(stream);
    ++num_graph_launches;
  }

  bool grow_after_overflow() {
    const State& state = list_.host_state();
    if (!(state.faults & kTooManyEdges)) return false;
    list_.reserve_edges(state.needed_edges + state.needed_edges / 16);
    list_.force_rebuild(stream_.get());
    network_.resize(list_.view(), input_.forces);
    return true;
  }

  // Few steps have an edge that is short or at fault, so only those ask between which atoms it is.
  void name_edges() {
    const State& state = list_.host_state();
    if (state.fault_edge == INT_MAX && state.close_edge == INT_MAX) return;
    network_.name_edges(stream_.get());
    list_.download_state(stream_.get());
    stream_.wait();
  }

  void check_faults() {
    const State& state = list_.host_state();
    num_builds = state.num_builds;
    num_edges = state.num_edges;
    if (state.faults == 0) return;
    list_.force_rebuild(stream_.get());  // what follows a mended input must not trust this list
    throw InputError(describe(state, input_.names));
  }

  const StepResult& results() {
    check_faults();
    double totals[kTotals] = {};
    for (int64_t share = 0; share < total_shares(input_.n_local); ++share) {
      for (int64_t k = 0; k < kTotals; ++k) totals[k] += host_totals_.data()[kTotals * share + k];
    }
    result_.energy = totals[0];
    for (int a = 0; a < 3; ++a) {  // symmetric but for rounding
      for (int b = 0; b < 3; ++b) {
        result_.virial[static_cast<size_t>(3 * a + b)] =
            input_.forces ? 0.5 * (totals[1 + 3 * a + b] + totals[1 + 3 * b + a]) : 0.0;
      }
    }
    result_.energies = host_energies_.data();
    result_.forces = input_.forces ? host_forces_.data() : nullptr;
    result_.device_forces = input_.forces ? forces_.data() : nullptr;
    result_.atom_virials = input_.atom_virials ? host_atom_virials_.data() : nullptr;
    return result_;
  }

  SystemOptions options_;
  Stream stream_;
  Dense dense_;
  NeighborList list_;
  Network<T> network_;
  StepInput input_;
  int64_t rows_ = 0;       // on the device, see rows_for()
  bool prepared_ = false;  // for input_
  StepResult result_;
  CapturedStep step_;
  int64_t stage_ = 0;
  bool exchanging_ = false;
  RowExchange exchange_;
  GhostRows ghosts_;
  DeviceMemory<double> forces_, atom_virials_, weights_, totals_;
  PinnedMemory<double> host_forces_, host_atom_virials_, host_energies_, host_weights_,
      host_totals_, host_uncertainties_;
};

std::unique_ptr<System::Impl> make_system(const ModelFile& model, const SystemOptions& options) {
  const int devices = device_count();
  if (options.device < 0 || options.device >= devices) {
    throw InputError("device must be below the number of GPUs, " + std::to_string(devices) +
                     ", got " + std::to_string(options.device) + "; use device cpu");
  }
  if (!(options.skin >= 0.0) || !std::isfinite(options.skin)) {
    throw InputError("skin must be >= 0 Å, got " + std::to_string(options.skin));
  }
  if (options.precision == Precision::kFloat64 && options.math != Math::kFloat32) {
    throw InputError(
        "math half, tf32 and bfloat16 round single precision, and this is double precision; "
        "use single precision (float32), or math float32");
  }
  const CurrentDevice current(options.device);
  if (options.precision == Precision::kFloat32) {
    return std::make_unique<TypedSystem<float>>(model, options);
  }
  return std::make_unique<TypedSystem<double>>(model, options);
}

}  // namespace

System::System(const ModelFile& model, const SystemOptions& options) : device_(options.device) {
  impl_ = make_system(model, options);
}
System::~System() {
  try {  // streams, handles and graphs are destroyed on the device that they are of
    const CurrentDevice current(device_);
    impl_.reset();
  } catch (const Error&) {  // the device is gone; so is what was on it
  }
}
const StepResult& System::compute(const StepInput& input) { return impl_->compute(input); }
void System::begin(const StepInput& input) { impl_->begin(input); }
const RowExchange* System::advance() { return impl_->advance(); }
const StepResult& System::finish() { return impl_->finish(); }
const double* System::uncertainties() { return impl_->uncertainties(); }
bool System::close_pair(int& centre, int& sender, double& distance) const {
  const State& state = impl_->state();
  centre = state.close_centre;
  sender = state.close_sender;
  distance = state.close_distance;
  return state.close_edge != INT_MAX;
}
const TableReport& System::table_report() const { return impl_->table_report(); }
bool System::uses_cublas() const { return impl_->uses_cublas; }
std::string System::products() const { return impl_->products; }
int64_t System::num_builds() const { return impl_->num_builds; }
int64_t System::num_edges() const { return impl_->num_edges; }
int64_t System::num_graph_launches() const { return impl_->num_graph_launches; }
size_t System::memory_bytes() const { return impl_->memory_bytes(); }

}  // namespace gpu
}  // namespace mlff
