"""Uncertainties of atoms by the GPU engine, emulated on the host: those of the CPU engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.backends import needs_lammps
from support.cuda_module import plugin
from support.lammps import Run, glass_of, run_lmp, script_of, write_student
from support.students import make_student
from support.systems import SYSTEMS
from test_lammps_uncertainty import FIX, SHOW, expected

from mlff_distiller.errors import InputError
from mlff_distiller.ops.engine import NativePotential
from mlff_distiller.students.export import export_student
from mlff_distiller.students.rigidity import LastLayerUncertainty


def uncertain(student):
    """With arbitrary uncertainties."""
    width = student.painn.readout_dim
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64).tril()
    student.uncertainty = LastLayerUncertainty(width).double()
    student.uncertainty.set(weight, torch.full((width,), 0.1), 0.02, 0.2, 0.15)
    return student


def compute(potential, system, **options):
    numbers, positions, cell, pbc = system
    return potential.compute(np.asarray(numbers, np.int64), positions, cell, pbc, **options)


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "apart"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("readout_dim", [5, 40])
def test_agrees_with_the_cpu_engine(gpu, tmp_path, dtype, readout_dim, fuse):
    path = str(tmp_path / "student.pt")
    export_student(uncertain(make_student(readout_dim=readout_dim)), path)
    potential = gpu.GpuPotential(path, dtype=dtype, fuse=fuse)
    reference = NativePotential(path, dtype="float64", threads=1)
    for make in SYSTEMS.values():
        for _ in range(3):  # the third step is a captured graph
            got = compute(potential, make(), uncertainties=True)
        want = compute(reference, make(), uncertainties=True)
        tolerance = 1e-9 if dtype == "float64" else 1e-4
        np.testing.assert_allclose(got["uncertainties"], want["uncertainties"], rtol=tolerance)
    got = compute(potential, make(), forces=False, uncertainties=True)
    np.testing.assert_allclose(got["uncertainties"], want["uncertainties"], rtol=tolerance)
    assert "forces" not in got
    assert "uncertainties" not in compute(potential, make())


def test_one_atom_no_atoms_and_any_schedule(gpu, tmp_path):
    path = str(tmp_path / "student.pt")
    export_student(uncertain(make_student()), path)
    potential = gpu.GpuPotential(path, dtype="float64")
    reference = NativePotential(path, dtype="float64", threads=1)
    open_cell = (np.zeros((3, 3)), np.zeros(3, bool))
    for schedule in range(3):
        gpu.set_schedule(schedule)
        for numbers in ([8], []):
            system = (numbers, np.zeros((len(numbers), 3)), *open_cell)
            got = compute(potential, system, uncertainties=True)["uncertainties"]
            want = compute(reference, system, uncertainties=True)["uncertainties"]
            np.testing.assert_allclose(got, want, rtol=1e-9)


def test_file_without_data(gpu, tmp_path):
    path = str(tmp_path / "student.pt")
    export_student(make_student(), path)
    system = next(iter(SYSTEMS.values()))()
    with pytest.raises(InputError, match="no data for uncertainties"):
        compute(gpu.GpuPotential(path), system, uncertainties=True)


@needs_lammps
@pytest.mark.parametrize("ranks", [1, 2])
def test_lammps(tmp_path, ranks):
    path, glass = tmp_path / "student.pt", glass_of(24, [9.0, 8.4, 9.9])
    student = uncertain(write_student(path, num_interactions=2))
    export_student(student, path)
    want = expected(student, glass)
    prefix = f"plugin unload pair painn\nplugin load {plugin()}\n"
    style = "device gpu precision double"
    steps = "thermo_style custom step pe etotal vol c_pr[*] c_sumea c_top\nrun 0 post no" + SHOW
    run = Run("u", glass, path, style=style, centroid=False, after=FIX, steps=steps)
    done = run_lmp(tmp_path, prefix + script_of(run, tmp_path), ranks)
    assert done.returncode == 0, done.output[-2000:]
    found = np.loadtxt(tmp_path / "found.dump", skiprows=9)[:, 1]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    stop = Run("u", glass, path, style=f"{style} uncertainty stop 0.1", before="", centroid=False)
    done = run_lmp(tmp_path, prefix + script_of(stop, tmp_path), ranks)
    assert done.returncode != 0
    assert f"the uncertainty of the force on atom {int(want.argmax()) + 1} is" in done.output
