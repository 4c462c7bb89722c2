"""The figures that the papers print, to stand beside a run's own; and how either is written for people.

TABLES is typed off the papers line by line; a test looks every row up in the papers' text.
"""

from __future__ import annotations

import re

# What the papers print, in percent, to stand beside a run's own figures. A heading names paper and table, then
# benchmarks (with a "/"), each with its metrics; "unnamed" where the paper does not say which of its metrics it is.
# Rows for others' methods are as that paper gives them. GenSeg's gRefCOCO is a draw of 642 + 358 (--make_up 642 358).
TABLES = """
LENS Table 1: refcoco/val ciou refcoco/testA ciou refcoco/testB ciou
  LENS-2B 80.7 82.7 77.1
  LENS-3B 84.2 85.3 81.0
LENS Table 1: refcoco+/val ciou refcoco+/testA ciou refcoco+/testB ciou refcocog/val ciou refcocog/test ciou
  LENS-2B 73.8 78.0 67.3 75.7 76.4
  LENS-3B 79.4 82.8 74.3 81.2 81.0
LENS Table 2: reasonseg/val giou ciou reasonseg/test giou ciou groundingsuite/val giou ciou
  LENS-3B 62.1 64.9 57.2 58.0 67.0 78.3
SAM-R1 Table 1: reasonseg/val giou ciou reasonseg/test giou ciou
  SAM-R1 64.0 55.8 60.2 54.3
SAM-R1 Table 2: refcoco/testA unnamed refcoco+/testA unnamed refcocog/test unnamed
  SAM-R1 79.2 74.7 73.1
SAM-R1 Table 3 (boxes): reasonseg/test unnamed
  SAM-R1 63.8
GenSeg-R1 Table 2: refcocog/val ciou miou p50 p70 p90
  VisionReasoner-7B 65.30 69.66 76.80 65.33 31.60
  Seg-Zero-7B 67.94 71.55 79.13 68.52 33.93
  GENSEG-R1-4B 70.62 73.18 81.66 71.20 35.33
  GENSEG-R1-8B 71.27 73.82 82.32 73.14 35.45
GenSeg-R1 Table 3: refcocog/val box_miou ap ap50 ap75
  VisionReasoner-7B 79.67 71.49 85.81 76.02
  GENSEG-R1-4B 81.01 73.47 87.80 78.90
  GENSEG-R1-8B 80.28 72.77 87.17 78.35
GenSeg-R1 Table 5: grefcoco/val target_miou target_ciou n_acc
  Seg-Zero-7B 66.11 65.90 0.00
  GENSEG-R1-4B 75.58 75.54 79.05
  GENSEG-R1-G 76.69 76.83 82.40
GenSeg-R1 Table 6: reasonseg/test miou ciou
  Seg-Zero-7B 61.41 55.63
  GENSEG-R1-G 65.93 57.83
  GENSEG-R1-4B 68.40 62.73
Dr. Seg Table 2: refcoco/testA giou refcoco+/testA giou refcocog/test giou
  Qwen2.5-VL 79.9 76.8 72.8
  VisionReasoner 79.0 75.3 72.5
  Dr. Seg 80.2 76.8 74.2
Dr. Seg Table 2: reasonseg/val giou reasonseg/test giou coconut/val giou
  Qwen2.5-VL 56.9 52.1 31.8
  VisionReasoner 65.5 61.5 78.1
  Dr. Seg 67.8 65.6 79.6
Dr. Seg Table 3 Pixmo: counting/val count_acc counting/test count_acc
  VisionReasoner 70.1 69.5
  Dr. Seg 74.6 72.4
Dr. Seg Table 3 CountBench: counting/test count_acc
  VisionReasoner 87.6
  Dr. Seg 91.5
Dr. Seg Table 7: coco-detection/val ap ap50 precision recall f1
  VisionReasoner 37.7 57.3 62.6 63.9 63.3
  Dr. Seg 40.1 59.0 69.6 64.3 66.8
Dr. Seg Table 12: refcoco/val box_acc refcoco/testA box_acc refcoco+/val box_acc refcoco+/testA box_acc
  VisionReasoner 88.6 90.6 83.6 87.9
  Dr. Seg 89.4 91.5 83.6 88.0
Dr. Seg Table 12: refcocog/val box_acc refcocog/test box_acc
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
            row = {m: float(v) for (b, m), v in zip(columns, values, strict=True) if b == benchmark}
            found.setdefault(benchmark, []).append((method, source, row))
    return found


PUBLISHED = published_rows(TABLES)


def as_text(name: str, value: float | None) -> str:
    """A metric for people: counts as they are, mean lengths with two decimals, fractions in percent."""
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return f"{value:.2f}" if name.startswith(("length_", "looks")) else f"{100 * value:.2f}"


def beside(dataset: str, split: str) -> tuple[list, list[str]]:
    """The published rows for a benchmark (none for most), and every metric that some row has, in order."""
    rows = PUBLISHED.get(f"{dataset}/{split}", [])
    return rows, list(dict.fromkeys(metric for _, _, row in rows for metric in row))


def show(metrics: dict, dataset: str, split: str) -> str:
    """The metrics as text, one a line; then the papers' rows for this benchmark, with this run's below them."""
    lines = [f"{dataset} {split}", *(f"  {name:28}{as_text(name, value):>10}" for name, value in metrics.items())]
    rows, columns = beside(dataset, split)
    if rows:
        lines += ["", f"  {'published, percent':46}" + "".join(f"{c:>13}" for c in columns)]
        for method, source, row in rows:
            lines.append(f"  {method:20}{source:26}" + "".join(f"{row.get(c, '-'):>13}" for c in columns))
        lines.append(f"  {'this run':46}" + "".join(f"{as_text(c, metrics.get(c)):>13}" for c in columns))
    return "\n".join(lines)
