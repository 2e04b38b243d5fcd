"""The network, and the calculators that run it."""

from mutants.mutation import Mutation

_PAINN = "models/painn.py"
_RADIAL = "models/radial.py"
_REPULSION = "models/repulsion.py"
_PORTABLE = "portable.py"
_CALCULATOR = "calculator.py"

MUTATIONS = [
    Mutation(
        "filters have no bias",
        _PAINN,
        "torch.cat([self.filter.weight.t(), self.filter.bias.unsqueeze(0)])",
        "torch.cat([self.filter.weight.t(), 0 * self.filter.bias.unsqueeze(0)])",
        "test_engines.py test_golden.py test_native_engine.py",
        "all engines but Python's compute another network",
    ),
    Mutation(
        "scales of species are ignored",
        _PAINN,
        "return self.readout(scalars).squeeze(-1) * self.scales[species]",
        "return self.readout(scalars).squeeze(-1)",
        "test_engines.py test_native_engine.py",
        "imported networks are wrong",
    ),
    Mutation(
        "the norm is not shifted",
        _PAINN,
        "+ self.norm_epsilon) - self.norm_shift",
        "+ self.norm_epsilon)",
        "test_engines.py test_golden.py test_native_engine.py",
        "another network",
    ),
    Mutation(
        "vectors are not passed on",
        _PAINN,
        "        vectors = vectors + a_vv.unsqueeze(1) * mixed\n",
        "",
        "test_engines.py test_golden.py test_native_engine.py",
        "another network",
    ),
    Mutation(
        "the repulsion counts each pair twice",
        _REPULSION,
        "index_add(0, edge_index[1], 0.5 * pair)",
        "index_add(0, edge_index[1], 1.0 * pair)",
        "test_models.py -k zbl",
        "close atoms are thrown apart",
    ),
    Mutation(
        "the repulsion is not switched off",
        _REPULSION,
        "            switch = self.switch(reduced)\n",
        "            switch = (reduced < 1.0).to(reduced.dtype)\n",
        "test_models.py -k zbl",
        "a step in the energy",
    ),
    Mutation(
        "ZBL has another screening length",
        _REPULSION,
        "SCREENING_LENGTH = 0.46850",
        "SCREENING_LENGTH = 0.4685 * 1.01",
        "test_models.py -k zbl",
        "close contacts are wrong by a little",
    ),
    Mutation(
        "the polynomial has another exponent",
        _RADIAL,
        "return PolynomialCutoff(config.cutoff, config.cutoff_exponent)",
        "return PolynomialCutoff(config.cutoff, 6)",
        "test_native_engine.py test_engines.py test_smoothness.py::test_second_derivative_through_the_cutoff",
        "an option that does nothing",
    ),
    Mutation(
        "cutoffs are not applied by the portable path",
        _PORTABLE,
        "inside = squared < self.cutoff**2",
        "inside = squared < (self.cutoff + self.skin) ** 2",
        "test_calculator.py",
        "atoms of the skin contribute",
        survives="the cutoff function is zero there; only time is lost",
    ),
    Mutation(
        "the portable list is never built again",
        _PORTABLE,
        "                if moved <= (0.5 * self.skin) ** 2:",
        "                if True:",
        "test_calculator.py -k cached",
        "atoms lose sight of each other",
    ),
    Mutation(
        "the portable list lives for twice the skin",
        _PORTABLE,
        "if moved <= (0.5 * self.skin) ** 2:",
        "if moved <= (2.0 * self.skin) ** 2:",
        "test_calculator.py -k cached",
        "atoms lose sight of each other",
    ),
    Mutation(
        "a moved cell keeps its portable list",
        _PORTABLE,
        "            if same and np.array_equal(cell_0, cell):",
        "            if same:",
        "test_calculator.py",
        "a cell that grows keeps its old neighbours",
    ),
    Mutation(
        "the portable virial has the wrong sign",
        _PORTABLE,
        "virial = -(vectors.detach().T @ gradient)",
        "virial = vectors.detach().T @ gradient",
        "test_calculator.py -k stress",
        "pressure has the wrong sign",
    ),
    Mutation(
        "stress has the wrong sign",
        _CALCULATOR,
        'stress = out["virial"] / -abs(_determinant(cell))',
        'stress = out["virial"] / abs(_determinant(cell))',
        "test_calculator.py -k stress",
        "pressure has the wrong sign",
    ),
    Mutation(
        "results are shared with the caller",
        _CALCULATOR,
        "return result.copy() if isinstance(result, np.ndarray) else result",
        "return result",
        "test_calculator.py -k caller",
        "an integrator changes the forces that are cached",
    ),
    Mutation(
        "a changed cell is not a change",
        _CALCULATOR,
        'names = ("numbers", "positions", "cell", "pbc")',
        'names = ("numbers", "positions")',
        "test_calculator.py",
        "NPT computes with the energy of the old cell",
    ),
    Mutation(
        "copies forget their skin",
        _CALCULATOR,
        'keywords = {"backend": self.backend, "threads": self.threads, "skin": self.skin}',
        'keywords = {"backend": self.backend}',
        "test_calculator.py -k copies",
        "a pickled calculator is another",
    ),
]
