"""Is this run still physics? What every engine checks at each record.

Two verdicts. *Extrapolation*: atoms, volume or energy left what training saw, or the uncertainty of
an atom is far above that of held-out atoms, so that forces are guesses; said once per kind, or the run is stopped (``on_extrapolation``). *Death*: atoms have
fused, the temperature ran away or a number is not finite; the run ends and its exit status tells.
The limits are in the metadata of the model (data/coverage.py writes them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii

from mlff_distiller.data import Structure
from mlff_distiller.data.coverage import FRINGE, VOLUME_SLACK, volume_excess
from mlff_distiller.data.structure import complete_cell
from mlff_distiller.dynamics.freedom import degrees_of_freedom
from mlff_distiller.elements import pair_name, reduced_formula
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import SAME_POINT
from mlff_distiller.students.monitor import UncertaintyMonitor

#: Pairs nearer than this share of what training saw have fused.
FUSED = 0.6
#: The same of the sum of covalent radii, for pairs that training never saw.
FUSED_RADII = 0.4
_HOT = 10.0
# eV/atom below the lowest energy of training at which the potential has a hole.
_HOLE = 0.3


class RunStoppedError(InputError):
    """A run that was ended because it is no physics any more; ``trajectory`` has what came before.

    Attributes:
        trajectory: records until the end, the last one with what was found.
    """

    trajectory: Any = None


class Watch:
    """Checks of one run.

    Args:
        metadata: of the exported model.
        structure: the start.
        temperature: K, of the thermostat or of the first velocities.
        stop: end the run at extrapolation.
        say: told each warning once, as it happens.
        watch_volume: whether the cell changes; vacuum in one that does not is no news.
        monitor: of the uncertainties of atoms, where the model has them.
    """

    def __init__(
        self,
        metadata: dict[str, Any],
        structure: Structure,
        temperature: float,
        stop: bool,
        say: Callable[[str], None],
        watch_volume: bool = True,
        monitor: UncertaintyMonitor | None = None,
    ) -> None:
        self.warnings: list[str] = []
        self.largest: list[float] = []
        """Largest uncertainty of each record, eV/Å; empty without a monitor."""
        self._monitor = monitor
        self._stop, self._say = stop, say
        self._said: set[str] = set()
        self._numbers = structure.atomic_numbers
        self._temperature = temperature
        self._degrees = max(1, degrees_of_freedom(structure))
        coverage = metadata.get("coverage") or {}
        self._energies = (coverage.get("energy_per_atom") or {}).get(
            reduced_formula(structure.atomic_numbers)
        )
        self._volumes = coverage.get("volume_per_atom") if watch_volume else None
        self._hottest = coverage.get("temperature")
        self._pairs: dict[str, float] = coverage.get("closest_pairs") or {}
        self._by_pair = bool(self._pairs)
        self._cutoff = float(metadata["cutoff"])
        self._any_pair = float(metadata.get("min_distance") or 0.0)
        self._seen, self._dead = self._limits()

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """(z, z) distances, Å: below the first is extrapolation, below the second death."""
        elements = np.unique(self._numbers)
        size = int(elements.max()) + 1
        seen, dead = np.zeros((size, size)), np.zeros((size, size))
        for a in elements:
            for b in elements:
                radii = FUSED_RADII * (covalent_radii[a] + covalent_radii[b])
                known = self._pairs.get(pair_name(int(a), int(b)))
                if self._by_pair:
                    seen[a, b] = self._cutoff if known is None else FRINGE * known
                    dead[a, b] = radii if known is None else FUSED * known
                else:
                    seen[a, b] = FRINGE * self._any_pair
                    dead[a, b] = FUSED * self._any_pair or radii
                dead[a, b] = max(dead[a, b], SAME_POINT)
        return seen, dead

    def start(self) -> None:
        """What can be said before the first step."""
        if self._hottest is not None and self._temperature > 1.05 * self._hottest:
            self._extrapolates(
                "temperature",
                f"{self._temperature:g} K is hotter than all that training saw "
                f"({self._hottest:g} K)",
                at_start=True,
            )

    def check(self, step: int, frame: Structure, temperature: float) -> None:
        """One record.

        Raises:
            RunStoppedError: the run is dead, or extrapolates where that should stop it.
        """
        assert frame.energy is not None
        found = self._uncertainties(frame)
        if not (np.isfinite(frame.energy) and np.isfinite(temperature)):
            self._dies(step, "the run blew up: energy is not finite")
        self._check_pairs(step, frame)
        # Few degrees of freedom fluctuate: three standard deviations more are heat, not an end.
        limit = _HOT * max(self._temperature, 30.0) * (1.0 + 3.0 * np.sqrt(2.0 / self._degrees))
        if temperature > limit:
            self._dies(
                step,
                f"the temperature ran away to {temperature:.0f} K from {self._temperature:g} K",
            )
        self._check_energy(step, frame)
        if self._volumes is not None:
            low, high = self._volumes
            volume, excess = volume_excess(frame, low, high)
            if not excess <= VOLUME_SLACK:
                self._extrapolates(
                    "volume",
                    f"{volume:.2f} Å³ per atom are outside of training ({low:.2f} to {high:.2f})",
                    step,
                )
        self._check_uncertainty(step, found)

    def _uncertainties(self, frame: Structure) -> np.ndarray | None:
        if self._monitor is None:
            return None
        try:
            found = self._monitor(frame.atomic_numbers, frame.positions, frame.cell, frame.pbc)
        except InputError:  # atoms at one point or at infinity: the other checks speak of it
            found = None
        self.largest.append(np.nan if found is None else float(found.max()))
        return found

    def _check_uncertainty(self, step: int, found: np.ndarray | None) -> None:
        if self._monitor is None or found is None:
            return
        text = self._monitor.above(found, lambda i: f"{i} ({chemical_symbols[self._numbers[i]]})")
        if text:
            self._extrapolates("uncertainty", text, step)

    def _check_energy(self, step: int, frame: Structure) -> None:
        if self._energies is None or frame.energy is None:
            return
        low, high = self._energies
        found = frame.energy / len(frame)
        below = low - found
        if below > max(3.0, 10.0 * (high - low)):
            self._dies(
                step,
                f"the energy fell to {found:.3f} eV per atom, {below:.2f} below all of training",
            )
        if below > max(_HOLE, high - low):
            self._extrapolates(
                "energy", f"{found:.3f} eV per atom are {below:.2f} below all of training", step
            )

    def _check_pairs(self, step: int, frame: Structure) -> None:
        from mlff_distiller.ops import neighbor_list

        if not np.isfinite(frame.positions).all():
            self._dies(step, "the run blew up: positions are not finite")
        reach = float(self._seen.max(initial=0.0))
        reach = max(reach, float(self._dead.max()))
        index, shifts = (
            array.numpy()
            for array in neighbor_list(
                torch.from_numpy(frame.positions),
                torch.from_numpy(complete_cell(frame.cell)),
                torch.from_numpy(frame.pbc),
                reach,
            )
        )
        vectors = frame.positions[index[0]] - frame.positions[index[1]] + shifts @ frame.cell
        distances = np.linalg.norm(vectors, axis=1)
        z = np.sort(self._numbers[index], axis=0)
        for limits, verdict in ((self._dead, self._fused), (self._seen, self._close)):
            below = np.flatnonzero(distances < (1.0 - 1e-6) * limits[z[0], z[1]])
            for kind in np.unique(z[:, below], axis=1).T:
                same = below[(z[:, below] == kind[:, None]).all(axis=0)]
                nearest = same[np.argmin(distances[same])]
                verdict(step, index[:, nearest], float(distances[nearest]))

    def _fused(self, step: int, atoms: np.ndarray, distance: float) -> None:
        self._dies(step, f"atoms have fused: {self._pair_text(atoms, distance)}")

    def _close(self, step: int, atoms: np.ndarray, distance: float) -> None:
        a, b = (int(z) for z in self._numbers[atoms])
        name = pair_name(a, b)
        self._extrapolates(f"pair {name}", self._pair_text(atoms, distance), step)

    def _pair_text(self, atoms: np.ndarray, distance: float) -> str:
        i, j = sorted(int(k) for k in atoms)
        a, b = int(self._numbers[i]), int(self._numbers[j])
        text = f"atoms {i} ({chemical_symbols[a]}) and {j} ({chemical_symbols[b]}) are {distance:.3f} Å apart"
        if not self._by_pair:
            return f"{text}, training saw no pair below {self._any_pair:.3f} Å"
        known = self._pairs.get(pair_name(a, b))
        if known is None:
            return f"{text}, training saw no such pair within {self._cutoff:g} Å"
        return f"{text}, training saw no {pair_name(a, b)} below {known:.3f} Å"

    def _extrapolates(self, kind: str, text: str, step: int = 0, *, at_start: bool = False) -> None:
        if kind in self._said:
            return
        self._said.add(kind)
        line = text if at_start else f"step {step}: {text}"
        self.warnings.append(line)
        if self._stop and not at_start:
            raise RunStoppedError(
                f"stopped at extrapolation, {line}; add such frames to the training data, or use "
                "--on-extrapolation warn"
            )
        self._say(f"warning: {line}; forces there are a guess")

    def _dies(self, step: int, text: str) -> None:
        raise RunStoppedError(
            f"step {step}: {text}; shorten the time step, run cooler, or train on such frames"
        )
