// Fills the table of one instruction set; the includer defines MLFF_ISA_NAMESPACE,
// MLFF_VECTOR_BYTES and MLFF_KERNELS_FUNCTION.
#include "core/kernels_ceilings-inl.h"
#include "core/kernels_edges-inl.h"
#include "core/kernels_gemm-inl.h"
#include "core/kernels_update-inl.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

// Constant-initialised: a constructor would be an inline function shared with other sources.
template <typename T>
static constexpr Kernels<T> kTable = {Simd<T>::kLanes,
                                      kGemmVectors,
                                      gemm<T>,
                                      forward_tile<T, true>,
                                      forward_tile<T, false>,
                                      backward_tile<T, true>,
                                      backward_tile<T, false>,
                                      update_norms<T>,
                                      update_combine<T>,
                                      update_adjoint_a<T>,
                                      update_adjoint_vu<T>,
                                      write_features<T>,
                                      write_adjoints<T>,
                                      finish_sums<T>,
                                      fma_rounds<T>,
                                      read_sum<T>};

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
