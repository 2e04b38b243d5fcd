// One system of one precision: its memory and the parts of a step. Of system.cu alone, as the other
// system_*-inl.h.
#pragma once

#include <memory>
#include <string>

#include "cuda/captured_step.h"
#include "cuda/current_device.h"
#include "cuda/device_memory.h"
#include "cuda/ghosts.h"
#include "cuda/network.h"
#include "cuda/system.h"

namespace mlff {
namespace gpu {

class System::Impl {
 public:
  virtual ~Impl() = default;
  virtual void start(const StepInput& input) = 0;
  virtual const StepResult& complete() = 0;
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

  void start(const StepInput& input) override;
  const StepResult& complete() override;
  void begin(const StepInput& input) override;
  const RowExchange* advance() override;
  const StepResult& finish() override;
  const double* uncertainties() override;

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
  Stage stage(int64_t index);
  size_t row_bytes(size_t blocks) const {
    return blocks * static_cast<size_t>(network_.num_channels()) * sizeof(T);
  }

  // system_prepare-inl.h
  int64_t rows_for(const StepInput& input) const;
  void prepare(const StepInput& input);
  void copy_positions();
  void copy_atoms(bool species);
  CapturedStep::Key key() const;
  bool grow_after_overflow();

  // system_step-inl.h
  void run_stage(const Stage& now);
  void upload();
  void enqueue();
  void download();
  void run_step();
  void name_edges();
  void check_faults();
  const StepResult& results();

  SystemOptions options_;
  Stream stream_;
  Dense dense_;
  NeighborList list_;
  Network<T> network_;
  StepInput input_;
  int64_t rows_ = 0;       // on the device, see rows_for()
  bool prepared_ = false;  // for input_
  bool started_ = false;   // and not completed
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

}  // namespace
}  // namespace gpu
}  // namespace mlff
