"""What lies in folders: the recipe of a checkpoint, and the records of a benchmark run.

Files, all of them text:

    CKPT/recipe.json              how the checkpoint is asked and read
    OUT/run.json                  what was evaluated, and how
    OUT/metrics.json              every metric
    OUT/predictions.jsonl         one record a line (inference.make_record), appended while the run goes on
    OUT/predictions.N.jsonl       ... by process N of several; merged at the end, or when the run is taken up again
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import data
from model import Policy
from recipes import Recipe

# ---------------------------------------------------------------------------------------------------------- checkpoints


def save_recipe(recipe: Recipe, policy: Policy, folder: str | Path) -> None:
    """Write recipe.json into a checkpoint: the run's settings, and in which coordinates its model writes."""
    extra = {"family": policy.family, "space": data.FAMILIES[policy.family]}
    Path(folder, "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe) | extra, indent=1))


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
    saved = json.loads(path.read_text())
    family, space = saved.pop("family"), saved.pop("space")
    recipe = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
    model = Path(folder, "config.json")  # a LoRA's folder has none: it names the model that it belongs to
    config = json.loads(model.read_text())["model_type"] if model.exists() else family
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


def fingerprint(folder: str | Path) -> str | None:
    """Eight characters that change with a checkpoint's weights (the ends of its files are read); None for a Hub id."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:8] if files else None


# ------------------------------------------------------------------------------------------------------ a benchmark run


def write_atomically(path: Path, text: str) -> None:
    """The file whole, or as it was: never half of it."""
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def claim(folder: Path, run: dict) -> None:
    """Write run.json, or check that the predictions already in the folder are of this very run (else data.BadData)."""
    folder.mkdir(parents=True, exist_ok=True)
    path, run = folder / "run.json", json.loads(json.dumps(run))  # as it comes back from the file: tuples are lists
    there = json.loads(path.read_text()) if path.exists() else run
    if differ := {k: v for k, v in run.items() if there.get(k) != v}:
        what = [k if isinstance(v, dict) else f"{k}: {there.get(k)!r} there, {v!r} here" for k, v in differ.items()]
        what = "; ".join(what)
        raise data.BadData(f"{folder} has another run's predictions ({what}). Delete it, or name another --output_dir.")
    write_atomically(path, json.dumps(run, indent=1))


def load_samples(run: dict) -> data.Samples:
    """The samples that a run.json speaks of; the records' "index" counts in them."""
    root, one = run["data_root"] or None, run["one_expression"]
    return data.load(run["dataset"], root, run["split"], one_expression=one, seed=run["seed"])


def choose(samples: data.Samples, make_up: Sequence[int], limit: int, seed: int) -> list[int]:
    """Indices of a seeded draw, ascending: of make_up = (with, without target) samples, then of `limit`; 0 is all."""
    chosen, rng = np.arange(len(samples)), np.random.default_rng(seed)
    if any(make_up):
        empty = np.array([sample.no_target for sample in samples], dtype=bool)
        kinds = np.flatnonzero(~empty), np.flatnonzero(empty)
        if any(len(kind) < n for kind, n in zip(kinds, make_up, strict=True)):
            raise data.BadData(f"--make_up {tuple(make_up)} is more than there are: {tuple(map(len, kinds))}.")
        chosen = np.concatenate([rng.permutation(kind)[:n] for kind, n in zip(kinds, make_up, strict=True)])
    return sorted((rng.permutation(chosen)[:limit] if limit else chosen).tolist())


def read_records(path: str | Path) -> list[dict]:
    """The records of a predictions.jsonl, without a torn last line, which an interruption leaves."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except ValueError as error:
        raise data.BadData(f"{path} is no predictions.jsonl ({error}). Delete it to start again.") from None


def merge_records(folder: Path) -> list[dict]:
    """All that is answered, by whichever process, into predictions.jsonl, in the samples' order. One process calls it.

    Before a run it takes up what an earlier one left, and after a run it collects. Stopped half-way it can be called
    again: what is in two files counts once.
    """
    parts = list(folder.glob("predictions*.jsonl"))
    records = {record["index"]: record for part in parts for record in read_records(part)}
    records, merged = [records[i] for i in sorted(records)], folder / "predictions.jsonl"
    write_atomically(merged, "".join(json.dumps(record) + "\n" for record in records))
    for part in parts:
        if part != merged:
            part.unlink()
    return records
