# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""For the borrower: the table of what goes with what is the code's, and what it lists is enough."""

import ast
import builtins
import types
from pathlib import Path

import pytest

from studies import goes_with

ROOT = Path(__file__).parents[1]
NEEDS = goes_with.needs()
PUBLIC = [
    one
    for one in NEEDS
    if isinstance(goes_with.definitions(one[0])[one[1]], (ast.FunctionDef, ast.ClassDef)) and not one[1].startswith("_")
]


def test_the_table_of_the_document_is_what_its_command_prints():
    text = (ROOT / "docs" / "copying.md").read_text(encoding="utf-8")
    assert "\n".join(goes_with.table()) in text


def globals_of(code: types.CodeType) -> set[str]:
    """Names that compiled code takes from its module, in nested functions too."""
    import dis

    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(globals_of(c) for c in code.co_consts if isinstance(c, types.CodeType)))


@pytest.mark.parametrize("one", PUBLIC, ids=".".join)
def test_what_is_listed_is_enough(one):
    """The listed definitions and imports alone, in the files' order: every name that they use is there."""
    chosen = NEEDS[one] | {one}
    parts = ["from __future__ import annotations", *goes_with.imported(chosen)]
    for file in goes_with.FILES:
        seen = set()
        for name, node in goes_with.definitions(file).items():
            if (file, name) in chosen and id(node) not in seen:
                seen.add(id(node))
                parts.append(ast.unparse(node))
    code = compile("\n".join(parts), "copied", "exec")
    import sys

    module = sys.modules["copied"] = types.ModuleType("copied")  # dataclasses look their module up
    try:
        exec(code, vars(module))
        free = globals_of(code) - vars(module).keys() - {*dir(builtins), "__annotations__", "__file__", "grpo"}
        assert not free, free
    finally:
        del sys.modules["copied"]
