# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Before step 0: do the data fit the recipe, and does their own truth earn its maximum?

A point outside its box, or points and boxes in different units, show here, and not as a reward that stays flat for a
day. examine() is what a run calls.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from accelerate.utils import gather_object
from pycocotools import mask as coco_mask
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


def deep(sample: data.Sample) -> None:
    """Hold a sample against its picture and its masks; BadData. What data.check_truth leaves out, as it costs more: the
    picture is opened, each box is compared with the box of its own mask, and points must lie on the mask."""
    sample.open()
    if len(sample.object_masks) == len(sample.boxes):
        _own_boxes(sample)
    elif (whole := sample.mask) is not None:  # one mask for all objects: each box has some of it
        beside = whole.copy()
        for x1, y1, x2, y2 in sample.boxes.round().astype(int).tolist():
            own = np.s_[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)]
            if not whole[own].any():
                raise data.BadData(f"the box {[x1, y1, x2, y2]} has nothing of the mask in it")
            beside[own] = False
        if 2 * beside.sum() > whole.sum():
            raise data.BadData("most of the mask lies outside the boxes: is it inverted, or are boxes missing?")
    if sample.points.size and (whole := sample.mask) is not None:
        slack = max(2, round(0.02 * max(whole.shape)))
        for x, y in sample.points.reshape(-1, 2).astype(int).tolist():
            if not whole[max(y - slack, 0) : y + slack + 1, max(x - slack, 0) : x + slack + 1].any():
                raise data.BadData(f"the point {[x, y]} is more than {slack} px off the mask: is it x, y, in pixels?")


def _own_boxes(sample: data.Sample) -> None:
    """Is each box the one of its own mask? BadData, with what the box may be instead."""
    tight = np.reshape([coco_mask.toBbox(rle) for rle in sample.object_masks], (-1, 4))
    tight[:, 2:] += tight[:, :2]
    for box, drawn, rle in zip(sample.boxes, tight, sample.object_masks, strict=True):
        said = f"the box {box.round(1).tolist()}"
        if not drawn.any():
            if min(box[2:] - box[:2]) > 3:  # polygons of less than a pixel draw nothing, and their boxes are as small
                raise data.BadData(f"{said} has an empty mask: is the mask in other units, or another picture's?")
        elif np.abs(box - drawn).max() > 3:
            low, high = box[:2], box[2:]
            guesses = {  # a reader that wants x, y, width, height has made corners of them
                "x, y, width, height": (low, low + high),
                "two corners, where x, y, width, height are wanted": (low, high - low),
                "its centre, width, height": (low - high / 2, low + high / 2),
                "its centre, where a corner is wanted": (1.5 * low - high / 2, (low + high) / 2),
                "y before x": (low[::-1], high[::-1]),
            }
            ious = {what: rewards.box_iou(np.concatenate(guess), drawn) for what, guess in guesses.items()}
            likely, given = max(ious, key=ious.get), rewards.box_iou(box, drawn)
            known = ious[likely] > max(0.9, given + 0.05)
            if given < 0.5 or known:
                guess = f": is it {likely}?" if known else ""
                raise data.BadData(f"{said} is not that of its mask, {drawn.round(1).tolist()}{guess}")
        elif drawn[3] - drawn[1] > 0.9 * sample.height and _along_rows(data.decode_rle(rle)):
            raise data.BadData("a mask is all stripes: were its run-lengths counted along rows? COCO's go down columns")


def _along_rows(mask: np.ndarray) -> bool:
    """Would a mask have far fewer edges if its run-lengths had been counted along rows? (In a square it cannot.)"""
    height, width = mask.shape
    other = mask.ravel("F").reshape(height, width)
    here, there = (np.count_nonzero(m[1:] != m[:-1]) + np.count_nonzero(m[:, 1:] != m[:, :-1]) for m in (mask, other))
    return height != width and here > 3 * max(1, height / width) * there  # bands from top to bottom: height / width


class Lacking(str):
    """A line about data that are right, and have less than a recipe needs."""


ODD = re.compile(  # a file's name, a cell's nothing, an answer, HTML, UTF-8 read as something else
    r"\S\.(jpe?g|png|webp)$|^\W*(nan|none|null|n/a)?\W*$|^[\[{].*[\]}]$|&(amp|quot|lt|gt|#\d+);|[ÃÂ][\x80-\xbf]|â€",
    re.I,
)


def trait(sample: data.Sample) -> tuple:
    """What `oddities` wants of a sample: its request and truth, how many boxes, how many of these from edge to edge,
    how far they reach, and how many repeat another."""
    sides = np.array([sample.width, sample.height] * 2)
    boxes = sample.boxes / sides
    whole = int((np.abs(boxes - [0, 0, 1, 1]).max(1) < 0.01).sum()) if len(boxes) else 0
    truth = sample.boxes.round().tobytes()
    again = len(boxes) - len(set(map(tuple, sample.boxes.round().tolist())))
    return (sample.image_id, sample.query.strip()), truth, len(boxes), whole, boxes.max(initial=0), again


def oddities(traits: list[tuple]) -> list[str]:
    """What no sample shows by itself, a sentence each: to be looked at, and perhaps right."""
    requests, truths, objects, whole, reach, again = zip(*traits, strict=True) if traits else [()] * 6
    n, said = sum(objects), []
    if n >= 4 and 2 * sum(whole) > n:
        said.append(f"{sum(whole)} of {n} objects fill their picture from edge to edge: are the masks inverted?")
    if n >= 8 and max(reach) <= 0.5:
        said.append(f"none of {n} boxes reaches the right or lower half of its picture: percent, or another size?")
    if any(again):
        said.append(f"{data.plural(sum(again), 'object')} with the box of another of the same sample: annotated twice?")
    if (twice := len(requests) - (n := len(set(requests)))) > 0:
        differ = len(set(zip(requests, truths, strict=True))) - n
        example = Counter(requests).most_common(1)[0][0]
        said.append(
            f"{data.plural(twice, 'request')} said before of the same picture, {differ} with another truth: {example}"
        )
    if odd := [query for _, query in requests if ODD.search(query)]:
        said.append(f"{data.plural(len(odd), 'query')} that may be no request: {odd[0]!r:.60}")
    return said


def readable(samples: data.Samples, indices: list[int], seed: int = 0) -> tuple[list[int], list[str]]:
    """Those of the indices whose sample can be used, and a line for each that cannot. A seeded CLOSELY of them are held
    against picture and masks (deep)."""
    closely = set(np.random.default_rng(seed).permutation(indices)[:CLOSELY].tolist())
    good, bad = [], []
    for i in indices:
        try:
            sample = samples[i]
            if i in closely:
                with data.reading(sample.id):
                    deep(sample)
            good.append(i)
        except data.BadData as error:
            bad.append(str(error))
    return good, bad


def agreed(indices: list[int]) -> list[int]:
    """Of the samples that this process can use, those that all can. One that a bad disk shows to some would give them
    another order, and another number of steps, to wait for the others in. data.BadData if there is none."""
    everywhere = set.intersection(*map(set, gather_object([indices])))
    if not everywhere:
        raise data.BadData("there is no sample that every process could read: do all see the same disk?")
    return [i for i in indices if i in everywhere]


def held_in(samples: data.Samples, order: list[int], held: data.Samples, chosen: list[int]) -> str | None:
    """A sentence where pictures of 64 samples to train on are held out, too. For sets of one layout: ids of others are
    not comparable (benchmarks/overlap.py counts over all)."""
    draw = np.random.default_rng(0).permutation
    asked = {held[i].image_id for i in chosen[:CLOSELY]}
    trained = [samples[i].image_id for i in draw(order)[:64].tolist()]
    both = sum(picture in asked for picture in trained)
    return f"{both} of {len(trained)} samples to train on are on pictures that are held out" if both else None


def data_digest(samples: data.Samples, order: list[int], seed: int = 0) -> dict[str, int | str]:
    """How many samples there are, how many can be used, and a digest of a seeded CLOSELY of these: query, picture,
    boxes, points. A checkpoint keeps it: a resumed run says if its data have changed."""
    digest = hashlib.sha256()
    for i in np.random.default_rng(seed).permutation(order)[:CLOSELY].tolist():
        s = samples[i]
        digest.update(
            repr((i, s.id, s.query, s.image_id, s.width, s.height, s.boxes.tolist(), s.points.tolist())).encode()
        )
    return {"samples": len(samples), "usable": len(order), "digest": digest.hexdigest()[:16]}


def check_rewards(
    samples: data.Samples, indices: list[int], recipe: Recipe, progress: bool = False, traits: list | None = None
) -> tuple[list[int], list[str]]:
    """Before step 0: does the data's own ground truth, written in the recipe's format, earn the maximum?

    It is written and parsed as a model's text would be; where the recipe judges masks, an IoU of 1 is put in. Returns
    the indices that pass, and a line for each that does not. (How the model's own frame is left is not checked here:
    tests do.) traits: a list that takes a trait for each sample.
    """
    good, bad = [], []
    for i in tqdm(indices, desc="reward check", disable=not progress, mininterval=1):
        at = i
        try:
            sample = samples[i]
            at = sample.id
            if traits is not None:
                traits.append(trait(sample))
            deep(sample)
            frame = recipes.reward_frame(recipe, sample)
            target = recipes.to_target(sample, recipe)
            answer = rewards.parse_answer(oracle_answer(sample, recipe.schema, frame), recipe.schema)
            # Repetition is judged on whole numbers, as a model writes them: "." ends a sentence, and decimals coincide.
            answer.text = oracle_answer(sample, recipe.schema, frame, step=1)
            iou = None if recipe.segmenter_use == "evaluation" else 1.0
            parts = recipes.reward_parts(recipe, answer, target, iou, None)  # raw: in a young queue any answer ranks 1
        except data.BadData as error:
            bad.append((Lacking if isinstance(error, data.Lacks) else str)(f"{at}: {error}"))
            continue
        try:
            most = rewards.maximum(recipe.reward, sample.no_target, **recipes.reward_options(recipe))
        except ValueError as error:
            raise SystemExit(f"--schema {recipe.schema} does not go with --reward {recipe.reward}: {error}") from None
        if not rewards.points_inside(target.points, target.boxes).all():  # not every reward looks at that
            bad.append(
                f"{sample.id}: a point lies outside its own box, {target.points.tolist()}, {target.boxes.tolist()}"
            )
        elif sum(parts.values()) < most - 1e-6:
            bad.append(f"{sample.id}: earns {sum(parts.values()):.3f} of {most:g}, {parts}")
        else:
            good.append(i)
    return good, bad


def examine(
    samples: data.Samples, segmenter, recipe: Recipe, main: bool, said: Sequence[str] | None = None
) -> list[int]:
    """The indices to train on, the same in all processes; says what was left out and why; SystemExit if the data do not
    fit the recipe. said: the wrong lines that `data.py --check` has named (None: it does not run), which are then not
    named again."""
    broken: list[str] = []
    order, left = recipes.usable(samples, recipe, main, recipe.limit, broken)
    # Distance transforms and pictures take 3 to 60 ms a sample: a seeded thousand are looked at; what else is broken
    # shows when it is drawn (train.draw).
    closely = order
    if len(order) > CLOSELY and not recipe.check_all:
        closely = sorted(np.random.default_rng(recipe.seed).choice(order, CLOSELY, replace=False).tolist())
    traits: list[tuple] = []
    good, failed = check_rewards(samples, closely, recipe, main, traits)
    # What is wrong, and among how many: what cannot be read shows in all that were walked through, what fails in those
    # that were looked at closely.
    if closely is order:
        counts = [(failed + broken, len(order) + len(broken))]
    else:
        counts = [(broken, len(order) + sum(left.values()) + len(broken)), (failed, len(closely))]
    told = " and ".join(f"{len(wrong)} of {n}" for wrong, n in counts)
    order = sorted(set(order) - (set(closely) - set(good)))
    if main:
        why = "; ".join(f"{n} ({reason})" for reason, n in left.items())
        print(
            f"{recipe.name}: {len(order)} of {data.plural(len(samples), 'sample')}; left out: {why or 'none'}; "
            f"broken, or failed the reward check: {told}"
        )
        if said is None:
            if samples.skipped:
                print(f"  {data.plural(len(samples.skipped), 'entry')} of the data skipped")
            for line in oddities(traits):
                print(f"  look: {line}")
            for line in samples.skipped[:5]:
                print(f"  skipped: {line}")
        for line in [line for line in failed + broken if line not in (said or ())][:10]:
            print(f"  wrong: {line}")
    for wrong, looked_at in counts:
        if len(wrong) > allowed(recipe, looked_at):
            refuse(recipe, wrong, looked_at, said is None)
    if not order:
        raise SystemExit(
            f"no sample of {recipe.dataset!r} ({recipe.split}) can be used by recipe "
            f"{recipe.name!r}: see the reasons above"
        )
    order, own = agreed(order), len(order)
    if main and len(order) < own:
        print(f"  {data.plural(own - len(order), 'sample')} left out, which not every process could read")
    if all(samples[i].no_target for i in order):
        raise SystemExit(f"{recipe.name} would learn from requests that nothing fits alone: see the reasons above")
    if main and segmenter and recipe.segmenter_use == "reward":
        print(f"  {mask_ceiling(samples, good, segmenter, recipe)}")
    return order


def refuse(recipe: Recipe, wrong: list[str], looked_at: int, hint: bool) -> NoReturn:
    """SystemExit: so many of the samples looked at are wrong. hint: name the command that shows them."""
    if all(isinstance(line, Lacking) for line in wrong):
        raise SystemExit(f"{recipe.name} needs more than these data have: {wrong[0]}")
    root = ["--data_root", recipe.data_root] * bool(recipe.data_root)
    look = shlex.join(["--dataset", recipe.dataset, *root, "--split", recipe.split])
    raise SystemExit(
        f"{len(wrong)} of {data.plural(looked_at, 'sample')} do not earn the maximum "
        "with their own ground truth (see above): a frame, a point or a mask is wrong in the data. "
        + (f"Look at them with: python data.py --check {look} (or train" if hint else "Mend them (or train")
        + " without them: --allow_bad N)"
    )


def mask_ceiling(samples: data.Samples, indices: list[int], segmenter: models.Segmenter, recipe: Recipe) -> str:
    """A sentence: what SAM2 makes of the truth of 32 samples, the most that a mask reward can be expected to pay."""
    ious, earned = [], []
    drawn = (samples[i] for i in indices)
    for sample in itertools.islice((s for s in drawn if not s.no_target), 32):
        size = (sample.width, sample.height)
        target = recipes.to_target(sample, recipe)
        answer = rewards.parse_answer(oracle_answer(sample, recipe.schema, size), recipe.schema)
        mask = segmenter.union(segmenter.embed([sample.image]), [0], [answer.instances])[0]
        ious.append(models.mask_iou(mask.cpu(), torch.as_tensor(sample.mask)))
        parts = recipes.reward_parts(recipe, answer.rescaled(size, target.frame), target, ious[-1], None)
        earned.append(sum(parts.values()))
    means = f"IoU {np.mean(ious):.3f}, reward {np.mean(earned):.2f}"
    return f"with SAM2's own masks from true boxes and points: {means} ({data.plural(len(ious), 'sample')})"
