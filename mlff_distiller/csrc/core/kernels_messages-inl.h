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
#include "core/kernels.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

template <typename T>
static void message_forward(const MessageCall<T>& e) {
  const int64_t f = e.channels, width = (e.vectors ? 3 : 2) * f;
  for (int64_t k = e.begin; k < e.end; ++k) {
    const T* __restrict__ x = e.x + e.senders[k] * width;
    const T* __restrict__ w = e.w + k * width;
    const T rx = e.r[3 * k], ry = e.r[3 * k + 1], rz = e.r[3 * k + 2];
    T* __restrict__ s = e.s_out + e.receivers[k] * f;
    T* __restrict__ o = e.V_out + e.receivers[k] * 3 * f;
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
static void message_backward(const MessageCall<T>& e) {
  const int64_t f = e.channels, width = (e.vectors ? 3 : 2) * f;
  for (int64_t k = e.begin; k < e.end; ++k) {
    const T* __restrict__ x = e.x + e.senders[k] * width;
    const T* __restrict__ w = e.w + k * width;
    const T* __restrict__ g = e.g + e.receivers[k] * f;
    const T* __restrict__ G = e.G + e.receivers[k] * 3 * f;
    const T rx = e.r[3 * k], ry = e.r[3 * k + 1], rz = e.r[3 * k + 2];
    T* __restrict__ dx = e.x_out + e.senders[k] * width;
    T* __restrict__ dw = e.w_out + k * width;
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
    e.r_out[3 * k] = sx;
    e.r_out[3 * k + 1] = sy;
    e.r_out[3 * k + 2] = sz;
    if (e.vectors) {
      const T* __restrict__ v = e.v + e.senders[k] * 3 * f;
      T* __restrict__ dv = e.v_out + e.senders[k] * 3 * f;
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
static void message_double_backward(const MessageCall<T>& e) {
  const int64_t f = e.channels, width = (e.vectors ? 3 : 2) * f;
  for (int64_t k = e.begin; k < e.end; ++k) {
    const int64_t i = e.receivers[k], j = e.senders[k];
    const T* __restrict__ x = e.x + j * width;
    const T* __restrict__ hx = e.hx + j * width;
    const T* __restrict__ w = e.w + k * width;
    const T* __restrict__ hw = e.hw + k * width;
    const T* __restrict__ g = e.g + i * f;
    const T* __restrict__ G = e.G + i * 3 * f;
    const T rx = e.r[3 * k], ry = e.r[3 * k + 1], rz = e.r[3 * k + 2];
    const T hrx = e.hr[3 * k], hry = e.hr[3 * k + 1], hrz = e.hr[3 * k + 2];
    T* __restrict__ dg = e.s_out + i * f;
    T* __restrict__ dG = e.V_out + i * 3 * f;
    T* __restrict__ dx = e.x_out + j * width;
    T* __restrict__ dw = e.w_out + k * width;
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
    e.r_out[3 * k] = sx;
    e.r_out[3 * k + 1] = sy;
    e.r_out[3 * k + 2] = sz;
    if (e.vectors) {
      const T* __restrict__ v = e.v + j * 3 * f;
      const T* __restrict__ hv = e.hv + j * 3 * f;
      T* __restrict__ dv = e.v_out + j * 3 * f;
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

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
