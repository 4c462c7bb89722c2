# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The figures that the papers print, to stand beside a run's own; and how either is written for people.

TABLES is typed off the papers line by line; a test looks every row up in the papers' text.
"""

from __future__ import annotations

import re

import data

# What the papers print, in percent, to stand beside a run's own figures: their own rows, and those of the baselines
# that can be run here, the untrained Instruct models among them. A heading names paper and table, then benchmarks (with
# a "/"), each with its metrics; "unnamed" where the paper does not say which of its metrics it is, "-" where a row has
# no figure. SAM-R1's Table 2 does not name its metric; its Tables 4 and 5 give the same 73.1 as cIoU. GenSeg's gRefCOCO
# is a draw of 642 + 358 (--make_up 642 358). docs/evaluation.md has a command for each.
TABLES = """
LENS Table 1: refcoco/val ciou refcoco/testA ciou refcoco/testB ciou
  Seg-Zero-3B - 79.3 -
  Seg-Zero-7B - 80.3 -
  LENS-2B 80.7 82.7 77.1
  LENS-3B 84.2 85.3 81.0
LENS Table 1: refcoco+/val ciou refcoco+/testA ciou refcoco+/testB ciou refcocog/val ciou refcocog/test ciou
  Seg-Zero-3B - 73.7 - 71.5 -
  Seg-Zero-7B - 76.2 - 72.6 -
  LENS-2B 73.8 78.0 67.3 75.7 76.4
  LENS-3B 79.4 82.8 74.3 81.2 81.0
LENS Table 2: reasonseg/val giou ciou reasonseg/test giou ciou groundingsuite/val giou ciou
  Seg-Zero-3B 58.2 53.1 56.1 48.6 67.3 68.9
  LENS-3B 62.1 64.9 57.2 58.0 67.0 78.3
SAM-R1 Table 1: reasonseg/val giou ciou reasonseg/test giou ciou
  Qwen2.5VL-3B 53.8 44.1 47.6 37.4
  Seg-Zero* 62.0 52.0 58.3 53.4
  SAM-R1 64.0 55.8 60.2 54.3
SAM-R1 Table 2: refcoco/testA ciou refcoco+/testA ciou refcocog/test ciou
  Seg-Zero* 79.2 73.9 73.3
  SAM-R1 79.2 74.7 73.1
SAM-R1 Table 3 (boxes): reasonseg/test unnamed
  SAM-R1 63.8
SAM-R1 Table 5: reasonseg/test giou ciou refcocog/test giou ciou
  GRPO 57.8 51.2 74.1 71.8
  Token-level 58.0 51.7 74.5 72.4
  Clip higher 59.1 52.8 74.9 72.5
  Ours 60.2 54.3 75.4 73.1
GenSeg-R1 Table 2: refcocog/val ciou miou p50 p70 p90
  Qwen2.5-VL-7B-Instruct 50.99 52.76 58.41 51.15 25.34
  Qwen3-VL-4B-Instruct 50.19 48.90 54.53 48.85 23.36
  Qwen3-VL-8B-Instruct 55.96 51.88 58.34 51.92 26.04
  Seg-R1-3B 62.94 67.24 74.70 65.41 31.29
  VisionReasoner-7B 65.30 69.66 76.80 65.33 31.60
  Seg-R1-7B 66.07 70.14 78.24 67.74 31.99
  Seg-Zero-7B 67.94 71.55 79.13 68.52 33.93
  GENSEG-R1-4B 70.62 73.18 81.66 71.20 35.33
  GENSEG-R1-8B 71.27 73.82 82.32 73.14 35.45
GenSeg-R1 Table 3: refcocog/val box_miou ap ap50 ap75
  Qwen3-VL-4B-Instruct 53.01 47.45 57.02 50.49
  Qwen3-VL-8B-Instruct 55.46 49.81 59.93 53.25
  Qwen2.5-VL-7B-Instruct 58.26 51.62 62.73 55.15
  Seg-R1-7B 74.52 62.94 82.16 70.15
  VisionReasoner-7B 79.67 71.49 85.81 76.02
  Seg-Zero-7B 80.00 71.97 - -
  GENSEG-R1-4B 81.01 73.47 87.80 78.90
  GENSEG-R1-8B 80.28 72.77 87.17 78.35
GenSeg-R1 Table 5: grefcoco/val target_miou target_ciou n_acc
  Seg-Zero-7B 66.11 65.90 0.00
  Seg-R1-7B 69.51 69.02 0.00
  GENSEG-R1-4B 75.58 75.54 79.05
  GENSEG-R1-G 76.69 76.83 82.40
GenSeg-R1 Table 6: reasonseg/test miou ciou
  Seg-R1-7B 57.75 48.93
  Seg-Zero-7B 61.41 55.63
  GENSEG-R1-G 65.93 57.83
  GENSEG-R1-4B 68.40 62.73
Dr. Seg Table 2: refcoco/testA giou refcoco+/testA giou refcocog/test giou
  Qwen2-VL 68.7 65.7 63.5
  Qwen2.5-VL 79.9 76.8 72.8
  Seg-Zero 80.3 76.2 72.6
  VisionReasoner 78.9 74.9 71.3
  VisionReasoner* 79.0 75.3 72.5
  Dr. Seg 80.2 76.8 74.2
Dr. Seg Table 2: reasonseg/val giou reasonseg/test giou coconut/val giou
  Qwen2-VL 44.5 38.7 9.8
  Qwen2.5-VL 56.9 52.1 31.8
  Seg-Zero 62.6 57.5 69.3
  VisionReasoner 66.3 63.6 78.1
  VisionReasoner* 65.5 61.5 78.1
  Dr. Seg 67.8 65.6 79.6
Dr. Seg Table 3 Pixmo: counting/val count_acc counting/test count_acc
  Qwen2-VL 29.9 48.0
  Qwen2.5-VL 63.3 67.9
  VisionReasoner 70.1 69.5
  Dr. Seg 74.6 72.4
Dr. Seg Table 3 CountBench: counting/test count_acc
  Qwen2-VL 76.5
  Qwen2.5-VL 76.0
  VisionReasoner 87.6
  Dr. Seg 91.5
Dr. Seg Table 7: coco-detection/val ap ap50 precision recall f1
  Qwen2-VL 28.3 43.5 72.1 41.3 52.5
  Qwen2.5-VL 29.2 47.6 72.4 46.6 56.7
  VisionReasoner 37.7 57.3 62.6 63.9 63.3
  Dr. Seg 40.1 59.0 69.6 64.3 66.8
Dr. Seg Table 12: refcoco/val box_acc refcoco/testA box_acc refcoco+/val box_acc refcoco+/testA box_acc
  Qwen2-VL 80.8 83.9 72.5 76.5
  Qwen2.5-VL 88.8 91.7 82.3 88.2
  VisionReasoner 88.6 90.6 83.6 87.9
  Dr. Seg 89.4 91.5 83.6 88.0
Dr. Seg Table 12: refcocog/val box_acc refcocog/test box_acc
  Qwen2-VL 77.3 78.2
  Qwen2.5-VL 84.7 85.7
  VisionReasoner 86.1 87.5
  Dr. Seg 88.1 88.0
"""


def published_rows(tables: str) -> dict[str, list[tuple[str, str, dict[str, float]]]]:
    """TABLES, read: "dataset/split" -> rows of (method, source, {metric: percent})."""
    found: dict[str, list] = {}
    for line in tables.strip().splitlines():
        if line[0] != " ":
            source, heading = line.split(": ")
            parts = [part.split() for part in re.split(r"\s(?=\S+/)", heading)]  # a benchmark, then its metrics
            columns = [(benchmark, metric) for benchmark, *metrics in parts for metric in metrics]
            continue
        method, *values = line.strip().rsplit(maxsplit=len(columns))
        for benchmark in dict.fromkeys(b for b, _ in columns):
            row = {m: float(v) for (b, m), v in zip(columns, values, strict=True) if b == benchmark and v != "-"}
            if row:
                found.setdefault(benchmark, []).append((method, source, row))
    return found


PUBLISHED = published_rows(TABLES)

# Sets that the authors released as tables (layouts visionreasoner-test and counting): the name on the Hub, or of a
# folder that holds a copy -> the benchmark that it is, and a word that its rows' source has.
RELEASED = {
    "Ricky06662/ReasonSeg_val": ("reasonseg/val", ""),
    "Ricky06662/ReasonSeg_test": ("reasonseg/test", ""),
    "Ricky06662/refcoco_testA": ("refcoco/testA", ""),
    "Ricky06662/refcocoplus_testA": ("refcoco+/testA", ""),
    "Ricky06662/refcocog_test": ("refcocog/test", ""),
    "hao05/coconut": ("coconut/val", ""),
    "Ricky06662/counting_pixmo_val": ("counting/val", "Pixmo"),
    "Ricky06662/counting_pixmo_test": ("counting/test", "Pixmo"),
}

# Benchmarks whose samples the authors drew, and which a layout draws again by their rule.
RECONSTRUCTED = {
    "coconut/val": "the pictures are drawn by the paper's rule, without its check by hand; its own are hao05/coconut",
    "grefcoco/val": "which 642 + 358 samples the paper drew is not published",
}


def released(dataset: str, data_root: str) -> tuple[str, str] | None:
    """The row of RELEASED that a table at `data_root` is; None for what is no released table."""
    if dataset not in ("visionreasoner-test", "counting"):
        return None
    names = {key: row for name, row in RELEASED.items() for key in (name, name.split("/")[1])}
    return names.get(data_root) or names.get(data_root.rstrip("/").split("/")[-1])


def not_comparable(run: dict) -> str:
    """Why a run's figures are not the published ones' like, from its run.json; "" where they are."""
    name = f"{run['dataset']}/{run['split']}"
    why = [f"a draw of {run['limit']} of its samples"] if run.get("limit") else []
    drawn = tuple(run.get("make_up") or ())
    why += [f"a draw of {' + '.join(map(str, drawn))}"] if any(drawn) and name not in RECONSTRUCTED else []
    why += [f"{data.plural(run['not_read'], 'sample')} could not be read"] if run.get("not_read") else []
    why += ["the answers are the truth"] if run.get("model") == "oracle" else []
    why += ["the masks are true ones"] if run.get("segmenter") == "truth" else []
    why += [RECONSTRUCTED[name]] if name in RECONSTRUCTED else []
    return f"not comparable: {'; '.join(why)}" if why else ""


# A word on each metric (benchmarks/metrics.py defines them), by how it is written: percents, means and counts.
WORDS = {
    "percent": {
        "giou": "mean IoU of the masks",
        "ciou": "pixels in both masks / pixels in either",
        "miou": "mean IoU where something fits",
        "answerable_giou": "giou where it is trained for it",
        "p50": "masks with an IoU of at least 0.5",
        "p70": "... of at least 0.7",
        "p90": "... of at least 0.9",
        "target_miou": "miou, as gRefCOCO calls it",
        "target_ciou": "ciou where something fits",
        "n_acc": "says so, where nothing fits",
        "t_acc": "has a mask, where something fits",
        "short_giou": "giou of ReasonSeg's phrases",
        "short_ciou": "ciou of these",
        "long_giou": "giou of ReasonSeg's sentences",
        "long_ciou": "ciou of these",
        "box_acc": "some box hits a true one: IoU over 0.5",
        "box_miou": "IoU of a true box and the best written one",
        "ap": "COCO's average precision, IoU 0.5 to 0.95",
        "ap50": "... at IoU 0.5",
        "ap75": "... at IoU 0.75",
        "precision": "written boxes that hit, at IoU 0.5",
        "recall": "true boxes that are hit, at IoU 0.5",
        "f1": "precision and recall in one figure",
        "box_right_mask_right": "of the requests with one true box",
        "box_right_mask_wrong": "the mask lost what the box had",
        "box_wrong_mask_right": "the mask mended a wrong box",
        "box_wrong_mask_wrong": "IoU under 0.5 in both",
        "look_share": "answers with a <look> tag",
        "count_acc": "as many boxes as there are objects",
    },
    "on average": {
        "length_tokens": "tokens in an answer",
        "length_words": "words in an answer",
        "looks": "<look> tags in an answer",
    },
    "counted": {
        "n": "requests",
        "n_target": "... where something fits",
        "n_no_target": "... where nothing does",
        "mask_n": "... with a mask to compare",
        "box_n": "... with a true box",
        "answerable_n": "... with a mask, that it is trained for",
        "short_n": "... that are phrases (ReasonSeg)",
        "long_n": "... that are sentences (ReasonSeg)",
        "parse_failures": "answers that could not be read",
        "read_leniently": "... of which a box was taken (LENS)",
        "explicit_empty": "answers that say: nothing fits",
        "false_negatives": "... though something does (GenSeg 4.5)",
        "think_failures": "answers not of the form think, answer",
    },
}


def as_text(name: str, value: float | None) -> str:
    """A metric for people: counts as they are, mean lengths with two decimals, fractions in percent."""
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return f"{value:.2f}" if name in WORDS["on average"] else f"{100 * value:.2f}"


def with_mask(metrics: dict) -> str:
    """The requests that the figures of masks are over, in words: those without a true mask have no part in them."""
    n, asked = metrics.get("mask_n"), metrics["n"]
    return data.plural(asked, "request") if n in (None, 0, asked) else f"the {n} of {asked} requests with a mask"


def explained(metrics: dict) -> dict[str, list[tuple[str, str, str]]]:
    """The metrics for people: under "percent", "on average" and "counted" lines of (name, value, a word on it)."""
    lines = {
        how: [(k, as_text(k, metrics[k]), words[k]) for k in words if k in metrics] for how, words in WORDS.items()
    }
    if 0 < metrics.get("mask_n", 0) < metrics["n"]:
        lines = {f"percent (masks: over {with_mask(metrics)})": lines.pop("percent")} | lines
    return {how: found for how, found in lines.items() if found}


def beside(dataset: str, split: str, data_root: str = "") -> tuple[list, list[str]]:
    """The published rows for a benchmark (none for most), and every metric that some row has, in order."""
    benchmark, word = released(dataset, data_root) or (f"{dataset}/{split}", "")
    rows = [row for row in PUBLISHED.get(benchmark, []) if word in row[1]]
    return rows, list(dict.fromkeys(metric for _, _, row in rows for metric in row))


def show(metrics: dict, run: dict) -> str:
    """The metrics as text in 80 columns; then the papers' rows for this benchmark, with this run's below them, and why
    these are not comparable where they are not. run: what run.json holds."""
    dataset, split = run["dataset"], run["split"]
    lines = [f"{dataset} {split}"]
    if lost := run.get("not_read"):
        lines[0] += f" without {data.plural(lost, 'sample')} that could not be read"
    for how, found in explained(metrics).items():
        lines += [f" {how}", *(f"  {name:22}{value:>8}  {word}" for name, value, word in found)]
    rows, columns = beside(dataset, split, run.get("data_root", ""))
    if rows:
        lines += ["", f"  {'published, percent':46}" + "".join(f"{c:>13}" for c in columns)]
        for method, source, row in rows:
            lines.append(f"  {method:20}{source:26}" + "".join(f"{row.get(c, '-'):>13}" for c in columns))
        lines.append(f"  {'this run':46}" + "".join(f"{as_text(c, metrics.get(c)):>13}" for c in columns))
        if dataset.startswith("refcoco"):  # papers differ in that; docs/evaluation.md says which asks what
            asked = "one sentence of each reference" if run.get("one_expression") else "every sentence"
            lines.append(f"  (this run asked {asked})")
        lines += [f"  ({remark})"] if (remark := not_comparable(run)) else []
    return data.printable("\n".join(lines))
