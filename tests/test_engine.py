# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What goes wrong, and the roads rarely taken, end to end with the shipped miniature: broken pictures, completions of
nothing, no data, a process that dies, trackers, LoRA. Each run is a few steps on pictures drawn here."""

import contextlib
import dataclasses
import datetime
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import data
import evaluate
import grpo
import model as models
import recipes
import train
from engine import files, journal, run, waiting
from engine.check import agreed
from engine.checkpoint import load_recipe
from engine.run import build

ROOT = Path(__file__).parents[1]
QUICK = "--toy --dataset jsonl --num_generations 4 --eval_samples 0 --max_completion 60 --save_every 1 --keep 9".split()
TIMING = ("seconds", "tokens_per_second")


def assert_same(rows, again):
    """Equal but for time. `gap` holds the sampler's rounding, which nothing is trained on: the first step of a process
    may differ in its last digit."""
    for one, other in zip(rows, again, strict=True):
        assert one.keys() == other.keys()
        assert one.get("gap", 0) == pytest.approx(other.get("gap", 0), abs=1e-7)  # alignment samples nothing
        assert [(k, one[k], other[k]) for k in one if one[k] != other[k] and not k.startswith((*TIMING, "gap"))] == []


def draw(folder, split="train", n=6):
    """n pictures of one diamond each, and folder/split.jsonl that says where it is."""
    folder.mkdir(exist_ok=True)
    lines, rng = [], np.random.default_rng(0)
    for i in range(n):
        (x, y), r = rng.uniform(30, 80, 2).round(), int(rng.integers(12, 24))
        corners = [(x - r, y), (x, y - r), (x + r, y), (x, y + r)]
        picture = Image.fromarray(rng.integers(190, 210, (112, 112, 3)).astype(np.uint8))
        ImageDraw.Draw(picture).polygon(corners, fill=(48, 96, 210))
        picture.save(folder / f"{split}-{i}.jpg", quality=95)
        box, polygon = [x - r, y - r, x + r, y + r], [v for corner in corners for v in corner]
        entry = {"image": f"{split}-{i}.jpg", "query": "the blue diamond", "boxes": [box], "polygons": [[polygon]]}
        lines.append(json.dumps(entry) + "\n")
    (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def options(folder, out, *more):
    return [*QUICK, "--data_root", str(folder), "--output_dir", str(out), *more]


@pytest.fixture
def go(monkeypatch):
    """`python train.py ...` in this process. Returns the rows of metrics.jsonl."""
    states = (AcceleratorState, PartialState, GradientState)  # singletons: another test's precision would stay
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(ROOT)  # the miniature's weights are named from here

    def run(folder, out, *more):
        for shared in states:
            shared._reset_state()
        monkeypatch.setattr(sys, "argv", ["train.py", *options(folder, out, *more)])
        train.main()
        return metrics(out)

    yield run
    for shared in states:
        shared._reset_state()


def two_processes(folder, out, *more, seconds=60, script="train.py"):
    """The same as two processes over gloo; all of them are ended if they hang. Returns (exit code, what was said)."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(20000 + (os.getpid() + 7) % 20000), str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(
        launch + options(folder, out, *more),
        cwd=ROOT,
        env=environment,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        pytest.fail(f"still running after {seconds} s: {process.communicate()[0][-3000:]}")
    return process.returncode, said


def metrics(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def read_at(step, place, n, prompts_per_step):
    """The sample that stands at a place of a step."""
    recipe = recipes.Recipe(prompts_per_step=prompts_per_step)
    return next(train.read_order(list(range(n)), recipe, step, place))


def answers(policy, samples, recipe):
    return [r["text"] for r in evaluate.answer_samples(policy, None, samples, recipe)]


# ------------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("damage", ["half a JPEG", "half a PNG", "zeros in a PNG", "no picture at all"])
def test_a_broken_picture_is_named_before_the_first_step_and_once_mended_the_run_begins(tmp_path, go, capsys, damage):
    """Half a JPEG has a whole header, and is found all the same."""
    folder, out = draw(tmp_path / "data"), tmp_path / "run"
    broken = folder / f"train-{read_at(1, 1, 6, 2)}.jpg"
    good, png = broken.read_bytes(), io.BytesIO()
    Image.open(broken).save(png, "png")
    broken.write_bytes(
        {
            "half a JPEG": good[: len(good) // 2],
            "half a PNG": png.getvalue()[:9000],
            "zeros in a PNG": png.getvalue()[:1000] + bytes(2000) + png.getvalue()[3000:],
            "no picture at all": b"<html>",
        }[damage]
    )
    more = ["--prompts_per_step", "2", "--max_steps", "3", "--beta", "0"]
    with pytest.raises(SystemExit, match="1 of [56] samples do not earn the maximum"):
        go(folder, out, *more)
    said = capsys.readouterr().out
    assert re.search(rf"wrong: .*{broken}", said) and "etch it again" in said
    if damage == "half a JPEG":
        assert not out.exists()
        broken.write_bytes(good)
        assert [r["step"] for r in go(folder, out, *more)] == [1, 2, 3]


def test_data_that_are_not_there_are_said_in_a_sentence(tmp_path, go):
    folder, out = draw(tmp_path / "data"), tmp_path / "run"
    for text in ("", "\n \n"):
        (folder / "empty.jsonl").write_text(text)
        with pytest.raises(SystemExit, match=rf"nothing usable in {folder}, split 'empty'. It is empty"):
            go(folder, out, "--split", "empty")
    with pytest.raises(SystemExit, match=rf"{folder} holds none of: nothing.jsonl.*--data_root.*split right"):
        go(folder, out, "--split", "nothing")
    with pytest.raises(SystemExit, match="folder not found: .*nowhere.*--data_root is where jsonl lies"):
        go(tmp_path / "nowhere", out)
    entry = {"image": "train-0.jpg", "query": "the red circle", "no_target": True}
    (folder / "none.jsonl").write_text(json.dumps(entry))
    with pytest.raises(SystemExit, match="no sample of 'jsonl' .*recipe 'drseg'"):
        go(folder, out, "--split", "none")
    entry = {"image": "gone.jpg", "query": "the red circle", "no_target": True}
    (folder / "gone.jsonl").write_text(json.dumps(entry))
    with pytest.raises(SystemExit, match="no picture found: gone.jpg is in none of .*Put or link them there"):
        go(folder, out, "--split", "gone")
    entry = {"image": "train-0.jpg", "query": "the blue diamond", "boxes": [[9, 9, 60, 60]], "points": [[[30, 30]]]}
    (folder / "boxes.jsonl").write_text(json.dumps(entry))
    with pytest.raises(SystemExit, match="samr1 needs more than these data have: .* no mask.*: give polygons, rle or"):
        go(folder, out, "--split", "boxes", "--recipe", "samr1")
    assert not out.exists()


# ---------------------------------------------------------------------------------------------------------- completions


def replace_completions(monkeypatch, words, branches):
    """Sampling as ever, then the tokens of some branches are exchanged for `words` and the end token."""
    genuine, tokenizer = grpo.sample, models.load_policy(str(ROOT / "toy" / "qwen2_5_vl")).processor.tokenizer

    def sample(*args, **kw):
        rollout = genuine(*args, **kw)
        for g in branches:
            tokens = tokenizer(words * g).input_ids + kw["eos_token_id"][:1]
            rollout.ids[:, g], rollout.mask[:, g], rollout.logp[:, g] = 0, False, 0.0
            rollout.ids[:, g, : len(tokens)], rollout.mask[:, g, : len(tokens)] = torch.tensor(tokens), True
        return rollout

    monkeypatch.setattr(grpo, "sample", sample)


@pytest.mark.parametrize("recipe", ["drseg", "samr1", "lens"])
@pytest.mark.parametrize("branches", [[1], [0, 1, 2, 3]])
def test_a_completion_of_only_the_end_token(tmp_path, go, monkeypatch, recipe, branches):
    replace_completions(monkeypatch, "", branches)
    more = ["--model", "toy/qwen2_5_vl", "--num_queries", "3"] if recipe == "lens" else []
    more += ["--recipe", recipe, "--prompts_per_step", "2", "--max_steps", "1", "--beta", "0.01"]
    (row,) = go(draw(tmp_path / "data", n=2), tmp_path / "run", *more)
    assert all(np.isfinite(v) for v in row.values())
    if len(branches) == 4:
        assert row["length"] == row["length_max"] == 1 and row["parsed"] == row["truncated"] == 0
    else:
        assert row["grad_norm"] > 0 and row["parsed"] > 0 and row["zero_variance"] == 0
    weights = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(w.isfinite().all() for w in weights.values())


@pytest.mark.parametrize("branches", [[0, 1, 2, 3], [1, 2, 3]])
def test_equal_rewards_move_no_weight(tmp_path, go, monkeypatch, branches):
    """No answer can be parsed in any group: rewards are equal, whatever the lengths. One answer that can: they move."""
    replace_completions(monkeypatch, " the", branches)
    more = ["--prompts_per_step", "2", "--max_steps", "1", "--beta", "0", "--weight_decay", "0"]
    (row,) = go(draw(tmp_path / "data", n=2), tmp_path / "run", *more)
    start = models.load_policy(str(ROOT / "toy" / "qwen2_5_vl")).vlm.state_dict()
    after = models.load_policy(str(tmp_path / "run" / "final")).vlm.state_dict()
    same = all(torch.equal(after[k], start[k]) for k in start)
    if len(branches) == 4:
        assert row["parsed"] == 0 and row["zero_variance"] == 1 and row["length_max"] > 3
        assert row["grad_norm"] == 0 and same
    else:
        assert row["parsed"] == 0.25 and row["grad_norm"] > 0 and not same


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("recipe", ["lens", pytest.param("lens-align", marks=pytest.mark.slow)])
def test_lens_resumed_equals_uninterrupted(tmp_path, go, recipe):
    """Of its mask decoder some layers never get a gradient, so the optimizer has no state for them; each stage has a
    schedule of its own, linear and cosine."""
    folder, out, cut = draw(tmp_path / "data", n=4), tmp_path / "run", tmp_path / "cut"
    more = f"--recipe {recipe} --model toy/qwen2_5_vl --num_queries 3 --prompts_per_step 2 --max_steps 3".split()
    rows = go(folder, out, *more)
    shutil.copytree(out, cut, ignore=shutil.ignore_patterns("checkpoint-[23]", "final"))
    again = go(folder, cut, *more, "--resume")
    assert_same(rows, again)
    for file in ("model.safetensors", "lens.safetensors"):
        whole, resumed = (load_file(run / "final" / file) for run in (out, cut))
        assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    # alignment's frozen VLM is on the disk once, under every checkpoint's name
    inodes = {(out / f"checkpoint-{step}" / "model.safetensors").stat().st_ino for step in (2, 3)}
    assert len(inodes) == (1 if recipe == "lens-align" else 2)
    assert models.load_policy(str(out / "checkpoint-3")).context is not None


def test_a_second_run_in_a_folder_that_is_being_written_to_is_refused(tmp_path, go):
    folder, out = draw(tmp_path / "data", n=4), tmp_path / "run"
    out.mkdir()
    more = "--prompts_per_step 2 --max_steps 1".split()
    with files.lock(out), pytest.raises(SystemExit, match="another run is writing to .*run right now"):
        go(folder, out, *more)
    assert not list(out.iterdir())
    assert len(go(folder, out, *more)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_trains_resumes_and_is_evaluated(tmp_path, go, name):
    folder, out, cut = draw(tmp_path / "data", n=4), tmp_path / "run", tmp_path / "cut"
    more = f"--recipe {name} --model toy/qwen2_5_vl --prompts_per_step 2 --max_steps 2".split()
    more += ["--num_queries", "3"] if recipes.RECIPES[name].num_queries else []
    rows = go(folder, out, *more)
    assert len(rows) == 2 and any(row["grad_norm"] > 0 for row in rows)
    shutil.copytree(out, cut, ignore=shutil.ignore_patterns("checkpoint-2", "final"))
    again = go(folder, cut, *more, "--resume")
    assert_same(rows, again)
    asked = {"model": str(cut / "final"), "dataset": "jsonl", "data_root": str(folder), "split": "train"}
    evaluate.main(evaluate.Options(**asked, output_dir=str(tmp_path / "it")))
    scores = json.loads((tmp_path / "it" / "metrics.json").read_text())
    assert scores["n"] == 4 and 0 <= scores["giou"] <= 100


def test_resume_refuses_what_it_could_not_change_and_says_what_has_changed(tmp_path, go, capsys):
    folder, out = draw(tmp_path / "data", n=4), tmp_path / "run"
    more = "--prompts_per_step 2 --beta 0 --eval_split train".split()
    go(folder, out, *more, "--max_steps", "1")
    for option, value, was in (
        ("model", str(out / "final"), "toy/qwen2_5_vl"),
        ("learning_rate", "0.5", "0.00015"),
        ("queue_size", "64", "2048"),
        ("lora_rank", "8", "0"),
        ("updates_per_rollout", "2", "1"),  # the rate counts updates: with fewer it went on below 0
        ("prompts_per_step", "4", "2"),
        ("seed", "3", "42"),
    ):
        with pytest.raises(SystemExit, match=f"was trained with --{option} {was}: resume it so, or start anew with"):
            go(folder, out, *more, "--max_steps", "2", "--resume", f"--{option}", value)
    # what is scored for the first time half-way is no "before"; and data that were edited in between are not the same
    assert "the data are not" not in capsys.readouterr().out
    lines = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(lines.replace("the blue diamond", "a blue diamond", 1))
    go(folder, out, *more, "--max_steps", "2", "--resume", "--eval_samples", "2", "--temperature", "0.9")
    assert set(json.loads((out / "heldout.json").read_text())) == {"after"}
    assert "the data are not those that" in (said := capsys.readouterr().out) and "4 of use; now 4 samples" in said
    # finished, and its checkpoints thrown away: neither resumed nor overwritten
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for resume in ([], ["--resume"]):
        with pytest.raises(SystemExit, match="holds a finished run, and no checkpoint to resume"):
            go(folder, out, *more, "--max_steps", "2", *resume)


# ---------------------------------------------------------------------------------------------------- several processes


def test_fewer_samples_than_processes_and_a_checkpoint_of_two_in_one(tmp_path, monkeypatch):
    """One sample, two processes, four prompts a step. What two scored in memory, evaluate.py gives alone, from disk."""
    folder, out = draw(draw(tmp_path / "data", n=1), "val", 3), tmp_path / "run"
    more = "--prompts_per_step 4 --max_steps 2 --learning_rate 1e-3 --eval_samples 3 --rank raw".split()
    code, said = two_processes(folder, out, *more)
    assert code == 0, said[-3000:]
    assert len(metrics(out)) == 2 and all(np.isfinite(v) for row in metrics(out) for v in row.values())
    heldout = json.loads((out / "heldout.json").read_text())
    monkeypatch.chdir(ROOT)
    evaluate.main(evaluate.Options(model=str(out / "final"), dataset="jsonl", data_root=str(folder)))
    alone = json.loads((out / "eval-final-jsonl-val" / "metrics.json").read_text())
    assert heldout["after"].pop("requests") == heldout["before"].pop("requests")
    assert {k: alone[k] for k in heldout["after"]} == heldout["after"] and alone["n"] == 3
    assert heldout["after"] != heldout["before"]  # or the start's weights would pass, too


def test_one_process_that_fails_ends_the_run(tmp_path):
    folder, out = draw(tmp_path / "data", n=4), tmp_path / "run"
    broken = folder / f"train-{read_at(1, 1, 4, 2)}.jpg"  # the second process reads it, at the second step
    broken.write_bytes(broken.read_bytes()[:2000])
    late = tmp_path / "late.py"  # as among more samples than are looked at closely before the first step
    late.write_text("import engine.check, train\nengine.check.deep = lambda sample: None\ntrain.main()\n")
    more = "--prompts_per_step 2 --max_steps 2 --beta 0".split()
    code, said = two_processes(folder, out, *more, script=late)
    assert code != 0 and len(metrics(out)) == 1
    assert said.count(f"picture cannot be read: {broken}") == 1 and "Fetch it again" in said


def test_what_may_be_broken_is_counted_over_all_processes(tmp_path):
    """Each of two processes finds one, at the first and at the second step, and one is allowed: each went on."""
    folder = draw(tmp_path / "data", n=6)
    for step, place in ((0, 0), (1, 1)):
        broken = folder / f"train-{read_at(step, place, 6, 2)}.jpg"
        broken.write_bytes(broken.read_bytes()[:2000])
    late = tmp_path / "late.py"
    late.write_text("import engine.check, train\nengine.check.deep = lambda sample: None\ntrain.main()\n")
    more = "--prompts_per_step 2 --max_steps 2 --beta 0 --allow_bad 1".split()
    code, said = two_processes(folder, tmp_path / "run", *more, script=late)
    assert code != 0 and "2 of 6 samples cannot be read" in said, said[-2000:]


def test_prompts_that_cannot_be_shared_are_refused(tmp_path, go, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    with pytest.raises(SystemExit, match="--prompts_per_step 3 cannot be shared evenly by 2 processes"):
        go(draw(tmp_path / "data"), tmp_path / "run", "--prompts_per_step", "3")


# -------------------------------------------------------------------------------------------------------------- tracker


def test_tensorboard_mirrors_the_metrics(tmp_path, go):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = ["--prompts_per_step", "2", "--max_steps", "2", "--beta", "0", "--tracker", "tensorboard"]
    rows = go(draw(tmp_path / "data", n=2), tmp_path / "run", *more)
    files = [f for f in (tmp_path / "run" / "runs").rglob("events.out.tfevents.*") if f.parent.name == "runs"]
    events = EventAccumulator(str(files[0]))
    events.Reload()
    found = events.Scalars("reward")
    assert [(e.step, e.value) for e in found] == [(r["step"], pytest.approx(r["reward"], rel=1e-6)) for r in rows]
    assert {"reward/accuracy", "grad_norm", "learning_rate"} <= set(events.Tags()["scalars"])


# ----------------------------------------------------------------------------------------------------------------- LoRA


LORA = "--lora_rank 4 --beta 0.01 --prompts_per_step 2 --learning_rate 1e-2 --rank raw".split()


def with_lora(tmp_path, go, monkeypatch, *more):
    """A run with LoRA on drawn data: (folder of the data, folder of the run, policy in memory, rows)."""
    pytest.importorskip("peft")
    built, build = [], run.build
    monkeypatch.setattr(run, "build", lambda *args: built.append(build(*args)) or built[-1])
    folder, out = draw(draw(tmp_path / "data", n=4), "val", 2), tmp_path / "run"
    rows = go(folder, out, *LORA, *more)
    return folder, out, built[0][0], rows


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_lora(tmp_path, go, monkeypatch, dtype):
    kind = getattr(torch, dtype)
    more = ["--dtype", dtype, "--gradient_checkpointing", str(dtype == "bfloat16"), "--eval_samples", "2"]
    folder, out, policy, rows = with_lora(tmp_path, go, monkeypatch, *more, "--max_steps", "2")

    # only the adapter learns; the rest is what it was, held in the compute dtype
    start = models.load_policy("toy/qwen2_5_vl", image_size=168, dtype=kind)
    before, after = start.vlm.state_dict(), policy.vlm.state_dict()
    learned = {k: v for k, v in after.items() if "lora_" in k}
    base = {k.replace(".base_layer", ""): v for k, v in after.items() if k not in learned}
    assert base.keys() == before.keys() and all(v.dtype == kind and torch.equal(v, before[k]) for k, v in base.items())
    assert all(v.dtype == torch.float32 for v in learned.values())
    assert any(v.abs().max() > 1e-3 for k, v in learned.items() if "lora_B" in k)  # where it starts at 0

    # the reference is the adapter switched off: at the first update that is the policy itself
    assert rows[0]["kl"] == 0 and rows[0]["grad_norm"] > 0 and rows[1]["kl"] > 0

    # of the weights, the checkpoint holds the adapter and nothing else
    assert [p.name for p in (out / "final").glob("*.safetensors")] == ["adapter_model.safetensors"]
    saved = load_file(out / "final" / "adapter_model.safetensors")
    names = {k: k.removeprefix("base_model.model.").replace(".weight", ".default.weight") for k in saved}
    assert set(names.values()) == learned.keys() and all(torch.equal(saved[k], learned[names[k]]) for k in saved)

    # so does from_pretrained, with the adapter on
    plain = dict(AutoModelForImageTextToText.from_pretrained(out / "final").state_dict())
    found = {k: v for k, v in plain.items() if "lora_" in k}
    assert found.keys() == learned.keys() and all(torch.equal(found[k].float(), learned[k]) for k in found)

    # evaluate.py reads it back: the same greedy answers, which are not those of the start
    recipe, held = load_recipe(out / "final"), data.load("jsonl", folder, "val")
    loaded = models.load_policy(str(out / "final"), image_size=recipe.image_size, dtype=kind)
    texts = answers(policy, held, recipe)
    assert texts == answers(loaded, held, recipe) and texts != answers(start, held, recipe)
    heldout = json.loads((out / "heldout.json").read_text())
    segmenter = models.load_segmenter(recipe.segmenter)
    after = {k: v for k, v in heldout["after"].items() if k != "requests"}  # a digest of what was asked
    assert after == evaluate.evaluate(loaded, segmenter, held, recipe)

    # the seed alone decides where an adapter starts
    new = [build(recipe, Accelerator())[0].state_dict() for _ in range(2)]
    assert all(torch.equal(new[0][k], new[1][k]) for k in new[0]) and any("lora_A" in k for k in new[0])

    # killed after a step and resumed: the same adapter and figures, bit for bit
    cut = tmp_path / "cut"
    shutil.copytree(out, cut, ignore=shutil.ignore_patterns("checkpoint-2", "final"))
    again = go(folder, cut, *LORA, *more, "--max_steps", "2", "--resume")
    assert_same(rows, again)
    resumed = load_file(cut / "final" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[k], saved[k]) for k in saved)


def test_the_lines_of_the_document_merge_an_adapter(tmp_path, go, monkeypatch):
    """As they stand, with the miniature's paths in them. Then a model like any other, which gives the same answers."""
    folder, out, policy, _ = with_lora(tmp_path, go, monkeypatch, "--max_steps", "1")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "lora.md").read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if "merge_and_unload" in block]
    whole = tmp_path / "merged"
    paths = {"Qwen/Qwen2.5-VL-7B-Instruct": "toy/qwen2_5_vl", "runs/drseg/final": out / "final", "merged": whole}
    for there, here in paths.items():
        assert f'"{there}"' in lines
        lines = lines.replace(f'"{there}"', repr(str(here)))
    exec(lines, {})
    recipe, held = load_recipe(out / "final"), data.load("jsonl", folder, "val")
    merged = models.load_policy(str(whole), image_size=recipe.image_size)
    assert not any("lora_" in k for k in merged.vlm.state_dict())
    assert answers(merged, held, recipe) == answers(policy, held, recipe)

    # an adapter taken for a whole model would train the weights beside it, and not save them
    with pytest.raises(SystemExit, match="is a LoRA of rank 4, and --lora_rank is 0.*merge it first"):
        go(folder, tmp_path / "full", "--model", str(out / "final"))
    # KL's reference is the adapter switched off, which is not where a run that starts from an adapter begins
    with pytest.raises(SystemExit, match="is a LoRA, which KL would not see: merge it first"):
        go(folder, tmp_path / "second", *LORA, "--model", str(out / "final"))
    with pytest.raises(SystemExit, match="trains the context module alone: leave --lora_rank out"):
        go(folder, tmp_path / "third", "--recipe", "lens-align", "--lora_rank", "4")


# --------------------------------------------------------------------------------------------------------- command line


def test_mistaken_options_are_said_in_a_sentence(tmp_path, go):
    folder = draw(tmp_path / "data")
    with pytest.raises(SystemExit, match=r"--tiers \(0.5, 0.7\) and --tier_rewards \(2.0, 3.0, 4.0\) differ in number"):
        go(folder, tmp_path / "run", "--recipe", "samr1", "--tiers", "0.5", "0.7")
    stage = r"(?s)could not load the policy .*stage before makes: python train.py --recipe lens-align --toy"
    with pytest.raises(SystemExit, match=stage):
        go(folder, tmp_path / "run", "--recipe", "lens", "--model", "runs/nowhere/final")


def test_every_switch_of_the_table_is_one():
    """The table of what papers and code do differently names options; each is taken, and changes something."""
    table = (ROOT / "docs" / "choices.md").read_text().split("## Paper and released code")[1].split("\n## ")[0]
    switches = [(row, switch) for row in table.splitlines() for switch in re.findall(r"`(--[^`]+)`", row)]
    assert len(switches) >= 8
    for row, switch in switches:
        name = "lens" if "LENS" in row else "drseg"
        recipe, _ = train.parse_command_line(["--recipe", name, *switch.split()])
        assert recipe != recipes.RECIPES[name], switch


def test_a_sample_that_breaks_when_drawn_is_replaced_by_the_next_and_counted(tmp_path, go, capsys, monkeypatch):
    """--allow_bad 1: the step goes on with the sample that follows in the epoch's order, the others stay in place."""
    folder, out = draw(tmp_path / "data"), tmp_path / "run"
    broken = read_at(1, 1, 6, 2)
    path = folder / f"train-{broken}.jpg"
    path.write_bytes(path.read_bytes()[:2000])
    monkeypatch.setattr("engine.check.deep", lambda sample: None)  # as if it were none of those looked at closely
    more = ["--prompts_per_step", "2", "--max_steps", "3", "--beta", "0", "--allow_bad", "1"]
    assert [row["step"] for row in go(folder, out, *more)] == [1, 2, 3]
    said = capsys.readouterr()
    assert (said.out + said.err).count(f"left out: picture cannot be read: {path}") == 1

    recipe = recipes.Recipe(prompts_per_step=2)
    order = list(range(6))
    run = SimpleNamespace(order=order, recipe=recipes.miniature(recipe), samples=data.load("jsonl", folder), broken={})
    run.recipe = dataclasses.replace(run.recipe, prompts_per_step=2, allow_bad=1)
    follow = list(train.read_order(order, run.recipe, 1, 1))
    assert follow[0] == broken and sorted(follow) == order
    assert [index for index, _ in train.draw(run, 1, [0, 1])] == [
        next(train.read_order(order, run.recipe, 1, 0)),
        follow[1],
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_resumed_nothing_differs(tmp_path, go, monkeypatch, capsys, number):
    """The handler in place, the signal sent within step 2; then the command that was said."""
    folder, whole, cut = draw(tmp_path / "data", n=4), tmp_path / "whole", tmp_path / "cut"
    found = signal.getsignal(number)  # in the background SIGINT may be ignored
    more = "--prompts_per_step 2 --max_steps 3 --eval_split train --rank raw --learning_rate 1e-3".split()
    rows = go(folder, whole, *more)
    step = train.training_step

    def struck(run, n):
        if n == 1:
            os.kill(os.getpid(), number)
        return step(run, n)

    monkeypatch.setattr(train, "training_step", struck)
    with pytest.raises(SystemExit) as end:
        go(folder, cut, *more)
    assert end.value.code == 128 + number and len(metrics(cut)) == 2
    assert re.search(
        r"stopped after step 2 of 3, and saved. To go on: python train.py .*--resume", capsys.readouterr().out
    )
    assert signal.getsignal(number) is found
    monkeypatch.setattr(train, "training_step", step)
    shutil.copytree(cut / "checkpoint-2", tmp_path / "alone" / "checkpoint-2")
    again = go(folder, cut, *more, "--resume")
    assert_same(rows, again)
    a, b = (load_file(out / "final" / "model.safetensors") for out in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    # a checkpoint that was copied alone goes on, too; a folder without one is refused, and what lies there is named
    assert [row["step"] for row in go(folder, tmp_path / "alone", *more, "--resume")] == [3]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").touch()
    with pytest.raises(SystemExit, match="no complete checkpoint in .*none, where there lies notes.txt"):
        go(folder, tmp_path / "none", *more, "--resume")


def test_the_best_checkpoint_of_a_held_out_set_of_its_own_is_kept_and_vision_may_stay(tmp_path, go, capsys):
    """Scored every step on another set than is trained on; `best` is the step of the highest gIoU, bit for bit."""
    folder, other, out = draw(tmp_path / "data", n=4), draw(tmp_path / "other", "val", 2), tmp_path / "run"
    more = "--prompts_per_step 2 --max_steps 3 --keep 9 --learning_rate 1e-3 --rank raw --freeze_vision True".split()
    more += ["--eval_samples", "2", "--eval_dataset", "jsonl", "--eval_data_root", str(other), "--eval_every", "1"]
    with open(other / "val.jsonl", "a", encoding="utf-8") as file:
        file.write('{"image": "none.png", "query": "it", "boxes": [[1, 1, 9, 9]]}\n')
    go(folder, out, *more)
    said = capsys.readouterr().out
    assert "held out, not scored: 0 wrong samples, 1 skipped entry of the data\n" in said and "none.png" in said
    scores = json.loads((out / "heldout.json").read_text())
    assert list(scores) == ["before", "1", "2", "after"]
    best = train.best_of(scores)
    assert scores[best]["giou"] == max(s["giou"] for when, s in scores.items() if when != "before")
    assert f"best: {out / 'best'}, {best}" in said
    step = {"after": "3"}.get(best, best)
    kept, there = (load_file(out / name / "model.safetensors") for name in ("best", f"checkpoint-{step}"))
    assert all(torch.equal(kept[k], there[k]) for k in there) and not (out / "best" / "trainer.pt").exists()
    start = load_file(ROOT / "toy" / "qwen2_5_vl" / "model.safetensors")
    moved = {k for k in start if not torch.equal(there[k], start[k].float())}
    assert moved and not any("visual" in k for k in moved)


def test_a_run_killed_while_it_was_scored_is_scored_when_it_goes_on_and_best_outlives_more_steps(
    tmp_path, go, monkeypatch
):
    """Killed in the last score, a run had none; gone on with, it forgot its "after", and best/ became a worse one."""
    folder, out = draw(draw(tmp_path / "data", n=4), "val", 2), tmp_path / "run"
    more = "--prompts_per_step 2 --eval_samples 2 --eval_every 1 --learning_rate 1e-3 --rank raw".split()
    scores = []

    def scored(*_args, **_kw):
        if (giou := scores.pop(0)) is None:
            raise KeyboardInterrupt
        return {"n": 2, "mask_n": 2, "giou": giou, "answerable_n": 2, "answerable_giou": giou}

    monkeypatch.setattr(evaluate, "evaluate", scored)
    for steps, gious in ((2, [0.1, None]), (2, [0.5, None]), (2, [0.9]), (2, []), (3, [0.7])):
        scores[:] = gious
        with pytest.raises(SystemExit) if None in gious else contextlib.nullcontext():
            go(folder, out, *more, "--max_steps", str(steps), *["--resume"] * out.exists())
        assert not scores
    assert metrics(out)[-1]["learning_rate"] > 0  # it had come down to 0 at the second step of two
    heldout = json.loads((out / "heldout.json").read_text())
    assert {when: s["giou"] for when, s in heldout.items()} == {"before": 0.1, "1": 0.5, "2": 0.9, "after": 0.7}
    best, two, three = (load_file(out / f / "model.safetensors") for f in ("best", "checkpoint-2", "checkpoint-3"))
    assert all(torch.equal(best[k], two[k]) for k in two) and any(not torch.equal(two[k], three[k]) for k in two)


def test_alignment_is_scored_where_some_of_what_is_held_out_has_no_mask(tmp_path, go):
    """A line of boxes alone, which every other recipe takes, ended the run."""
    folder, out = draw(draw(tmp_path / "data", n=2), "val", 1), tmp_path / "run"
    with open(folder / "val.jsonl", "a", encoding="utf-8") as file:
        file.write('{"image": "val-0.jpg", "query": "the blue diamond", "boxes": [[9, 9, 60, 60]]}\n')
    more = "--recipe lens-align --num_queries 3 --prompts_per_step 2 --max_steps 1 --eval_samples 2"
    go(folder, out, *more.split())
    after = json.loads((out / "heldout.json").read_text())["after"]
    assert (after["n"], after["mask_n"]) == (2, 1) and 0 <= after["giou_true_text"] <= 1


def test_scoring_every_step_without_anything_held_out(tmp_path, go, capsys):
    """What the recipes of the papers have: the run ended at the first step to be scored, in an IndexError."""
    assert (
        len(
            go(
                draw(tmp_path / "data", n=2),
                tmp_path / "run",
                *"--prompts_per_step 2 --eval_every 1 --max_steps 2".split(),
            )
        )
        == 2
    )
    assert "--eval_every 1: nothing is held out" in (said := capsys.readouterr().out) and "best:" not in said


def test_the_next_commands_can_be_pasted():
    """Paths with a space are quoted, and what was held out from another set is evaluated on that."""
    recipe = recipes.Recipe(dataset="jsonl", data_root="my data", eval_samples=9)
    said = journal.what_next(Path("my runs/final"), recipe)
    assert "--model 'my runs/final' --dataset jsonl --data_root 'my data' --split val\n" in said
    other = dataclasses.replace(recipe, eval_dataset="toy")
    assert "--model final --dataset toy --split val\n" in journal.what_next(Path("final"), other)
    alone = journal.what_next(
        Path("final"), dataclasses.replace(recipe, eval_samples=0)
    )  # is there a val? nobody knows
    assert "--dataset" not in alone and "--image PHOTO.jpg" in alone
    toy = journal.what_next(Path("final"), dataclasses.replace(recipe, dataset="toy", data_root="", eval_samples=0))
    assert "--dataset toy --split val" in toy and "PHOTO" not in toy  # who knows drawn shapes knows no photographs


def test_several_gpus_shard_by_themselves_where_all_weights_learn(monkeypatch):
    monkeypatch.setattr(run, "on_gpus", lambda: True)
    whole = recipes.RECIPES["drseg"]
    assert run.sharding(whole) is None  # one process
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert run.sharding(whole).fsdp_version == 2
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)  # the plugin may have set it
    others = (
        recipes.RECIPES["lens"],
        *(dataclasses.replace(whole, **f) for f in ({"lora_rank": 8}, {"shard": "never"})),
    )
    assert all(run.sharding(recipe) is None for recipe in others)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # a config file has said how
    assert run.sharding(whole) is None


def test_what_cannot_shard_a_policy_here_is_refused_by_name(monkeypatch, tmp_path):
    recipe = recipes.miniature(recipes.RECIPES["drseg"])
    for said, why in (
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP 1 is not supported: set fsdp_version: 2"),
    ):
        with monkeypatch.context() as patch:
            for name, value in said.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit, match=why):
                run.launch(recipe, tmp_path, None)


def test_no_backward_pass_goes_through_a_tower_that_does_not_learn():
    from accelerate import Accelerator

    changes = dict(gradient_checkpointing=True, freeze_vision=True)
    policy, _ = run.build(
        dataclasses.replace(recipes.miniature(recipes.RECIPES["drseg"]), **changes), Accelerator(cpu=True)
    )
    sample = data.load("toy", split="val")[0]
    prompts = policy.encode([sample.image], ["Where?"])
    seen = []
    policy.vlm.model.visual.register_forward_hook(lambda module, given, out: seen.append(out.pooler_output))
    logp, _, _ = policy(policy.pack(prompts, [(0, [torch.tensor(policy.tokens("<think>"))])]))
    assert logp.requires_grad and not seen[0].requires_grad
    logp.sum().backward()
    learning = [p for p in policy.vlm.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning) and len(learning) > 10


def test_a_file_named_stop_ends_a_run_after_its_step_and_is_taken_away(tmp_path, go, capsys):
    folder = draw(tmp_path / "data")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()  # left by a run that has ended by itself: no reason to stop this one
    real, seen = train.training_step, []

    def step(run, number):
        assert not (tmp_path / "run" / "stop").exists()
        seen.append(number)
        if number == 1:
            (tmp_path / "run" / "stop").touch()
        return real(run, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "training_step", step)
        with pytest.raises(SystemExit) as stopped:
            go(folder, tmp_path / "run", "--max_steps", "5")
    assert stopped.value.code == 0 and seen == [0, 1]
    assert (tmp_path / "run" / "checkpoint-2").is_dir() and not (tmp_path / "run" / "stop").exists()
    assert "stopped after step 2 of 5, and saved" in capsys.readouterr().out


def test_a_start_that_another_run_refuses_leaves_its_stop_file(tmp_path, go):
    folder, out = draw(tmp_path / "data"), tmp_path / "run"
    go(folder, out, "--max_steps", "1")
    (out / "stop").touch()
    with files.lock(out), pytest.raises(SystemExit, match="another run is writing"):
        go(folder, out, "--max_steps", "2", "--resume")
    assert (out / "stop").exists()


def test_processes_train_on_what_all_of_them_can_read(monkeypatch):
    """A disk that failed one process once gave it another order and another number of steps: both hung at the end."""
    monkeypatch.setattr("engine.check.gather_object", lambda own: [[4, 0, 2, 3], [4, 2, 3], [0, 4, 3]])
    assert agreed([4, 0, 2, 3]) == [4, 3] == agreed([4, 2, 3])
    monkeypatch.setattr("engine.check.gather_object", lambda own: [[4, 0], [2]])
    with pytest.raises(data.BadData, match="do all see the same disk"):
        agreed([4, 0])


def test_the_order_of_an_epoch_is_one_permutation_of_its_samples():
    """Against the plain way: the whole order permuted, then turned to the place."""
    recipe, order = recipes.Recipe(prompts_per_step=3, seed=5), [7, 3, 9, 1]
    for step, place in [(0, 0), (1, 2), (5, 1)]:
        at = step * 3 + place
        plain = np.roll(np.random.default_rng([5, at // 4]).permutation(order), -(at % 4)).tolist()
        assert list(train.read_order(order, recipe, step, place)) == plain


def test_between_samplings_the_replica_has_no_memory(tmp_path, go, monkeypatch):
    """In bf16 there is one; its storage is empty at the update, and the next step's samples fit the policy again."""
    held, update = [], train.update

    def look(accelerator, policy, *rest):
        held.append([p.data.untyped_storage().size() for p in seen[0].replica.parameters()])
        return update(accelerator, policy, *rest)

    seen, step = [], train.training_step
    monkeypatch.setattr(train, "training_step", lambda run, n: (seen.append(run), step(run, n))[1])
    monkeypatch.setattr(train, "update", look)
    more = "--prompts_per_step 2 --max_steps 2 --dtype bfloat16 --beta 0".split()
    rows = go(draw(tmp_path / "data", n=2), tmp_path / "run", *more)
    assert len(rows) == 2 and len(held) == 2 and not any(map(sum, held)) and rows[1]["gap"] < 0.1
    with seen[0].writing() as writer:  # the policy as it is now, in 16 bits, and not as it was when the run began
        for (name, p), (_, q) in zip(
            writer.vlm.named_parameters(), seen[0].unwrapped.vlm.named_parameters(), strict=True
        ):
            assert torch.equal(p, q.to(torch.bfloat16)), name


def late(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=1))
    waiting.patient()
    if rank == 0:
        time.sleep(3)
    waiting.wait_for_the_slowest()
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_others_wait_for_what_the_first_process_does_alone_longer_than_for_anything_else():
    torch.multiprocessing.spawn(late, (20000 + (os.getpid() + 29) % 20000,), nprocs=2)
