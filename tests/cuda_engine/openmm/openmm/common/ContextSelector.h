// As OpenMM's header of this name.
#pragma once

#include "openmm/cuda/CudaContext.h"

namespace OpenMM {

class ContextSelector {
 public:
  explicit ContextSelector(CudaContext& context) : context_(context) { context.pushAsCurrent(); }
  ~ContextSelector() { context_.popAsCurrent(); }

 private:
  CudaContext& context_;
};

}  // namespace OpenMM
