// What OpenMM calls when Platform::loadPluginLibrary opens libPainnOpenMMCUDA.so, which has to come
// after its own libOpenMMCUDA.so.
#include "build_stamp.h"
#include "cuda_kernel.h"

extern "C" __attribute__((visibility("default"))) void registerPlatforms() {}

extern "C" __attribute__((visibility("default"))) void registerKernelFactories() {
  mlff::check_openmm();
  mlff::register_cuda_kernel();
}
