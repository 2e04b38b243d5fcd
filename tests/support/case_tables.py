"""The tables of numbered cases in the plugins' READMEs, written from the names of the tests.

python tests/support/case_tables.py
"""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
#: README -> files whose tests are called test_case_NN[letter][_and_NN]_what_is_tested
READMES = {
    TESTS.parent / "lammps_plugin" / "README.md": "test_lammps*.py",
    TESTS.parent / "openmm_plugin" / "README.md": "test_openmm*.py",
}
_BEGIN, _END = "<!-- cases:", "<!-- end of cases -->"


def case_table(pattern: str) -> str:
    """Markdown table of the numbered cases in the test files that match ``pattern``."""
    rows: dict[int, list[str]] = {}
    for path in sorted(TESTS.glob(pattern)):
        for name in re.findall(r"^def test_(case_\d\d\w*)\(", path.read_text(), re.MULTILINE):
            numbers = re.match(r"case_(\d\d)[a-z]?(?:_and_(\d\d))?_", name)
            assert numbers is not None, name
            text = name[numbers.end() :].replace("_", " ")
            for number in numbers.groups():
                if number:
                    rows.setdefault(int(number), []).append(f"{text} ({path.stem})")
    lines = ["| case | tests |", "|---|---|"]
    lines += [f"| {number} | {'; '.join(rows[number])} |" for number in sorted(rows)]
    return "\n".join(lines)


def readme_with_cases(readme: Path) -> str:
    """A plugin's README with the table of cases brought up to date."""
    head, rest = readme.read_text().split(_BEGIN, 1)
    marker, rest = rest.split("-->\n", 1)
    tail = rest.split(_END, 1)[1]
    return f"{head}{_BEGIN}{marker}-->\n{case_table(READMES[readme])}\n{_END}{tail}"


if __name__ == "__main__":
    for path in READMES:
        path.write_text(readme_with_cases(path))
