#include <cstdlib>
#include <cstring>

#include "cuda/cublas.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#include <sys/stat.h>
#endif

#include "core/error.h"

namespace mlff {
namespace gpu {
namespace {

// That of the CUDA runtime in here first: it is what the driver was installed for.
std::vector<std::string> sonames() {
#if defined(CUDART_VERSION) && CUDART_VERSION < 13000
  return {"libcublas.so.12", "libcublas.so.13"};
#else
  return {"libcublas.so.13", "libcublas.so.12"};
#endif
}

std::string parent(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string() : path.substr(0, slash);
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

#if !defined(_WIN32)
bool is_folder(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string library_of(const void* address) {
  Dl_info info;
  return dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}

// The functions of an open library; false if one is missing.
bool take_functions(void* library, Cublas& table) {
  const auto find = [library](const char* name, auto& function) {
    void* address = dlsym(library, name);
    std::memcpy(&function, &address, sizeof(address));
    return address != nullptr;
  };
  int (*property)(int, int*) = nullptr;
  const bool complete = find("cublasCreate_v2", table.create) &&
                        find("cublasDestroy_v2", table.destroy) &&
                        find("cublasSetStream_v2", table.set_stream) &&
                        find("cublasSetWorkspace_v2", table.set_workspace) &&
                        find("cublasGemmEx", table.gemm) && find("cublasGetProperty", property);
  if (!complete) return false;
  table.version.clear();
  for (int part = 0; part < 3; ++part) {  // major, minor, patch
    int value = 0;
    if (property(part, &value) != 0) value = 0;
    table.version += (part ? "." : "") + std::to_string(value);
  }
  void* address = nullptr;
  std::memcpy(&address, &table.gemm, sizeof(address));
  table.path = library_of(address);
  return true;
}
#endif

}  // namespace

#if defined(_WIN32)
std::vector<std::string> cublas_candidates(const std::string&, const std::string&,
                                           const std::vector<std::string>&) {
  return {};
}
bool open_cublas(const std::vector<std::string>&, Cublas&, std::string&) { return false; }
#else
std::vector<std::string> cublas_candidates(const std::string& wish, const std::string& own_library,
                                           const std::vector<std::string>& toolkits) {
  std::vector<std::string> names;
  const auto add_folder = [&names](const std::string& folder) {
    if (!is_folder(folder)) return;
    for (const std::string& name : sonames()) names.push_back(folder + "/" + name);
  };
  if (!wish.empty()) {
    for (size_t begin = 0; begin <= wish.size();) {
      size_t end = wish.find(':', begin);
      if (end == std::string::npos) end = wish.size();
      const std::string entry = wish.substr(begin, end - begin);
      if (is_folder(entry)) {
        add_folder(entry);
      } else if (!entry.empty()) {
        names.push_back(entry);
      }
      begin = end + 1;
    }
    return names;
  }
  names = sonames();
  // .../site-packages/mlff_distiller/_native.so or .../mlff_distiller/lib/lammps/painnplugin.so
  std::string folder = parent(own_library);
  for (int up = 0; up < 4 && !folder.empty(); ++up, folder = parent(folder)) {
    for (const char* wheel : {"/nvidia/cu13/lib", "/nvidia/cu12/lib", "/nvidia/cublas/lib"}) {
      add_folder(folder + wheel);
    }
  }
  for (const std::string& toolkit : toolkits) {
    if (toolkit.empty()) continue;
    for (const char* part : {"/lib64", "/targets/x86_64-linux/lib", "/targets/sbsa-linux/lib"}) {
      add_folder(toolkit + part);
    }
  }
  return names;
}

bool open_cublas(const std::vector<std::string>& candidates, Cublas& found, std::string& reason) {
  reason = "none was named";
  for (const std::string& name : candidates) {
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* error = dlerror();
      reason = error ? error : name;
      continue;
    }
    if (take_functions(library, found)) return true;
    reason = name + " has not all functions of cuBLAS 12 or 13";
    dlclose(library);
  }
  return false;
}
#endif

const Cublas* load_cublas() {
#if defined(__HIP_PLATFORM_AMD__) || defined(MLFF_CUDA_HOST)
  return nullptr;  // hipBLAS numbers its enumerations differently; the emulation has no driver
#else
  static const Cublas* loaded = []() -> const Cublas* {
    const std::string wish = variable("MLFF_CUBLAS");
    if (wish == "off") return nullptr;
    static Cublas table;
    std::string reason, own;
#if !defined(_WIN32)
    own = library_of(reinterpret_cast<const void*>(&load_cublas));
#endif
    const std::vector<std::string> toolkits = {variable("CUDA_HOME"), variable("CUDA_PATH"),
                                               "/usr/local/cuda"};
    if (open_cublas(cublas_candidates(wish, own, toolkits), table, reason)) return &table;
    if (!wish.empty()) {
      throw InputError("MLFF_CUBLAS must name libcublas.so.13 or .12, or its folder, got '" + wish +
                       "' (" + reason + "); mend it, unset it, or set it to off");
    }
    return nullptr;
  }();
  return loaded;
#endif
}

}  // namespace gpu
}  // namespace mlff
