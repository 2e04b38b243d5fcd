// The GPU engine for Python, part of builds with CUDA and of the tests' emulation.
#pragma once

#include <pybind11/pybind11.h>

// Adds GpuPotential, gpu_count and gpu_name.
void bind_gpu(pybind11::module_& m);
