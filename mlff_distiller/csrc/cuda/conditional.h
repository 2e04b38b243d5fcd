// Launches that a captured step skips unless one of its kernels wants them.
//
// In a graph they become the body of a conditional (IF) node, of which an idle step pays one node
// instead of all kernels. CUDA has such nodes since 12.4; here they are used with 13 and later,
// whose names of the API they are written in. Without, and outside of a capture, every launch is
// made, so kernels return at once by themselves where there is nothing to do.
#pragma once

#include "cuda/gpu.h"

#if defined(MLFF_CUDA_HOST) || (defined(CUDART_VERSION) && CUDART_VERSION >= 13000)
#define MLFF_CONDITIONAL_GRAPHS 1
#else
#define MLFF_CONDITIONAL_GRAPHS 0
#endif

namespace mlff {
namespace gpu {

#if MLFF_CONDITIONAL_GRAPHS
typedef cudaGraphConditionalHandle Condition;
#else
typedef unsigned long long Condition;
#endif

class Conditional {
 public:
  Conditional() = default;
  ~Conditional() {
    if (side_) static_cast<void>(cudaStreamDestroy(side_));
  }
  Conditional(const Conditional&) = delete;
  Conditional& operator=(const Conditional&) = delete;

  // For the kernel that decides, launched before run(): one thread of it calls set_condition(),
  // unless this is 0. Nobody's call means no.
  Condition begin(cudaStream_t stream) {
    condition_ = 0;
#if MLFF_CONDITIONAL_GRAPHS
    if (!side_) {  // by the first step, which is never captured
      check(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking), "making a stream");
    }
    if (cudaGraph_t graph = capture(stream).graph) {
      check(cudaGraphConditionalHandleCreate(&condition_, graph, 0, cudaGraphCondAssignDefault),
            "making a condition");
    }
#endif
    return condition_;
  }

  // launches(stream) enqueues kernels, and nothing else, on the stream that it is given.
  template <typename F>
  void run(cudaStream_t stream, const F& launches) {
#if MLFF_CONDITIONAL_GRAPHS
    if (condition_) {
      cudaGraph_t body = add_node(stream);
      check(cudaStreamBeginCaptureToGraph(side_, body, nullptr, nullptr, 0,
                                          cudaStreamCaptureModeThreadLocal),
            "capturing a part of a step");
      try {
        launches(side_);
      } catch (...) {
        static_cast<void>(cudaStreamEndCapture(side_, &body));
        throw;
      }
      check(cudaStreamEndCapture(side_, &body), "capturing a part of a step");
      return;
    }
#endif
    launches(stream);
  }

 private:
#if MLFF_CONDITIONAL_GRAPHS
  struct Capture {
    cudaGraph_t graph = nullptr;  // null: none
    const cudaGraphNode_t* nodes = nullptr;
    const cudaGraphEdgeData* edges = nullptr;
    size_t count = 0;
  };
  static Capture capture(cudaStream_t stream) {
    Capture found;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &found.graph, &found.nodes,
                                   &found.edges, &found.count),
          "asking for a capture");
    if (status != cudaStreamCaptureStatusActive) found.graph = nullptr;
    return found;
  }
  // The node, behind all of the capture and ahead of what follows; its graph.
  cudaGraph_t add_node(cudaStream_t stream) {
    const Capture at = capture(stream);
    cudaGraphNodeParams parameters = {};
    parameters.type = cudaGraphNodeTypeConditional;
    parameters.conditional.handle = condition_;
    parameters.conditional.type = cudaGraphCondTypeIf;
    parameters.conditional.size = 1;
    cudaGraphNode_t node = nullptr;
    check(cudaGraphAddNode(&node, at.graph, at.nodes, at.edges, at.count, &parameters),
          "adding a conditional node");
    check(cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1,
                                              cudaStreamSetCaptureDependencies),
          "adding a conditional node");
    return parameters.conditional.phGraph_out[0];
  }
#endif

  Condition condition_ = 0;
  cudaStream_t side_ = nullptr;  // which the body is captured from
};

#if defined(MLFF_CUDA_HOST) || defined(__CUDACC__) || defined(__HIP_PLATFORM_AMD__)
__device__ __forceinline__ void set_condition(Condition condition, bool wanted) {
#if MLFF_CONDITIONAL_GRAPHS
  cudaGraphSetConditional(condition, wanted ? 1u : 0u);
#endif
}
#endif

}  // namespace gpu
}  // namespace mlff
