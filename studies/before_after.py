# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Writes docs/before-after.jpg: the first held-out requests of the miniature, answered before and after a training run.

python -m studies.before_after runs/drseg-toy/final
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import data
import model as models
from benchmarks import pictures
from evaluate import predict
from recipes import RECIPES, miniature, usable

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main(trained: str, n: int = 6) -> None:
    recipe = miniature(RECIPES["drseg"])
    segmenter = models.load_segmenter(recipe.segmenter)
    held = data.load("toy", None, "test")
    samples = [held[i] for i in usable(held, recipe)[0][:n]]  # the first ones, not the best ones
    figure, axes = plt.subplots(2, n, figsize=(2 * n, 4.6), constrained_layout=True)
    for row, (when, folder) in enumerate({"before": recipe.model, "after": trained}.items()):
        policy = models.load_policy(folder, image_size=recipe.image_size)
        found = predict(policy, segmenter, samples, recipe, range(n))
        for axis, sample, p in zip(axes[row], samples, found, strict=True):
            objects = p.answer.instances
            points = [xy for o in objects for xy in o.points]
            axis.imshow(pictures.overlay(sample.image, p.mask, sample.mask, [o.box for o in objects], points))
            union = (p.mask | sample.mask).sum()
            axis.set_xlabel(f"IoU {(p.mask & sample.mask).sum() / max(union, 1):.2f}", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(sample.query, fontsize=8, wrap=True)
        axes[row, 0].set_ylabel(when)
    figure.savefig(DOCS / "before-after.jpg", dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(sys.argv[1])
