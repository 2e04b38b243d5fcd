// Deferred work, events, counters, graphs.
#include <memory>
#include <set>

#include "selftest.h"

using selftest::Array;

namespace {

__global__ void add(int* values, int n, int what) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) values[i] += what;
}

__global__ void combine(const int* a, const int* b, int* out) { out[0] = a[0] * 10 + b[0]; }

struct Stream {
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    cudaStreamCreateWithFlags(&handle, flags);
  }
  ~Stream() { cudaStreamDestroy(handle); }
  cudaStream_t handle = nullptr;
};

struct Event {
  explicit Event(unsigned flags = cudaEventDisableTiming) {
    cudaEventCreateWithFlags(&handle, flags);
  }
  ~Event() { cudaEventDestroy(handle); }
  cudaEvent_t handle = nullptr;
};

struct Pinned {
  explicit Pinned(std::size_t n) { cudaMallocHost(&data, n * sizeof(int)); }
  ~Pinned() { cudaFreeHost(data); }
  int* data = nullptr;
};

__global__ void decide(cudaGraphConditionalHandle condition, const int* wanted) {
  if (threadIdx.x == 0) cudaGraphSetConditional(condition, *wanted);
}

__global__ void decide_twice(cudaGraphConditionalHandle condition) {
  cudaGraphSetConditional(condition, 1);
}

CASE(work_is_deferred_until_the_host_waits) {
  Stream stream;
  Array<int> device(4, 1);
  Pinned host(4);
  host.data[0] = -1;
  MLFF_LAUNCH(add, 1, 4, 0, stream.handle, device.data(), 4, 2);
  cudaMemcpyAsync(host.data, device.data(), 16, cudaMemcpyDeviceToHost, stream.handle);
  EXPECT(host.data[0] == -1);  // too early
  cudaStreamSynchronize(stream.handle);
  EXPECT(host.data[0] == 3);

  // Another stream's work is not waited for, by this stream or by a blocking copy.
  MLFF_LAUNCH(add, 1, 4, 0, stream.handle, device.data(), 4, 2);
  EXPECT(device.read()[0] == 3);
  cudaDeviceSynchronize();
  EXPECT(device.read()[0] == 5);
}

CASE(copies_from_host_memory_read_it_when_cuda_does) {
  Stream stream;
  Array<int> device(2, 0);
  Pinned pinned(1);
  pinned.data[0] = 1;
  int pageable = 1;
  cudaMemcpyAsync(device.data(), pinned.data, 4, cudaMemcpyHostToDevice, stream.handle);
  cudaMemcpyAsync(device.data() + 1, &pageable, 4, cudaMemcpyHostToDevice, stream.handle);
  pinned.data[0] = pageable = 2;
  cudaStreamSynchronize(stream.handle);
  EXPECT(device.read()[0] == 2);  // page-locked: read when the copy runs
  EXPECT(device.read()[1] == 1);  // pageable: staged by the call

  cuda_host::reset_counters();  // to pageable memory: the call waits
  cudaMemcpyAsync(&pageable, device.data(), 4, cudaMemcpyDeviceToHost, stream.handle);
  EXPECT(pageable == 2);
  EXPECT(cuda_host::counters().host_synchronisations == 1);
  EXPECT(cuda_host::counters().pageable_copies == 1);
}

CASE(streams_are_independent_unless_an_event_orders_them) {
  for (const bool ordered : {true, false}) {
    std::set<int> results;
    cuda_host::for_schedules(12, [&](std::uint64_t) {
      Stream first, second;
      Event event;
      Array<int> a(1, 0), b(1, 0), out(1, 0);
      MLFF_LAUNCH(add, 1, 1, 0, first.handle, a.data(), 1, 1);
      MLFF_LAUNCH(add, 1, 1, 0, first.handle, b.data(), 1, 1);
      cudaEventRecord(event.handle, first.handle);
      if (ordered) cudaStreamWaitEvent(second.handle, event.handle);
      MLFF_LAUNCH(combine, 1, 1, 0, second.handle, a.data(), b.data(), out.data());
      cudaStreamSynchronize(second.handle);
      cudaDeviceSynchronize();
      results.insert(out.read()[0]);
    });
    if (ordered) {
      EXPECT(results == std::set<int>{11});
    } else {
      EXPECT(results.size() > 1);
    }
  }
}

CASE(the_default_stream_waits_for_blocking_streams) {
  for (const unsigned flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
    std::set<int> results;
    cuda_host::for_schedules(8, [&](std::uint64_t) {
      Stream stream(flags);
      Array<int> a(1, 0), b(1, 0), out(1, 0);
      cudaDeviceSynchronize();
      MLFF_LAUNCH(add, 1, 1, 0, stream.handle, a.data(), 1, 1);
      MLFF_LAUNCH(combine, 1, 1, 0, nullptr, a.data(), b.data(), out.data());
      MLFF_LAUNCH(add, 1, 1, 0, stream.handle, a.data(), 1, 1);
      cudaDeviceSynchronize();
      results.insert(out.read()[0]);
    });
    EXPECT(flags == cudaStreamDefault ? results == std::set<int>{10} : results.size() > 1);
  }
}

CASE(events) {
  Stream stream;
  Array<int> device(1, 0);
  Event start(0), end(0);
  cudaEventRecord(start.handle, stream.handle);
  MLFF_LAUNCH(add, 100, 128, 0, stream.handle, device.data(), 1, 1);
  cudaEventRecord(end.handle, stream.handle);
  float ms = -1;
  EXPECT(cudaEventElapsedTime(&ms, start.handle, end.handle) == cudaErrorNotReady);
  cuda_host::reset_counters();
  cudaEventSynchronize(end.handle);
  EXPECT(cuda_host::counters().host_synchronisations == 1);
  EXPECT(cudaEventElapsedTime(&ms, start.handle, end.handle) == cudaSuccess && ms > 0);
  MLFF_LAUNCH(add, 1, 1, 0, stream.handle, device.data(), 1, 1);
  cudaEventRecord(end.handle, stream.handle);
  int polls = 0;
  while (cudaEventQuery(end.handle) == cudaErrorNotReady) ++polls;
  EXPECT(polls == 2);
  EXPECT(device.read()[0] == 2);
  Event untimed;
  cudaEventRecord(untimed.handle, stream.handle);
  EXPECT_ERROR(cudaEventElapsedTime(&ms, start.handle, untimed.handle), "without timing");
}

CASE(destroyed_streams) {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  Array<int> device(1, 0);
  MLFF_LAUNCH(add, 1, 1, 0, stream, device.data(), 1, 1);
  cudaStreamDestroy(stream);
  EXPECT_ERROR(MLFF_LAUNCH(add, 1, 1, 0, stream, device.data(), 1, 1),
               "kernel add: the stream was destroyed");
  EXPECT_ERROR(cudaStreamSynchronize(stream), "destroyed");
  EXPECT_ERROR(cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(device.data())),
               "not a stream");
  cudaDeviceSynchronize();
  EXPECT(device.read()[0] == 1);  // what was queued still ran
}

CASE(freed_memory_is_noticed_by_queued_copies) {
  Stream stream;
  auto device = std::make_unique<Array<int>>(4, 1);
  Pinned host(4);
  cudaMemcpyAsync(host.data, device->data(), 16, cudaMemcpyDeviceToHost, stream.handle);
  device.reset();  // cudaFree waits for the copy
  EXPECT(host.data[0] == 1);
}

CASE(counters_prove_a_quiet_step) {
  Stream stream;
  Array<int> device(64, 0);
  Pinned host(64);
  for (int i = 0; i < 64; ++i) host.data[i] = i;
  cuda_host::reset_counters();
  for (int step = 0; step < 10; ++step) {
    cudaMemcpyAsync(device.data(), host.data, 256, cudaMemcpyHostToDevice, stream.handle);
    MLFF_LAUNCH(add, 2, 32, 0, stream.handle, device.data(), 64, 1);
    MLFF_LAUNCH((add), 2, 32, 0, stream.handle, device.data(), 64, 1);
    cudaMemcpyAsync(host.data, device.data(), 256, cudaMemcpyDeviceToHost, stream.handle);
  }
  cuda_host::Counters c = cuda_host::counters();
  EXPECT(c.launches.at("add") == 20 && c.total_launches() == 20);
  EXPECT(c.host_synchronisations == 0 && c.device_allocations == 0 && c.device_frees == 0);
  EXPECT(c.pageable_copies == 0 && c.bytes_to_device == 2560 && c.bytes_to_host == 2560);
  cudaStreamSynchronize(stream.handle);
  EXPECT(host.data[5] == 25);
  {
    Array<int> more(4);
  }
  c = cuda_host::counters();
  EXPECT(c.device_allocations == 1 && c.device_frees == 1 && c.host_synchronisations == 2);
}

CASE(graphs_replay_what_was_captured) {
  cuda_host::for_schedules(6, [&](std::uint64_t) {
    Stream stream, side;
    Event fork, join;
    Array<int> a(1, 0), b(1, 0), out(1, 0);
    Pinned host(1), input(1);
    cuda_host::reset_counters();
    cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal);
    cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(stream.handle, &status);
    EXPECT(status == cudaStreamCaptureStatusActive);
    cudaMemcpyAsync(a.data(), input.data, 4, cudaMemcpyHostToDevice, stream.handle);
    cudaEventRecord(fork.handle, stream.handle);
    cudaStreamWaitEvent(side.handle, fork.handle);
    MLFF_LAUNCH(add, 1, 1, 0, side.handle, b.data(), 1, 1);
    cudaEventRecord(join.handle, side.handle);
    MLFF_LAUNCH(add, 1, 1, 0, stream.handle, a.data(), 1, 2);
    cudaStreamWaitEvent(stream.handle, join.handle);
    MLFF_LAUNCH(combine, 1, 1, 0, stream.handle, a.data(), b.data(), out.data());
    cudaMemcpyAsync(host.data, out.data(), 4, cudaMemcpyDeviceToHost, stream.handle);
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream.handle, &graph);
    EXPECT(cuda_host::counters().total_launches() == 0);  // captured, not run
    cudaGraphExec_t exec = nullptr;
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    for (int step = 1; step <= 3; ++step) {
      input.data[0] = step;  // read when the graph runs
      cudaGraphLaunch(exec, stream.handle);
      cudaStreamSynchronize(stream.handle);
      EXPECT(host.data[0] == (step + 2) * 10 + step);
    }
    EXPECT(cuda_host::counters().launches.at("add") == 6);
    EXPECT(cuda_host::counters().graph_launches == 3);
    cudaGraphExecDestroy(exec);
  });
}

CASE(an_executable_takes_a_graph_of_the_same_work) {
  Stream stream;
  Array<int> a(1, 0), b(1, 0);
  const auto capture = [&](Array<int>& array, int times) {
    cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal);
    for (int k = 0; k < times; ++k) {
      MLFF_LAUNCH(add, 1, 1, 0, stream.handle, array.data(), 1, 1);
    }
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream.handle, &graph);
    return graph;
  };
  cudaGraph_t first = capture(a, 2), other = capture(b, 2), longer = capture(b, 3);
  cudaGraphExec_t exec = nullptr;
  cudaGraphInstantiate(&exec, first, 0);
  cuda_host::reset_counters();
  EXPECT(mlff::gpu::update_graph(exec, other));
  EXPECT(!mlff::gpu::update_graph(exec, longer));
  EXPECT(cudaPeekAtLastError() == cudaSuccess);
  EXPECT(cuda_host::counters().graph_updates == 1);
  cudaGraphLaunch(exec, stream.handle);
  cudaStreamSynchronize(stream.handle);
  EXPECT(a.read()[0] == 0 && b.read()[0] == 2);
  for (cudaGraph_t graph : {first, other, longer}) cudaGraphDestroy(graph);
  cudaGraphExecDestroy(exec);
}

CASE(blocking_copies_of_pageable_memory_may_return_early) {
  std::set<int> seen;
  for (const bool waits : {true, false}) {
    cuda_host::for_schedules(8, [&](std::uint64_t) {
      Stream stream(cudaStreamNonBlocking);
      Array<int> device(1, 0), out(1, 0);
      const int value = 7;
      cudaMemcpy(device.data(), &value, sizeof(value), cudaMemcpyHostToDevice);
      if (waits) cudaStreamSynchronize(nullptr);
      cudaMemcpyAsync(out.data(), device.data(), 4, cudaMemcpyDeviceToDevice, stream.handle);
      cudaStreamSynchronize(stream.handle);
      const int found = out.read()[0];
      if (waits) EXPECT(found == 7);
      seen.insert(found);
    });
  }
  EXPECT(seen == (std::set<int>{0, 7}));
}

CASE(work_is_given_to_the_device_of_the_stream) {
  cuda_host::set_device_count(2);
  int current = -1;
  EXPECT(cudaSetDevice(2) == cudaErrorInvalidDevice);
  EXPECT(cudaGetLastError() == cudaErrorInvalidDevice);  // else the next launch is blamed
  EXPECT(cudaSetDevice(1) == cudaSuccess && cudaGetDevice(&current) == cudaSuccess && current == 1);
  {
    Stream stream;
    Array<int> device(1, 0);
    cudaSetDevice(0);
    EXPECT_ERROR(MLFF_LAUNCH(add, 1, 1, 0, stream.handle, device.data(), 1, 1),
                 "the stream is of device 1, current is 0");
    cudaSetDevice(1);
    MLFF_LAUNCH(add, 1, 1, 0, stream.handle, device.data(), 1, 1);
    cudaStreamSynchronize(stream.handle);
    EXPECT(device.read()[0] == 1);
  }
  cuda_host::set_device_count(1);
  EXPECT(cudaGetDevice(&current) == cudaSuccess && current == 0);
}

CASE(captures_refuse_what_they_can_not_hold) {
  Stream stream;
  Array<int> device(1, 0);
  int pageable = 0;
  const auto captured = [&](auto&& f) {
    cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal);
    f();
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream.handle, &graph);
    cudaGraphDestroy(graph);
  };
  void* pointer = nullptr;
  captured([&] {
    EXPECT_ERROR(cudaStreamSynchronize(stream.handle), "while a stream is captured");
    EXPECT_ERROR(cudaDeviceSynchronize(), "while a stream is captured");
    EXPECT_ERROR(cudaMalloc(&pointer, 4), "cudaMalloc while a stream is captured");
    EXPECT_ERROR(
        cudaMemcpyAsync(&pageable, device.data(), 4, cudaMemcpyDeviceToHost, stream.handle),
        "pageable");
    EXPECT_ERROR(cudaMemcpy(&pageable, device.data(), 4, cudaMemcpyDeviceToHost), "captured");
    EXPECT_ERROR(MLFF_LAUNCH(add, 1, 1, 0, nullptr, device.data(), 1, 1), "default stream");
  });
  EXPECT_ERROR(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), "default stream");
}

CASE(an_error_drops_the_work_behind_it) {
  Stream stream;
  Array<int> device(4, 0);
  MLFF_LAUNCH(add, 1, 4, 0, stream.handle, device.data(), 5, 1);
  MLFF_LAUNCH(add, 1, 8, 0, stream.handle, device.data(), 8, 1);  // 4 beyond the end
  MLFF_LAUNCH(add, 1, 4, 0, stream.handle, device.data(), 4, 100);
  EXPECT_ERROR(cudaStreamSynchronize(stream.handle), "kernel add: device memory was written");
  EXPECT(device.read()[0] == 2);
}

CASE(host_functions_run_in_stream_order) {
  Stream stream;
  static int order = 0, seen = 0;
  cudaLaunchHostFunc(stream.handle, [](void*) { order = 1; }, nullptr);
  cudaLaunchHostFunc(stream.handle, [](void* p) { *static_cast<int*>(p) = order + 1; }, &seen);
  EXPECT(seen == 0);
  cudaStreamSynchronize(stream.handle);
  EXPECT(seen == 2);
}

// A graph of add(1), and of add(10) before it if *wanted.
struct Choice {
  explicit Choice(const int* wanted, int* value) {
    cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal);
    cudaStreamCaptureStatus status;
    cudaGraph_t captured = nullptr;
    const cudaGraphNode_t* nodes = nullptr;
    const cudaGraphEdgeData* edges = nullptr;
    std::size_t count = 0;
    cudaStreamGetCaptureInfo(stream.handle, &status, nullptr, &captured, &nodes, &edges, &count);
    EXPECT(status == cudaStreamCaptureStatusActive);
    cudaGraphConditionalHandle condition = 0;
    cudaGraphConditionalHandleCreate(&condition, captured, 0, cudaGraphCondAssignDefault);
    if (wanted) {
      MLFF_LAUNCH(decide, 1, 32, 0, stream.handle, condition, wanted);
    } else {
      MLFF_LAUNCH(decide_twice, 1, 2, 0, stream.handle, condition);
    }
    cudaGraphNodeParams parameters = {};
    parameters.type = cudaGraphNodeTypeConditional;
    parameters.conditional.handle = condition;
    parameters.conditional.type = cudaGraphCondTypeIf;
    parameters.conditional.size = 1;
    cudaGraphNode_t node = nullptr;
    cudaGraphAddNode(&node, captured, nodes, edges, count, &parameters);
    EXPECT_ERROR(MLFF_LAUNCH(add, 1, 1, 0, stream.handle, value, 1, 1), "waits for no node");
    cudaStreamUpdateCaptureDependencies(stream.handle, &node, nullptr, 1,
                                        cudaStreamSetCaptureDependencies);
    cudaGraph_t body = parameters.conditional.phGraph_out[0];
    cudaStreamBeginCaptureToGraph(side.handle, body, nullptr, nullptr, 0,
                                  cudaStreamCaptureModeGlobal);
    MLFF_LAUNCH(add, 1, 1, 0, side.handle, value, 1, 10);
    EXPECT_ERROR(cudaMemsetAsync(value, 0, 4, side.handle), "takes kernels");
    cudaStreamEndCapture(side.handle, &body);
    MLFF_LAUNCH(add, 1, 1, 0, stream.handle, value, 1, 1);
    cudaStreamEndCapture(stream.handle, &graph);
    cudaGraphInstantiate(&exec, graph);
  }
  ~Choice() {
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }
  Stream stream, side;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
};

CASE(conditional_nodes_run_if_a_kernel_says_so) {
  Array<int> value(1, 0), wanted(1, 0);
  Choice choice(wanted.data(), value.data());
  for (const int want : {0, 1, 0}) {
    cudaMemcpy(wanted.data(), &want, sizeof want, cudaMemcpyHostToDevice);
    cuda_host::reset_counters();
    const int before = value.read()[0];
    cudaGraphLaunch(choice.exec, choice.stream.handle);
    cudaStreamSynchronize(choice.stream.handle);
    EXPECT(value.read()[0] == before + 1 + 10 * want);
    EXPECT(cuda_host::counters().launches["add"] == 1 + want);
  }
  Choice same(wanted.data(), value.data());
  cudaGraphExecUpdateResultInfo result;
  EXPECT(cudaGraphExecUpdate(choice.exec, same.graph, &result) == cudaSuccess);
  const int yes = 1;
  cudaMemcpy(wanted.data(), &yes, sizeof yes, cudaMemcpyHostToDevice);
  const int before = value.read()[0];
  cudaGraphLaunch(choice.exec, choice.stream.handle);
  cudaStreamSynchronize(choice.stream.handle);
  EXPECT(value.read()[0] == before + 11);

  Choice twice(nullptr, value.data());
  cudaGraphLaunch(twice.exec, twice.stream.handle);
  EXPECT_ERROR(cudaStreamSynchronize(twice.stream.handle), "set twice");
}

}  // namespace
