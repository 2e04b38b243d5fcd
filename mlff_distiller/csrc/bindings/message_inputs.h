// Arguments of the message operators, checked once for the CPU and the GPU.
#pragma once

#include <ATen/Functions.h>

#include <cstdint>

namespace mlff_bindings {

using at::Tensor;

// Shapes, dtypes and devices. Values of edge_index are the caller's: reading them here would make a
// GPU's host wait.
struct MessageInputs {
  Tensor x, v, w, r, edge_index;
  int64_t atoms, edges, channels, width;
  bool vectors;  // whether v and the third block of x and w exist

  MessageInputs(const Tensor& x_, const Tensor& v_, const Tensor& w_, const Tensor& r_,
                const Tensor& edge_index_)
      : x(x_.contiguous()),
        v(v_.contiguous()),
        w(w_.contiguous()),
        r(r_.contiguous()),
        edge_index(edge_index_.contiguous()) {
    TORCH_CHECK_VALUE(v.dim() == 3 && v.size(1) == 3, "vectors must have shape (n, 3, F), got ",
                      v.sizes());
    TORCH_CHECK_VALUE(w.dim() == 2, "filters must have shape (edges, 3F or 2F), got ", w.sizes());
    atoms = v.size(0), channels = v.size(2), width = w.size(1), edges = w.size(0);
    vectors = width == 3 * channels;
    TORCH_CHECK_VALUE(vectors || width == 2 * channels,
                      "filters must have 2F or 3F = ", 3 * channels, " channels, got ", width);
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) == atoms && x.size(1) == width,
                      "features must have shape (", atoms, ", ", width, "), got ", x.sizes());
    TORCH_CHECK_VALUE(r.dim() == 2 && r.size(0) == edges && r.size(1) == 3,
                      "directions must have shape (", edges, ", 3), got ", r.sizes());
    TORCH_CHECK_VALUE(edge_index.dim() == 2 && edge_index.size(0) == 2 &&
                          edge_index.size(1) == edges && edge_index.scalar_type() == at::kLong,
                      "edge_index must be int64 of shape (2, ", edges, "), got ",
                      edge_index.scalar_type(), " ", edge_index.sizes());
    for (const Tensor& t : {x, w, r}) {
      TORCH_CHECK_VALUE(t.scalar_type() == v.scalar_type(), "expected one floating type, got ",
                        t.scalar_type(), " and ", v.scalar_type());
    }
    for (const Tensor& t : {x, w, r, edge_index}) {
      TORCH_CHECK_VALUE(t.device() == v.device(), "expected one device, got ", t.device(), " and ",
                        v.device());
    }
  }

  // Upstream gradients: dense, and of the shape, dtype and device of what they belong to.
  Tensor gradient(const Tensor& upstream, const char* name, at::IntArrayRef shape) const {
    TORCH_CHECK_VALUE(upstream.sizes() == shape && upstream.scalar_type() == v.scalar_type() &&
                          upstream.device() == v.device(),
                      name, " must be ", v.scalar_type(), " on ", v.device(), " of shape ", shape,
                      ", got ", upstream.scalar_type(), " on ", upstream.device(), " of shape ",
                      upstream.sizes());
    return upstream.contiguous();
  }
  Tensor grad_scalars(const Tensor& g) const {
    return gradient(g, "grad_scalars", {atoms, channels});
  }
  Tensor grad_vectors(const Tensor& g) const { return gradient(g, "grad_vectors", v.sizes()); }
};

// What double_backward gets besides: gradients of the results of backward, and its own upstream.
struct MessageUpstream {
  Tensor hx, hv, hw, hr, g, G;

  MessageUpstream(const MessageInputs& in, const Tensor& hx_, const Tensor& hv_, const Tensor& hw_,
                  const Tensor& hr_, const Tensor& g_, const Tensor& G_)
      : hx(in.gradient(hx_, "h_features", in.x.sizes())),
        hv(in.gradient(hv_, "h_vectors", in.v.sizes())),
        hw(in.gradient(hw_, "h_filters", in.w.sizes())),
        hr(in.gradient(hr_, "h_directions", in.r.sizes())),
        g(in.grad_scalars(g_)),
        G(in.grad_vectors(G_)) {}
};

}  // namespace mlff_bindings
