"""Writes docs/before-after.jpg: the first held-out requests of the miniature, answered before and after a training run.

python docs/make_before_after.py runs/drseg-toy/final
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib.pyplot as plt

import data
import inference
import judge
import model as models
import pictures
from recipes import RECIPES, miniature


def main(trained: str, n: int = 6) -> None:
    recipe = miniature(RECIPES["drseg"])
    segmenter, held = models.load_segmenter(recipe.segmenter), data.load("toy", None, "test")
    samples = [held[i] for i in judge.usable(held, recipe)[0][:n]]  # the first ones, not the best ones
    figure, axes = plt.subplots(2, n, figsize=(2 * n, 4.6), constrained_layout=True)
    for row, (when, folder) in enumerate({"before": recipe.model, "after": trained}.items()):
        policy = models.load_policy(folder, image_size=recipe.image_size)
        found = inference.predict(policy, segmenter, samples, recipe, range(n))
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
    figure.savefig(Path(__file__).with_name("before-after.jpg"), dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(sys.argv[1])
