// What a platform provides to compute a PainnForce by itself, without positions and forces passing
// through the host: a kernel in OpenMM's sense. Platforms that have none get the forces of
// PainnForceImpl. libPainnOpenMMCUDA.so has that of the CUDA platform (cuda_kernel.h).
#pragma once

#include <string>

#include "openmm/KernelImpl.h"
#include "openmm/Platform.h"
#include "openmm/internal/ContextImpl.h"
#include "painn_force.h"

namespace mlff {

// Visible, since one library casts to it what another made.
class __attribute__((visibility("default"))) CalcPainnForceKernel : public OpenMM::KernelImpl {
 public:
  static std::string Name() { return "CalcPainnForce"; }
  CalcPainnForceKernel(std::string name, const OpenMM::Platform& platform)
      : KernelImpl(std::move(name), platform) {}

  // Throws OpenMMException.
  virtual void initialize(OpenMM::ContextImpl& context, const PainnForce& force) = 0;
  // kJ/mol that the platform does not add by itself.
  virtual double execute(OpenMM::ContextImpl& context, bool include_forces,
                         bool include_energy) = 0;
};

}  // namespace mlff
