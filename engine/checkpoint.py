# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Checkpoints: written whole or not at all, found again, compared with what a run asks for.

checkpoint-N/              weights, config, processor (Hugging Face's format); LoRA's or LENS's files
checkpoint-N/recipe.json   how the checkpoint was trained, is asked and is read
checkpoint-N/trainer.pt    optimizer, schedule, rank queue, step: what --resume needs beside the weights, and beside the
                           output folder's metrics.jsonl and heldout.json
final/, best/              the last one and (--eval_every) the one of the highest held-out gIoU, without trainer.pt
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

import data
import recipes
from engine.files import link_or_copy
from model import Policy
from recipes import Recipe


def save(
    folder: Path,
    policy: Policy,
    recipe: Recipe,
    weights: Callable[[], dict[str, Tensor] | None],
    state: Callable[[], dict],
) -> None:
    """Write a checkpoint whole or not at all: to a temporary name, then rename. The Hugging Face format, plus
    trainer.pt to go on from.

    weights: gives the full state dict where the policy is sharded, None where it is whole; state: gives what trainer.pt
    holds. They are asked one after the other, and each is let go of when written: a 7B's weights are 33 GB, Adam's
    state 66. Raises OSError (disk full) with the last good checkpoint untouched.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    # LENS's alignment leaves the VLM as it was: its files get a second name, where gigabytes would be written again.
    same = newest(folder.parent) if recipe.train == "context" else None
    try:
        policy.save(part, weights(), vlm=same is None)
        for file in sorted(same.iterdir()) if same else ():
            if re.fullmatch(r"(generation_)?config\.json|model[-\w]*\.safetensors(\.index\.json)?", file.name):
                link_or_copy(file, part / file.name)
        save_recipe(recipe, policy, part)
        torch.save(state(), part / "trainer.pt")
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"could not write the checkpoint {folder}: {error}. "
            "The one before it is untouched; free some space and --resume."
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def all_of(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; half-written ones (.part) do not count."""
    found = [p for p in output_dir.glob("checkpoint-*") if re.fullmatch("checkpoint-[0-9]+", p.name)]
    return sorted((p for p in found if (p / "trainer.pt").exists()), key=lambda p: int(p.name.split("-")[1]))


def newest(output_dir: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next(reversed(all_of(output_dir)), None)


# What --resume cannot change: it lives in the optimizer's state, the queue, or the shape of what learns; KL holds on to
# the model that the run started from; and seed, prompts and updates say what a step's number stands for, in the data
# and in the learning rate.
KEPT = (
    "seed",
    "prompts_per_step",
    "updates_per_rollout",
    "model",
    "learning_rate",
    "weight_decay",
    "queue_size",
    "train",
    "lora_rank",
    "num_queries",
    "connector",
    "collapse",
    "tune_decoder",
)


def to_go_on_from(output_dir: Path, resume: bool) -> Path | None:
    """The checkpoint that a run in this folder goes on from; None for a new one. A folder holds one run: nothing is
    mixed with what lies there, and nothing written over. SystemExit, with what to do, otherwise."""
    last = newest(output_dir)
    if last and not resume:
        raise SystemExit(f"{output_dir} holds a run already ({last.name}): --resume it, or name another --output_dir")
    kept = [p for p in sorted(output_dir.glob("*")) if re.fullmatch(r"final|best|checkpoint-[0-9]+", p.name)]
    if kept and not last and (not resume or output_dir / "final" in kept):
        there = "a finished run" if output_dir / "final" in kept else f"{kept[0].name} of another run"
        raise SystemExit(f"{output_dir} holds {there}, and no checkpoint to resume: name another --output_dir")
    if resume and not last:
        there = ", ".join(sorted(p.name for p in output_dir.iterdir())) if output_dir.is_dir() else ""
        raise SystemExit(
            f"--resume: no complete checkpoint in {output_dir}, where there lies {there or 'nothing'}. "
            "Name the run's folder, or start anew without --resume"
        )
    return last


def compare(folder: Path, recipe: Recipe) -> list[str]:
    """Names of the settings that differ from the checkpoint's. SystemExit if one of them is in KEPT."""
    saved, now = (dataclasses.asdict(r) for r in (load_recipe(folder), recipe))
    other = [name for name, value in now.items() if saved[name] != value]
    if stuck := [f"--{name} {saved[name]}" for name in other if name in KEPT]:
        raise SystemExit(
            f"{folder} was trained with {', '.join(stuck)}: resume it so, or start anew with --model {folder}"
        )
    return other


def history(folder: Path, step: int, steps: int) -> tuple[list[dict], dict]:
    """What a run of `steps` steps has written beside its checkpoint `folder`: metrics.jsonl's rows and scores up to
    `step`. Nothing of what is not there (a checkpoint that was copied alone). data.BadData for a damaged file.

    Where the run had ended there and now goes on, the score "after" becomes that of `step`.
    """
    rows = folder.parent / "metrics.jsonl"
    scores = folder.parent / "heldout.json"
    try:
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
        kept = [row for row in map(json.loads, lines[:step]) if row["step"] <= step]
        heldout = json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else {}
        ended = "after" in heldout and len(lines) == len(kept)  # else it is of a later step
        names = {"after": ("after" if step == steps else str(step)) if ended else ""}
        names |= {k: k for k in heldout if k == "before" or (k.isdigit() and int(k) <= step)}
        return kept, {names[k]: v for k, v in heldout.items() if names.get(k)}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise data.BadData(f"metrics.jsonl or heldout.json in {folder.parent} is damaged ({error})") from None


def finish(output_dir: Path, steps: int, name: str = "final") -> Path:
    """A checkpoint once more as final/ (or best/), whole, without what only --resume needs."""
    final, part = output_dir / name, output_dir / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(output_dir / f"checkpoint-{steps}", part, ignore=shutil.ignore_patterns("trainer.pt"))
    shutil.rmtree(final, ignore_errors=True)
    return part.replace(final)


# -------------------------------------------------------------------------------------------------- the recipe's file


def save_recipe(recipe: Recipe, policy: Policy, folder: str | Path) -> None:
    """Write recipe.json into a checkpoint: the run's settings, and in which coordinates its model writes."""
    extra = {"family": policy.family, "space": data.FAMILIES[policy.family]}
    Path(folder, "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe) | extra, indent=1), encoding="utf-8")


def load_recipe(folder: str | Path, override: Recipe | None = None) -> Recipe:
    """The recipe of a checkpoint folder; for a model that has none (a Hub id, base weights) it is `override`.

    Raises data.BadData, with a sentence that says why, if `override` would have the checkpoint asked or read otherwise
    than it was trained: another schema, picture size or family. Swapped frames give plausible boxes in wrong places.
    """
    path = Path(folder, "recipe.json")
    if not path.exists():
        if override is None:
            raise data.BadData(f"{folder} has no recipe.json that says how to ask it: name a recipe with --recipe.")
        return override
    model = Path(folder, "config.json")  # a LoRA's folder has none: it names the model that it belongs to
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        family = saved.pop("family")
        space = saved.pop("space")
        if "num_samples" in saved:  # its name before 0.2 was whole
            saved["num_generations"] = saved.pop("num_samples")
        recipe = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
        config = json.loads(model.read_text(encoding="utf-8"))["model_type"] if model.exists() else family
        recipes.check(recipe)
        if config not in data.FAMILIES:
            raise ValueError(f"no such family: {config!r}")
    except (data.BadData, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise data.BadData(f"{path} is not what train.py writes beside a model ({error})") from None
    checks = [("family", family, config, "config.json"), ("space", space, data.FAMILIES[config], "config.json")]
    if override is not None:
        checks += [(f, getattr(recipe, f), getattr(override, f), "--recipe") for f in ("schema", "image_size")]
        # The family is in the name of the policy that a recipe starts from; a folder's name need not tell.
        named = [f for f in data.FAMILIES if f in re.sub("[-.]", "_", override.model.lower())]
        checks += [("family", family, f, "--recipe") for f in named]
    for what, there, here, whose in checks:
        if there != here:
            raise data.BadData(
                f"{folder} was trained with {what} {there!r}, and {whose} says {here!r}: its answers would be misread. "
                "Leave --recipe out to use the checkpoint's own."
            )
    return recipe


def weights_digest(folder: str | Path) -> str | None:
    """Eight characters that change with a checkpoint's weights (the ends of its files are read); None for a Hub id."""
    digest = hashlib.sha256()
    files = sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:8] if files else None
