#include "cuda_kernel.h"

#include <array>

#include "core/error.h"
#include "core/units.h"
#include "openmm/KernelFactory.h"
#include "openmm/OpenMMException.h"
#include "openmm/System.h"
#include "openmm/common/ContextSelector.h"
#include "openmm/cuda/CudaPlatform.h"

using OpenMM::ContextImpl;
using OpenMM::ContextSelector;
using OpenMM::CudaArray;
using OpenMM::CudaContext;
using OpenMM::CudaPlatform;
using OpenMM::OpenMMException;
using OpenMM::Vec3;

namespace mlff {
namespace {

template <typename T>
T* pointer(CudaArray& array) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(array.getDevicePointer()));
}

class Factory : public OpenMM::KernelFactory {
 public:
  OpenMM::KernelImpl* createKernelImpl(std::string name, const OpenMM::Platform& platform,
                                       ContextImpl& context) const override {
    auto* data = static_cast<CudaPlatform::PlatformData*>(context.getPlatformData());
    return new CudaCalcPainnForceKernel(std::move(name), platform, *data->contexts[0]);
  }
};

}  // namespace

// OpenMM owns these two, and calls them within its evaluation of the chosen groups of forces.
class CudaCalcPainnForceKernel::Start : public CudaContext::ForcePreComputation {
 public:
  Start(CudaCalcPainnForceKernel& kernel, int group) : kernel_(kernel), groups_(1 << group) {}
  void computeForceAndEnergy(bool include_forces, bool, int groups) override {
    if (groups & groups_) kernel_.start(include_forces);
  }

 private:
  CudaCalcPainnForceKernel& kernel_;
  int groups_;
};

class CudaCalcPainnForceKernel::Finish : public CudaContext::ForcePostComputation {
 public:
  Finish(CudaCalcPainnForceKernel& kernel, int group) : kernel_(kernel), groups_(1 << group) {}
  double computeForceAndEnergy(bool, bool, int groups) override {
    return groups & groups_ ? kernel_.finish() : 0.0;
  }

 private:
  CudaCalcPainnForceKernel& kernel_;
  int groups_;
};

CudaCalcPainnForceKernel::CudaCalcPainnForceKernel(std::string name,
                                                   const OpenMM::Platform& platform,
                                                   CudaContext& cuda)
    : CalcPainnForceKernel(std::move(name), platform), cuda_(cuda) {}

CudaCalcPainnForceKernel::~CudaCalcPainnForceKernel() {
  const ContextSelector selector(cuda_);
  potential_.reset();
}

void CudaCalcPainnForceKernel::initialize(ContextImpl&, const PainnForce& force) {
  const ContextSelector selector(cuda_);
  const PainnForce::Options& options = force.options();
  periodic_ = options.periodic;
  gpu::ParticleOptions settings;
  settings.system.precision = options.double_precision ? Precision::kFloat64 : Precision::kFloat32;
  settings.system.skin = options.skin;
  settings.system.device = cuda_.getDeviceIndex();
  settings.atomic_numbers = options.atomic_numbers;
  settings.particles = options.particles;
  settings.angstrom = kAngstromPerNm;
  settings.energy_per_ev = 1.0 / kKjPerMolInEv;
  try {
    potential_ = std::make_unique<gpu::ParticlePotential>(options.path, settings);
  } catch (const Error& error) {
    throw OpenMMException(error.what());
  }
  cuda_.addPreComputation(new Start(*this, force.getForceGroup()));
  cuda_.addPostComputation(new Finish(*this, force.getForceGroup()));
}

gpu::ParticleArrays CudaCalcPainnForceKernel::arrays() {
  gpu::ParticleArrays out;
  out.n_particles = cuda_.getNumAtoms();
  out.particle_of_slot = pointer<const int>(cuda_.getAtomIndexArray());
  if (cuda_.getUseDoublePrecision()) {
    out.double_positions = pointer<const double>(cuda_.getPosq());
  } else {
    out.positions = pointer<const float>(cuda_.getPosq());
    if (cuda_.getUseMixedPrecision()) {
      out.corrections = pointer<const float>(cuda_.getPosqCorrection());
    }
  }
  out.forces = pointer<unsigned long long>(cuda_.getForce());
  out.stride = cuda_.getPaddedNumAtoms();
  return out;
}

// Of the driver's interface, which is that of the runtime, too.
cudaStream_t CudaCalcPainnForceKernel::stream() { return cuda_.getCurrentStream(); }

void CudaCalcPainnForceKernel::start(bool include_forces) {
  const ContextSelector selector(cuda_);
  std::array<double, 9> cell{};
  if (periodic_) {
    std::array<Vec3, 3> box;
    cuda_.getPeriodicBoxVectors(box[0], box[1], box[2]);
    for (int a = 0; a < 3; ++a) {
      for (int k = 0; k < 3; ++k) cell[3 * a + k] = box[a][k] * kAngstromPerNm;
    }
  }
  try {
    potential_->start(arrays(), cell.data(), {periodic_, periodic_, periodic_}, include_forces,
                      stream());
  } catch (const Error& error) {
    throw OpenMMException(error.what());
  }
}

double CudaCalcPainnForceKernel::finish() {
  const ContextSelector selector(cuda_);
  try {
    return potential_->finish(arrays(), stream());
  } catch (const Error& error) {
    throw OpenMMException(error.what());
  }
}

void register_cuda_kernel() {
  for (int i = 0; i < OpenMM::Platform::getNumPlatforms(); ++i) {
    OpenMM::Platform& platform = OpenMM::Platform::getPlatform(i);
    if (platform.getName() != "CUDA") continue;
    platform.registerKernelFactory(CalcPainnForceKernel::Name(), new Factory);
  }
}

}  // namespace mlff
