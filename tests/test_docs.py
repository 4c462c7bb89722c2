# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Documents that cannot go stale: names, links, options and code blocks are looked up, parsed and run."""

import ast
import dataclasses
import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import evaluate
import model as models
import recipes
import train
from engine.check import check_rewards
from engine.run import build

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
WINGS = ("engine", "benchmarks", "toy", "studies")
ROOMS = {name: importlib.import_module(name) for name in (*(p.stem for p in ROOT.glob("*.py")), *WINGS)}
SOURCES = sorted([*ROOT.glob("*.py"), *(p for wing in WINGS for p in (ROOT / wing).glob("*.py"))])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_names_in_backticks_exist(path):
    checked = 0
    for name in re.findall(r"`([a-z_]+\.[A-Za-z_][\w.]*)(?:\[\.\.\.\])?`", path.read_text(encoding="utf-8")):
        if name.split(".")[0] not in ROOMS or name.split(".")[-1] in ("py", "md", "json", "jsonl", "png", "html"):
            continue
        thing = ROOMS[name.split(".")[0]]
        for attribute in name.split(".")[1:]:
            if attribute in getattr(thing, "__dataclass_fields__", {}):
                break
            if not hasattr(thing, attribute) and hasattr(thing, "__path__"):  # a file of a wing
                importlib.import_module(f"{thing.__name__}.{attribute}")
            assert hasattr(thing, attribute), f"{path.name} names {name}, which does not exist"
            thing = getattr(thing, attribute)
        checked += 1
    if path.name in ("equations.md", "one-step.md"):
        assert checked > 5


def test_the_equations_numbers_are_the_recipes_and_their_braces_close():
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    fields = "num_generations prompts_per_step updates_per_rollout average clip_low clip_high beta".split()
    rows = [row.split(" | ") for row in re.findall(r"^\| ([a-z][\w-]* \| \d.*) \|$", text, re.M)]
    assert [row[0] for row in rows] == ["drseg", "samr1", "genseg", "genseg-g", "lens"]
    for name, *said in rows:
        assert said == [str(getattr(recipes.RECIPES[name], field)) for field in fields], name
    formulas = re.findall(r"```math\n(.*?)```", text, re.S)
    assert len(formulas) > 10
    for one in formulas:
        for opening, closing in (("{", "}"), ("\\begin", "\\end"), ("\\bigl(", "\\bigr)"), ("\\Bigl(", "\\Bigr)")):
            assert one.count(opening) == one.count(closing), one


def headings(path):
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_and_files_exist(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        file, _, heading = target.partition("#")
        if target.startswith("http"):
            continue
        there = path.parent / file if file else path
        assert there.exists(), f"{path.name} links to {target}"
        if heading:
            assert heading in headings(there), f"{path.name} links to {target}"
    for file in re.findall(r"`([\w/]+\.(?:py|md|yaml))`", path.read_text()):
        places = [ROOT, path.parent, *(ROOT / wing for wing in WINGS)]
        assert any((place / file).exists() for place in places), f"{path.name} names {file}"


def test_recipes_and_options_in_the_readme_exist():
    text = "".join(path.read_text() for path in DOCUMENTS)
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
                "help",
            } | recipes.Recipe.__dataclass_fields__.keys()
            assert option in known, f"the README passes --{option} to train.py"
    asked = {f.name for f in dataclasses.fields(evaluate.Options)}
    for command in re.findall(r"(?:evaluate\.py|`E) ([^`\n]+)", text):
        for option in re.findall(r"--([a-z_]+)", command):
            assert option in asked, f"a page passes --{option} to evaluate.py"
    for row in re.findall(r"\| `(--[^`]+)` \|", text):  # switches of "paper and released code"
        option = row.split()[0].removeprefix("--").split(".")[0]
        assert option in recipes.Recipe.__dataclass_fields__ or row == "--temperature 1"


def test_the_commands_of_the_papers_tables_are_taken():
    """Each `T ...` is a command line of train.py; what stands behind it in its row, beginning with --, changes it."""
    taken = 0
    for row in (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").splitlines():
        base = None
        for command in re.findall(r"`(T --recipe [^`]+|--[a-z][^`]+)`", row if row.startswith("|") else ""):
            base = command.split()[2] if command.startswith("T ") else base
            if base:
                options = command.removeprefix(f"T --recipe {base}").split()
                train.parse_command_line(["--recipe", base, *options])
                taken += 1
    assert taken > 15


def test_the_citation_is_of_the_newest_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## (\S+) \((\S+)\)", changes, re.M).groups()
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version: "{version}"' in cited and f'date-released: "{date}"' in cited


def test_no_placeholder_is_left():
    for path in DOCUMENTS:
        assert "@@" not in path.read_text(), path.name


BLOCKS = [b for path in DOCUMENTS for b in re.findall(r"```python\n(.*?)```", path.read_text(), re.S)]


def test_the_page_of_cheats_is_true():
    """Its blocks follow each other, each a claim that is asserted in it."""
    page = (ROOT / "docs" / "cheats.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
    assert sum("assert" in block for block in blocks) >= 10


CHEATS = (ROOT / "docs" / "cheats.md").read_text(encoding="utf-8")


ALONE = [b for b in BLOCKS if "peft" not in b and b not in CHEATS]


def test_code_blocks_run(tmp_path):
    """Each with names of its own, all in one process that imports torch once."""
    (tmp_path / "blocks.json").write_text(json.dumps(ALONE))
    code = "import json, sys; [exec(block, {}) for block in json.load(open(sys.argv[1]))]"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "blocks.json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_blocks_are_said_to_print(capsys):
    """print(...)  # VALUE or words: VALUE. Blocks that print figures of pure functions, so here, in this process."""
    said = []
    for block in BLOCKS:
        told = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
        if told:
            exec(block, {})
            said += zip(told, capsys.readouterr().out.strip().split("\n")[-len(told) :], strict=True)
    assert len(said) >= 5
    for told, printed in said:
        literal = eval(told.split(": ")[-1] if told.startswith("mean") else told.split(":")[0])
        assert literal == eval(printed), (told, printed)


def test_a_paper_added_by_the_page_trains():
    """The page's block, then: its truth earns the maximum, its text is read back, and it takes a training step."""
    import data
    import rewards

    block = next(b for b in BLOCKS if "tight_reward" in b)
    scope: dict = {}
    exec(block, scope)
    try:
        recipe = recipes.miniature(scope["TIGHT"])
        recipes.check(recipe)  # as a command line and a checkpoint's recipe.json are checked
        samples = data.load("toy", None, "val")[:60]
        order, _ = recipes.usable(samples, recipe)
        good, bad = check_rewards(samples, order, recipe)
        assert len(good) >= 20 and not bad
        answer = rewards.parse_answer(
            '<think></think><answer>{"box": [0, 0, 8, 8], "centre": [4, 4]}</answer>', "tight"
        )
        assert (
            answer.answer_ok
            and recipes.reward_parts(recipe, answer, recipes.to_target(samples[order[0]], recipe), None, None)[
                "centred"
            ]
        )
        policy, segmenter = build(recipe, Accelerator(cpu=True))
        batch = train.load_batch(recipe, policy, segmenter, samples, order[:2])
        asked = policy.processor.tokenizer.decode(batch.prompts.inputs["input_ids"][0])
        assert "Box the one object that fits" in asked
        texts = [[answer.text, "nothing"]] * 2
        reward, parts, _ = train.judge(recipe, policy, segmenter, batch, texts, rewards.RankQueue(), None)
        assert reward.shape == (2, 2) and (reward[:, 0] > reward[:, 1]).all() and parts[0][0]["centred"] == 1
    finally:
        for table in (rewards.SCHEMAS, rewards.REWARDS, rewards.MAXIMUM, data.PROMPTS, recipes.RECIPES):
            del table["tight"]


def test_the_step_to_copy_is_the_one_that_training_takes():
    mine: dict = {}
    exec(next(b for b in BLOCKS if "pack_rollout" in b), mine)
    recipe = dataclasses.replace(recipes.miniature(recipes.RECIPES["samr1"]), rows_per_batch=1)
    accelerator = Accelerator(cpu=True)
    policy, segmenter = build(recipe, accelerator)
    batch = train.load_batch(recipe, policy, segmenter, mine["samples"], [0, 1])
    rollout = train.complete(recipe, policy, batch.prompts, mine["uniforms"])
    texts = [policy.decode(ids, mask) for ids, mask in zip(rollout.ids, rollout.mask, strict=True)]
    reward, _, _ = train.judge(recipe, policy, segmenter, batch, texts, train.rewards.RankQueue(), None)
    assert torch.equal(reward, mine["reward"]) and reward.std() > 0
    micros = models.pack_rollout(policy, batch.prompts, rollout, recipe.max_row_tokens, recipe.rows_per_batch)
    train.add_reference(mine["reference"], micros, recipe.temperature)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    for _ in range(recipe.updates_per_rollout):
        train.update(accelerator, policy, optimizer, micros, batch, rollout, mine["advantages"], recipe)
    moved = torch.cat([p.flatten() for p in policy.parameters()])
    start = torch.cat([p.flatten() for p in mine["reference"].parameters()])
    there = torch.cat([p.flatten() for p in mine["policy"].parameters()])
    assert (moved - there).norm() < 1e-3 * (moved - start).norm()  # what is left is rounding


def test_the_memory_page_is_what_is_computed_and_within_a_tenth_of_what_was_measured(capsys):
    from transformers import Qwen3VLConfig

    from engine import memory
    from studies import memory as page
    from studies.bench import config_of, real_size

    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    page.main()
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 8 and said in text

    full = memory.parts(recipes.RECIPES["drseg"], config_of(real_size(recipes.QWEN25_3B)), 1, False)
    tight = dataclasses.replace(recipes.RECIPES["drseg"], lora_rank=64, prompts_at_once=1, max_row_tokens=4096)
    lora = memory.parts(tight, config_of(real_size(recipes.QWEN25_7B)), 1, False)
    start = full["weights"] + full["reference"] + full["replica"] + memory.SAM2_LARGE
    computed = [start, start + full["gradients"] + full["Adam"], lora["frozen"] + lora["weights"] + memory.SAM2_LARGE]
    computed.append(computed[-1] + lora["gradients"] + lora["Adam"] + lora["activations"])
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) \|$", text.split("| measured |")[1], re.M)
    for value, (printed, measured) in zip(computed, rows, strict=True):
        assert f"{value:.1f}" == printed and abs(value - float(measured)) <= 0.1 * float(measured)

    # --collapse adds a convolution over LENS's queries: 2,048 x 64 x 2,048 parameters, 1 GiB
    lens = (dataclasses.replace(recipes.RECIPES["lens"], collapse=c) for c in (False, True))
    plain, collapsed = (memory.parts(r, config_of(real_size(recipes.QWEN25_3B)), 1, False)["weights"] for r in lens)
    assert collapsed - plain == pytest.approx(1.0, rel=0.01)

    # a GPU that is too small is told so before anything is loaded, with what would fit
    config = config_of(real_size(recipes.QWEN25_7B))
    said = memory.warning(recipes.RECIPES["drseg"], config, 1, False, 48.0)
    assert "needs about" in said and "there are 48. With --lora_rank 64 it is about 24" in said
    assert memory.warning(recipes.RECIPES["drseg"], config, 4, True, 79.1) == ""
    # as many prompts are sampled at once as have room: the step's 16 x 8 completions take 27 GiB of keys and values
    lora = dataclasses.replace(recipes.RECIPES["drseg"], lora_rank=64)
    assert memory.fit(lora, config, 1, False, 24.0)[1][-1].endswith(
        "With --max_row_tokens 4096 it is about 21 (docs/memory.md)."
    )
    # what is advised fits as it is said
    many = dataclasses.replace(lora, prompts_at_once=16)
    (said,) = memory.fit(many, config, 1, False, 24.0)[1]
    assert "With --prompts_at_once 1 --max_row_tokens 4096 it is about 21" in said
    lora = dataclasses.replace(lora, max_row_tokens=4096)
    for room, fits in ((24.0, 3), (32.0, 8), (48.0, 0)):
        chosen, said = memory.fit(lora, config, 1, False, room)
        assert chosen.prompts_at_once == fits and len(said) == (fits > 0), said
        cache = memory.parts(chosen, config, 1, False)
        assert memory.peaks(cache)[0] <= 0.97 * room
    assert memory.fit(dataclasses.replace(lora, prompts_at_once=2), config, 1, False, 48.0)[0].prompts_at_once == 2
    # heads may be wider than the states' share: Qwen3-VL-4B has 8 of 128 where 2560 / 32 would be 80
    heads = {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    wide = Qwen3VLConfig(text_config={"num_hidden_layers": 2} | heads, vision_config={"depth": 1})
    tokens = 30 * 30 + 100 + 1500
    cache = 64 * tokens * 2 * 2 * 8 * 128 * 2 / memory.GIB  # rows, tokens, keys and values, layers, heads, bf16
    assert memory.parts(recipes.RECIPES["genseg"], wide, 1, False)["cache"] == pytest.approx(cache)


@pytest.mark.parametrize("name", ["grpo", "rewards", "data", "model"])
def test_examples_in_docstrings_are_true(name):
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted and not done.failed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_public_functions_have_docstrings(path):
    """Every public function and class of more than three lines says what it is."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for item in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            if isinstance(item, (ast.FunctionDef, ast.ClassDef)) and not item.name.startswith("_"):
                short = item.end_lineno - item.lineno < 4
                assert ast.get_docstring(item) or short or item.name == "main", f"{item.name} has no docstring"


def test_ruff_is_clean():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
