// OpenMM's header of this name, of which this has what openmm_plugin/cuda_kernel.cpp uses, on the
// emulated device. Compiled against the real one in `make cuda`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device_memory.h"
#include "openmm/System.h"
#include "openmm/Vec3.h"

typedef cudaStream_t CUstream;
typedef std::uintptr_t CUdeviceptr;

namespace OpenMM {

class CudaArray {
 public:
  CUdeviceptr& getDevicePointer() { return pointer_; }

  template <typename T>
  void require(int64_t count) {
    pointer_ =
        reinterpret_cast<CUdeviceptr>(memory_.require(count * static_cast<int64_t>(sizeof(T))));
  }
  void upload(const void* from, size_t bytes);
  void download(void* to, size_t bytes) const;

 private:
  mlff::gpu::DeviceMemory<unsigned char> memory_;
  CUdeviceptr pointer_ = 0;
};

class CudaContext {
 public:
  class ForcePreComputation {
   public:
    virtual ~ForcePreComputation() = default;
    virtual void computeForceAndEnergy(bool include_forces, bool include_energy, int groups) = 0;
  };
  class ForcePostComputation {
   public:
    virtual ~ForcePostComputation() = default;
    virtual double computeForceAndEnergy(bool include_forces, bool include_energy, int groups) = 0;
  };

  CudaContext(const System& system, const std::string& precision);

  void pushAsCurrent() { ++depth_; }
  void popAsCurrent() { --depth_; }
  CUstream getCurrentStream() { return nullptr; }  // the legacy stream, as in OpenMM
  int getDeviceIndex() const { return 0; }
  int getNumAtoms() const { return num_atoms_; }
  int getPaddedNumAtoms() const { return padded_; }
  bool getUseDoublePrecision() const { return double_; }
  bool getUseMixedPrecision() const { return mixed_; }
  CudaArray& getPosq() { return posq_; }
  CudaArray& getPosqCorrection();
  CudaArray& getAtomIndexArray() { return atom_index_; }
  CudaArray& getForce() { return force_; }
  void getPeriodicBoxVectors(Vec3& a, Vec3& b, Vec3& c) const;
  void addPreComputation(ForcePreComputation* computation) { before_.emplace_back(computation); }
  void addPostComputation(ForcePostComputation* computation) { after_.emplace_back(computation); }

  // As OpenMM's own kernels: what evaluations begin and end with. Every one finds the particles in
  // other slots and, where there is a box, in other images of it.
  void begin(const std::vector<Vec3>& positions, const Vec3* box, bool forces, int groups);
  double end(std::vector<Vec3>& forces, bool include_forces, int groups);

 private:
  void upload(const std::vector<Vec3>& positions);

  int num_atoms_, padded_, depth_ = 0;
  bool double_, mixed_, periodic_;
  unsigned turn_ = 0;
  Vec3 box_[3];
  std::vector<int> order_;
  CudaArray posq_, posq_correction_, atom_index_, force_;
  std::vector<std::unique_ptr<ForcePreComputation>> before_;
  std::vector<std::unique_ptr<ForcePostComputation>> after_;
};

}  // namespace OpenMM
