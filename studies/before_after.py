# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Held-out requests of the miniature, answered before and after a training run, and on the way.

    python -m studies.before_after runs/drseg-toy             # docs/before-after.jpg, from its final/
    python -m studies.before_after runs/drseg-film --film     # docs/training.gif, a frame per checkpoint-N

The requests are chosen by rule: of the test split, the first of each kind that Dr. Seg can answer, and the second
"all". What is not in the mask is pale, what it misses is dotted, what it takes in wrongly is hatched. Under each answer
stand the IoU of its mask and that of its boxes: the policy writes boxes and points, and SAM2, which forgives a loose
box, draws the mask.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import lines, patches, patheffects
from PIL import Image

import data
import model as models
import recipes
import rewards
from engine import checkpoint
from evaluate import Prediction, predict
from recipes import RECIPES, Recipe, miniature, usable

DOCS = Path(__file__).resolve().parents[1] / "docs"
KINDS = ("one", "all", "all", "size", "place", "implicit")
HALO = [patheffects.withStroke(linewidth=3, foreground="white")]  # of boxes, points and numbers


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


def draw(axis, image: Image.Image, truth: np.ndarray, mask: np.ndarray, objects: list) -> float:
    """The mask that SAM2 made of `objects` (with box, points, negative_points, in pixels) on a picture, beside the
    true one, both (H, W) bool; returns their IoU. Where there are several, boxes and points have numbers."""
    h, w = truth.shape
    pixels = np.asarray(image).astype(float)
    pixels[~mask] = 0.3 * pixels[~mask] + 0.7 * 255
    axis.imshow(pixels.astype(np.uint8), extent=(0, w, h, 0))
    at = np.arange(w) + 0.5, np.arange(h) + 0.5
    axis.contour(*at, truth, [0.5], colors="black", linestyles=":", linewidths=1.2)
    for wrong, hatch in ((mask & ~truth, "//////"), (truth & ~mask, "....")):
        if wrong.any():
            axis.contourf(*at, wrong, [0.5, 1.5], colors="none", hatches=[hatch])
    for i, o in enumerate(objects, 1):
        x1, y1, x2, y2 = o.box
        axis.plot(
            [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="black", linewidth=1.3, path_effects=HALO, clip_on=False
        )
        places = [(x1, y1)] if len(objects) > 1 else []
        for points, mark in ((o.points, "k+"), (o.negative_points, "kx")):
            for x, y in points:
                axis.plot(x, y, mark, markersize=7, path_effects=HALO)
                places += [(x, y)] if len(objects) > 1 else []
        for x, y in places:
            axis.annotate(str(i), (x, y), (3, -9), textcoords="offset points", fontsize=8, path_effects=HALO)
    axis.set(xlim=(-2, w + 2), ylim=(h + 2, -2), xticks=[], yticks=[])
    axis.spines[:].set_color("lightgray")
    return models.mask_iou(torch.as_tensor(mask), torch.as_tensor(truth))


def box_iou(sample: data.Sample, prediction: Prediction) -> float:
    """Of the written boxes, each true object's best (rewards.best_box_iou)."""
    recipe = miniature(RECIPES["drseg"])
    size = (sample.width, sample.height)
    target = recipes.to_target(sample, recipe)
    return rewards.best_box_iou(prediction.answer.rescaled(size, target.frame), target)


def legend(figure) -> None:
    """What draw()'s marks mean, under the pictures."""
    line = lambda style, label: lines.Line2D([], [], color="black", linestyle=style, label=label)  # noqa: E731
    marks = [
        patches.Patch(facecolor="seagreen", label="in the mask"),
        patches.Patch(facecolor="white", hatch="....", label="missed"),
        patches.Patch(facecolor="white", hatch="//////", label="in the mask, wrongly"),
        line(":", "true outline"),
        line("-", "box, as written (1, 2: in that order)"),
        lines.Line2D([], [], color="black", marker="+", linestyle="", label="its point"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9, frameon=False)


def sheet(rows: dict[str, list[Prediction]], samples: data.Samples):
    """A figure with a row of answers per name."""
    n = len(samples)
    figure, axes = plt.subplots(
        len(rows), n, figsize=(1.9 * n, 2.15 * len(rows) + 0.7), constrained_layout=True, squeeze=False
    )
    for row, (name, found) in zip(axes, rows.items(), strict=True):
        ious = [
            draw(axis, s.image, s.mask, p.mask, p.answer.instances)
            for axis, s, p in zip(row, samples, found, strict=True)
        ]
        boxes = [box_iou(s, p) for s, p in zip(samples, found, strict=True)]
        for axis, iou, box in zip(row, ious, boxes, strict=True):
            axis.set_xlabel(f"mask {iou:.2f}, box {box:.2f}", fontsize=10)
        mean = f"IoU, mean of these:\nmask {np.mean(ious):.2f}, box {np.mean(boxes):.2f}"
        row[0].set_ylabel(f"{name}\n{mean}", fontsize=10)
    for axis, sample in zip(axes[0], samples, strict=True):
        axis.set_title("\n".join(textwrap.wrap(f"“{sample.query}”", 19)), fontsize=10)
    legend(figure)
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
    frames = []
    for folder in [recipe.model, *checkpoint.all_of(args.run)]:
        step = 0 if folder == recipe.model else int(folder.name.removeprefix("checkpoint-"))
        figure = sheet({f"step {step}": answers(folder, samples, recipe)}, samples)
        shot = io.BytesIO()
        figure.savefig(shot, dpi=80)
        plt.close(figure)
        frames.append(Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE))
    pauses = [1500, *[450] * (len(frames) - 2), 3000]  # milliseconds
    frames[0].save(DOCS / "training.gif", save_all=True, append_images=frames[1:], duration=pauses, loop=0)


if __name__ == "__main__":
    main()
