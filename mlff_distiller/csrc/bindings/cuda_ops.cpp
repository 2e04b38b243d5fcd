// The operators of torch_ops.cpp and message_ops.cpp for tensors on a GPU. This file converts
// tensors and groups edges; the work is done in csrc/cuda, on torch's current stream.
//
// The message operators never make the host wait: an edge_index out of range is reported by an
// assertion of group_edges on the device, as torch's own index operators do. The neighbour list
// waits once (twice when its memory has to grow), because the host must know how many edges to make
// room for.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "bindings/message_inputs.h"
#include "bindings/neighbor_inputs.h"
#include "core/error.h"
#include "cuda/message.h"
#include "cuda/neighbors.h"

#if !defined(MLFF_CUDA_HOST)
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace {

using at::Tensor;
namespace gpu = mlff::gpu;

#if defined(MLFF_CUDA_HOST)
// Tests run this file on CPU tensors: kernels of the emulation can reach their memory, but only
// once it has been waited for, and copies must be between memory of the device.
class Device {
 public:
  explicit Device(const Tensor&) {}
  ~Device() noexcept(false) { gpu::check(cudaStreamSynchronize(stream()), "waiting"); }
  cudaStream_t stream() const { return nullptr; }
  int index() const { return 0; }
  const double* readable(const Tensor& points) {
    copy_.assign(points.const_data_ptr<double>(), points.numel());
    return copy_.data();
  }
  static void release_cached_memory() {}

 private:
  gpu::DeviceMemory<double> copy_;
};
#else
// Makes the tensor's device current.
class Device {
 public:
  explicit Device(const Tensor& tensor)
      : guard_(tensor.device()), stream_(c10::cuda::getCurrentCUDAStream(tensor.get_device())) {}
  cudaStream_t stream() const { return stream_.stream(); }
  int index() const { return stream_.device_index(); }
  const double* readable(const Tensor& points) const { return points.const_data_ptr<double>(); }
  static void release_cached_memory() { c10::cuda::CUDACachingAllocator::emptyCache(); }

 private:
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};
#endif

// --- neighbour list ------------------------------------------------------------------------------

// Kept between the calls of a thread, so that they need not allocate; not if it is large.
struct KeptList {
  std::unique_ptr<gpu::NeighborList> list;
  double cutoff = 0.0;
  int64_t atoms = -1;
  int device = -1;
  cudaStream_t stream = nullptr;
};
constexpr size_t kKeptBytes = size_t(64) << 20;

KeptList& kept_list() {
  static thread_local KeptList kept;
  return kept;
}

gpu::NeighborList& list_for(int64_t atoms, double cutoff, const Device& device) {
  KeptList& kept = kept_list();
  const cudaStream_t stream = device.stream();
  if (!kept.list || kept.cutoff != cutoff || kept.device != device.index()) {
    kept = KeptList();
    kept.list = std::make_unique<gpu::NeighborList>(cutoff, 0.0);
    kept.list->reserve_edges(1);
  } else if (kept.stream != stream) {  // which may still read the last list
    gpu::check(cudaDeviceSynchronize(), "changing streams");
  }
  kept.cutoff = cutoff, kept.device = device.index(), kept.stream = stream;
  if (kept.atoms != atoms) {
    kept.list->resize(atoms, atoms, false);
    std::fill_n(kept.list->host_species(), atoms, 0);  // < 0 would leave an atom out
    if (atoms > 0) kept.list->upload_species(stream);
    kept.atoms = atoms;
  }
  return *kept.list;
}

std::tuple<Tensor, Tensor> build_list(const mlff_bindings::NeighborInputs& in, double cutoff) {
  Device device(in.points);
  const cudaStream_t stream = device.stream();
  gpu::NeighborList& list = list_for(in.points.size(0), cutoff, device);
  *list.host_box() = gpu::make_box(in.rows.const_data_ptr<double>(), in.periodic, cutoff);
  list.upload(device.readable(in.points), stream);
  for (;;) {
    list.update(stream);  // without a skin it builds every time
    list.download_state(stream);
    gpu::check(cudaStreamSynchronize(stream), "building a neighbour list");
    const gpu::State& state = list.host_state();
    if (state.faults & gpu::kNotFinite) {
      throw mlff::InputError("positions must be finite and within 5e8 cells of the origin, got " +
                             std::string("another for atom ") + std::to_string(state.fault_atom) +
                             "; check the structure");
    }
    if (!(state.faults & gpu::kTooManyEdges)) break;
    list.reserve_edges(state.needed_edges);
  }
  const gpu::NeighborView view = list.view();
  const int64_t edges = list.host_state().num_edges;
  const auto as_tensor = [&](const int* data, at::IntArrayRef shape) {
    const auto options = in.points.options().dtype(at::kInt);
    return at::from_blob(const_cast<int*>(data), shape, options);
  };
  const auto options = in.points.options().dtype(at::kLong);
  Tensor edge_index = at::empty({2, edges}, options), shifts = at::empty({edges, 3}, options);
  edge_index.select(0, 0).copy_(as_tensor(view.senders, {edges}));
  edge_index.select(0, 1).copy_(as_tensor(view.receivers, {edges}));
  shifts.copy_(as_tensor(view.shifts, {edges, 3}));
  if (list.bytes() > kKeptBytes) kept_list() = KeptList();  // cudaFree waits for the copies
  return {edge_index, shifts};
}

// As neighbor_list_cpu: the same edges, by receiver; their order within a receiver is another, and
// the same in every run.
std::tuple<Tensor, Tensor> neighbor_list(const Tensor& positions, const Tensor& cell,
                                         const Tensor& pbc, double cutoff) {
  const mlff_bindings::NeighborInputs in(positions, cell, pbc);
  TORCH_CHECK_VALUE(std::isfinite(cutoff) && cutoff > 0.0, "cutoff must be > 0 Å, got ", cutoff,
                    "; set cutoff");
  std::string reason;
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      return build_list(in, cutoff);
    } catch (const mlff::InputError& error) {
      TORCH_CHECK_VALUE(false, error.what());
    } catch (const mlff::DeviceError& error) {  // torch may hold the memory that we lack
      reason = error.what();
      kept_list() = KeptList();
      Device::release_cached_memory();
    }
  }
  TORCH_CHECK(false, reason);
}

// --- messages ------------------------------------------------------------------------------------

// Edges by their senders and by their receivers, ascending within an atom: what gathers needs it.
// Offsets [2 atoms + 1], the senders' first, then edges [2 edges] of which they tell. One sort for
// all layers and derivatives of a batch.
Tensor group_edges(const Tensor& edge_index, int64_t atoms) {
  TORCH_CHECK_VALUE(
      edge_index.dim() == 2 && edge_index.size(0) == 2 && edge_index.scalar_type() == at::kLong,
      "edge_index must be int64 of shape (2, edges), got ", edge_index.scalar_type(), " ",
      edge_index.sizes());
  TORCH_CHECK_VALUE(atoms >= 0 && atoms < INT_MAX / 2, "a GPU takes fewer than ", INT_MAX / 2,
                    " atoms, got ", atoms);
  const int64_t edges = edge_index.size(1);
  if (edges) {
    const auto [lowest, highest] = at::aminmax(edge_index);
    at::_assert_async(lowest.ge(0).logical_and(highest.lt(atoms)),
                      "edge_index must be within 0 .. atoms - 1");
  }
  // Keys of 32 bits take half the passes of a radix sort.
  const auto numbers = edge_index.options().dtype(at::kInt);
  const Tensor first_key = at::arange(2, numbers).mul(atoms).unsqueeze(1);
  const Tensor all = edge_index.to(at::kInt).add(first_key).flatten();
  const auto [keys, order] = at::sort(all, std::optional<bool>(true), /*dim=*/0, false);
  order.narrow(0, edges, edges).sub_(edges);
  const Tensor parts[] = {at::searchsorted(keys, at::arange(2 * atoms + 1, numbers)), order};
  return at::cat(at::TensorList(parts));
}

struct Inputs : mlff_bindings::MessageInputs {
  Tensor groups;  // of group_edges, for this edge_index

  Inputs(const Tensor& x, const Tensor& v, const Tensor& w, const Tensor& r, const Tensor& ei,
         const Tensor& edge_groups)
      : MessageInputs(x, v, w, r, ei), groups(edge_groups) {
    TORCH_CHECK_VALUE(groups.is_contiguous() && groups.scalar_type() == at::kLong &&
                          groups.device() == v.device() && groups.dim() == 1 &&
                          groups.numel() == 2 * (atoms + edges) + 1,
                      "edge_groups must be those of these ", atoms, " atoms and ", edges,
                      " edges, got ", groups.scalar_type(), " ", groups.sizes());
  }

  template <typename T>
  gpu::MessageCall<T> pass() const {
    gpu::MessageCall<T> p;
    p.atoms = atoms, p.num_edges = edges, p.channels = channels, p.vectors = vectors;
    p.senders = edge_index.const_data_ptr<int64_t>();
    p.receivers = p.senders + edges;
    const int64_t *offsets = groups.const_data_ptr<int64_t>(), *order = offsets + 2 * atoms + 1;
    p.by_sender = {offsets, order};
    p.by_receiver = {offsets + atoms, order};
    p.x = x.const_data_ptr<T>(), p.v = v.const_data_ptr<T>();
    p.w = w.const_data_ptr<T>(), p.r = r.const_data_ptr<T>();
    return p;
  }
};

// Calls launch(pass, stream) for the type of the features; errors of the device become torch's.
template <typename Launch>
void on_device(const Inputs& in, const Launch& launch) {
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "painn_message", [&] {
    try {
      const Device device(in.x);
      launch(in.pass<scalar_t>(), device.stream());
    } catch (const mlff::DeviceError& error) {
      TORCH_CHECK(false, error.what());
    }
  });
}

std::tuple<Tensor, Tensor> message(const Tensor& x, const Tensor& v, const Tensor& w,
                                   const Tensor& r, const Tensor& edge_index,
                                   const Tensor& edge_groups) {
  const Inputs in(x, v, w, r, edge_index, edge_groups);
  Tensor s = at::empty({in.atoms, in.channels}, in.x.options()), V = at::empty_like(in.v);
  on_device(in, [&](auto p, cudaStream_t stream) {
    using T = std::remove_pointer_t<decltype(p.s_out)>;
    p.s_out = s.mutable_data_ptr<T>(), p.V_out = V.mutable_data_ptr<T>();
    gpu::message_forward<T>(p, stream);
  });
  return {s, V};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> message_backward(const Tensor& g_, const Tensor& G_,
                                                            const Tensor& x, const Tensor& v,
                                                            const Tensor& w, const Tensor& r,
                                                            const Tensor& edge_index,
                                                            const Tensor& edge_groups) {
  const Inputs in(x, v, w, r, edge_index, edge_groups);
  const Tensor g = in.grad_scalars(g_), G = in.grad_vectors(G_);
  Tensor dx = at::empty_like(in.x), dv = at::empty_like(in.v), dw = at::empty_like(in.w),
         dr = at::empty_like(in.r);
  on_device(in, [&](auto p, cudaStream_t stream) {
    using T = std::remove_pointer_t<decltype(p.s_out)>;
    p.g = g.const_data_ptr<T>(), p.G = G.const_data_ptr<T>();
    p.x_out = dx.mutable_data_ptr<T>(), p.v_out = dv.mutable_data_ptr<T>();
    p.w_out = dw.mutable_data_ptr<T>(), p.r_out = dr.mutable_data_ptr<T>();
    gpu::message_backward<T>(p, stream);
  });
  return {dx, dv, dw, dr};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> message_double_backward(
    const Tensor& hx_, const Tensor& hv_, const Tensor& hw_, const Tensor& hr_, const Tensor& g_,
    const Tensor& G_, const Tensor& x, const Tensor& v, const Tensor& w, const Tensor& r,
    const Tensor& edge_index, const Tensor& edge_groups) {
  const Inputs in(x, v, w, r, edge_index, edge_groups);
  const mlff_bindings::MessageUpstream up(in, hx_, hv_, hw_, hr_, g_, G_);
  Tensor dg = at::empty_like(up.g), dG = at::empty_like(up.G);
  Tensor dx = at::empty_like(in.x), dv = at::empty_like(in.v), dw = at::empty_like(in.w),
         dr = at::empty_like(in.r);
  on_device(in, [&](auto p, cudaStream_t stream) {
    using T = std::remove_pointer_t<decltype(p.s_out)>;
    p.g = up.g.const_data_ptr<T>(), p.G = up.G.const_data_ptr<T>();
    p.hx = up.hx.const_data_ptr<T>(), p.hv = up.hv.const_data_ptr<T>();
    p.hw = up.hw.const_data_ptr<T>(), p.hr = up.hr.const_data_ptr<T>();
    p.s_out = dg.mutable_data_ptr<T>(), p.V_out = dG.mutable_data_ptr<T>();
    p.x_out = dx.mutable_data_ptr<T>(), p.v_out = dv.mutable_data_ptr<T>();
    p.w_out = dw.mutable_data_ptr<T>(), p.r_out = dr.mutable_data_ptr<T>();
    gpu::message_double_backward<T>(p, stream);
  });
  return {dg, dG, dx, dv, dw, dr};
}

}  // namespace

#if defined(MLFF_CUDA_HOST)
TORCH_LIBRARY(mlff_emulated, m) {
  m.def("neighbor_list", neighbor_list);
  m.def("group_edges", group_edges);
  m.def("painn_message", message);
  m.def("painn_message_backward", message_backward);
  m.def("painn_message_double_backward", message_double_backward);
}
#else
TORCH_LIBRARY_IMPL(mlff, CUDA, m) {
  m.impl("neighbor_list", neighbor_list);
  m.impl("group_edges", group_edges);
  m.impl("painn_message", message);
  m.impl("painn_message_backward", message_backward);
  m.impl("painn_message_double_backward", message_double_backward);
}
#endif
