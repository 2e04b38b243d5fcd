#include "core/engine.h"

#include <chrono>
#include <string>

#include "core/cpus.h"
#include "core/edges.h"
#include "core/error.h"
#include "core/kernels.h"
#include "core/network.h"

namespace mlff {

const char* const kNoUncertainty =
    "this model has no data for uncertainties; export it again with `mlff-distiller export` where "
    "its training data are";

class Engine::Impl {
 public:
  Impl(const ModelFile& model, const EngineOptions& given)
      : options(given),
        isa(choose_isa(given.isa)),
        cutoff(model.cutoff),
        has_uncertainty(model.has_uncertainty),
        num_species(static_cast<int>(model.elements.size())) {}
  virtual ~Impl() = default;
  virtual void begin(const Graph& graph, const Outputs& outputs) = 0;
  virtual const ExchangeRequest* advance() = 0;
  virtual size_t row_bytes() const = 0;  // of F numbers
  virtual const TableReport& table_report() const = 0;
  virtual size_t memory_bytes() const = 0;
  virtual const Profile& profile() = 0;
  virtual void set_profiling(bool on) = 0;

  EngineOptions options;
  const Isa isa;
  const double cutoff;
  const bool has_uncertainty;
  const int num_species;
};

template <typename T>
class Engine::TypedImpl : public Engine::Impl {
 public:
  TypedImpl(const ModelFile& model, const EngineOptions& options)
      : Impl(model, options),
        repulsion_(model),
        network_(model, kernels_of<T>(isa), options.tabulate),
        num_interactions_(model.num_interactions) {}

  void begin(const Graph& graph, const Outputs& outputs) override {
    if (graph.n_local < 0 || graph.n_rows < graph.n_local || !outputs.atomic_energies) {
      throw InputError("a graph must have 0 <= n_local <= n_rows and a place for energies, got " +
                       std::to_string(graph.n_local) + " and " + std::to_string(graph.n_rows));
    }
    if (outputs.uncertainties && !has_uncertainty) throw InputError(kNoUncertainty);
    const auto start = std::chrono::steady_clock::now();
    const int threads = options.num_threads > 0 ? options.num_threads : default_threads();
    const FilterTable<T>& table = network_.table();
    stage_ = stages();  // a failed begin leaves nothing to advance
    edges_.prepare(graph, network_.tile_size(graph.n_local, threads), cutoff,
                   table.inverse_spacing(), table.intervals(), repulsion_, num_species, threads,
                   outputs.atomic_energies, outputs.pair_gradients, outputs.energy_weights);
    network_.prepare(graph, edges_, threads, outputs, profiling_);
    graph_ = graph;
    gradients_ = outputs.pair_gradients != nullptr;
    stage_ = 0;
    exchanged_ = false;
    if (profiling_) {
      geometry_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  }

  // Stages 0 ... K-1 are forward, K ... 2K-1 backward from interaction K-1 down.
  const ExchangeRequest* advance() override {
    const int64_t layers = num_interactions_;
    for (; stage_ < stages(); ++stage_) {
      const bool backward = stage_ >= layers;
      const int64_t k = backward ? 2 * layers - 1 - stage_ : stage_;
      if (k > 0 && !exchanged_) {
        exchanged_ = true;  // by the time of the next call
        request_.rows = backward ? network_.adjoints(k) : network_.features(k);
        request_.row_bytes = (backward ? 4 : 5) * row_bytes();
        request_.n_local = graph_.n_local;
        request_.n_rows = graph_.n_rows;
        request_.layer = static_cast<int>(k);
        request_.backward = backward;
        return &request_;
      }
      exchanged_ = false;
      backward ? network_.backward(k) : network_.forward(k);
    }
    return nullptr;
  }

  size_t row_bytes() const override { return sizeof(T) * static_cast<size_t>(network_.padded()); }
  const TableReport& table_report() const override { return network_.table().report(); }
  size_t memory_bytes() const override { return network_.bytes() + edges_.bytes(); }
  const Profile& profile() override {
    profile_ = network_.profile();
    profile_.geometry = geometry_;
    return profile_;
  }
  void set_profiling(bool on) override {
    profiling_ = on;
    geometry_ = 0.0;
    network_.reset_profile();
  }

 private:
  int64_t stages() const { return gradients_ ? 2 * num_interactions_ : num_interactions_; }

  Repulsion repulsion_;
  Network<T> network_;
  EdgeGeometry<T> edges_;
  int64_t num_interactions_;
  Graph graph_;
  bool gradients_ = false;
  int64_t stage_ = 0;
  bool exchanged_ = false;
  ExchangeRequest request_;
  bool profiling_ = false;
  double geometry_ = 0.0;
  Profile profile_;
};

namespace {

void check_threads(int num_threads) {
  if (num_threads < 0 || num_threads > kMostThreads) {
    throw InputError("threads must be 0 (OpenMP's default) to " + std::to_string(kMostThreads) +
                     ", got " + std::to_string(num_threads) + "; set threads");
  }
}

}  // namespace

Engine::Engine(const ModelFile& model, const EngineOptions& options) {
  check_threads(options.num_threads);
  if (options.precision == Precision::kFloat32) {
    impl_ = std::make_unique<TypedImpl<float>>(model, options);
  } else {
    impl_ = std::make_unique<TypedImpl<double>>(model, options);
  }
}

Engine::~Engine() = default;

void Engine::compute(const Graph& graph, GhostExchange* exchange, const Outputs& outputs) {
  if (!exchange && graph.n_rows != graph.n_local) {
    throw InputError("a graph with ghosts needs a GhostExchange, got none");
  }
  begin(graph, outputs);
  while (const ExchangeRequest* request = advance()) {
    if (exchange) exchange->forward(*request);
  }
}

void Engine::begin(const Graph& graph, const Outputs& outputs) { impl_->begin(graph, outputs); }
const ExchangeRequest* Engine::advance() { return impl_->advance(); }
size_t Engine::max_exchange_bytes() const { return 5 * impl_->row_bytes(); }
double Engine::cutoff() const { return impl_->cutoff; }
int Engine::num_species() const { return impl_->num_species; }
int Engine::num_threads() const {
  return impl_->options.num_threads > 0 ? impl_->options.num_threads : default_threads();
}
void Engine::set_num_threads(int num_threads) {
  check_threads(num_threads);
  impl_->options.num_threads = num_threads;
}
Precision Engine::precision() const { return impl_->options.precision; }
Isa Engine::isa() const { return impl_->isa; }
const TableReport& Engine::table_report() const { return impl_->table_report(); }
size_t Engine::memory_bytes() const { return impl_->memory_bytes(); }
void Engine::set_profiling(bool on) { impl_->set_profiling(on); }
const Profile& Engine::profile() const { return impl_->profile(); }

}  // namespace mlff
