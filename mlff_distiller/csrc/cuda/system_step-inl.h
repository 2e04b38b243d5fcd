// A step: what is enqueued in which order, in a graph or in stages, and what comes of it.
#pragma once

#include <algorithm>
#include <climits>
#include <sstream>
#include <string>

#include "core/engine.h"
#include "core/error.h"
#include "core/lattice.h"
#include "cuda/system_impl-inl.h"

namespace mlff {
namespace gpu {
namespace {

void copy_down(double* to, const double* from, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(double),
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

template <typename T>
void TypedSystem<T>::start(const StepInput& input) {
  if (input.ghosts.n_sent + input.ghosts.n_received > 0) {
    throw InputError("rows of other processes need begin(), advance() and finish()");
  }
  const CurrentDevice current(options_.device);
  if (started_) stream_.wait();  // it may still read what prepare() writes
  prepare(input);
  if (input.ready) {
    check(cudaStreamWaitEvent(stream_.get(), input.ready, 0), "waiting for positions");
  }
  started_ = true;
  run_step();
}

// A list that overflows is noticed at the end, and the step taken again with more room: the
// steady state has one wait.
template <typename T>
const StepResult& TypedSystem<T>::complete() {
  const CurrentDevice current(options_.device);
  stream_.wait();
  while (grow_after_overflow()) {
    run_step();
    stream_.wait();
  }
  started_ = false;
  name_edges();
  return results();
}

template <typename T>
void TypedSystem<T>::begin(const StepInput& input) {
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

template <typename T>
const RowExchange* TypedSystem<T>::advance() {
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

template <typename T>
const StepResult& TypedSystem<T>::finish() {
  const CurrentDevice current(options_.device);
  download();
  stream_.wait();
  return results();
}

template <typename T>
const double* TypedSystem<T>::uncertainties() {
  const CurrentDevice current(options_.device);
  const cudaStream_t stream = stream_.get();
  const double* found = network_.uncertainties(stream);
  if (!found) throw InputError(kNoUncertainty);
  const int64_t n = input_.n_local;
  double* host = host_uncertainties_.require(std::max<int64_t>(1, n));
  copy_down(host, found, n, stream);
  stream_.wait();
  return host;
}

template <typename T>
typename TypedSystem<T>::Stage TypedSystem<T>::stage(int64_t index) {
  const int64_t layers = network_.num_interactions();
  Stage now;
  now.backward = index >= layers;
  now.layer = now.backward ? 2 * layers - 1 - index : index;
  if (now.layer == 0) return now;
  now.rows = now.backward ? network_.adjoints(now.layer) : network_.features(now.layer);
  now.row_bytes = row_bytes(now.backward ? 4 : 5);
  return now;
}

template <typename T>
void TypedSystem<T>::run_stage(const Stage& now) {
  const cudaStream_t stream = stream_.get();
  if (now.rows) ghosts_.fill(now.rows, now.row_bytes, stream);
  now.backward ? network_.backward(now.layer, stream) : network_.forward(now.layer, stream);
}

template <typename T>
void TypedSystem<T>::upload() {
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
template <typename T>
void TypedSystem<T>::enqueue() {
  const cudaStream_t stream = stream_.get();
  upload();
  list_.update(stream);
  network_.begin(list_.view(), weights(), input_.forces, options_.warn_distance, stream);
  for (int64_t index = 0; index < stages(); ++index) run_stage(stage(index));
  download();
}

template <typename T>
void TypedSystem<T>::download() {
  const cudaStream_t stream = stream_.get();
  network_.finish(forces_.data(), input_.atom_virials ? atom_virials_.data() : nullptr,
                  totals_.data(), stream);
  const int64_t rows = rows_, n = input_.n_local;
  if (input_.to_host) {
    copy_down(host_energies_.data(), network_.energies(), n, stream);
    if (input_.forces) copy_down(host_forces_.data(), forces_.data(), 3 * rows, stream);
    if (input_.atom_virials) {
      copy_down(host_atom_virials_.data(), atom_virials_.data(), 9 * rows, stream);
    }
  }
  copy_down(host_totals_.data(), totals_.data(), kTotals * total_shares(n), stream);
  list_.download_state(stream);
}

// Captures a step once nothing it depends on has changed since the step before: what is loaded or
// allocated at first use (cuBLAS does) is there by then.
template <typename T>
void TypedSystem<T>::run_step() {
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

// Few steps have an edge that is short or at fault, so only those ask between which atoms it is.
template <typename T>
void TypedSystem<T>::name_edges() {
  const State& state = list_.host_state();
  if (state.fault_edge == INT_MAX && state.close_edge == INT_MAX) return;
  network_.name_edges(stream_.get());
  list_.download_state(stream_.get());
  stream_.wait();
}

template <typename T>
void TypedSystem<T>::check_faults() {
  const State& state = list_.host_state();
  num_builds = state.num_builds;
  num_edges = state.num_edges;
  if (state.faults == 0) return;
  list_.force_rebuild(stream_.get());  // what follows a mended input must not trust this list
  throw InputError(describe(state, input_.names));
}

template <typename T>
const StepResult& TypedSystem<T>::results() {
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
  const bool down = input_.to_host;
  result_.energies = down ? host_energies_.data() : nullptr;
  result_.forces = down && input_.forces ? host_forces_.data() : nullptr;
  result_.device_forces = input_.forces ? forces_.data() : nullptr;
  result_.atom_virials = down && input_.atom_virials ? host_atom_virials_.data() : nullptr;
  return result_;
}

}  // namespace
}  // namespace gpu
}  // namespace mlff
