// Streams, events and graphs: queued work, and the order in which it runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime_api.h"

namespace cuda_host {

struct Operation {
  std::function<void()> run;
  std::function<bool()> ready;                    // empty: always
  std::string kernel;                             // name of the kernel, for counters
  std::uint64_t number = 0;                       // in order of submission
  std::shared_ptr<CudaHostGraph> body = nullptr;  // of a conditional node
};

struct EventState {
  std::uint64_t recorded = 0;  // versions
  std::uint64_t completed = 0;
  double time = 0;                    // s, of the last completed record
  CudaHostGraph* captured = nullptr;  // the capture that the last record belongs to
};

// Every API function starts with this. Throws an error that a destructor could not, and in a
// capture, unless `allowed_in_capture`. Returns cudaErrorNoDevice if there is none.
cudaError_t begin_call(const char* name, bool allowed_in_capture);
cudaError_t set_last_error(cudaError_t error);
// For destructors: keeps what f throws for the next begin_call().
cudaError_t catch_error(const std::function<cudaError_t()>& f) noexcept;

// Appends to the stream, or to the graph that the stream is captured into. As a device does,
// refuses a stream of another device than the current one.
void enqueue(cudaStream_t stream, Operation operation, const char* what);
bool is_capturing(cudaStream_t stream);
int current_device();
// Runs until `stream` has nothing left / nothing is left anywhere.
void run_stream(cudaStream_t stream);
void run_everything();

}  // namespace cuda_host

struct CudaHostStream {
  int device = 0;
  bool blocking = true;  // waits for the default stream, and the default stream for it
  bool destroyed = false;
  CudaHostGraph* capture = nullptr;
  std::deque<cuda_host::Operation> queue;
};

struct CudaHostEvent {
  std::shared_ptr<cuda_host::EventState> state = std::make_shared<cuda_host::EventState>();
  CudaHostStream* stream = nullptr;
  bool timing = true;
};

struct CudaHostGraph {
  std::vector<cuda_host::Operation> operations;
  CudaHostStream* origin = nullptr;
  std::vector<cudaGraphConditionalHandle> conditions;
  bool conditional = false;       // the body of a node
  bool loose = false;             // its last node was added and nothing waits for it yet
  CudaHostGraph* self = nullptr;  // what phGraph_out points to
};

struct CudaHostGraphExec {
  std::vector<cuda_host::Operation> operations;
  std::vector<cudaGraphConditionalHandle> conditions;
};
