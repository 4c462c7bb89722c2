# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Prints what goes with what: for each public function and class of the concept files, the names that it needs.

python -m studies.goes_with

Read off the code: a name of the same file that it mentions, or of another concept file, and in turn what those mention.
The table is part of docs/copying.md; a test compares the two.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("grpo", "rewards", "data", "model")


@functools.cache
def definitions(file: str) -> dict[str, ast.stmt]:
    """Everything that a file defines at its top level: name -> statement."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse((ROOT / f"{file}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found |= {name.id: node for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@functools.cache
def imports(file: str) -> dict[str, str]:
    """What a file imports from elsewhere: the name that it uses -> the line that brings it."""
    lines = {}
    for node in ast.parse((ROOT / f"{file}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and getattr(node, "module", "") != "__future__":
            for alias in node.names:
                one = type(node)(**{**vars(node), "names": [alias]})
                lines[alias.asname or alias.name.split(".")[0]] = ast.unparse(one)
    return lines


def mentioned(node: ast.AST, file: str, known: dict[str, dict[str, ast.stmt]]) -> set[tuple[str, str]]:
    """(file, name) of what a statement mentions."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in known[file]:
            found.add((file, part.id))
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in FILES:
            if part.attr in known[part.value.id]:
                found.add((part.value.id, part.attr))
    return found


def without_annotations(node: ast.stmt) -> ast.stmt:
    """The statement without annotations of arguments and results: `from __future__ import annotations` keeps them
    unevaluated, so nothing is needed for them."""

    class Strip(ast.NodeTransformer):
        def visit_arg(self, node: ast.arg) -> ast.arg:
            node.annotation = None
            return node

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
            node.returns = None
            self.generic_visit(node)
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
            node.annotation = ast.Constant(value=None)
            self.generic_visit(node)
            return node

    return Strip().visit(node)


@functools.cache
def needs() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """(file, name) of everything that is defined -> what it needs, directly or through others."""
    known = {file: {n: without_annotations(s) for n, s in definitions(file).items()} for file in FILES}
    direct = {
        (file, name): mentioned(node, file, known) - {(file, name)}
        for file in FILES
        for name, node in known[file].items()
    }
    closed = {}
    for start in direct:
        found: set[tuple[str, str]] = set()
        waiting = [start]
        while waiting:
            for other in direct[waiting.pop()] - found:
                found.add(other)
                waiting.append(other)
        closed[start] = found - {start}
    return closed


def imported(names: set[tuple[str, str]]) -> list[str]:
    """The import lines that these definitions need, of whatever file."""
    lines = set()
    for file, name in names:
        used = {
            part.id for part in ast.walk(without_annotations(definitions(file)[name])) if isinstance(part, ast.Name)
        }
        lines |= {line for alias, line in imports(file).items() if alias in used and alias not in FILES}
    return sorted(lines)


def table() -> list[str]:
    """The rows, in the files' order: a name, what has to be copied with it, and the imports of all that."""
    rows = ["| take | and with it | and these imports |", "|---|---|---|"]
    for (file, name), others in needs().items():
        if isinstance(definitions(file)[name], (ast.FunctionDef, ast.ClassDef)) and not name.startswith("_"):
            ordered = sorted(others, key=lambda one: (one[0] != file, *one))
            told = ", ".join(f"`{n}`" if f == file else f"`{f}.{n}`" for f, n in ordered)
            lines = ", ".join(f"`{line}`" for line in imported(others | {(file, name)}))
            rows.append(f"| `{file}.{name}` | {told or 'nothing'} | {lines or 'none'} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
