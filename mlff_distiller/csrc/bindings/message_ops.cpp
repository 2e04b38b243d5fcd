// The message pass of PaiNN for training on the CPU: forward, first and second derivative, each in
// one pass over the edges without temporaries of the size (edges, 3, F).
//
// Per edge e from sender j to receiver i, per channel, with x = (x0 x1 x2) features of the sender,
// w = (w0 w1 w2) filters, r the direction and v the vectors of the sender:
//
//   s_i += w0 x0            V_i += w1 x1 r + w2 x2 v_j
//
// With upstream gradients g of s and G of V, both are derivatives of one form that is linear in
// each of its arguments,
//
//   B = Σ_e Σ_c  g_i w0 x0 + (G_i·r) w1 x1 + (G_i·v_j) w2 x2
//
// backward returns ∂B/∂(x, v, w, r); double_backward, given weights (hx, hv, hw, hr) for these,
// returns the derivatives of hx·∂B/∂x + hv·∂B/∂v + hw·∂B/∂w + hr·∂B/∂r. Without vectors (the first
// interaction) w and x have 2F channels and the third term is absent.
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

namespace {

using at::Tensor;

// x86-64 has no wide registers by default: compile the loops for each of them and pick at load.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define MLFF_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MLFF_CLONES
#endif
#define MLFF_INLINE inline __attribute__((always_inline))

constexpr int64_t kEdgesPerThread = 256;

template <typename T>
struct Edges {
  int64_t channels;  // F
  bool vectors;      // whether v, hv and the third term exist
  const int64_t* senders;
  const int64_t* receivers;
  const T *x, *v, *w, *r;  // rows: (2|3)F, 3F, (2|3)F, 3
};

template <typename T>
MLFF_INLINE void forward_loop(const Edges<T>& e, int64_t begin, int64_t end, T* s_out, T* v_out) {
  const int64_t f = e.channels, width = (e.vectors ? 3 : 2) * f;
  for (int64_t k = begin; k < end; ++k) {
    const T* __restrict__ x = e.x + e.senders[k] * width;
    const T* __restrict__ w = e.w + k * width;
    const T rx = e.r[3 * k], ry = e.r[3 * k + 1], rz = e.r[3 * k + 2];
    T* __restrict__ s = s_out + e.receivers[k] * f;
    T* __restrict__ o = v_out + e.receivers[k] * 3 * f;
    if (e.vectors) {
      const T* __restrict__ v = e.v + e.senders[k] * 3 * f;
#pragma omp simd
      for (int64_t c = 0; c < f; ++c) {
        const T m1 = w[f + c] * x[f + c], m2 = w[2 * f + c] * x[2 * f + c];
        s[c] += w[c] * x[c];
        o[c] += m1 * rx + m2 * v[c];
        o[f + c] += m1 * ry + m2 * v[f + c];
        o[2 * f + c] += m1 * rz + m2 * v[2 * f + c];
      }
    } else {
#pragma omp simd
      for (int64_t c = 0; c < f; ++c) {
        const T m1 = w[f + c] * x[f + c];
        s[c] += w[c] * x[c];
        o[c] += m1 * rx;
        o[f + c] += m1 * ry;
        o[2 * f + c] += m1 * rz;
      }
    }
  }
}

template <typename T>
MLFF_INLINE void backward_loop(const Edges<T>& e, int64_t begin, int64_t end, const T* g_in,
                               const T* G_in, T* x_out, T* v_out, T* w_out, T* r_out) {
  const int64_t f = e.channels, width = (e.vectors ? 3 : 2) * f;
  for (int64_t k = begin; k < end; ++k) {
    const T* __restrict__ x = e.x + e.senders[k] * width;
    const T* __restrict__ w = e.w + k * width;
    const T* __restrict__ g = g_in + e.receivers[k] * f;
    const T* __restrict__ G = G_in + e.receivers[k] * 3 * f;
    const T rx = e.r[3 * k], ry = e.r[3 * k + 1], rz = e.r[3 * k + 2];
    T* __restrict__ dx = x_out + e.senders[k] * width;
    T* __restrict__ dw = w_out + k * width;
    T sx = 0, sy = 0, sz = 0;
#pragma omp simd reduction(+ : sx, sy, sz)
    for (int64_t c = 0; c < f; ++c) {
      const T a = G[c] * rx + G[f + c] * ry + G[2 * f + c] * rz;
      const T m1 = w[f + c] * x[f + c];
      dw[c] = g[c] * x[c];
      dx[c] += g[c] * w[c];
      dw[f + c] = a * x[f + c];
      dx[f + c] += a * w[f + c];
      sx += m1 * G[c];
      sy += m1 * G[f + c];
      sz += m1 * G[2 * f + c];
    }
    r_out[3 * k] = sx;
    r_out[3 * k + 1] = sy;
    r_out[3 * k + 2] = sz;
    if (e.vectors) {
      const T* __restrict__ v = e.v + e.senders[k] * 3 * f;
      T* __restrict__ dv = v_out + e.senders[k] * 3 * f;
#pragma omp simd
      for (int64_t c = 0; c < f; ++c) {
        const T b = G[c] * v[c] + G[f + c] * v[f + c] + G[2 * f + c] * v[2 * f + c];
        const T m2 = w[2 * f + c] * x[2 * f + c];
        dw[2 * f + c] = b * x[2 * f + c];
        dx[2 * f + c] += b * w[2 * f + c];
        dv[c] += m2 * G[c];
        dv[f + c] += m2 * G[f + c];
        dv[2 * f + c] += m2 * G[2 * f + c];
      }
    }
  }
}

template <typename T>
struct Second {
  const T *g, *G;                    // upstream of the forward pass
  const T *hx, *hv, *hw, *hr;        // upstream of the backward pass
  T *g_out, *G_out, *x_out, *v_out;  // rows of nodes, added to
  T *w_out, *r_out;                  // rows of edges, set
};

template <typename T>
MLFF_INLINE void double_backward_loop(const Edges<T>& e, int64_t begin, int64_t end,
                                      const Second<T>& d) {
  const int64_t f = e.channels, width = (e.vectors ? 3 : 2) * f;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t i = e.receivers[k], j = e.senders[k];
    const T* __restrict__ x = e.x + j * width;
    const T* __restrict__ hx = d.hx + j * width;
    const T* __restrict__ w = e.w + k * width;
    const T* __restrict__ hw = d.hw + k * width;
    const T* __restrict__ g = d.g + i * f;
    const T* __restrict__ G = d.G + i * 3 * f;
    const T rx = e.r[3 * k], ry = e.r[3 * k + 1], rz = e.r[3 * k + 2];
    const T hrx = d.hr[3 * k], hry = d.hr[3 * k + 1], hrz = d.hr[3 * k + 2];
    T* __restrict__ dg = d.g_out + i * f;
    T* __restrict__ dG = d.G_out + i * 3 * f;
    T* __restrict__ dx = d.x_out + j * width;
    T* __restrict__ dw = d.w_out + k * width;
    T sx = 0, sy = 0, sz = 0;
#pragma omp simd reduction(+ : sx, sy, sz)
    for (int64_t c = 0; c < f; ++c) {
      dg[c] += w[c] * hx[c] + hw[c] * x[c];
      dx[c] += g[c] * hw[c];
      dw[c] = g[c] * hx[c];
      const T a = G[c] * rx + G[f + c] * ry + G[2 * f + c] * rz;
      const T ha = G[c] * hrx + G[f + c] * hry + G[2 * f + c] * hrz;
      const T p = w[f + c] * hx[f + c] + hw[f + c] * x[f + c], q = w[f + c] * x[f + c];
      dG[c] += p * rx + q * hrx;
      dG[f + c] += p * ry + q * hry;
      dG[2 * f + c] += p * rz + q * hrz;
      dx[f + c] += a * hw[f + c] + ha * w[f + c];
      dw[f + c] = a * hx[f + c] + ha * x[f + c];
      sx += p * G[c];
      sy += p * G[f + c];
      sz += p * G[2 * f + c];
    }
    d.r_out[3 * k] = sx;
    d.r_out[3 * k + 1] = sy;
    d.r_out[3 * k + 2] = sz;
    if (e.vectors) {
      const T* __restrict__ v = e.v + j * 3 * f;
      const T* __restrict__ hv = d.hv + j * 3 * f;
      T* __restrict__ dv = d.v_out + j * 3 * f;
#pragma omp simd
      for (int64_t c = 0; c < f; ++c) {
        const int64_t c2 = 2 * f + c;
        const T b = G[c] * v[c] + G[f + c] * v[f + c] + G[c2] * v[c2];
        const T hb = G[c] * hv[c] + G[f + c] * hv[f + c] + G[c2] * hv[c2];
        const T p = w[c2] * hx[c2] + hw[c2] * x[c2], q = w[c2] * x[c2];
        dG[c] += p * v[c] + q * hv[c];
        dG[f + c] += p * v[f + c] + q * hv[f + c];
        dG[c2] += p * v[c2] + q * hv[c2];
        dx[c2] += b * hw[c2] + hb * w[c2];
        dw[c2] = b * hx[c2] + hb * x[c2];
        dv[c] += p * G[c];
        dv[f + c] += p * G[f + c];
        dv[c2] += p * G[c2];
      }
    }
  }
}

// One function for each type, because clones of templates are not supported everywhere.
#define MLFF_INSTANTIATE(T)                                                                        \
  MLFF_CLONES void run_forward(const Edges<T>& e, int64_t begin, int64_t end, T* s, T* v) {        \
    forward_loop<T>(e, begin, end, s, v);                                                          \
  }                                                                                                \
  MLFF_CLONES void run_backward(const Edges<T>& e, int64_t begin, int64_t end, const T* g,         \
                                const T* G, T* x, T* v, T* w, T* r) {                              \
    backward_loop<T>(e, begin, end, g, G, x, v, w, r);                                             \
  }                                                                                                \
  MLFF_CLONES void run_double(const Edges<T>& e, int64_t begin, int64_t end, const Second<T>& d) { \
    double_backward_loop<T>(e, begin, end, d);                                                     \
  }
MLFF_INSTANTIATE(float)
MLFF_INSTANTIATE(double)

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

template <typename Work>
void for_chunks(int64_t num_edges, int64_t chunks, const Work& work) {
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      work(c, num_edges * c / chunks, num_edges * (c + 1) / chunks);
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
  Edges<T> pointers() const {
    const int64_t* index = edge_index.const_data_ptr<int64_t>();
    return {channels,
            vectors,
            index,
            index + edges,
            x.const_data_ptr<T>(),
            v.const_data_ptr<T>(),
            w.const_data_ptr<T>(),
            r.const_data_ptr<T>()};
  }
};

std::tuple<Tensor, Tensor> message(const Tensor& x, const Tensor& v, const Tensor& w,
                                   const Tensor& r, const Tensor& edge_index) {
  const Inputs in(x, v, w, r, edge_index);
  const int64_t chunks = num_chunks(in.edges);
  Rows s_out({in.atoms, in.channels}, in.x, chunks),
      v_out({in.atoms, 3, in.channels}, in.x, chunks);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "message", [&] {
    const Edges<scalar_t> e = in.pointers<scalar_t>();
    for_chunks(in.edges, chunks, [&](int64_t c, int64_t begin, int64_t end) {
      run_forward(e, begin, end, s_out.block<scalar_t>(c), v_out.block<scalar_t>(c));
    });
  });
  return {s_out.sum(), v_out.sum()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> message_backward(const Tensor& g_, const Tensor& G_,
                                                            const Tensor& x, const Tensor& v,
                                                            const Tensor& w, const Tensor& r,
                                                            const Tensor& edge_index) {
  const Inputs in(x, v, w, r, edge_index);
  const Tensor g = in.grad_scalars(g_), G = in.grad_vectors(G_);
  const int64_t chunks = num_chunks(in.edges);
  Rows x_out({in.atoms, in.width}, in.x, chunks);
  Rows v_out({in.atoms, 3, in.channels}, in.x, in.vectors ? chunks : 1);
  Tensor w_out = at::empty_like(in.w), r_out = at::empty_like(in.r);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "message_backward", [&] {
    using T = scalar_t;
    const Edges<T> e = in.pointers<T>();
    for_chunks(in.edges, chunks, [&](int64_t c, int64_t begin, int64_t end) {
      run_backward(e, begin, end, g.const_data_ptr<T>(), G.const_data_ptr<T>(), x_out.block<T>(c),
                   v_out.block<T>(in.vectors ? c : 0), w_out.mutable_data_ptr<T>(),
                   r_out.mutable_data_ptr<T>());
    });
  });
  return {x_out.sum(), v_out.sum(), w_out, r_out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> message_double_backward(
    const Tensor& hx_, const Tensor& hv_, const Tensor& hw_, const Tensor& hr_, const Tensor& g_,
    const Tensor& G_, const Tensor& x, const Tensor& v, const Tensor& w, const Tensor& r,
    const Tensor& edge_index) {
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
    const Edges<T> e = in.pointers<T>();
    for_chunks(in.edges, chunks, [&](int64_t c, int64_t begin, int64_t end) {
      const Second<T> d{up.g.const_data_ptr<T>(),    up.G.const_data_ptr<T>(),
                        up.hx.const_data_ptr<T>(),   up.hv.const_data_ptr<T>(),
                        up.hw.const_data_ptr<T>(),   up.hr.const_data_ptr<T>(),
                        g_out.block<T>(c),           G_out.block<T>(c),
                        x_out.block<T>(c),           v_out.block<T>(in.vectors ? c : 0),
                        w_out.mutable_data_ptr<T>(), r_out.mutable_data_ptr<T>()};
      run_double(e, begin, end, d);
    });
  });
  return {g_out.sum(), G_out.sum(), x_out.sum(), v_out.sum(), w_out, r_out};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mlff, m) {
  m.def(
      "painn_message(Tensor features, Tensor vectors, Tensor filters, Tensor directions, "
      "Tensor edge_index) -> (Tensor, Tensor)");
  m.def(
      "painn_message_backward(Tensor grad_scalars, Tensor grad_vectors, Tensor features, "
      "Tensor vectors, Tensor filters, Tensor directions, Tensor edge_index) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "painn_message_double_backward(Tensor h_features, Tensor h_vectors, Tensor h_filters, "
      "Tensor h_directions, Tensor grad_scalars, Tensor grad_vectors, Tensor features, "
      "Tensor vectors, Tensor filters, Tensor directions, Tensor edge_index) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mlff, CPU, m) {
  m.impl("painn_message", message);
  m.impl("painn_message_backward", message_backward);
  m.impl("painn_message_double_backward", message_double_backward);
}
