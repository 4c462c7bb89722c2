"""The ground truth in a model's place: what a perfect policy writes, a perfect segmenter paints, and both then earn.

With both in place evaluation must give 1, and every reward its maximum; what is missing then is a mistake of ours.
Alignment (LENS, stage one) trains on such completions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

import data
import rewards


class CannotSay(ValueError):
    """A schema has no words for this answer."""


def write_answer(instances: Sequence[rewards.Instance], schema: str, thought: str = "", digits: int | None = 0) -> str:
    """The inverse of rewards.parse_answer: a completion, for supervised targets and for the oracle that checks rewards.

    Coordinates are rounded to `digits` decimals (0 writes integers, None writes them in full). Raises CannotSay
    where the schema has no words for it: none or several objects where it has one. ValueError for another number of
    points than it has keys for (negative points may be left out).
    """
    spec = rewards.SCHEMAS[schema]
    if spec.look and not thought:
        thought = "<look>the object</look>"

    def numbers(values: Sequence[float]) -> list[float]:
        rounded = [float(v) if digits is None else round(float(v), digits) for v in values]
        # Whole ones without ".0": rewards.count_repeats ends a sentence at every ".", and would take "0.0, 0.0, 0.0"
        # for babble.
        return [int(v) if v.is_integer() else v for v in rounded]

    objects = []
    for o in instances:
        fields: dict = {spec.box: numbers(o.box)}
        fields |= {key: numbers(p) for key, p in zip(spec.points, o.points, strict=True)}
        if len(o.negative_points):  # all or none: half-written ones would be malformed
            fields |= {key: numbers(p) for key, p in zip(spec.negatives, o.negative_points, strict=True)}
        if spec.label:
            fields[spec.label] = "object"
        objects.append(fields)
    if not objects and not spec.listed:
        raise CannotSay(f"schema {schema!r} has no way to say that nothing fits")
    if len(objects) > 1 and not spec.many:
        raise CannotSay(f"schema {schema!r} has no way to name {len(objects)} objects, only one")
    value = {"no_target": True} if not objects and spec.no_target else objects if spec.listed else objects[0]
    return f"<think>{thought}</think><answer>{json.dumps(value)}</answer>"


def oracle_answer(sample: data.Sample, schema: str, frame: tuple[float, float], digits: int | None = None) -> str:
    """The ground truth as a completion in `schema`, in `frame` (w, h), rounded to `digits` decimals (None: in full).

    Raises CannotSay where the schema has no words for it: no target, or several objects where it has one.
    Without annotated points and masks a box's centre is the point; without boxes (counting sets) the whole picture is a
    box, as often as there are objects. Negative points are left out where a box has no room for them.
    """
    spec, size, boxes = rewards.SCHEMAS[schema], (sample.width, sample.height), sample.boxes
    if not len(boxes) and sample.count:
        boxes = np.array([[0, 0, *size]] * sample.count)
    positive = np.repeat((boxes[:, None, :2] + boxes[:, None, 2:]) / 2, len(spec.points), axis=1)
    if sample.points.shape[1] or sample.object_masks:
        positive = sample.positive_points(len(spec.points))
    negative = sample.negative_points(len(spec.negatives)) if spec.negatives else None
    negative = np.zeros((len(boxes), 0, 2)) if negative is None else negative
    parts = [[data.to_frame(xy, size, frame) for xy in part] for part in (boxes, positive, negative)]
    return write_answer([rewards.Instance(*o) for o in zip(*parts, strict=True)], schema, digits=digits)


def true_mask(sample: data.Sample, objects: Sequence[rewards.Instance]) -> np.ndarray:
    """`--segmenter truth`: for each written box the true mask of the object that it overlaps most, in one (H, W) bool.

    What a perfect segmenter would give. Data with one mask for all objects give the whole of it for any hit.
    """
    mask = np.zeros((sample.height, sample.width), dtype=bool)
    for o in objects:
        ious = [rewards.box_iou(o.box, box) for box in sample.boxes]
        if max(ious, default=0) > 0:
            each = len(sample.object_masks) == len(sample.boxes)
            mask |= data.decode_rle(sample.object_masks[int(np.argmax(ious))]) if each else sample.mask
    return mask


# What an honest right answer earns, part by part before weights: with a target, and without one where the recipe has
# such requests.
_GENSEG = {"think": 1, "format": 1, "box_iou": 1, "box_l1": 1, "point": 1, "non_repeat": 1}
MAXIMUM: dict[str, tuple[dict[str, float], dict[str, float] | None]] = {
    "segzero": ({"think": 1, "format": 1, "box_iou": 1, "box_l1": 1, "point": 1}, None),
    "visionreasoner": ({"think": 1, "answer": 2, "accuracy": 3, "non_repeat": 1}, None),
    "drseg": ({"look": 1, "think": 1, "answer": 1, "non_repeat": 1, "accuracy": 1}, None),
    "samr1": ({"tiered": 4, "think": 1, "format": 1}, None),
    "genseg": (_GENSEG, _GENSEG),
    "genseg-g": (_GENSEG | {"mask_iou": 1, "negative": 1}, _GENSEG | {"no_target": 1}),
    "lens": ({"format": 1, "box_iou": 1, "mask_iou": 1}, None),
}


def maximum(reward: str, no_target: bool = False, weights: dict[str, float] | None = None) -> float:
    """The total that an honest right answer earns. ValueError where the recipe has no requests of that kind."""
    parts = MAXIMUM[reward][no_target]
    if parts is None:
        raise ValueError(f"the {reward} recipe has no answer to a request without target")
    weights = (rewards.GENSEG_G_WEIGHTS if reward == "genseg-g" else {}) | (weights or {})
    return sum(value * weights.get(name, 1.0) for name, value in parts.items())
