# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Do a policy's masks follow the words? Two objects of one picture, each asked for by its own sentence.

python -m studies.words runs/lens-toy/final      # or toy/qwen2_5_vl, before any training
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import model as models
from engine.checkpoint import load_recipe
from evaluate import predict
from recipes import RECIPES, miniature
from toy import world


def words(folder: Path) -> str:
    """One line of figures.

    Held-out pictures with two objects of different colour or shape. A pair counts as moved if the mask for "the A" has
    more IoU with A than with B, and the mask for "the B" more with B.
    """
    if (folder / "recipe.json").exists():
        recipe = load_recipe(folder)
    else:
        recipe = miniature(RECIPES["genseg" if folder.name == "qwen3_vl" else "drseg"])
    policy = models.load_policy(str(folder), image_size=recipe.image_size)
    segmenter = policy.segmenter or models.load_segmenter(recipe.segmenter)
    pairs = []
    seed, count = world.TOY_SPLITS["test"]
    for i in range(count):
        scene = world.toy_scene(seed, i)
        kinds = [(o["color"], o["shape"]) for o in scene["objects"]]
        alone = [k for k, kind in enumerate(kinds) if kinds.count(kind) == 1]
        if len(alone) >= 2:
            asked = [scene | {"query": "the {} {}".format(*kinds[k]), "targets": [k]} for k in alone[:2]]
            pairs.append([world.scene_sample(s, f"words-{i}") for s in asked])
    moved = []
    ious = []
    for i in range(0, len(pairs), 16):
        samples = [s for pair in pairs[i : i + 16] for s in pair]
        found = predict(policy, segmenter, samples, recipe, range(len(samples)))
        masks = [torch.as_tensor(p.mask) for p in found]
        true = [torch.as_tensor(s.mask) for s in samples]
        for a in range(0, len(samples), 2):
            own = [models.mask_iou(masks[a + j], true[a + j]) for j in (0, 1)]
            other = [models.mask_iou(masks[a + j], true[a + 1 - j]) for j in (0, 1)]
            moved.append([mine > others for mine, others in zip(own, other, strict=True)])
            ious += own
    both = np.all(moved, 1).sum()
    each = np.sum(moved)
    return (
        f"{both} of {len(moved)} pairs moved with their words ({each} of {2 * len(moved)} masks are nearer to what was "
        f"asked for); IoU with what was asked for {np.mean(ious):.3f}"
    )


if __name__ == "__main__":
    print(words(Path(sys.argv[1])))
