// Platform "CUDA" for tests: OpenMM's Reference, whose positions and forces also lie where those of
// the CUDA platform lie, in emulated device memory (CudaContext.h).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "openmm/cuda/CudaContext.h"
#include "openmm/reference/ReferencePlatform.h"

namespace OpenMM {

class CudaPlatform : public ReferencePlatform {
 public:
  class PlatformData;
  CudaPlatform();
  const std::string& getName() const;
  double getSpeed() const { return 0.0; }  // is never chosen unasked
  const std::string& getPropertyValue(const Context& context, const std::string& name) const;
  void contextCreated(ContextImpl& context,
                      const std::map<std::string, std::string>& properties) const;
  void contextDestroyed(ContextImpl& context) const;
};

class CudaPlatform::PlatformData : public ReferencePlatform::PlatformData {
 public:
  PlatformData(const System& system, const std::map<std::string, std::string>& values);
  ~PlatformData();
  std::map<std::string, std::string> values;
  std::vector<CudaContext*> contexts;
};

}  // namespace OpenMM
