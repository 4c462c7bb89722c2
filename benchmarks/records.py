# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What a benchmark run leaves in its folder, and reads again: its records, and what they are of.

OUT/run.json                  what was evaluated, and how
OUT/metrics.json              every metric
OUT/predictions.jsonl         one record a line (evaluate.make_record), appended while the run goes on
OUT/predictions.N.jsonl       ... by process N of several; merged at the end, or when the run is taken up again
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import data
from benchmarks.metrics import iou_of
from engine.files import regular, write_atomically


def claim(folder: Path, run: dict) -> None:
    """Write run.json, or check that the predictions already in the folder are of this very run (else data.BadData)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    run = json.loads(json.dumps(run))  # as it comes back from the file: tuples are lists
    there = read_run(folder) if path.exists() else run
    if differ := {k: v for k, v in run.items() if there.get(k) != v}:
        what = [k if isinstance(v, dict) else f"{k}: {there.get(k)!r} there, {v!r} here" for k, v in differ.items()]
        what = "; ".join(what)
        raise data.BadData(f"{folder} has another run's predictions ({what}). Delete it, or name another --output_dir.")
    write_atomically(path, json.dumps(run, indent=1))


def load_samples(run: dict) -> data.Samples:
    """The samples that a run.json speaks of; the records' "index" counts in them."""
    root = run["data_root"]
    one = run["one_expression"]
    return data.load(run["dataset"], root, run["split"], one_expression=one, seed=run["seed"])


def choose(samples: data.Samples, make_up: Sequence[int], limit: int, seed: int) -> list[int]:
    """Indices of a seeded draw, ascending: of make_up = (with, without target) samples, then of `limit`; 0 is all."""
    chosen = np.arange(len(samples))
    rng = np.random.default_rng(seed)
    if any(make_up):
        kinds: tuple[list[int], list[int]] = [], []
        for i in range(len(samples)):
            with contextlib.suppress(data.BadData):  # of no kind, then
                kinds[samples[i].no_target].append(i)
        if any(len(kind) < n for kind, n in zip(kinds, make_up, strict=True)):
            raise data.BadData(f"--make_up {tuple(make_up)} is more than there are: {tuple(map(len, kinds))}.")
        shuffled = [rng.permutation(np.array(kind, dtype=int)) for kind in kinds]  # of none, too
        chosen = np.concatenate([kind[:n] for kind, n in zip(shuffled, make_up, strict=True)])
    return sorted((rng.permutation(chosen)[:limit] if limit else chosen).tolist())


MASKS = ("mask", "truth_mask", "ignore_mask")
_RLE = {"size": [int, 2], "counts": str}
# What each field of a record may be: a type (float: any finite number), None; a list of one kind, of one length if
# that is named; a dict with these keys; a tuple of alternatives.
KINDS = {
    **dict.fromkeys(("id", "image_id", "query", "text", "thought"), str),
    **dict.fromkeys(("truth_none", "answer_ok", "think_ok", "predicted_none", "answerable"), bool),
    "is_sentence": (bool, None),
    **dict.fromkeys(("index", "width", "height", "length"), int),
    **dict.fromkeys(("count", "intersection", "union", "area"), (int, None)),
    **dict.fromkeys(("truth_boxes", "boxes", "crowds"), [[float, 4]]),
    **dict.fromkeys(("points", "negative_points"), [[[float, 2]]]),
    **dict.fromkeys(MASKS, (_RLE, None)),
    "iou": (float, None),
    "looks": [str],
}


def _fits(value, kind) -> bool:
    """Is a value from a JSON file of this kind (see KINDS)? True is no number, and NaN and 1e999 are none either."""
    if isinstance(kind, tuple):
        return any(_fits(value, k) for k in kind)
    if isinstance(kind, list):
        right = isinstance(value, list) and (len(kind) == 1 or len(value) == kind[1])
        return right and all(_fits(v, kind[0]) for v in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and value.keys() == kind.keys() and all(_fits(value[k], kind[k]) for k in kind)
    if kind is float and type(value) is float:
        return math.isfinite(value)
    if kind in (int, float) and type(value) is int:
        return abs(value) < 2**53  # beyond that, sums of pixels and areas are not what they seem
    return value is None if kind is None else type(value) is kind


def _fault(record) -> str | None:
    """What is wrong with a record, or None. A file may come from a stranger: metrics and report trust what is read."""
    if not isinstance(record, dict):
        return "it is no record"
    if wrong := [k for k, kind in KINDS.items() if k not in record or not _fits(record[k], kind)]:
        return f"{wrong[0]!r} is {record.get(wrong[0], 'missing')!r:.60}"
    size = [record["height"], record["width"]]
    if min(record["width"], record["height"]) < 1 or min(record["index"], record["length"], record["count"] or 0) < 0:
        return "a size or a count is below what it can be"
    if any(record[k] is not None and record[k]["size"] != size for k in MASKS):
        return "a mask is not of the picture's size"
    if broken := [fault for k in MASKS if record[k] is not None and (fault := data.rle_fault(record[k]))]:
        return broken[0]
    pixels = [record[k] for k in ("intersection", "union", "area", "iou")]
    if any(v is None for v in pixels):
        return None if pixels == [None] * 4 else "some of intersection, union, area and iou are missing"
    both, either, area, iou = pixels
    right = 0 <= both <= area <= either and iou == iou_of(both, either, record["predicted_none"])
    return None if right else "intersection, union, area and iou disagree"


def read_records(path: str | Path) -> list[dict]:
    """The records of a predictions.jsonl, without a torn last line, which an interruption leaves. Every field is of its
    kind (KINDS), whoever wrote the file; data.BadData, with file, line and field, if not."""
    lines = Path(regular(path)).read_bytes().splitlines(keepends=True)
    found: list[dict] = []
    there: set[int] = set()
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            continue
        try:
            found.append(json.loads(line))
            fault = _fault(found[-1])
            if not fault and found[-1]["index"] in there:  # it would count twice
                fault = f"a second answer to sample {found[-1]['index']}"
            there |= {found[-1]["index"]} if not fault else set()
        except (ValueError, RecursionError) as error:
            fault = str(error)
        if fault:
            raise data.BadData(
                f"{path}, line {number}: {fault}. This version writes no such record: delete the file to start again."
            )
    return found


def read_run(folder: Path) -> dict:
    """OUT/run.json; data.BadData if it is no JSON, or lacks what the records cannot be read without."""
    path = folder / "run.json"
    try:
        run = json.loads(regular(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise data.BadData(f"{path} is no JSON ({error}).") from None
    kinds = dict.fromkeys(("dataset", "split", "data_root", "model"), str)
    kinds |= {"one_expression": bool, "seed": int, "recipe": dict, "versions": dict}
    for key, kind in kinds.items():
        if not isinstance(run, dict) or not isinstance(run.get(key), kind):
            raise data.BadData(f"{path} has no {key!r} of the kind that evaluate.py writes.")
    return run


def is_of(record: dict, sample: data.Sample) -> bool:
    """Is a record an answer to this sample, as its data are today? Query, picture and truth are compared."""
    fields = {k: getattr(sample, k) for k in ("id", "image_id", "query", "width", "height", "count")}
    fields |= {"truth_none": bool(sample.no_target), "truth_boxes": sample.boxes.tolist()}
    fields |= {"is_sentence": sample.is_sentence, "crowds": sample.crowds}
    if any(record[k] != v for k, v in fields.items()):
        return False
    truths = (record["truth_mask"], sample.mask), (record["ignore_mask"], sample.ignore)
    if record["truth_mask"] is None:  # masks were not asked for, maybe
        truths = truths[1:]
    return all(there == (None if mask is None else data.encode_rle(mask)) for there, mask in truths)


def _still(record: dict, samples: data.Samples, index: int) -> bool:
    try:
        return index < len(samples) and is_of(record, samples[index])
    except data.BadData:
        return False


def _places(samples: data.Samples) -> dict[str, int]:
    """The index of each sample that can be read, by its id."""
    places = {}
    for i in range(len(samples)):
        with contextlib.suppress(data.BadData):
            places[samples[i].id] = i
    return places


def merge_records(folder: Path, samples: data.Samples | None = None) -> list[dict]:
    """All that is answered, by whichever process, into predictions.jsonl, in the samples' order. One process calls it.
    samples: what is not of these, since the data were edited, is dropped and said.

    Before a run it takes up what an earlier one left, and after a run it collects. Stopped half-way it can be called
    again: what is in two files counts once. Files of other names (predictions.old.jsonl) are somebody's, and stay.
    """
    merged = folder / "predictions.jsonl"
    parts = [p for p in folder.iterdir() if re.fullmatch(r"predictions(\.\d+)?\.jsonl", p.name)]
    records = {record["index"]: record for part in parts for record in read_records(part)}
    records = [records[i] for i in sorted(records)]
    if samples is not None:
        kept = {r["index"]: r for r in records if _still(r, samples, r["index"])}
        if stale := [r for r in records if r["index"] not in kept]:
            places = _places(samples)  # where a picture has gone or come, the samples behind it have moved
            moved = [r | {"index": places[r["id"]]} for r in stale if r["id"] in places]
            kept |= {r["index"]: r for r in moved if _still(r, samples, r["index"])}
        if lost := len(records) - len(kept):
            gone = data.plural(lost, "answer")
            print(f"dropped: {gone} to samples that have changed since; what is chosen of them is asked again")
        records = [kept[i] for i in sorted(kept)]
    write_atomically(merged, "".join(json.dumps(record) + "\n" for record in records))
    for part in parts:
        if part != merged:
            part.unlink()
    return records
