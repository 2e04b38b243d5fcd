// Rows of ghosts: atoms that are images of this process' own, or that other processes have.
//
// Between two stages of a step they get the rows of the atoms that they are copies of. Of what this
// process has, other processes are sent the rows that they ask for and no others: those are packed
// on the device, and only they cross the bus.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device_memory.h"
#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

// Whose copies ghosts are, and what other processes are sent. Arrays of the host.
struct GhostPlan {
  // [ghosts] a row below n_local, or n_local + k for the k-th row that is received.
  const int32_t* sources = nullptr;
  int64_t n_received = 0;
  const int32_t* sent = nullptr;  // [n_sent] rows below n_local, in the order of sending
  int64_t n_sent = 0;
};

// What processes send each other between two stages: `sent` is packed, `received` is to be filled
// in. Both in page-locked memory, or on the device.
struct RowExchange {
  const void* sent = nullptr;  // [n_sent][row_bytes]
  void* received = nullptr;    // [n_received][row_bytes]
  size_t row_bytes = 0;        // a multiple of 64
  int64_t n_sent = 0, n_received = 0;
  int layer = 0;          // interaction whose message (or its reverse) needs the rows, from 0
  bool backward = false;  // false: features of senders; true: adjoints of receivers
};

class GhostRows {
 public:
  // on_device: a RowExchange has addresses of device memory, for an MPI that takes them.
  explicit GhostRows(bool on_device) : on_device_(on_device) {}

  // Room for `ghosts` (of which the plan has the first `given`) and for rows of up to `row_bytes`.
  void resize(const GhostPlan& plan, int64_t n_local, int64_t ghosts, size_t row_bytes);
  // To the device, on the stream. The plan is copied first.
  void upload(const GhostPlan& plan, int64_t given, cudaStream_t stream);

  // Packs what is sent. The exchange is valid once the stream has been synchronised.
  RowExchange pack(const void* rows, size_t row_bytes, cudaStream_t stream);
  // Fills the rows of all ghosts, behind n_local others, after the exchange if there is one.
  void fill(void* rows, size_t row_bytes, cudaStream_t stream);

  const int* sources() const { return sources_.data(); }  // on the device
  size_t bytes() const;                                   // on the device

 private:
  bool on_device_;
  int64_t n_local_ = 0, ghosts_ = 0, n_received_ = 0, n_sent_ = 0;
  DeviceMemory<int> sources_, sent_;
  PinnedMemory<int> host_sources_, host_sent_;
  DeviceMemory<int4> packed_, received_;
  PinnedMemory<int4> host_packed_, host_received_;
};

}  // namespace gpu
}  // namespace mlff
