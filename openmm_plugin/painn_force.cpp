#include "painn_force.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <set>

#include "core/error.h"
#include "core/units.h"
#include "openmm/Context.h"
#include "openmm/OpenMMException.h"
#include "openmm/Platform.h"
#include "openmm/System.h"
#include "openmm/internal/ContextImpl.h"
#include "painn_kernel.h"
#include "sha256.h"

using OpenMM::ContextImpl;
using OpenMM::OpenMMException;
using OpenMM::Vec3;

namespace mlff {
namespace {

void check_file(const PainnForce::Options& options) {
  std::string digest;
  try {
    digest = sha256_of_file(options.path);
  } catch (const InputError& error) {
    throw OpenMMException(error.what());
  }
  if (!options.sha256.empty() && digest != options.sha256) {
    throw OpenMMException(options.path +
                          " has changed since this force was made (SHA-256 differs); restore the "
                          "file or make a new force");
  }
}

void check_options(const PainnForce::Options& options) {
  if (options.particles.empty() || options.particles.size() != options.atomic_numbers.size()) {
    throw OpenMMException("PainnForce needs one atomic number for each particle, got " +
                          std::to_string(options.atomic_numbers.size()) + " for " +
                          std::to_string(options.particles.size()) + " particles");
  }
  std::set<int> seen;
  for (int index : options.particles) {
    if (index < 0 || !seen.insert(index).second) {
      throw OpenMMException("PainnForce: particles must be >= 0 and distinct, got " +
                            std::to_string(index) + (index < 0 ? "" : " twice"));
    }
  }
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda") {
    throw OpenMMException("PainnForce: device must be auto, cpu or cuda, got '" + options.device +
                          "'; mend the XML or make a new force");
  }
}

}  // namespace

PainnForce::PainnForce(Options options) : options_(std::move(options)) {
  check_options(options_);
  check_file(options_);
  setName("PainnForce");
}

OpenMM::ForceImpl* PainnForce::createImpl() const { return new PainnForceImpl(*this); }

PainnForceImpl::PainnForceImpl(const PainnForce& owner)
    : CustomCPPForceImpl(owner), owner_(owner) {}

void PainnForceImpl::initialize(ContextImpl& context) {
  check_particles(context);
  check_file(owner_.options());  // between making the force and the Context there may be days
  const std::string& device = owner_.options().device;
  const std::string why = device == "cpu" ? "it was told so" : objection(context);
  on_platform_ = why.empty();
  if (on_platform_) {
    kernel_ = context.getPlatform().createKernel(CalcPainnForceKernel::Name(), context);
    kernel_.getAs<CalcPainnForceKernel>().initialize(context, owner_);
    return;
  }
  if (device == "cuda") {
    throw OpenMMException("PainnForce was told to run on the GPU of the Context, and cannot: " +
                          why + "; use device 'auto' or 'cpu'");
  }
  CustomCPPForceImpl::initialize(context);
  make_potential(context);
}

std::string PainnForceImpl::objection(ContextImpl& context) const {
  const OpenMM::Platform& platform = context.getPlatform();
  if (!platform.supportsKernels({CalcPainnForceKernel::Name()})) {
    return "platform " + platform.getName() + " has no kernel for it";
  }
  const std::string devices = platform.getPropertyValue(context.getOwner(), "DeviceIndex");
  if (devices.find(',') != std::string::npos) return "the Context has several GPUs, " + devices;
  // OpenMM moves molecules back into the box, and where they were before is known to the host
  // alone.
  if (!owner_.options().periodic && context.getSystem().usesPeriodicBoundaryConditions()) {
    return "the System has periodic images and the model sees none";
  }
  return "";
}

void PainnForceImpl::check_particles(ContextImpl& context) const {
  const PainnForce::Options& options = owner_.options();
  const int available = context.getSystem().getNumParticles();
  const int highest = *std::max_element(options.particles.begin(), options.particles.end());
  if ((options.num_particles != 0 && options.num_particles != available) || highest >= available) {
    throw OpenMMException("the model was set up for " +
                          std::to_string(std::max(options.num_particles, highest + 1)) +
                          " atoms, the System has " + std::to_string(available) +
                          " particles; make the force from the topology of this System, or pass "
                          "atoms=");
  }
}

void PainnForceImpl::make_potential(ContextImpl& context) {
  const PainnForce::Options& options = owner_.options();
  PotentialOptions settings;
  settings.skin = options.skin;
  settings.engine.num_threads = options.threads;
  settings.engine.tabulate = !options.double_precision;  // as in students/potential.py
  settings.engine.precision = options.double_precision ? Precision::kFloat64 : Precision::kFloat32;
  try {
    potential_ = std::make_unique<Potential>(options.path, settings);
  } catch (const InputError& error) {
    throw OpenMMException(error.what());
  }
  const OpenMM::Platform& platform = context.getPlatform();
  if (options.threads == 0 && platform.getName() == "CPU") {
    const int limit = std::atoi(platform.getPropertyValue(context.getOwner(), "Threads").c_str());
    if (limit > 0 && limit < potential_->engine().num_threads()) {
      potential_->engine().set_num_threads(limit);
    }
  }
  positions_.resize(3 * options.particles.size());
}

double PainnForceImpl::calcForcesAndEnergy(ContextImpl& context, bool include_forces,
                                           bool include_energy, int groups) {
  if (on_platform_) {
    if (!(groups & (1 << owner_.getForceGroup()))) return 0.0;
    return kernel_.getAs<CalcPainnForceKernel>().execute(context, include_forces, include_energy);
  }
  // A barostat asks for energies alone, which cost a third.
  include_forces_ = include_forces;
  return CustomCPPForceImpl::calcForcesAndEnergy(context, include_forces, include_energy, groups);
}

double PainnForceImpl::computeForce(ContextImpl& context, const std::vector<Vec3>& positions,
                                    std::vector<Vec3>& forces) {
  const PainnForce::Options& options = owner_.options();
  const std::vector<int>& particles = options.particles;
  for (size_t i = 0; i < particles.size(); ++i) {
    const Vec3& position = positions[particles[i]];
    for (int k = 0; k < 3; ++k) positions_[3 * i + k] = position[k] * kAngstromPerNm;
  }
  std::array<double, 9> cell{};
  if (options.periodic) {
    std::array<Vec3, 3> box;
    context.getPeriodicBoxVectors(box[0], box[1], box[2]);
    for (int a = 0; a < 3; ++a) {
      for (int k = 0; k < 3; ++k) cell[3 * a + k] = box[a][k] * kAngstromPerNm;
    }
  }
  const std::array<bool, 3> pbc = {options.periodic, options.periodic, options.periodic};
  try {
    potential_->compute(static_cast<int64_t>(particles.size()), options.atomic_numbers.data(),
                        positions_.data(), cell.data(), pbc, result_,
                        include_forces_ ? kForces : kEnergy);
  } catch (const InputError& error) {
    throw OpenMMException(error.what());
  }
  bool finite = std::isfinite(result_.energy);
  std::fill(forces.begin(), forces.end(), Vec3());
  if (include_forces_) {
    const double to_openmm = kAngstromPerNm / kKjPerMolInEv;
    for (size_t i = 0; i < particles.size(); ++i) {
      const double* force = &result_.forces[3 * i];
      finite = finite && std::isfinite(force[0] + force[1] + force[2]);
      forces[particles[i]] = Vec3(force[0], force[1], force[2]) * to_openmm;
    }
  }
  if (!finite) throw OpenMMException(kNotFiniteResult);
  return result_.energy / kKjPerMolInEv;
}

std::vector<std::pair<int, int>> PainnForceImpl::getBondedParticles() const {
  return owner_.options().bonds;
}

}  // namespace mlff
