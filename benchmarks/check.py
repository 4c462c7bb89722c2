# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""`python data.py --check`: count what a data set holds, try its pictures, draw what was read; with --recipe, what its
training would say before step 0."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import data
from benchmarks import pictures
from engine.check import CLOSELY, deep, examine, oddities, trait
from engine.files import console
from recipes import RECIPES, check_ranges

MARKS = (
    "magenta: true mask and boxes; green dots: points on it, as given or made of the mask; red crosses: points beside "
    "it but in its box, made of the mask; dark: pixels that do not count; [nothing]: nothing there fits; [3]: how many "
    "there are; red words: what is wrong"
)


def contact_sheet(chosen: Sequence[tuple[data.Sample, str]], cell: int = 320) -> Image.Image:
    """Samples, four to a row, with id, request and what is wrong ("": nothing) under each. At the foot stands what the
    marks mean."""
    legend = textwrap.wrap(MARKS, 4 * cell // 7)  # a letter of size 11 is 5 to 6 pixels wide
    rows = -(-len(chosen) // 4) * (cell + 50)
    sheet = Image.new("RGB", (4 * cell, rows + 15 * len(legend) + 5), "white")
    for i, (s, wrong) in enumerate(chosen):
        x, y = i % 4 * cell + 5, i // 4 * (cell + 50) + 5
        size = tuple(max(1, round(side * (cell - 10) / max(s.width, s.height))) for side in (s.width, s.height))
        given = s.positive_points(2) if s.object_masks or s.points.shape[1] else None
        away = s.negative_points(2)
        both = (s.mask, s.ignore)
        marks = [xy if xy is None else data.to_frame(xy, (s.width, s.height), size) for xy in (s.boxes, given, away)]
        mask, ignore = [m if m is None else np.asarray(Image.fromarray(m).resize(size, 0)) for m in both]
        sheet.paste(pictures.overlay(s.image.resize(size), mask, None, *marks, ignore), (x, y))
        said = s.query + (" [nothing]" if s.no_target else "") + (f" [{s.count}]" if s.count is not None else "")
        said = f"{s.id}: {wrong or said}"
        text = "\n".join(textwrap.wrap(said, 50)[:3])
        colour = "red" if wrong else "black"
        ImageDraw.Draw(sheet).multiline_text((x, y + size[1] + 2), text, colour, ImageFont.load_default(12), spacing=2)
    ImageDraw.Draw(sheet).multiline_text((5, rows), "\n".join(legend), "blue", ImageFont.load_default(11), spacing=2)
    return sheet


def check(samples: data.Samples, out: Path, limit: int) -> list[str]:
    """Print what was read, hold a seeded `limit` of it against its pictures and masks, save a contact sheet; returns a
    line for each sample that training and evaluation would refuse."""
    objects: Counter = Counter()
    seen: set[str] = set()  # pictures
    empty = masked = 0
    bad: list[str] = []
    drawable: list[tuple[data.Sample, str]] = []  # wrong, and can be shown
    good: list[int] = []
    traits: list[tuple] = []
    closely = set(np.random.default_rng(0).permutation(len(samples))[:limit].tolist())
    for i in tqdm(range(len(samples)), "reading", leave=False, mininterval=1, disable=None):
        try:
            s = samples[i]
        except data.BadData as error:
            bad.append(str(error))
            continue
        objects[len(s.boxes)] += 1
        seen.add(s.image_id)
        empty += s.no_target
        masked += bool(s.object_masks)
        traits.append(trait(s))
        try:
            if i in closely:
                deep(s)
                good.append(i)
        except data.BadData as error:
            bad.append(f"{s.id}: {error}")
            drawable.append((s, str(error)))
    count = sum(objects.values())
    there = f"{data.plural(count, 'sample')} on {data.plural(len(seen), 'picture')}"
    print(f"{there}; {masked} with masks; {empty} with nothing to find")
    print("objects per sample: " + ", ".join(f"{n}: {count}" for n, count in sorted(objects.items())))
    print(f"{len(closely)} held against their pictures; {len(bad)} wrong; {len(samples.skipped)} skipped")
    for line in (
        [f"  look: {line}" for line in oddities(traits)]
        + [f"  wrong: {line}" for line in bad]
        + [f"  skipped: {line}" for line in samples.skipped]
    ):
        print(line)
    shown = []
    for s, why in drawable:
        with contextlib.suppress(data.BadData):  # a picture that cannot be opened is named above
            s.open()
            shown.append((s, why))
    shown = shown[:6]
    if good:  # the others spread over the dataset
        spread = np.unique(np.linspace(0, len(good) - 1, 12 - len(shown)).astype(int))
        shown += [(samples[good[i]], "") for i in spread]
    if shown:
        out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(shown).save(out)
        print(f"look at {out}; its foot says what each mark means")
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
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="say, too, what training it would say before step 0")
    parser.add_argument("--out", type=Path, help="the sheet (default: runs/check-DATASET-SPLIT.png)")
    parser.add_argument("--limit", type=int, default=CLOSELY, help="how many samples to hold against their pictures")
    args = parser.parse_args()
    out = args.out or Path("runs", f"check-{args.dataset}-{args.split}.png")
    if out.suffix.lower() not in Image.registered_extensions():
        parser.error(f"--out {out}: a picture's name, such as sheet.png")
    try:
        check_ranges(vars(args))
        recipe = RECIPES[args.recipe] if args.recipe else None
        how = {"one_expression": recipe.one_expression, "seed": recipe.seed} if recipe else {}
        samples = data.load(args.dataset, args.data_root, args.split, **how)
        bad = check(samples, out, args.limit)
        if recipe:
            named = {"dataset": args.dataset, "data_root": args.data_root or "", "split": args.split}
            examine(samples, None, dataclasses.replace(recipe, **named), main=True, said=bad)
        sys.exit(1 if bad else 0)
    except (data.BadData, OSError) as error:
        sys.exit(str(error))
