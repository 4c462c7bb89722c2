# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Before step 0: do the data fit the recipe, and does their own truth earn its maximum?

A point outside its box, or points and boxes in different units, show here, and not as a reward that stays flat for a
day. examine() is what a run calls.
"""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

import data
import model as models
import recipes
import rewards
from engine.oracle import oracle_answer
from recipes import Recipe

CLOSELY = 1000  # samples that are looked at closely before step 0


def allowed(recipe: Recipe, n: int) -> float:
    """How many of n samples may be broken: one in a hundred may be a slip of the annotators'."""
    return max(recipe.allow_bad, 0.01 * n)


def check_rewards(
    samples: data.Samples, indices: list[int], recipe: Recipe, progress: bool = False
) -> tuple[list[int], list[str]]:
    """Before step 0: does the data's own ground truth, written in the recipe's format, earn the maximum?

    It is written and parsed as a model's text would be; where a mask is judged, its IoU is put in as 1. Returns the
    indices that pass, and a line for each that does not. A point outside its own box, or points and boxes in different
    units, show here, and not as a reward that stays flat for a day. (How the model's own frame is left is not checked
    here: tests do.)
    """
    good, bad = [], []
    for i in tqdm(indices, desc="reward check", disable=not progress, mininterval=1):
        sample = samples[i]
        try:
            frame = recipes.reward_frame(recipe, sample)
            target = recipes.to_target(sample, recipe)
            answer = rewards.parse_answer(oracle_answer(sample, recipe.schema, frame), recipe.schema)
            # Repetition is judged on whole numbers, as a model writes them: "." ends a sentence, and decimals coincide.
            answer.text = oracle_answer(sample, recipe.schema, frame, digits=0)
            parts = recipes.reward_parts(recipe, answer, target, 1.0, None)  # raw: in a young queue any answer ranks 1
        except data.BadData as error:
            bad.append(f"{sample.id}: {error}")
            continue
        most = rewards.maximum(recipe.reward, sample.no_target, **recipes.reward_options(recipe))
        if not rewards.points_inside(target.points, target.boxes).all():  # not every reward looks at that
            bad.append(
                f"{sample.id}: a point lies outside its own box, {target.points.tolist()}, {target.boxes.tolist()}"
            )
        elif sum(parts.values()) < most - 1e-6:
            bad.append(f"{sample.id}: earns {sum(parts.values()):.3f} of {most:g}, {parts}")
        else:
            good.append(i)
    return good, bad


def examine(samples: data.Samples, segmenter, recipe: Recipe, main: bool) -> list[int]:
    """The indices to train on; says what was left out and why; SystemExit if the data do not fit the recipe."""
    order, left = recipes.usable(samples, recipe, main, recipe.limit)
    # Distance transforms and pictures take 3 to 60 ms a sample: a seeded thousand are looked at; what else is broken
    # shows when it is drawn (train.draw).
    closely = order
    if len(order) > CLOSELY and not recipe.check_all:
        closely = sorted(np.random.default_rng(recipe.seed).choice(order, CLOSELY, replace=False).tolist())
    good, bad = check_rewards(samples, closely, recipe, main)
    order = sorted(set(order) - (set(closely) - set(good)))
    if main:
        print(
            f"{recipe.name}: {len(order)} of {len(samples)} samples; left out: {left or 'none'}; "
            f"failed the reward check: {len(bad)}{'' if closely is order else f' of {len(closely)}'}"
        )
        for line in [*samples.skipped[:5], *bad[:10]]:
            print(f"  skipped: {line}")
    if len(bad) > allowed(recipe, len(closely)):
        raise SystemExit(
            f"{len(bad)} of {len(closely)} samples do not earn the maximum "
            "with their own ground truth (see above): "
            "a frame, a point or a mask is wrong in the data. Look at them with: python data.py --check "
            f"--dataset {recipe.dataset} --data_root {recipe.data_root} --split {recipe.split} "
            "(or train without them: --allow_bad N)"
        )
    if not order:
        raise SystemExit(
            f"no sample of {recipe.dataset!r} ({recipe.split}) can be used by recipe "
            f"{recipe.name!r}: see the reasons above"
        )
    if main and recipe.segmenter_use == "reward":  # the ceiling of a mask reward
        ious, earned = [], []
        for sample in [samples[i] for i in order if not samples[i].no_target][:32]:
            size = (sample.width, sample.height)
            target = recipes.to_target(sample, recipe)
            answer = rewards.parse_answer(oracle_answer(sample, recipe.schema, size), recipe.schema)
            mask = segmenter.union(segmenter.embed([sample.image]), [0], [answer.instances])[0]
            ious.append(models.mask_iou(mask.cpu(), torch.as_tensor(sample.mask)))
            parts = recipes.reward_parts(recipe, answer.rescaled(size, target.frame), target, ious[-1], None)
            earned.append(sum(parts.values()))
        print(
            f"  with SAM2's own masks from true boxes and points: IoU {np.mean(ious):.3f}, "
            f"reward {np.mean(earned):.2f} ({len(ious)} samples)"
        )
    return order
