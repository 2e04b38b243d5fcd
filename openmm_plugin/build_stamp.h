// The OpenMM that a library was built for. Another lays out its classes otherwise: it would load
// the library and crash later.
#pragma once

#include <string>

#include "openmm/OpenMMException.h"
#include "openmm/Platform.h"

// Read from the file by mlff_distiller.openmm.native before it loads the library.
extern "C" __attribute__((used, visibility("default"))) const char mlff_openmm_build[] =
    "MLFF_OPENMM_BUILD=" MLFF_OPENMM_VERSION ";";

namespace mlff {

// Throws OpenMMException.
inline void check_openmm() {
  const std::string running = OpenMM::Platform::getOpenMMVersion();
  if (running != MLFF_OPENMM_VERSION) {
    throw OpenMM::OpenMMException("the PainnForce plugin was built for OpenMM " MLFF_OPENMM_VERSION
                                  ", this is OpenMM " +
                                  running + "; reinstall mlff_distiller");
  }
}

}  // namespace mlff
