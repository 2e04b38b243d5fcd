// Fills the table of one instruction set; the includer defines MLFF_ISA_NAMESPACE,
// MLFF_VECTOR_BYTES, MLFF_KERNELS_FUNCTION, and whether the compiler has this target:
// MLFF_TARGET_AVAILABLE.
#include "core/kernels.h"

#if MLFF_TARGET_AVAILABLE
#include "core/kernels_ceilings-inl.h"
#include "core/kernels_edges-inl.h"
#include "core/kernels_gemm-inl.h"
#include "core/kernels_messages-inl.h"
#include "core/kernels_sort-inl.h"
#include "core/kernels_training-inl.h"
#include "core/kernels_update-inl.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

template <typename T, bool dual>
static constexpr TrainingKernels<T> training_kernels() {
  TrainingKernels<T> k;
  k.silu = training_silu<T, dual>;
  k.silu_adjoint = training_silu_adjoint<T, dual>;
  k.features = training_features<T, dual>;
  k.norms = training_norms<T, dual>;
  k.combine = training_combine<T, dual>;
  k.adjoint_a = training_adjoint_a<T, dual>;
  k.adjoint_vu = training_adjoint_vu<T, dual>;
  k.adjoint_message = training_adjoint_message<T, dual>;
  k.forward_first = training_forward<T, dual, true>;
  k.forward = training_forward<T, dual, false>;
  k.backward_first = training_backward<T, dual, true>;
  k.backward = training_backward<T, dual, false>;
  return k;
}

template <typename T>
static constexpr Kernels<T> make_table() {
  Kernels<T> k;
  k.lanes = Simd<T>::kLanes;
  k.gemm_vectors = kGemmVectors;
  k.gemm = gemm<T>;
  k.forward_first = forward_tile<T, true>;
  k.forward = forward_tile<T, false>;
  k.backward_first = backward_tile<T, true>;
  k.backward = backward_tile<T, false>;
  k.update_norms = update_norms<T>;
  k.update_combine = update_combine<T>;
  k.update_adjoint_a = update_adjoint_a<T>;
  k.update_adjoint_vu = update_adjoint_vu<T>;
  k.write_features = write_features<T>;
  k.write_adjoints = write_adjoints<T>;
  k.finish_sums = finish_sums<T>;
  k.message_forward = message_forward<T>;
  k.message_backward = message_backward<T>;
  k.message_double_backward = message_double_backward<T>;
  k.outer = outer<T>;
  k.training[0] = training_kernels<T, false>();
  k.training[1] = training_kernels<T, true>();
  k.rank_sort = rank_sort;
  k.fma_rounds = fma_rounds<T>;
  k.read_sum = read_sum<T>;
  return k;
}

// Made by the compiler: code that ran here would be of this instruction set, on any processor.
template <typename T>
static constexpr Kernels<T> kTable = make_table<T>();

}  // namespace MLFF_ISA_NAMESPACE

template <>
const Kernels<float>* MLFF_KERNELS_FUNCTION<float>() {
  return &MLFF_ISA_NAMESPACE::kTable<float>;
}
template <>
const Kernels<double>* MLFF_KERNELS_FUNCTION<double>() {
  return &MLFF_ISA_NAMESPACE::kTable<double>;
}

}  // namespace mlff

#else

namespace mlff {
template <>
const Kernels<float>* MLFF_KERNELS_FUNCTION<float>() {
  return nullptr;
}
template <>
const Kernels<double>* MLFF_KERNELS_FUNCTION<double>() {
  return nullptr;
}
}  // namespace mlff

#endif
