"""Multiple time steps in LAMMPS and OpenMM: the Python side of the wire and of the force."""

from mutants.mutation import Mutation

MUTATIONS = [
    Mutation(
        "LAMMPS: the teacher's virial has the wrong sign",
        "multistep/server.py",
        "virial = -volume * self._rotation.T",
        "virial = volume * self._rotation.T",
        "test_multistep_engines.py::test_npt_has_the_teacher_s_volume",
        "barostats go away from the teacher's volume",
    ),
    Mutation(
        "LAMMPS: forces of the difference are not turned",
        "multistep/server.py",
        "difference.forces @ self._rotation",
        "difference.forces",
        "test_multistep_engines.py::test_crystal_as_in_ase",
        "energy is not conserved, and the student's surface seems to be at fault",
    ),
    Mutation(
        "LAMMPS: the teacher is not asked whether it knows the elements",
        "multistep/server.py",
        "                self.correction.check(structure)\n",
        "",
        "test_multistep_server.py::test_elements_of_a_server",
        "a calculator's own traceback in place of a line",
    ),
    Mutation(
        "LAMMPS: everybody may talk to the teacher",
        "multistep/server.py",
        "os.umask(0o077)",
        "os.umask(0)",
        "test_multistep_server.py::test_the_socket_is_private_and_goes",
        "another user of the machine can read positions and stop runs",
    ),
    Mutation(
        "LAMMPS: impulses half as often as recorded",
        "dynamics/lammps_engine.py",
        "{_SOCKET} every {s.every}",
        "{_SOCKET} every {2 * s.every}",
        "test_multistep_engines.py::test_records_are_the_teacher_s_at_one_call_an_outer_step",
        "every second record lies between two outer steps",
    ),
    Mutation(
        "LAMMPS: what the teacher said is lost",
        "dynamics/lammps_engine.py",
        "raise server.failure",
        "pass",
        "test_multistep_engines.py::test_a_teacher_that_fails_ends_the_run_with_what_was_recorded",
        "a line of LAMMPS with a path of a source file in place of the reason",
    ),
    Mutation(
        "OpenMM: an outer step is as long as an inner one",
        "dynamics/openmm_corrected.py",
        "step = s.every * s.timestep * unit.femtoseconds",
        "step = s.timestep * unit.femtoseconds",
        "test_multistep_engines.py::test_crystal_as_in_ase",
        "time is too short by n, all rates are wrong",
    ),
    Mutation(
        "OpenMM: the teacher in each inner step",
        "dynamics/openmm_corrected.py",
        "(_CORRECTION, 1)]",
        "(_CORRECTION, s.every)]",
        "test_multistep_engines.py::test_records_are_the_teacher_s_at_one_call_an_outer_step",
        "right, and n times too slow",
    ),
    Mutation(
        "OpenMM: Ctrl-C in the teacher is a failure of OpenMM",
        "dynamics/openmm_engine.py",
        "raise outer.failure from None",
        "pass",
        "test_multistep_engines.py::test_ctrl_c_in_the_teacher_keeps_the_records",
        "the run ends as if it were broken",
    ),
]
