# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Held-out requests of the miniature, answered before and after a training run, and on the way.

    python -m studies.before_after runs/drseg-toy             # docs/before-after.jpg, from its final/
    python -m studies.before_after runs/drseg-film --film     # docs/training.gif, a frame per checkpoint-N

The requests are chosen by rule: of the test split, the first of each kind that Dr. Seg can answer, and the second
"all". What the mask leaves out is drawn pale. A black line is the written box, a dotted one the true outline, a +
the written point.
"""

from __future__ import annotations

import argparse
import io
import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import patheffects
from PIL import Image

import data
import model as models
from evaluate import Prediction, predict
from recipes import RECIPES, Recipe, miniature, usable

DOCS = Path(__file__).resolve().parents[1] / "docs"
KINDS = ("one", "all", "all", "size", "place", "implicit")
HALO = [patheffects.withStroke(linewidth=3.5, foreground="white")]


def by_rule(recipe: Recipe) -> data.Samples:
    """The first test requests of KINDS."""
    held = data.load("toy", None, "test")
    left = [held[i] for i in usable(held, recipe)[0]]
    chosen = []
    for kind in KINDS:
        chosen.append(next(s for s in left if s.id.endswith(f"/{kind}")))
        left.remove(chosen[-1])
    return chosen


def answers(folder: str | Path, samples: data.Samples, recipe: Recipe) -> list[Prediction]:
    policy = models.load_policy(str(folder), image_size=recipe.image_size)
    return predict(policy, models.load_segmenter(recipe.segmenter), samples, recipe, range(len(samples)))


def draw(axis, sample: data.Sample, p: Prediction) -> float:
    """One answer; returns the IoU of its mask."""
    pixels = np.asarray(sample.image).astype(float)
    pixels[~p.mask] = 0.3 * pixels[~p.mask] + 0.7 * 255
    axis.imshow(pixels.astype(np.uint8), extent=(0, sample.width, sample.height, 0))
    outline = axis.contour(
        np.arange(sample.width) + 0.5, np.arange(sample.height) + 0.5, sample.mask, [0.5], colors="black"
    )
    outline.set(linestyle=":", linewidth=1.2)
    for o in p.answer.instances:
        x1, y1, x2, y2 = o.box
        axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="black", linewidth=1.5, path_effects=HALO)
        for x, y in o.points:
            axis.plot(x, y, "k+", markersize=7, path_effects=HALO)
    axis.set(xlim=(0, sample.width), ylim=(sample.height, 0), xticks=[], yticks=[])
    return models.mask_iou(*(torch.as_tensor(m) for m in (p.mask, sample.mask)))


def sheet(rows: dict[str, list[Prediction]], samples: data.Samples):
    """A figure with a row of answers per name."""
    n = len(samples)
    figure, axes = plt.subplots(
        len(rows), n, figsize=(1.9 * n, 2.15 * len(rows) + 0.5), constrained_layout=True, squeeze=False
    )
    for row, (name, found) in zip(axes, rows.items(), strict=True):
        ious = [draw(axis, s, p) for axis, s, p in zip(row, samples, found, strict=True)]
        for axis, iou in zip(row, ious, strict=True):
            axis.set_xlabel(f"IoU {iou:.2f}", fontsize=10)
        row[0].set_ylabel(f"{name}\nmean IoU {np.mean(ious):.2f}", fontsize=11)
    for axis, sample in zip(axes[0], samples, strict=True):
        axis.set_title("\n".join(textwrap.wrap(f"“{sample.query}”", 19)), fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, of --recipe drseg --toy")
    parser.add_argument("--film", action="store_true", help="a frame per checkpoint instead of before and after")
    args = parser.parse_args()
    recipe = miniature(RECIPES["drseg"])
    samples = by_rule(recipe)
    if not args.film:
        final = args.run / "final"
        folders = {"before": recipe.model, "after": final if final.exists() else args.run}
        rows = {name: answers(folder, samples, recipe) for name, folder in folders.items()}
        sheet(rows, samples).savefig(DOCS / "before-after.jpg", dpi=110, pil_kwargs={"quality": 88})
        return
    folders = {int(re.search(r"\d+$", f.name)[0]): f for f in args.run.glob("checkpoint-*")} | {0: recipe.model}
    frames = []
    for step, folder in sorted(folders.items()):
        figure = sheet({f"step {step}": answers(folder, samples, recipe)}, samples)
        shot = io.BytesIO()
        figure.savefig(shot, dpi=80)
        plt.close(figure)
        frames.append(Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE))
    pauses = [1500, *[450] * (len(frames) - 2), 3000]  # milliseconds
    frames[0].save(DOCS / "training.gif", save_all=True, append_images=frames[1:], duration=pauses, loop=0)


if __name__ == "__main__":
    main()
