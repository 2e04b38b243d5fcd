// The stream of a system's steps, and a step that was captured in a graph.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
  ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "running a step"); }

 private:
  cudaStream_t stream_ = nullptr;
};

// A captured step and what it was captured for: sizes, flags, and every address that its work uses,
// each for itself (sums of them could cancel).
class CapturedStep {
 public:
  typedef std::array<int64_t, 14> Key;
  CapturedStep() = default;
  ~CapturedStep() { drop(); }
  CapturedStep(const CapturedStep&) = delete;
  CapturedStep& operator=(const CapturedStep&) = delete;

  // Whether the last step was like this one; what was captured is stale otherwise.
  bool same_as_before(const Key& key) {
    if (key_ == key) return true;
    key_ = key;
    valid_ = false;
    return false;
  }
  bool valid() const { return valid_; }
  // Takes the graph over. An executable of other sizes is updated, which costs a fraction of a new
  // one, unless the work itself has changed.
  void set(cudaGraph_t graph) {
    if (exec_ && !update_graph(exec_, graph)) drop();
    const cudaError_t status = exec_ ? cudaSuccess : cudaGraphInstantiate(&exec_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    if (status != cudaSuccess) exec_ = nullptr;
    check(status, "making a graph of a step");
    valid_ = true;
  }
  void launch(cudaStream_t stream) { check(cudaGraphLaunch(exec_, stream), "launching a step"); }

 private:
  void drop() {
    if (exec_) static_cast<void>(cudaGraphExecDestroy(exec_));
    exec_ = nullptr;
  }
  cudaGraphExec_t exec_ = nullptr;
  bool valid_ = false;
  Key key_{};  // of no step: a list in use has a generation
};

}  // namespace gpu
}  // namespace mlff
