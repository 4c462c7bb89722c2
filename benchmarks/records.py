"""What a benchmark run leaves in its folder, and reads again: its records, and what they are of.

OUT/run.json                  what was evaluated, and how
OUT/metrics.json              every metric
OUT/predictions.jsonl         one record a line (evaluate.make_record), appended while the run goes on
OUT/predictions.N.jsonl       ... by process N of several; merged at the end, or when the run is taken up again
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import data
from engine.files import write_atomically


def claim(folder: Path, run: dict) -> None:
    """Write run.json, or check that the predictions already in the folder are of this very run (else data.BadData)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    run = json.loads(json.dumps(run))  # as it comes back from the file: tuples are lists
    there = json.loads(path.read_text()) if path.exists() else run
    if differ := {k: v for k, v in run.items() if there.get(k) != v}:
        what = [k if isinstance(v, dict) else f"{k}: {there.get(k)!r} there, {v!r} here" for k, v in differ.items()]
        what = "; ".join(what)
        raise data.BadData(f"{folder} has another run's predictions ({what}). Delete it, or name another --output_dir.")
    write_atomically(path, json.dumps(run, indent=1))


def load_samples(run: dict) -> data.Samples:
    """The samples that a run.json speaks of; the records' "index" counts in them."""
    root = run["data_root"] or None
    one = run["one_expression"]
    return data.load(run["dataset"], root, run["split"], one_expression=one, seed=run["seed"])


def choose(samples: data.Samples, make_up: Sequence[int], limit: int, seed: int) -> list[int]:
    """Indices of a seeded draw, ascending: of make_up = (with, without target) samples, then of `limit`; 0 is all."""
    chosen = np.arange(len(samples))
    rng = np.random.default_rng(seed)
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
    records = [records[i] for i in sorted(records)]
    merged = folder / "predictions.jsonl"
    write_atomically(merged, "".join(json.dumps(record) + "\n" for record in records))
    for part in parts:
        if part != merged:
            part.unlink()
    return records
