// The network on a graph: fused forward pass and analytic reverse pass, layer by layer.
//
// Species and edge vectors in, atomic energies and pair gradients out. The engine knows neither
// cells nor neighbour search nor message passing between processes: potential.h adds the first
// two, a GhostExchange (LAMMPS ranks) the third.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/graph.h"
#include "core/isa.h"
#include "core/model_file.h"

namespace mlff {

// OpenMP runtimes crash, rather than complain, when asked for absurdly many.
constexpr int kMostThreads = 1024;

// What is said where uncertainties are asked of a model without.
extern const char* const kNoUncertainty;

// Times the largest uncertainty of held-out atoms: where users are warned unless they set a limit.
constexpr double kUncertaintyMargin = 3.0;
// Likewise of the root mean square over all atoms, against the largest of a held-out frame.
constexpr double kFrameUncertaintyMargin = 1.5;

struct EngineOptions {
  Precision precision = Precision::kFloat32;  // of features; positions and energies are double
  int num_threads = 0;                        // 0: OpenMP's default
  bool tabulate = true;                       // filters from a checked table, else exact
  Isa isa = Isa::kAuto;                       // for tests; kAuto picks the fastest
};

class Engine {
 public:
  // Packs weights and tabulates filters. Throws InputError if the table misses its error bound or
  // the requested instruction set is not available.
  Engine(const ModelFile& model, const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // All stages. `exchange` may be null if n_rows == n_local. A rank with n_local == 0 makes the
  // same exchange calls as every other.
  void compute(const Graph& graph, GhostExchange* exchange, const Outputs& outputs);

  // The same, stage by stage (compute() is begin() and a loop over advance()):
  //   engine.begin(graph, outputs);
  //   while (const ExchangeRequest* request = engine.advance()) { fill request's ghost rows; }
  // begin() checks the input and throws every InputError there is, so that processes can agree on
  // an error before the first exchange; advance() does not throw. The graph and the outputs must
  // stay alive and unchanged until advance() has returned null. Number and order of the requests
  // depend on the model and on outputs.pair_gradients being null, never on the graph:
  // features of layer 1 .. K-1, then (with gradients) adjoints of layer K-1 .. 1.
  void begin(const Graph& graph, const Outputs& outputs);
  const ExchangeRequest* advance();

  // Largest row_bytes of any request (LAMMPS sizes comm_forward by it). Features of a ghost take
  // 5 F numbers, adjoints 4 F, F rounded up to a multiple of 64 bytes.
  size_t max_exchange_bytes() const;

  double cutoff() const;                  // Angstrom
  int num_species() const;                //
  int num_threads() const;                // that compute() will use
  void set_num_threads(int num_threads);  // 0: OpenMP's default
  Precision precision() const;
  Isa isa() const;  // in use, never kAuto
  const TableReport& table_report() const;
  size_t memory_bytes() const;  // weights, tables and work buffers held now
  void set_profiling(bool on);  // also resets; costs a few per cent
  const Profile& profile() const;

 private:
  class Impl;
  template <typename T>
  class TypedImpl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mlff
