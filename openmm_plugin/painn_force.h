// PainnForce: an exported PaiNN student as an OpenMM Force.
//
// A CustomCPPForceImpl, so it runs on every platform without kernels of its own: OpenMM hands over
// positions and takes forces, the network runs on the CPU in the engine of csrc. On the CUDA
// platform a kernel (painn_kernel.h) takes its place where it can. Users make it from Python
// (mlff_distiller.openmm.painn_force) through the serialization proxy, or from C++.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/potential.h"
#include "openmm/Force.h"
#include "openmm/Kernel.h"
#include "openmm/internal/CustomCPPForceImpl.h"

namespace mlff {

class PainnForce : public OpenMM::Force {
 public:
  struct Options {
    std::string path;    // exported student
    std::string sha256;  // of that file, lower-case hexadecimal; "" accepts any content
    bool double_precision = false;
    bool periodic = false;
    // "auto": a platform's own kernel where it has one, "cpu": never, "cuda": always, or an error.
    std::string device = "auto";
    int threads = 0;  // 0: OpenMP's default, but not more than the CPU platform's `Threads`
    double skin = kDefaultSkin;  // Angstrom
    // Number of particles that the System must hold; 0 accepts any that has all `particles`.
    int num_particles = 0;
    std::vector<int> particles;              // seen by the model, in the order of atomic_numbers
    std::vector<int64_t> atomic_numbers;     //
    std::vector<std::pair<int, int>> bonds;  // what a barostat must keep together
  };

  // Throws OpenMMException, one line, for a missing or changed file, an unknown element, particles
  // that are out of range or not distinct.
  explicit PainnForce(Options options);

  const Options& options() const { return options_; }
  bool usesPeriodicBoundaryConditions() const override { return options_.periodic; }

 protected:
  OpenMM::ForceImpl* createImpl() const override;

 private:
  Options options_;
};

class PainnForceImpl : public OpenMM::CustomCPPForceImpl {
 public:
  explicit PainnForceImpl(const PainnForce& owner);
  void initialize(OpenMM::ContextImpl& context) override;
  const PainnForce& getOwner() const override { return owner_; }
  double calcForcesAndEnergy(OpenMM::ContextImpl& context, bool include_forces, bool include_energy,
                             int groups) override;
  double computeForce(OpenMM::ContextImpl& context, const std::vector<OpenMM::Vec3>& positions,
                      std::vector<OpenMM::Vec3>& forces) override;
  std::vector<std::pair<int, int>> getBondedParticles() const override;

 private:
  // Why the platform's own kernel cannot compute this force; "" if it can.
  std::string objection(OpenMM::ContextImpl& context) const;
  void check_particles(OpenMM::ContextImpl& context) const;
  void make_potential(OpenMM::ContextImpl& context);

  const PainnForce& owner_;
  bool on_platform_ = false;  // by kernel_; else by potential_
  OpenMM::Kernel kernel_;
  std::unique_ptr<Potential> potential_;
  PotentialResult result_;
  std::vector<double> positions_;
  bool include_forces_ = true;
};

// Makes XmlSerializer know PainnForce. Called when OpenMM loads the plugin.
void register_painn_force();

}  // namespace mlff
