#include "stream.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <set>

#include "block.h"
#include "cuda_host.h"
#include "memory.h"

namespace cuda_host {
namespace {

// Stream objects are never deleted, so that the handle of a destroyed one stays recognisable.
struct Streams {
  CudaHostStream legacy;  // the default stream, handle null
  std::vector<std::unique_ptr<CudaHostStream>> others;
  std::uint64_t seed = 0;
  std::uint64_t number = 0;
  Random random{0};
  std::exception_ptr pending;
  cudaError_t last_error = cudaSuccess;
  int num_captures = 0;
  int device_count = 1;
  int device = 0;  // the current one
  Counters counters;
  struct Condition {
    unsigned value, initial;
    bool reset;    // to the initial value, by every launch
    bool was_set;  // by a kernel of this launch
  };
  std::vector<Condition> conditions;  // of handle i + 1; never deleted
};

Streams& g() {
  static Streams streams;
  return streams;
}

CudaHostStream& resolve(cudaStream_t stream, const char* what) {
  if (stream == nullptr) return g().legacy;
  for (const auto& s : g().others) {
    if (s.get() != stream) continue;
    if (s->destroyed) throw Error(std::string(what) + ": the stream was destroyed");
    return *s;
  }
  throw Error(std::string(what) + ": not a stream");
}

std::vector<CudaHostStream*> all_streams() {
  std::vector<CudaHostStream*> all{&g().legacy};
  for (const auto& s : g().others) all.push_back(s.get());
  return all;
}

// The default stream and streams made without cudaStreamNonBlocking wait for each other.
bool is_ready(const CudaHostStream& stream) {
  const Operation& front = stream.queue.front();
  if (front.ready && !front.ready()) return false;
  if (!stream.blocking) return true;
  for (const CudaHostStream* other : all_streams()) {
    if (other == &stream || !other->blocking || other->queue.empty()) continue;
    if (&stream != &g().legacy && other != &g().legacy) continue;
    if (other->queue.front().number < front.number) return false;
  }
  return true;
}

// Runs the first operation of one stream: of `wanted` in order, of any at random, of others first
// in reverse. Throws what it throws, after dropping all work: as on a device, nothing can be
// relied on after a fault.
void step(const CudaHostStream* wanted) {
  std::vector<CudaHostStream*> ready;
  for (CudaHostStream* s : all_streams()) {
    if (!s->queue.empty() && is_ready(*s)) ready.push_back(s);
  }
  if (ready.empty()) {
    abandon_work();
    throw Error("streams wait for each other, or for an event of work that was dropped");
  }
  CudaHostStream* chosen = ready.front();
  if (g().seed == 0) {
    for (CudaHostStream* s : ready) chosen = s == wanted ? s : chosen;
  } else if (g().seed == 1) {
    chosen = ready.back();
    if (chosen == wanted && ready.size() > 1) chosen = ready[ready.size() - 2];
  } else {
    chosen = ready[g().random.below(static_cast<std::uint32_t>(ready.size()))];
  }
  Operation operation = std::move(chosen->queue.front());
  chosen->queue.pop_front();
  try {
    operation.run();
  } catch (...) {
    abandon_work();
    throw;
  }
}

Streams::Condition& condition_of(cudaGraphConditionalHandle handle) {
  if (handle == 0 || handle > g().conditions.size()) throw Error("not a handle of a condition");
  return g().conditions[handle - 1];
}

// Of the same kinds and kernels in the same order?
bool same_work(const std::vector<Operation>& a, const std::vector<Operation>& b) {
  const auto same = [](const Operation& x, const Operation& y) {
    if (x.kernel != y.kernel || !x.body != !y.body) return false;
    return !x.body || same_work(x.body->operations, y.body->operations);
  };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

cudaError_t begin_call(const char* name, bool allowed_in_capture) {
  if (in_kernel()) fail(std::string(name) + " inside a kernel");
  if (g().pending) std::rethrow_exception(std::exchange(g().pending, nullptr));
  if (!allowed_in_capture && g().num_captures > 0) {
    throw Error(std::string(name) + " while a stream is captured");
  }
  return g().device_count == 0 ? set_last_error(cudaErrorNoDevice) : cudaSuccess;
}

cudaError_t set_last_error(cudaError_t error) { return g().last_error = error; }

cudaError_t catch_error(const std::function<cudaError_t()>& f) noexcept {
  try {
    return f();
  } catch (...) {
    if (!g().pending) g().pending = std::current_exception();
    return set_last_error(cudaErrorUnknown);
  }
}

int current_device() { return g().device; }

void enqueue(cudaStream_t stream, Operation operation, const char* what) {
  CudaHostStream& s = resolve(stream, what);
  if (stream != nullptr && s.device != g().device) {
    throw Error(std::string(what) + ": the stream is of device " + std::to_string(s.device) +
                ", current is " + std::to_string(g().device));
  }
  if (s.capture != nullptr) {
    if (s.capture->loose) {
      throw Error(std::string(what) + ": waits for no node that was added to the capture");
    }
    if (s.capture->conditional && operation.kernel.empty()) {
      throw Error(std::string(what) + ": a conditional node takes kernels");
    }
    s.capture->operations.push_back(std::move(operation));
    return;
  }
  if (g().num_captures > 0 && s.blocking && (&s == &g().legacy)) {
    throw Error(std::string(what) + ": the default stream is used while a stream is captured");
  }
  if (!operation.kernel.empty()) ++g().counters.launches[operation.kernel];
  operation.number = ++g().number;
  s.queue.push_back(std::move(operation));
}

bool is_capturing(cudaStream_t stream) { return resolve(stream, "stream").capture != nullptr; }

void run_stream(cudaStream_t stream) {
  CudaHostStream& s = resolve(stream, "stream");
  while (!s.queue.empty()) step(&s);
}

void run_everything() {
  for (CudaHostStream* s : all_streams()) {
    while (!s->queue.empty()) step(s);
  }
}

void set_schedule(std::uint64_t seed) {
  if (g().pending) std::rethrow_exception(std::exchange(g().pending, nullptr));
  run_everything();
  g().seed = seed;
  g().random = Random(seed);
}

std::uint64_t schedule() { return g().seed; }
Random& schedule_random() { return g().random; }

Counters& counters() { return g().counters; }
void reset_counters() { g().counters = Counters(); }
void set_device_count(int count) {
  g().device_count = count;
  if (g().device >= count) g().device = 0;
}

void set_condition(unsigned long long handle, unsigned value) {
  if (handle == 0 || handle > g().conditions.size()) fail("not a handle of a condition");
  Streams::Condition& condition = g().conditions[handle - 1];
  if (condition.was_set) fail("a condition is set twice, which CUDA does not define");
  condition.was_set = true;
  condition.value = value;
}

void abandon_work() {
  for (CudaHostStream* s : all_streams()) {
    s->queue.clear();
    s->capture = nullptr;
  }
  g().num_captures = 0;
  g().pending = nullptr;
}

}  // namespace cuda_host

using namespace cuda_host;

cudaError_t cudaGetLastError() { return std::exchange(g().last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return g().last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = g().device_count;
  return *count == 0 ? set_last_error(cudaErrorNoDevice) : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (cudaError_t error = begin_call("cudaSetDevice", true)) return error;
  if (device < 0 || device >= g().device_count) return set_last_error(cudaErrorInvalidDevice);
  g().device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (cudaError_t error = begin_call("cudaDeviceSynchronize", false)) return error;
  ++g().counters.host_synchronisations;
  run_everything();
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (cudaError_t error = begin_call("cudaStreamCreate", true)) return error;
  g().others.push_back(std::make_unique<CudaHostStream>());
  g().others.back()->device = g().device;
  g().others.back()->blocking = (flags & cudaStreamNonBlocking) == 0;
  *stream = g().others.back().get();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) noexcept {
  return catch_error([&] {
    if (cudaError_t error = begin_call("cudaStreamDestroy", true)) return error;
    resolve(stream, "cudaStreamDestroy").destroyed = true;  // its work still runs, later
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (cudaError_t error = begin_call("cudaStreamSynchronize", false)) return error;
  resolve(stream, "cudaStreamSynchronize");
  ++g().counters.host_synchronisations;
  run_stream(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (cudaError_t error = begin_call("cudaStreamQuery", false)) return error;
  CudaHostStream& s = resolve(stream, "cudaStreamQuery");
  if (s.queue.empty()) return cudaSuccess;
  step(&s);  // time passes
  return cudaErrorNotReady;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* data) {
  if (cudaError_t error = begin_call("cudaLaunchHostFunc", true)) return error;
  enqueue(stream, Operation{[=] { function(data); }, {}, {}, 0}, "cudaLaunchHostFunc");
  return cudaSuccess;
}

// --- events --------------------------------------------------------------------------------------
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (cudaError_t error = begin_call("cudaEventCreate", true)) return error;
  *event = new CudaHostEvent;
  (*event)->timing = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) noexcept {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (cudaError_t error = begin_call("cudaEventRecord", true)) return error;
  CudaHostStream& s = resolve(stream, "cudaEventRecord");
  event->state->captured = s.capture;
  if (s.capture != nullptr) return cudaSuccess;  // only an edge of the graph
  event->stream = &s;
  const std::shared_ptr<EventState> state = event->state;
  const std::uint64_t version = ++state->recorded;
  enqueue(stream,
          Operation{[state, version] {
                      state->completed = version;
                      state->time = now();
                    },
                    {},
                    {},
                    0},
          "cudaEventRecord");
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (cudaError_t error = begin_call("cudaStreamWaitEvent", true)) return error;
  CudaHostStream& s = resolve(stream, "cudaStreamWaitEvent");
  const std::shared_ptr<EventState> state = event->state;
  if (state->captured != nullptr) {
    // The stream joins the capture, whose operations replay in the order of the calls.
    if (s.capture == nullptr) s.capture = state->captured;
    return cudaSuccess;
  }
  if (s.capture != nullptr) {
    throw Error("cudaStreamWaitEvent: a captured stream waits for an event outside of the capture");
  }
  const std::uint64_t version = state->recorded;
  enqueue(stream, Operation{[] {}, [state, version] { return state->completed >= version; }, {}, 0},
          "cudaStreamWaitEvent");
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (cudaError_t error = begin_call("cudaEventSynchronize", false)) return error;
  ++g().counters.host_synchronisations;
  const std::uint64_t version = event->state->recorded;
  while (event->state->completed < version) step(event->stream);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (cudaError_t error = begin_call("cudaEventQuery", false)) return error;
  if (event->state->completed >= event->state->recorded) return cudaSuccess;
  step(event->stream);  // time passes
  return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (cudaError_t error = begin_call("cudaEventElapsedTime", true)) return error;
  for (const CudaHostEvent* event : {start, end}) {
    if (!event->timing) throw Error("cudaEventElapsedTime: the event was made without timing");
    if (event->state->recorded == 0) throw Error("cudaEventElapsedTime: event was not recorded");
    if (event->state->completed < event->state->recorded) return cudaErrorNotReady;
  }
  *milliseconds = static_cast<float>(1e3 * (end->state->time - start->state->time));
  return cudaSuccess;
}

// --- graphs --------------------------------------------------------------------------------------
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (cudaError_t error = begin_call("cudaStreamBeginCapture", true)) return error;
  if (stream == nullptr) throw Error("cudaStreamBeginCapture: the default stream");
  CudaHostStream& s = resolve(stream, "cudaStreamBeginCapture");
  if (s.capture != nullptr) throw Error("cudaStreamBeginCapture: the stream is captured already");
  s.capture = new CudaHostGraph;
  s.capture->origin = &s;
  ++g().num_captures;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (cudaError_t error = begin_call("cudaStreamEndCapture", true)) return error;
  CudaHostStream& s = resolve(stream, "cudaStreamEndCapture");
  if (s.capture == nullptr || s.capture->origin != &s) {
    throw Error("cudaStreamEndCapture: the capture was not begun on this stream");
  }
  if (s.capture->loose) throw Error("cudaStreamEndCapture: nothing waits for an added node");
  *graph = s.capture;
  for (CudaHostStream* other : all_streams()) {
    if (other->capture == *graph) other->capture = nullptr;
  }
  --g().num_captures;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  if (cudaError_t error = begin_call("cudaStreamIsCapturing", true)) return error;
  *status = is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, std::size_t* count) {
  if (cudaError_t error = cudaStreamIsCapturing(stream, status)) return error;
  if (*status == cudaStreamCaptureStatusNone) return cudaSuccess;  // the others are not written
  if (id) *id = 1;
  *graph = resolve(stream, "cudaStreamGetCaptureInfo").capture;
  *dependencies = nullptr;
  *edges = nullptr;
  *count = 0;
  return cudaSuccess;
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph,
                                             unsigned default_value, unsigned flags) {
  if (cudaError_t error = begin_call("cudaGraphConditionalHandleCreate", true)) return error;
  const bool reset = flags == cudaGraphCondAssignDefault;
  g().conditions.push_back({default_value, default_value, reset, false});
  *handle = g().conditions.size();
  graph->conditions.push_back(*handle);
  return cudaSuccess;
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t*,
                             const cudaGraphEdgeData*, std::size_t,
                             cudaGraphNodeParams* parameters) {
  if (cudaError_t error = begin_call("cudaGraphAddNode", true)) return error;
  cudaConditionalNodeParams& p = parameters->conditional;
  const auto& of_graph = graph->conditions;
  if (std::find(of_graph.begin(), of_graph.end(), p.handle) == of_graph.end() || p.size != 1) {
    throw Error("cudaGraphAddNode: expected a condition of this graph, and size 1");
  }
  const auto body = std::make_shared<CudaHostGraph>();
  body->conditional = true;
  body->self = body.get();
  p.phGraph_out = &body->self;
  const cudaGraphConditionalHandle handle = p.handle;
  Operation operation;
  operation.body = body;
  operation.run = [body, handle] {
    if (condition_of(handle).value == 0) return;
    for (const Operation& inside : body->operations) {
      ++g().counters.launches[inside.kernel];
      inside.run();
    }
  };
  graph->operations.push_back(std::move(operation));
  graph->loose = true;
  *node = reinterpret_cast<cudaGraphNode_t>(body.get());
  return cudaSuccess;
}

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream, cudaGraphNode_t*,
                                                const cudaGraphEdgeData*, std::size_t count,
                                                unsigned flags) {
  if (cudaError_t error = begin_call("cudaStreamUpdateCaptureDependencies", true)) return error;
  CudaHostGraph* graph = resolve(stream, "cudaStreamUpdateCaptureDependencies").capture;
  if (graph == nullptr || count != 1 || flags != cudaStreamSetCaptureDependencies) {
    throw Error("cudaStreamUpdateCaptureDependencies: expected a capture and its new last node");
  }
  graph->loose = false;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph,
                                          const cudaGraphNode_t*, const cudaGraphEdgeData*,
                                          std::size_t, cudaStreamCaptureMode) {
  if (cudaError_t error = begin_call("cudaStreamBeginCaptureToGraph", true)) return error;
  CudaHostStream& s = resolve(stream, "cudaStreamBeginCaptureToGraph");
  if (stream == nullptr || s.capture != nullptr) {
    throw Error("cudaStreamBeginCaptureToGraph: the default stream, or one that is captured");
  }
  s.capture = graph;
  graph->origin = &s;
  ++g().num_captures;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (cudaError_t error = begin_call("cudaGraphInstantiate", true)) return error;
  ++g().counters.graph_instantiations;
  *exec = new CudaHostGraphExec{graph->operations, graph->conditions};
  return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* result) {
  if (cudaError_t error = begin_call("cudaGraphExecUpdate", true)) return error;
  const bool fits = same_work(graph->operations, exec->operations);
  result->result = fits ? 0 : 1;
  if (!fits) return set_last_error(cudaErrorGraphExecUpdateFailure);
  exec->operations = graph->operations;
  exec->conditions = graph->conditions;
  ++g().counters.graph_updates;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (cudaError_t error = begin_call("cudaGraphLaunch", true)) return error;
  if (is_capturing(stream)) throw Error("cudaGraphLaunch: the stream is captured");
  ++g().counters.graph_launches;
  const std::vector<cudaGraphConditionalHandle> conditions = exec->conditions;
  const auto reset = [conditions] {
    for (const cudaGraphConditionalHandle handle : conditions) {
      Streams::Condition& condition = condition_of(handle);
      if (condition.reset) condition.value = condition.initial;
      condition.was_set = false;
    }
  };
  if (!conditions.empty()) enqueue(stream, Operation{reset, {}, {}, 0}, "cudaGraphLaunch");
  for (const Operation& operation : exec->operations) {
    enqueue(stream, operation, "cudaGraphLaunch");
  }
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) noexcept {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) noexcept {
  delete graph;
  return cudaSuccess;
}
