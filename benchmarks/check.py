# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""`python data.py --check`: count what a data set holds, try its pictures, draw what was read."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import data
from benchmarks import pictures
from engine.files import console
from recipes import check_ranges


def contact_sheet(samples: Sequence[data.Sample], cell: int = 320) -> Image.Image:
    """Up to twelve samples, spread over the dataset, four to a row, the request under each."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, 12).astype(int))]
    sheet = Image.new("RGB", (4 * cell, -(-len(chosen) // 4) * (cell + 50)), "white")
    for i, s in enumerate(chosen):
        x, y = i % 4 * cell + 5, i // 4 * (cell + 50) + 5
        size = tuple(max(1, round(side * (cell - 10) / max(s.width, s.height))) for side in (s.width, s.height))
        given = s.positive_points(2) if s.object_masks or s.points.shape[1] else None
        away = s.negative_points(2)
        both = (s.mask, s.ignore)
        marks = [xy if xy is None else data.to_frame(xy, (s.width, s.height), size) for xy in (s.boxes, given, away)]
        mask, ignore = [m if m is None else np.asarray(Image.fromarray(m).resize(size, 0)) for m in both]
        sheet.paste(pictures.overlay(s.image.resize(size), mask, None, *marks, ignore), (x, y))
        said = s.query + (" [nothing]" if s.no_target else "") + (f" [{s.count}]" if s.count is not None else "")
        text = "\n".join(textwrap.wrap(said, 50)[:3])
        ImageDraw.Draw(sheet).multiline_text((x, y + size[1] + 2), text, "black", ImageFont.load_default(12), spacing=2)
    return sheet


def check(samples: data.Samples, out: Path, limit: int) -> list[str]:
    """Print what was read, open the first `limit` pictures, save a contact sheet; returns what was unreadable."""
    objects: Counter = Counter()
    first: dict[str, data.Sample] = {}  # of each picture
    empty = masked = 0
    bad: list[str] = []
    for s in samples:
        objects[len(s.boxes)] += 1
        first.setdefault(s.image_id, s)
        empty += s.no_target
        masked += bool(s.object_masks)
    for s in list(first.values())[:limit]:
        try:
            s.open()
        except data.BadData as error:
            bad.append(str(error))
    print(f"{len(samples)} samples on {len(first)} pictures; {masked} with masks; {empty} with nothing to find")
    print("objects per sample: " + ", ".join(f"{n}: {count}" for n, count in sorted(objects.items())))
    print(f"opened {min(limit, len(first))} pictures: {len(bad)} unreadable; {len(samples.skipped)} entries skipped")
    for line in [f"  unreadable: {line}" for line in bad] + [f"  skipped: {line}" for line in samples.skipped]:
        print(line)
    if not bad:
        contact_sheet(samples).save(out)
        print(f"look at {out}")
    return bad


def main() -> None:
    console()
    parser = argparse.ArgumentParser(description="Count what a dataset holds, try its pictures, draw a contact sheet.")
    parser.add_argument("--check", action="store_true", required=True)
    parser.add_argument(
        "--dataset", required=True, help=f"one of {', '.join(data.LOADERS)}, or several joined by commas"
    )
    parser.add_argument("--data_root")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, default=Path("contact_sheet.png"))
    parser.add_argument("--limit", type=int, default=200, help="how many pictures to open")
    args = parser.parse_args()
    try:
        check_ranges(vars(args))
        sys.exit(1 if check(data.load(args.dataset, args.data_root, args.split), args.out, args.limit) else 0)
    except data.BadData as error:
        sys.exit(str(error))
