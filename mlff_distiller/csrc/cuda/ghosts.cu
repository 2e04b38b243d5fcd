// Bound by memory: every row is read once and written once, 16 bytes a lane at a time.
#include <algorithm>

#include "cuda/ghosts.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr size_t kUnit = sizeof(int4);

// to[k] is row indices[k] of `rows`, or from n_local on one of `others`; of `width` units. One warp
// per row: no division, and its index is read once.
__global__ void gather_rows(int64_t count, int width, const int* indices, int64_t n_local,
                            const int4* rows, const int4* others, int4* to) {
  const int64_t k = thread_index() / kWarp;
  if (k >= count) return;
  const int64_t row = indices[k];
  const int4* from = row < n_local ? rows + row * width : others + (row - n_local) * width;
  for (int at = threadIdx.x % kWarp; at < width; at += kWarp) to[k * width + at] = from[at];
}

void gather(int64_t count, size_t row_bytes, const int* indices, int64_t n_local, const int4* rows,
            const int4* others, int4* to, cudaStream_t stream) {
  MLFF_LAUNCH(gather_rows, dim3(blocks_for(count * kWarp, kThreads)), dim3(kThreads), 0, stream,
              count, row_bytes / kUnit, indices, n_local, rows, others, to);
}

template <typename T>
void upload_indices(const T* from, int64_t count, PinnedMemory<int>& host, DeviceMemory<int>& to,
                    int64_t padded, cudaStream_t stream) {
  if (padded == 0) return;
  std::copy_n(from, count, host.data());
  std::fill_n(host.data() + count, padded - count, 0);
  check(cudaMemcpyAsync(to.data(), host.data(), static_cast<size_t>(padded) * sizeof(int),
                        cudaMemcpyHostToDevice, stream),
        "copying the plan of ghosts to the device");
}

}  // namespace

void GhostRows::resize(const GhostPlan& plan, int64_t n_local, int64_t ghosts, size_t row_bytes) {
  const int64_t units = static_cast<int64_t>(row_bytes / kUnit);
  const auto if_any = [](auto& buffer, int64_t count) {
    if (count > 0) buffer.require(count);
  };
  if_any(sources_, ghosts);
  if_any(host_sources_, ghosts);
  if_any(sent_, plan.n_sent);
  if_any(host_sent_, plan.n_sent);
  if_any(packed_, plan.n_sent * units);
  if_any(received_, plan.n_received * units);
  if (!on_device_) {
    if_any(host_packed_, plan.n_sent * units);
    if_any(host_received_, plan.n_received * units);
  }
  n_local_ = n_local;
  ghosts_ = ghosts;
  n_sent_ = plan.n_sent;
  n_received_ = plan.n_received;
}

void GhostRows::upload(const GhostPlan& plan, int64_t given, cudaStream_t stream) {
  upload_indices(plan.sources, given, host_sources_, sources_, ghosts_, stream);
  upload_indices(plan.sent, n_sent_, host_sent_, sent_, n_sent_, stream);
}

RowExchange GhostRows::pack(const void* rows, size_t row_bytes, cudaStream_t stream) {
  if (n_sent_ > 0) {
    gather(n_sent_, row_bytes, sent_.data(), n_local_, static_cast<const int4*>(rows), nullptr,
           packed_.data(), stream);
    if (!on_device_) {
      check(
          cudaMemcpyAsync(host_packed_.data(), packed_.data(),
                          static_cast<size_t>(n_sent_) * row_bytes, cudaMemcpyDeviceToHost, stream),
          "copying rows for other processes");
    }
  }
  RowExchange exchange;
  exchange.sent = on_device_ ? packed_.data() : host_packed_.data();
  exchange.received = on_device_ ? received_.data() : host_received_.data();
  exchange.row_bytes = row_bytes;
  exchange.n_sent = n_sent_;
  exchange.n_received = n_received_;
  return exchange;
}

void GhostRows::fill(void* rows, size_t row_bytes, cudaStream_t stream) {
  if (ghosts_ == 0) return;
  if (n_received_ > 0 && !on_device_) {
    check(cudaMemcpyAsync(received_.data(), host_received_.data(),
                          static_cast<size_t>(n_received_) * row_bytes, cudaMemcpyHostToDevice,
                          stream),
          "copying rows of other processes");
  }
  int4* all = static_cast<int4*>(rows);
  gather(ghosts_, row_bytes, sources_.data(), n_local_, all, received_.data(),
         all + n_local_ * static_cast<int64_t>(row_bytes / kUnit), stream);
}

size_t GhostRows::bytes() const {
  return sources_.bytes() + sent_.bytes() + packed_.bytes() + received_.bytes();
}

}  // namespace gpu
}  // namespace mlff
