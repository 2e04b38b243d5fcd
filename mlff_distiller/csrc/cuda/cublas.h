// cuBLAS, looked up at run time: nothing of it is linked or shipped.
#pragma once

#include <string>
#include <vector>

#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

// The functions of cuBLAS that we call (NVIDIA cuBLAS library, API version 12 and 13), and which
// library they are of. Tests put their own in.
struct Cublas {
  int (*create)(void** handle) = nullptr;
  int (*destroy)(void* handle) = nullptr;
  int (*set_stream)(void* handle, cudaStream_t stream) = nullptr;
  int (*set_workspace)(void* handle, void* workspace, size_t bytes) = nullptr;
  int (*gemm)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
              const void* a, int type_a, int lda, const void* b, int type_b, int ldb,
              const void* beta, void* c, int type_c, int ldc, int compute, int algorithm) = nullptr;
  std::string path;
  std::string version;  // "13.1.0"

  std::string name() const { return "cuBLAS " + version + " (" + path + ")"; }
};

// What takes its place, for banners and reports.
constexpr const char* kOwnProducts = "own kernel, without cuBLAS";

// After "math tf32" and the like, where that is so.
constexpr const char* kNoFasterMath =
    "needs cuBLAS to be faster, and none was found: it only rounds; install nvidia-cublas, name "
    "libcublas in MLFF_CUBLAS, or use float32";

// Names to give to the dynamic loader, in order. A wish (MLFF_CUBLAS) is a list of files and
// folders with colons between them and leaves nothing else. Otherwise: what this process or the
// loader's path has; NVIDIA's wheels in the site-packages that `own_library` is in; toolkits.
std::vector<std::string> cublas_candidates(const std::string& wish, const std::string& own_library,
                                           const std::vector<std::string>& toolkits);

// Fills `found` from the first that loads and has every function; false, and `reason`, without.
bool open_cublas(const std::vector<std::string>& candidates, Cublas& found, std::string& reason);

// Of this process, looked up once. Null where there is none and with MLFF_CUBLAS=off. Throws
// InputError if MLFF_CUBLAS names none.
const Cublas* load_cublas();

}  // namespace gpu
}  // namespace mlff
