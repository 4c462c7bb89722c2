"""Documents that cannot go stale: names, links, options and code blocks are looked up, parsed and run."""

import ast
import doctest
import importlib
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import recipes

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MODULES = {p.stem for p in ROOT.glob("*.py")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_names_in_backticks_exist(path):
    checked = 0
    for name in re.findall(r"`([a-z_]+\.[A-Za-z_][\w.]*)(?:\[\.\.\.\])?`", path.read_text()):
        module, *attributes = name.split(".")
        if module not in MODULES or attributes[-1] in ("py", "md", "json", "jsonl", "png", "html"):
            continue
        thing = importlib.import_module(module)
        for attribute in attributes:
            if attribute in getattr(thing, "__dataclass_fields__", {}):
                break
            assert hasattr(thing, attribute), f"{path.name} names {name}, which does not exist"
            thing = getattr(thing, attribute)
        checked += 1
    if path.name in ("index.md", "README.md", "one-step.md"):
        assert checked > 5


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_and_files_exist(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for file in re.findall(r"`([\w/]+\.(?:py|md|yaml))`", path.read_text()):
        assert (ROOT / file).exists() or (path.parent / file).exists(), f"{path.name} names {file}"


def test_recipes_and_options_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"--recipe ([\w-]+)", text):
        assert name in recipes.RECIPES or name == "NAME"
    for command in re.findall(r"train\.py ([^`\n]+)", text):
        for option in re.findall(r"--([a-z_]+)", command):
            known = {
                "recipe",
                "toy",
                "resume",
                "tracker",
                "output_dir",
                "config_file",
            } | recipes.Recipe.__dataclass_fields__.keys()
            assert option in known, f"the README passes --{option} to train.py"
    for row in re.findall(r"\| `(--[^`]+)` \|", text):  # switches of "paper and released code"
        option = row.split()[0].removeprefix("--").split(".")[0]
        assert option in recipes.Recipe.__dataclass_fields__ or row == "--temperature 1"


def test_no_placeholder_is_left():
    for path in DOCUMENTS:
        assert "@@" not in path.read_text(), path.name


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "peft" not in b], ids=lambda b: b.split("\n")[1][:40])
def test_code_blocks_of_the_readme_run(block):
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_says_what_its_blocks_print():
    block = next(b for b in BLOCKS if "RankQueue" in b)
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert float(done.stdout) == (1 / 2 + 2 / 2) / 2


def test_a_recipe_of_your_own_passes_the_reward_check():
    import data
    import judge
    import oracle
    import rewards

    block = next(b for b in BLOCKS if "tight_reward" in b)
    assert len(block.splitlines()) < 30
    scope: dict = {}
    exec(block, scope)
    try:
        recipe, samples = recipes.miniature(scope["TIGHT"]), data.load("toy", None, "val")
        order, _ = judge.usable(samples, recipe)
        good, bad = judge.check_rewards(samples, order[:40], recipe)
        assert len(good) >= 39, bad
    finally:
        del rewards.REWARDS["tight"], oracle.MAXIMUM["tight"], recipes.RECIPES["tight"]


DOCUMENTED = "grpo rewards model data layouts toy judge train checkpoint recipes report".split()
DOCUMENTED += "step evaluate metrics oracle folders published networks pictures state journal inference".split()


def test_the_core_stays_readable():
    """The six files of the concepts: 2,300 lines at most, a line of comment or docstring to every two of code."""
    total = code = told = 0
    for name in "grpo rewards model data train evaluate".split():
        text = (ROOT / f"{name}.py").read_text()
        lines, said, beside = text.splitlines(), set(), 0
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                said |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                alone = lines[token.start[0] - 1].lstrip().startswith("#")
                said |= {token.start[0]} if alone else set()
                beside += not alone
        blank = {n for n, line in enumerate(lines, 1) if not line.strip()}
        total, code, told = total + len(lines), code + len(lines) - len(said | blank), told + len(said) + beside
    assert total <= 2300 and 2 * told >= code, (total, code, told)


def test_the_memory_table_is_what_its_command_prints():
    done = subprocess.run([sys.executable, "docs/make_memory.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4 and done.stdout in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["grpo", "rewards", "data"])
def test_examples_in_docstrings_are_true(name):
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted and not done.failed


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_functions_have_docstrings(name):
    """Every public function and class of more than three lines says what it is."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    for node in tree.body:
        for item in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            if isinstance(item, (ast.FunctionDef, ast.ClassDef)) and not item.name.startswith("_"):
                short = item.end_lineno - item.lineno < 4
                assert ast.get_docstring(item) or short or item.name == "main", f"{name}.{item.name} has no docstring"


def test_concept_files_import_nothing_of_the_project():
    for name in ("grpo", "rewards", "model", "data", "recipes"):
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        for node in ast.walk(tree):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {n.split(".")[0] for n in names if n} & (MODULES - {name}), f"{name}.py imports {names}"


def test_ruff_is_clean():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
