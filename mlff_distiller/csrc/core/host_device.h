// For functions that the CPU and the GPU engine share: one source for both.
#pragma once

#ifdef __CUDACC__
#define MLFF_HOST_DEVICE __host__ __device__
#else
#define MLFF_HOST_DEVICE
#endif
