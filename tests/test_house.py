# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The house: seven concepts at the top, four wings, arrows that point down, no circle, none hidden."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONCEPTS = ["data", "evaluate", "grpo", "model", "recipes", "rewards", "train"]
WINGS = ["benchmarks", "engine", "studies", "toy"]
FILES = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in ROOT.glob("*.py")}
FILES |= {f"{w}.{p.stem}": p for w in WINGS for p in (ROOT / w).glob("*.py") if p.stem != "__init__"}

# Who may import whom, room by room (a wing is one room). Everything points down.
ALLOWED = {
    "grpo": set(),
    "rewards": set(),
    "data": set(),
    "model": {"grpo"},
    "recipes": {"data", "rewards"},
    "toy": {"grpo", "rewards", "data", "model"},
    "engine": {"rewards", "data", "model", "recipes", "grpo"},
    "benchmarks": {"rewards", "data", "recipes", "engine"},
    "evaluate": {"grpo", "rewards", "data", "model", "recipes", "engine", "benchmarks"},
    "train": {"grpo", "rewards", "data", "model", "recipes", "engine", "benchmarks", "evaluate"},
}


def imports(path: Path) -> set[str]:
    """The project's files that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name for name in names if name in FILES}
    return found


def test_seven_concepts_and_four_wings():
    assert sorted(p.stem for p in ROOT.glob("*.py")) == CONCEPTS
    for wing in WINGS:  # without __init__.py any installed package of that name would win
        assert ast.get_docstring(ast.parse((ROOT / wing / "__init__.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", FILES)
def test_arrows_point_down(name):
    room = name.split(".")[0]
    rooms = {other.split(".")[0] for other in imports(FILES[name])} - {room}
    if room == "studies":  # may look at everything, and nothing looks at it
        assert "studies" not in rooms
    else:
        assert rooms <= ALLOWED[room], f"{name} imports {rooms - ALLOWED[room]}"


def test_no_import_circle_and_none_hidden():
    arrows = {name: imports(path) for name, path in FILES.items()}

    def reached(name: str, seen: set[str]) -> set[str]:
        for other in arrows[name] - seen:
            seen = reached(other, seen | {other})
        return seen

    assert not [name for name in FILES if name in reached(name, set())]
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        assert "TYPE_CHECKING" not in text, name
        assert "import_module" not in text or name == "data", name  # the readers of data.load, the declared exception


def test_no_function_outgrows_a_screen_and_nothing_is_packed():
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        assert text.count("fmt: skip") <= 3, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 110, (
                    f"{name}.{node.name} has {node.end_lineno - node.lineno} lines"
                )


def test_every_file_names_its_licence_so_that_a_copied_one_keeps_it():
    title = re.search(r'^title: "(.*)"', (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)[1]
    files = [
        path
        for folder in ("", "engine", "benchmarks", "toy", "studies", "tests")
        for path in (ROOT / folder).glob("*.py")
    ]
    assert len(files) > 50
    for path in files:
        first, second = path.read_text(encoding="utf-8").split("\n")[:2]
        assert first.startswith("# SPDX-FileCopyrightText") and title in first, path
        assert second == "# SPDX-License-Identifier: MIT", path
