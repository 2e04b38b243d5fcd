// The GPU engine for Python, part of builds with CUDA and of the tests' emulation.
#ifndef MLFF_BINDINGS_GPU_PYTHON_H_
#define MLFF_BINDINGS_GPU_PYTHON_H_

#include <pybind11/pybind11.h>

// Adds GpuPotential, GpuSystem, gpu_count and gpu_name.
void bind_gpu(pybind11::module_& m);

#endif  // MLFF_BINDINGS_GPU_PYTHON_H_
