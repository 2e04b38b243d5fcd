"""The wrong lines of tests/mutants fit the code as it is; `make mutants` asks the tests about them."""

from pathlib import Path

import pytest
from mutants import rooms

PACKAGE = Path(__file__).parents[1] / "mlff_distiller"
MUTATIONS = [mutation for room in rooms.ALL.values() for mutation in room]


@pytest.mark.parametrize("room", rooms.ALL)
def test_every_mutation_has_its_place(room: str) -> None:
    for mutation in rooms.ALL[room]:
        text = mutation.place(PACKAGE).read_text()
        compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
        for test in (word for word in mutation.tests.split() if word.startswith("test_")):
            assert (Path(__file__).parent / test.partition("::")[0]).exists(), mutation.name


def test_names_are_unique() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 60
