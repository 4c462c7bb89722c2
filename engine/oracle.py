# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The ground truth in a model's place: what a perfect policy writes, and what a perfect segmenter paints.

With both in place evaluation must give 1, and every reward its maximum (rewards.MAXIMUM); what is missing then is a
mistake of ours. Alignment (LENS, stage one) trains on such completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import data
import rewards


def oracle_answer(sample: data.Sample, schema: str, frame: tuple[float, float], step: int = 0) -> str:
    """The ground truth as a completion in `schema`, in `frame` (w, h), coordinates to multiples of `step` (0: in full).

    Raises rewards.CannotSay where the schema has no words for it: no target, or several objects where it has one;
    data.BadData for a count beyond 10,000.
    Without annotated points and masks a box's centre is the point; without boxes (counting sets) the whole picture is a
    box, as often as there are objects. Negative points are left out where a box has no room for them.
    """
    spec = rewards.SCHEMAS[schema]
    size = (sample.width, sample.height)
    boxes = sample.boxes
    if not len(boxes) and sample.count:
        if sample.count > 10_000:  # as many as a file may say
            raise data.BadData(f"sample {sample.id} has a count of {sample.count}; 10,000 are the most")
        boxes = np.array([[0, 0, *size]] * sample.count)
    positive = np.repeat((boxes[:, None, :2] + boxes[:, None, 2:]) / 2, len(spec.points), axis=1)
    if sample.points.shape[1] or sample.object_masks:
        positive = sample.positive_points(len(spec.points))
    negative = sample.negative_points(len(spec.negatives)) if spec.negatives else None
    negative = np.zeros((len(boxes), 0, 2)) if negative is None else negative
    parts = [[data.to_frame(xy, size, frame) for xy in part] for part in (boxes, positive, negative)]
    if step:
        parts = [[np.round(xy / step) * step for xy in part] for part in parts]
    return rewards.write_answer([rewards.Instance(*o) for o in zip(*parts, strict=True)], schema, digits=None)


def true_mask(sample: data.Sample, objects: Sequence[rewards.Instance]) -> np.ndarray:
    """`--segmenter truth`: for each written box the true mask of the object that it overlaps most, in one (H, W) bool.

    What a perfect segmenter would give. Data with one mask for all objects give the whole of it for any hit; data of
    boxes alone give nothing.
    """
    mask = np.zeros((sample.height, sample.width), dtype=bool)
    for o in objects if sample.object_masks else ():
        ious = [rewards.box_iou(o.box, box) for box in sample.boxes]
        if max(ious, default=0) > 0:
            each = len(sample.object_masks) == len(sample.boxes)
            mask |= data.decode_rle(sample.object_masks[int(np.argmax(ious))]) if each else sample.mask
    return mask
