// The message pass of PaiNN for training on the CPU as operators of torch. This file converts
// tensors and shares the edges out; the work is done by core/kernels_messages-inl.h.
//
// Each thread takes a run of edges and adds into rows of its own, which are summed at the end in
// the order of the threads: the result does not depend on the timing, only on their number.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "bindings/message_inputs.h"
#include "core/isa.h"
#include "core/kernels.h"

namespace {

using at::Tensor;

constexpr int64_t kEdgesPerThread = 256;

// Rows of nodes that all threads add to: one block for each, the first of them is the result.
class Rows {
 public:
  Rows(at::IntArrayRef shape, const Tensor& like, int64_t copies) {
    std::vector<int64_t> sizes{copies};
    sizes.insert(sizes.end(), shape.begin(), shape.end());
    all_ = at::zeros(sizes, like.options());
  }
  template <typename T>
  T* block(int64_t copy) {
    return all_.numel() ? all_.select(0, copy).mutable_data_ptr<T>() : nullptr;
  }
  Tensor sum() const { return all_.size(0) == 1 ? all_.select(0, 0) : all_.sum(0); }

 private:
  Tensor all_;
};

int64_t num_chunks(int64_t num_edges) {
  const int64_t most = (num_edges + kEdgesPerThread - 1) / kEdgesPerThread;
  return std::clamp<int64_t>(most, 1, at::get_num_threads());
}

// Runs `kernel` on every chunk's edges; rows(call, chunk) sets where it adds to.
template <typename T, typename Rows>
void for_chunks(const mlff::MessageCall<T>& all, int64_t num_edges, int64_t chunks,
                void (*kernel)(const mlff::MessageCall<T>&), const Rows& rows) {
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      mlff::MessageCall<T> call = all;
      call.begin = num_edges * c / chunks;
      call.end = num_edges * (c + 1) / chunks;
      rows(call, c);
      kernel(call);
    }
  });
}

struct Inputs : mlff_bindings::MessageInputs {
  Inputs(const Tensor& x, const Tensor& v, const Tensor& w, const Tensor& r, const Tensor& ei)
      : MessageInputs(x, v, w, r, ei) {
    if (edges) {
      TORCH_CHECK_VALUE(
          edge_index.min().item<int64_t>() >= 0 && edge_index.max().item<int64_t>() < atoms,
          "edge_index must be within 0..", atoms - 1);
    }
  }

  template <typename T>
  mlff::MessageCall<T> call() const {
    mlff::MessageCall<T> call;
    call.channels = channels, call.vectors = vectors;
    call.senders = edge_index.const_data_ptr<int64_t>();
    call.receivers = call.senders + edges;
    call.x = x.const_data_ptr<T>(), call.v = v.const_data_ptr<T>();
    call.w = w.const_data_ptr<T>(), call.r = r.const_data_ptr<T>();
    return call;
  }
};

// What a GPU gathers by; here edges are taken as they come.
Tensor group_edges(const Tensor& edge_index, int64_t) {
  return at::empty({0}, edge_index.options());
}

std::tuple<Tensor, Tensor> message(const Tensor& x, const Tensor& v, const Tensor& w,
                                   const Tensor& r, const Tensor& edge_index, const Tensor&) {
  const Inputs in(x, v, w, r, edge_index);
  const int64_t chunks = num_chunks(in.edges);
  Rows s_out({in.atoms, in.channels}, in.x, chunks),
      V_out({in.atoms, 3, in.channels}, in.x, chunks);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "message", [&] {
    using T = scalar_t;
    for_chunks(in.call<T>(), in.edges, chunks, mlff::best_kernels<T>().message_forward,
               [&](mlff::MessageCall<T>& call, int64_t c) {
                 call.s_out = s_out.block<T>(c), call.V_out = V_out.block<T>(c);
               });
  });
  return {s_out.sum(), V_out.sum()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> message_backward(const Tensor& g_, const Tensor& G_,
                                                            const Tensor& x, const Tensor& v,
                                                            const Tensor& w, const Tensor& r,
                                                            const Tensor& edge_index,
                                                            const Tensor&) {
  const Inputs in(x, v, w, r, edge_index);
  const Tensor g = in.grad_scalars(g_), G = in.grad_vectors(G_);
  const int64_t chunks = num_chunks(in.edges);
  Rows x_out({in.atoms, in.width}, in.x, chunks);
  Rows v_out({in.atoms, 3, in.channels}, in.x, in.vectors ? chunks : 1);
  Tensor w_out = at::empty_like(in.w), r_out = at::empty_like(in.r);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "message_backward", [&] {
    using T = scalar_t;
    mlff::MessageCall<T> all = in.call<T>();
    all.g = g.const_data_ptr<T>(), all.G = G.const_data_ptr<T>();
    all.w_out = w_out.mutable_data_ptr<T>(), all.r_out = r_out.mutable_data_ptr<T>();
    for_chunks(all, in.edges, chunks, mlff::best_kernels<T>().message_backward,
               [&](mlff::MessageCall<T>& call, int64_t c) {
                 call.x_out = x_out.block<T>(c), call.v_out = v_out.block<T>(in.vectors ? c : 0);
               });
  });
  return {x_out.sum(), v_out.sum(), w_out, r_out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> message_double_backward(
    const Tensor& hx_, const Tensor& hv_, const Tensor& hw_, const Tensor& hr_, const Tensor& g_,
    const Tensor& G_, const Tensor& x, const Tensor& v, const Tensor& w, const Tensor& r,
    const Tensor& edge_index, const Tensor&) {
  const Inputs in(x, v, w, r, edge_index);
  const mlff_bindings::MessageUpstream up(in, hx_, hv_, hw_, hr_, g_, G_);
  const int64_t chunks = num_chunks(in.edges);
  Rows g_out({in.atoms, in.channels}, in.x, chunks),
      G_out({in.atoms, 3, in.channels}, in.x, chunks);
  Rows x_out({in.atoms, in.width}, in.x, chunks);
  Rows v_out({in.atoms, 3, in.channels}, in.x, in.vectors ? chunks : 1);
  Tensor w_out = at::empty_like(in.w), r_out = at::empty_like(in.r);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "message_double_backward", [&] {
    using T = scalar_t;
    mlff::MessageCall<T> all = in.call<T>();
    all.g = up.g.const_data_ptr<T>(), all.G = up.G.const_data_ptr<T>();
    all.hx = up.hx.const_data_ptr<T>(), all.hv = up.hv.const_data_ptr<T>();
    all.hw = up.hw.const_data_ptr<T>(), all.hr = up.hr.const_data_ptr<T>();
    all.w_out = w_out.mutable_data_ptr<T>(), all.r_out = r_out.mutable_data_ptr<T>();
    for_chunks(all, in.edges, chunks, mlff::best_kernels<T>().message_double_backward,
               [&](mlff::MessageCall<T>& call, int64_t c) {
                 call.s_out = g_out.block<T>(c), call.V_out = G_out.block<T>(c);
                 call.x_out = x_out.block<T>(c), call.v_out = v_out.block<T>(in.vectors ? c : 0);
               });
  });
  return {g_out.sum(), G_out.sum(), x_out.sum(), v_out.sum(), w_out, r_out};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mlff, m) {
  m.def("group_edges(Tensor edge_index, int num_atoms) -> Tensor");
  m.def(
      "painn_message(Tensor features, Tensor vectors, Tensor filters, Tensor directions, "
      "Tensor edge_index, Tensor edge_groups) -> (Tensor, Tensor)");
  m.def(
      "painn_message_backward(Tensor grad_scalars, Tensor grad_vectors, Tensor features, "
      "Tensor vectors, Tensor filters, Tensor directions, Tensor edge_index, Tensor edge_groups) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "painn_message_double_backward(Tensor h_features, Tensor h_vectors, Tensor h_filters, "
      "Tensor h_directions, Tensor grad_scalars, Tensor grad_vectors, Tensor features, "
      "Tensor vectors, Tensor filters, Tensor directions, Tensor edge_index, Tensor edge_groups) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mlff, CPU, m) {
  m.impl("group_edges", group_edges);
  m.impl("painn_message", message);
  m.impl("painn_message_backward", message_backward);
  m.impl("painn_message_double_backward", message_double_backward);
}
