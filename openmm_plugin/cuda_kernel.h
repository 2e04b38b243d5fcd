// PainnForce on OpenMM's CUDA platform: positions are taken from its arrays and forces added there.
//
// The engine is made and runs in the CUDA context that OpenMM has made (not the primary one, which
// torch uses), on a stream of its own. OpenMM calls start() before it enqueues its own forces and
// finish() after that, so that both compute side by side.
#pragma once

#include <memory>
#include <string>

#include "cuda/particles.h"
#include "openmm/cuda/CudaContext.h"
#include "painn_kernel.h"

namespace mlff {

class CudaCalcPainnForceKernel : public CalcPainnForceKernel {
 public:
  CudaCalcPainnForceKernel(std::string name, const OpenMM::Platform& platform,
                           OpenMM::CudaContext& cuda);
  ~CudaCalcPainnForceKernel() override;
  void initialize(OpenMM::ContextImpl& context, const PainnForce& force) override;
  double execute(OpenMM::ContextImpl&, bool, bool) override { return 0.0; }  // see above

 private:
  class Start;
  class Finish;
  void start(bool include_forces);
  double finish();
  gpu::ParticleArrays arrays();
  cudaStream_t stream();

  OpenMM::CudaContext& cuda_;
  std::unique_ptr<gpu::ParticlePotential> potential_;
  bool periodic_ = false;
};

// Called when OpenMM loads the library; without a CUDA platform nothing happens.
void register_cuda_kernel();

}  // namespace mlff
