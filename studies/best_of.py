# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What does reinforcement sharpen? One greedy answer beside the best of k sampled ones, before and after.

python -m studies.best_of runs/drseg-0/final                 # beside it the model that it started from
python -m studies.best_of runs/drseg-0/final --n 16 --split test

If the best of many samples is as good before as after, the policy could do it all along, and training has made likely
what was rare. What no sample showed before, and some do after, would be new.
"""

from __future__ import annotations

import argparse
from math import comb

import numpy as np

import data
import evaluate
import model as models
from engine.checkpoint import load_recipe
from recipes import usable


def best_of(ious: np.ndarray, k: int) -> float:
    """Mean over requests of the expected best of k samples, from n >= k of each: ious (R, n) in [0, 1].

    Without bias: of the C(n, k) sets of k samples, C(i, k - 1) have the i-th smallest (from 0) as their best.

    >>> best_of(np.array([[0.0, 1.0, 0.0, 0.0]]), 2)  # one of four is right: half of the pairs have it
    0.5
    """
    n = ious.shape[1]
    share = np.array([comb(i, k - 1) for i in range(n)]) / comb(n, k)
    return float((np.sort(ious, 1) * share).sum(1).mean())


def drawn(model: str, recipe, samples, chosen: list[int], n: int) -> tuple[float, np.ndarray]:
    """(mean IoU of greedy answers, IoU of n answers sampled at the recipe's temperature: (R, n))."""
    policy = models.load_policy(model, image_size=recipe.image_size).eval()
    segmenter = policy.segmenter or models.load_segmenter(recipe.segmenter)

    def ious(temperature: float, seed: int) -> list[float]:
        how = {"indices": chosen, "temperature": temperature, "seed": seed, "batch_size": 50}
        return [r["iou"] for r in evaluate.answer_samples(policy, segmenter, samples, recipe, **how)]

    return float(np.mean(ious(0.0, 0))), np.array([ious(recipe.temperature, seed) for seed in range(n)]).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints of train.py")
    parser.add_argument("--n", type=int, default=8, help="samples of each request")
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    recipe = load_recipe(args.models[0])
    samples = data.load(recipe.dataset, recipe.data_root, args.split)
    chosen, _ = usable(samples, recipe)  # what its format has words for
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= args.n]
    best = "".join(f" | best of {k}" for k in ks[1:])
    print(f"| {recipe.name}, {len(chosen)} requests | greedy | a sample{best} |")
    print("|---" * (len(ks) + 2) + "|")
    for model in [recipe.model, *args.models]:
        greedy, sampled = drawn(model, recipe, samples, chosen, args.n)
        cells = [f"{100 * value:.1f}" for value in (greedy, *(best_of(sampled, k) for k in ks))]
        print(f"| {model} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
