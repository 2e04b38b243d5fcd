// The emulated CUDA platform of the tests, see the headers beside this.
#include <algorithm>
#include <random>

#include "cuda_kernel.h"
#include "openmm/OpenMMException.h"
#include "openmm/cuda/CudaPlatform.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/kernels.h"
#include "openmm/reference/ReferenceKernelFactory.h"

using mlff::gpu::check;

namespace OpenMM {
namespace {

constexpr int kTile = 32;
constexpr double kFixedPoint = 4294967296.0;

// The place of OpenMM's CudaCalcForcesAndEnergyKernel: around what the forces of Reference add.
class ForcesAndEnergy : public CalcForcesAndEnergyKernel {
 public:
  ForcesAndEnergy(const std::string& name, const Platform& platform, ContextImpl& context)
      : CalcForcesAndEnergyKernel(name, platform),
        data_(*static_cast<CudaPlatform::PlatformData*>(context.getPlatformData())),
        reference_(ReferenceKernelFactory().createKernelImpl(name, platform, context)) {}

  void initialize(const System& system) override { reference().initialize(system); }
  void beginComputation(ContextImpl& context, bool forces, bool energy, int groups) override {
    reference().beginComputation(context, forces, energy, groups);
    data_.contexts[0]->begin(*data_.positions, data_.periodicBoxVectors, forces, groups);
  }
  double finishComputation(ContextImpl& context, bool forces, bool energy, int groups,
                           bool& valid) override {
    const double sum = data_.contexts[0]->end(*data_.forces, forces, groups);
    return sum + reference().finishComputation(context, forces, energy, groups, valid);
  }

 private:
  CalcForcesAndEnergyKernel& reference() { return reference_.getAs<CalcForcesAndEnergyKernel>(); }

  CudaPlatform::PlatformData& data_;
  Kernel reference_;
};

class Factory : public KernelFactory {
 public:
  KernelImpl* createKernelImpl(std::string name, const Platform& platform,
                               ContextImpl& context) const override {
    return new ForcesAndEnergy(name, platform, context);
  }
};

}  // namespace

void CudaArray::upload(const void* from, size_t bytes) {
  check(cudaMemcpy(memory_.data(), from, bytes, cudaMemcpyHostToDevice), "uploading");
}
void CudaArray::download(void* to, size_t bytes) const {
  check(cudaMemcpy(to, memory_.data(), bytes, cudaMemcpyDeviceToHost), "downloading");
}

CudaContext::CudaContext(const System& system, const std::string& precision)
    : num_atoms_(system.getNumParticles()),
      padded_((num_atoms_ + kTile - 1) / kTile * kTile),
      double_(precision == "double"),
      mixed_(precision == "mixed"),
      periodic_(system.usesPeriodicBoundaryConditions()),
      order_(static_cast<size_t>(padded_)) {
  for (int i = 0; i < padded_; ++i) order_[static_cast<size_t>(i)] = i;
  double_ ? posq_.require<double>(4 * padded_) : posq_.require<float>(4 * padded_);
  if (mixed_) posq_correction_.require<float>(4 * padded_);
  atom_index_.require<int>(padded_);
  force_.require<long long>(3 * padded_);
}

CudaArray& CudaContext::getPosqCorrection() {
  if (!mixed_) throw OpenMMException("there are no corrections without mixed precision");
  return posq_correction_;
}

void CudaContext::getPeriodicBoxVectors(Vec3& a, Vec3& b, Vec3& c) const {
  a = box_[0];
  b = box_[1];
  c = box_[2];
}

void CudaContext::upload(const std::vector<Vec3>& positions) {
  std::mt19937 random(turn_++);
  std::shuffle(order_.begin(), order_.begin() + num_atoms_, random);
  std::vector<float> single(4 * order_.size()), correction(4 * order_.size());
  std::vector<double> all(4 * order_.size());
  for (size_t slot = 0; slot < order_.size(); ++slot) {
    if (order_[slot] >= num_atoms_) continue;
    Vec3 x = positions[static_cast<size_t>(order_[slot])];
    for (const Vec3& vector : box_) {
      if (periodic_) x += vector * (static_cast<int>(random() % 5) - 2);
    }
    for (size_t k = 0; k < 3; ++k) {
      all[4 * slot + k] = x[static_cast<int>(k)];
      // volatile: GCC 12 at -O3 takes the float for the double that it came from, and finds 0.
      const volatile float rounded = static_cast<float>(all[4 * slot + k]);
      single[4 * slot + k] = rounded;
      correction[4 * slot + k] = static_cast<float>(all[4 * slot + k] - rounded);
    }
    all[4 * slot + 3] = single[4 * slot + 3] = correction[4 * slot + 3] = 7.0f;  // charges
  }
  atom_index_.upload(order_.data(), order_.size() * sizeof(int));
  if (double_) {
    posq_.upload(all.data(), all.size() * sizeof(double));
  } else {
    posq_.upload(single.data(), single.size() * sizeof(float));
  }
  if (mixed_) posq_correction_.upload(correction.data(), correction.size() * sizeof(float));
}

void CudaContext::begin(const std::vector<Vec3>& positions, const Vec3* box, bool forces,
                        int groups) {
  std::copy_n(box, 3, box_);
  upload(positions);
  const std::vector<long long> none(3 * order_.size());
  force_.upload(none.data(), none.size() * sizeof(long long));
  for (const auto& computation : before_) computation->computeForceAndEnergy(forces, true, groups);
}

double CudaContext::end(std::vector<Vec3>& forces, bool include_forces, int groups) {
  double energy = 0.0;
  for (const auto& computation : after_) {
    energy += computation->computeForceAndEnergy(include_forces, true, groups);
  }
  std::vector<long long> sums(3 * order_.size());
  force_.download(sums.data(), sums.size() * sizeof(long long));
  for (size_t slot = 0; slot < order_.size(); ++slot) {
    Vec3 force;
    for (size_t k = 0; k < 3; ++k) {
      force[static_cast<int>(k)] =
          static_cast<double>(sums[k * order_.size() + slot]) / kFixedPoint;
    }
    if (order_[slot] < num_atoms_) {
      if (include_forces) forces[static_cast<size_t>(order_[slot])] += force;
    } else if (force.dot(force) != 0.0) {
      throw OpenMMException("a force on a slot that is only there for the size");
    }
  }
  if (depth_ != 0) throw OpenMMException("the context was not restored");
  return energy;
}

CudaPlatform::CudaPlatform() {
  registerKernelFactory(CalcForcesAndEnergyKernel::Name(), new Factory);
  platformProperties = {"Precision", "DeviceIndex"};
  setPropertyDefaultValue("Precision", "single");
  setPropertyDefaultValue("DeviceIndex", "0");
}

const std::string& CudaPlatform::getName() const {
  static const std::string name = "CUDA";
  return name;
}

const std::string& CudaPlatform::getPropertyValue(const Context& context,
                                                  const std::string& name) const {
  return static_cast<const PlatformData*>(getContextImpl(context).getPlatformData())
      ->values.at(name);
}

void CudaPlatform::contextCreated(ContextImpl& context,
                                  const std::map<std::string, std::string>& properties) const {
  std::map<std::string, std::string> values;
  for (const std::string& name : platformProperties) {
    const auto given = properties.find(name);
    values[name] = given == properties.end() ? getPropertyDefaultValue(name) : given->second;
  }
  context.setPlatformData(new PlatformData(context.getSystem(), values));
}

void CudaPlatform::contextDestroyed(ContextImpl& context) const {
  delete static_cast<PlatformData*>(context.getPlatformData());
}

CudaPlatform::PlatformData::PlatformData(const System& system,
                                         const std::map<std::string, std::string>& given)
    : ReferencePlatform::PlatformData(system, 1),
      values(given),
      contexts{new CudaContext(system, given.at("Precision"))} {}

CudaPlatform::PlatformData::~PlatformData() { delete contexts[0]; }

}  // namespace OpenMM

extern "C" __attribute__((visibility("default"))) void registerPlatforms() {
  OpenMM::Platform::registerPlatform(new OpenMM::CudaPlatform);
}
extern "C" __attribute__((visibility("default"))) void registerKernelFactories() {
  mlff::register_cuda_kernel();
}
