# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What the policy wrote, and what it is worth: one strict parser, and the reward of every paper as a pure function.

    answer = parse_answer(text, "drseg").rescaled((812, 812), (840, 840))     # never raises, whatever the text
    parts = drseg_reward(answer, target, queue=queue)                         # {"look": 1.0, "accuracy": 0.5, ...}
    total = sum(parts.values())                                               # weights are already in the parts

Answer and target are in the same frame: the (width, height) that the picture is given, and so the unit of all
coordinates. It is the recipe's (840 x 840 pixels, 0-1000, or original pixels), and both are converted once, before the
reward, so that the papers' thresholds ("30 px") mean what they meant. A *mask* is always of a picture. No torch here: a
few small arrays per completion.

A docstring names the paper of its rule; [C] marks a rule that only the released code states.
Letters: N objects written, M objects in the ground truth, k points per object.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import re
import string
from collections import deque
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

# ----------------------------------------------------------------------------------------------------------- the parser


@dataclasses.dataclass(frozen=True)
class Schema:
    """An answer format: the JSON that a recipe expects between <answer> and </answer>. For Dr. Seg, two objects are

    [{"bbox_2d": [10, 20, 60, 90], "point_2d": [35, 50]}, {"bbox_2d": [80, 15, 130, 88], "point_2d": [105, 48]}]
    """

    box: str = "bbox_2d"  # the key of an object's box
    points: tuple[str, ...] = ()  # the keys of its points, one each
    negatives: tuple[str, ...] = ()  # the keys of points beside it, inside its box
    label: str | None = None  # the key of its name, which is read and not judged
    listed: bool = True  # a list of objects, or one bare object
    many: bool = True  # several objects, or none, may be meant; else the answer must name exactly one
    look: bool = False  # the reasoning says in <look> tags what it looks at
    no_target: bool = False  # may also be {"no_target": true}; then an empty list is malformed
    keeps_boxes: bool = (
        False  # a valid box counts (without points) where the rest of the answer is malformed [Seg-Zero]
    )
    lenient: bool = False  # in evaluation the first four bracketed numbers are the box, where all else fails [LENS]


SCHEMAS = {
    "lens": Schema(listed=False, many=False, lenient=True),
    "samr1": Schema(points=("point_2d",), label="label", many=False),
    "genseg": Schema(points=("point_1", "point_2"), no_target=True),
    "genseg-g": Schema(points=("point_1", "point_2"), negatives=("negative_1", "negative_2"), no_target=True),
    "drseg": Schema(points=("point_2d",), look=True),
    "visionreasoner": Schema(points=("point_2d",)),
    "segzero": Schema(box="bbox", points=("points_1", "points_2"), listed=False, many=False, keeps_boxes=True),
}


@dataclasses.dataclass
class Instance:
    """One object: a box [x1, y1, x2, y2], positive points (k, 2) on it, negative points (k, 2) beside it; all in the
    frame of the answer that it belongs to."""

    box: Sequence[float]
    points: Sequence[Sequence[float]] = ()
    negative_points: Sequence[Sequence[float]] = ()


@dataclasses.dataclass
class Answer:
    """A completion, read. In the units the model wrote until `rescaled`. A malformed answer predicts nothing."""

    text: str
    thought: str = ""  # what stands in <think>
    looks: list[str] = dataclasses.field(default_factory=list)  # what stands in each <look> of the thought
    # none if malformed (but Schema.keeps_boxes, and a box that was read leniently)
    instances: list[Instance] = dataclasses.field(default_factory=list)
    boxes_written: int = 0  # how many, also in an answer that is otherwise malformed
    no_target: bool = False  # a valid answer that says that nothing fits
    think_ok: bool = False  # the whole is think-then-answer, to the letter: a newline at either end is too much
    answer_ok: bool = False  # the answer is valid in the schema
    key_score: float = 0.0  # 0 to 2: valid boxes plus valid points, per object written (VisionReasoner's answer reward)

    def rescaled(self, source: tuple[float, float], target: tuple[float, float]) -> Answer:
        """The same answer with its coordinates taken from one frame (width, height) to another."""
        sx, sy = target[0] / source[0], target[1] / source[1]

        def scale(numbers: Sequence[float]) -> list[float]:
            return [v * (sy if i % 2 else sx) for i, v in enumerate(numbers)]

        moved = [
            Instance(scale(o.box), [scale(xy) for xy in o.points], [scale(xy) for xy in o.negative_points])
            for o in self.instances
        ]
        return dataclasses.replace(self, instances=moved)


def _between(text: str, opening: str, closing: str, start: int = 0) -> tuple[str, int] | None:
    """The text from the first `opening` to the next `closing`, and where it ends; None without. Linear time."""
    i = text.find(opening, start)
    j = text.find(closing, i + len(opening)) if i >= 0 else -1
    return None if j < 0 else (text[i + len(opening) : j], j + len(closing))


def all_between(text: str, opening: str, closing: str) -> list[str]:
    """Everything that stands between an `opening` and the next `closing`, stripped. Linear time.

    >>> all_between("<look>a mug</look> <look> its rim </look>", "<look>", "</look>")
    ['a mug', 'its rim']
    """
    found = []
    at = 0
    while (one := _between(text, opening, closing, at)) is not None:
        found.append(one[0].strip())
        at = one[1]
    return found


def _numbers(value: object, n: int) -> list[float] | None:
    """`value` if it is a list of n numbers that can be coordinates, else None. (True and "7" are no numbers; beyond
    _FAR lies no picture, and what is rescaled from there may overflow: training and evaluation read 1e308 alike.)"""
    if isinstance(value, list) and len(value) == n and all(type(v) is float and abs(v) <= _FAR for v in value):
        return value
    return None


def parse_answer(text: str, schema: str, lenient: bool = False) -> Answer:
    """Read a completion. Never raises, on any text (ValueError for an unknown schema); linear time. The answer is in
    the units that the model wrote.

    >>> answer = parse_answer('<think>left</think><answer>{"bbox_2d": [1, 2, 30, 40]}</answer>', "lens")
    >>> answer.think_ok, answer.answer_ok, answer.instances[0].box
    (True, True, [1.0, 2.0, 30.0, 40.0])

    The first <answer> block counts, also where the whole is not think-then-answer. A schema for one object asks for
    exactly one: none, or fifty copies, are malformed. `lenient`, for evaluation: where all else fails, the first four
    numbers in brackets are the box, whatever stands around them (LENS's released evaluation reads so); the answer
    stays malformed, answer_ok False.
    """
    if schema not in SCHEMAS:
        raise ValueError(f"no schema {schema!r}; there are: {', '.join(SCHEMAS)}")
    spec = SCHEMAS[schema]
    answer = Answer(text=text)
    # think-then-answer: <think> opens the text, </answer> ends it, only space is between the blocks. What stands inside
    # the tags is not looked at.
    # Three separate searches, not one pattern with two wildcards: on a megabyte of "</think><answer>" that would take
    # quadratic time.
    joint = re.search(r"</think>\s*<answer>", text)
    answer.think_ok = text.startswith("<think>") and joint is not None and text.endswith("</answer>")
    thought = _between(text, "<think>", "</think>")
    answer.thought = thought[0].strip() if thought else ""
    answer.looks = all_between(answer.thought, "<look>", "</look>")
    found = _between(text, "<answer>", "</answer>")
    if found is not None:
        try:  # every number becomes a float, so that 5,000 digits are an infinity and not an error of int()
            value = json.loads(found[0], parse_int=float)
        except (ValueError, RecursionError):
            value = None
        _read_objects(value, spec, answer)
    if not answer.answer_ok:
        # What looks like a box is one, for whoever is to be charged for boxes: in an answer that was cut off or has no
        # tags, too. In the reasoning it is none.
        behind = thought[1] if thought else 0
        at = text.find("<answer>", behind)
        if at < 0:
            at = len(text) if "<think>" in text[behind:] else behind
        in_tags = _FOUR_NUMBERS.findall(found[0]) if found else []
        answer.boxes_written = max(answer.boxes_written, len(in_tags), len(_FOUR_NUMBERS.findall(text, at)))
    if lenient and not answer.answer_ok:
        four = _FOUR_NUMBERS.search(found[0] if found else text)
        if four and (box := _numbers([float(v) for v in four.groups()], 4)):
            answer.instances = [Instance(box)]
    return answer


_NUMBER = r"\s*(-?\d{1,6}(?:\.\d{1,20})?(?:[eE][+-]?\d)?)\s*"
_FOUR_NUMBERS = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")


def _read_objects(value: object, spec: Schema, answer: Answer) -> None:
    """Fill `answer` from the decoded JSON."""
    if spec.no_target and isinstance(value, dict) and value.get("no_target") is True and len(value) == 1:
        answer.no_target = answer.answer_ok = True
        return
    objects = value if spec.listed else [value]
    if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
        return
    if not objects:  # [] says "nothing" where that can be meant, unless the schema has words for it
        answer.no_target = answer.answer_ok = spec.many and not spec.no_target
        return
    instances = []
    boxes = 0
    points = 0.0
    valid = True
    for o in objects:
        box = _numbers(o.get(spec.box), 4)
        positive = [_numbers(o.get(key), 2) for key in spec.points]
        negative = [_numbers(o.get(key), 2) for key in spec.negatives]
        boxes += box is not None
        points += sum(p is not None for p in positive) / max(len(positive), 1)
        # Negative points may be left out whole (then they earn nothing); half-written ones are malformed.
        left_out = not any(key in o for key in spec.negatives)
        label_ok = spec.label is None or isinstance(o.get(spec.label), str)
        good = box is not None and None not in positive and (left_out or None not in negative) and label_ok
        valid = valid and good
        if good:
            instances.append(Instance(box, positive, [] if left_out else negative))
        elif spec.keeps_boxes and box is not None:
            instances.append(Instance(box))
    answer.boxes_written = boxes
    answer.key_score = (boxes + points) / len(objects)
    answer.answer_ok = valid and (spec.many or len(objects) == 1)
    answer.instances = instances if answer.answer_ok or spec.keeps_boxes else []


class CannotSay(ValueError):
    """A schema has no words for this answer."""


def write_answer(instances: Sequence[Instance], schema: str, thought: str = "", digits: int | None = 0) -> str:
    """The inverse of parse_answer: a completion, for supervised targets and for the oracle that checks rewards.

    Coordinates are rounded to `digits` decimals (0 writes integers, None writes them in full). Raises CannotSay
    where the schema has no words for it: none or several objects where it has one. ValueError for another number of
    points than it has keys for (negative points may be left out).
    """
    spec = SCHEMAS[schema]
    if spec.look and not thought:
        thought = "<look>the object</look>"

    def numbers(values: Sequence[float]) -> list[float]:
        rounded = [float(v) if digits is None else round(float(v), digits) for v in values]
        # Whole ones without ".0": count_repeats ends a sentence at every ".", and would take "0.0, 0.0, 0.0"
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
    if not objects and not spec.many:
        raise CannotSay(f"schema {schema!r} has no way to say that nothing fits")
    if len(objects) > 1 and not spec.many:
        raise CannotSay(f"schema {schema!r} has no way to name {len(objects)} objects, only one")
    if not objects and spec.no_target:
        value: object = {"no_target": True}
    else:
        value = objects if spec.listed else objects[0]
    return f"<think>{thought}</think><answer>{json.dumps(value)}</answer>"


# ----------------------------------------------------------------------------------------------- targets and geometry


@dataclasses.dataclass
class Target:
    """The ground truth of one request, in the recipe's frame (width, height).

    boxes (M, 4); points (M, k, 2), k = 1 or 2 annotated points per object (0 where the format has none); mask (H, W)
    bool or None, which keeps its own resolution. no_target: nothing in the picture fits, so M = 0, and M = 0 in no
    other case. The thresholds of a reward are in its paper's frame, whatever `frame` says: it is used to scale points
    onto the mask, and for nothing else. ValueError for other shapes.
    """

    boxes: np.ndarray
    points: np.ndarray
    mask: np.ndarray | None = None
    no_target: bool = False
    frame: tuple[float, float] = (840, 840)

    def __post_init__(self):
        boxes, points = np.shape(self.boxes), np.shape(self.points)
        if len(boxes) != 2 or boxes[1] != 4:
            raise ValueError(f"boxes of shape {boxes}: (M, 4) is meant")
        if len(points) != 3 or points[0] != boxes[0] or points[2] != 2:
            raise ValueError(f"points of shape {points} for {boxes[0]} boxes: (M, k, 2) is meant")
        if self.mask is not None and np.ndim(self.mask) != 2:
            raise ValueError(f"a mask of shape {np.shape(self.mask)}: (H, W) is meant")
        corners = np.asarray(self.boxes, dtype=float)
        if not (np.isfinite(corners).all() and np.isfinite(np.asarray(self.points, dtype=float)).all()):
            raise ValueError("a box or point that is not a finite number")
        if (corners[:, 2:] < corners[:, :2]).any():
            raise ValueError("a box whose second corner lies before its first: x1, y1, x2, y2 is meant")
        if bool(self.no_target) != (boxes[0] == 0):
            raise ValueError(f"no_target is {self.no_target} with {boxes[0]} boxes: it says that there are none")


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes as written: continuous areas, 0 where the intersection is empty (swapped corners included).

    >>> box_iou([0, 0, 10, 10], [0, 0, 10, 20])
    0.5
    """
    return float(box_ious(np.array([a], dtype=float), np.array([b], dtype=float))[0, 0])


def box_ious(a: np.ndarray, b: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """IoU of every box in a (N, 4) with every box in b (M, 4): (N, M). `extra`: added to each side, in their frame's
    unit (INCLUSIVE)."""
    a, b = a[:, None], b[None]
    w = (np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + extra).clip(min=0)
    h = (np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + extra).clip(min=0)

    def area(x: np.ndarray) -> np.ndarray:
        return (x[..., 2] - x[..., 0] + extra) * (x[..., 3] - x[..., 1] + extra)

    union = area(a) + area(b) - w * h
    return np.divide(w * h, union, out=np.zeros_like(union), where=(w * h > 0) & (union > 0))


INCLUSIVE = 1.0  # released code counts a box's last pixel in, so a side from 3 to 5 is 3 long [C]; here it is 2
MAX_OBJECTS = 120  # a side, in matching: thousands of boxes must not cost a cubic assignment [VisionReasoner]
_FAR = 1e7  # far outside any picture: no answer is read beyond it, and Instances made otherwise are clipped to it


def _arrays(answer: Answer, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes and points of both sides as arrays: (N, 4), (N, k, 2), (M, 4), (M, k', 2)."""
    objects = answer.instances[:MAX_OBJECTS]
    boxes = np.array([o.box for o in objects], dtype=float).reshape(-1, 4).clip(-_FAR, _FAR)
    k = len(objects[0].points) if objects else 0
    points = np.array([o.points for o in objects], dtype=float).reshape(len(objects), k, 2).clip(-_FAR, _FAR)
    return boxes, points, np.asarray(target.boxes, float)[:MAX_OBJECTS], np.asarray(target.points, float)[:MAX_OBJECTS]


def best_box_iou(answer: Answer, target: Target) -> float:
    """The mean over true boxes of each one's IoU with the written box that overlaps it most, 0 to 1: measured in all
    recipes, paid by none. nan for a target without boxes."""
    boxes, _, true_boxes, _ = _arrays(answer, target)
    return float(box_ious(boxes, true_boxes).max(0, initial=0.0).mean()) if len(true_boxes) else math.nan


def point_distances(points: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of each object's written points (N, k, 2) to each true object's (M, k', 2): (N, M), Euclidean.

    One against one: their distance. Two against two: the mean under the better of the two pairings (the order in which
    points are written means nothing). Two against one annotated point: the smaller distance (GenSeg-R1's "minimum
    distance").

    >>> float(point_distances(np.array([[[0, 0], [9, 0]]]), np.array([[[9, 4], [0, 0]]]))[0, 0])  # (0 + 4) / 2
    2.0
    """
    d = np.linalg.norm(points[:, None, :, None] - truth[None, :, None], axis=-1)  # (N, M, k, k')
    if d.shape[-2:] == (2, 2):
        return np.minimum(d[..., 0, 0] + d[..., 1, 1], d[..., 0, 1] + d[..., 1, 0]) / 2
    return d.min((-1, -2), initial=np.inf)  # without points: far away


def points_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: all of an object's points (N, k, 2) lie in its own box (N, 4), edges included."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return ((points >= low) & (points <= high)).all((-1, -2))


@dataclasses.dataclass
class Matched:
    """Pairs of a written and a true object, n = min(N, M), arrays (n, ...)."""

    written: np.ndarray  # (n,) which written object
    true: np.ndarray  # (n,) ... goes with which true one
    iou: np.ndarray  # (n,)
    distance: np.ndarray  # (n,) of their points (point_distances), in the frame's unit
    hits: np.ndarray  # (n, 3) the three criteria, 0 or 1, or how well each is met
    larger: int  # max(N, M)


# What counts as near, in the frame that a paper's numbers are for. VisionReasoner [C], so Dr. Seg: pixels of 840.
# GenSeg: thousandths; 11.9 is the same 10 pixels (our number), 119 (GenSeg section 3.6) Seg-Zero's 100 pixels.
NEAR_840 = {"max_l1": 10.0, "max_distance": 30.0}
NEAR_1000 = {"max_l1": 11.9, "max_distance": 119.0}


def falling(distance: np.ndarray, near: float = 30, far: float = 200) -> np.ndarray:
    """Dr. Seg's g, Eq. 16: 1 up to `near`, 0 from `far`, linear between (pixels of the 840 frame).

    >>> falling(np.array([0.0, 30.0, 115.0, 200.0, 999.0])).tolist()
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    return ((far - distance) / (far - near)).clip(0, 1)


def match(
    answer: Answer,
    target: Target,
    max_l1: float,
    max_distance: float,
    *,
    extra: float = 0.0,
    continuous: bool = False,
) -> Matched:
    """VisionReasoner's matching: Hungarian assignment on 3 minus the number of criteria that a pair fulfils.

    The criteria: box IoU > 0.5; mean L1 distance of the corners < max_l1; point distance < max_distance with all points
    in the object's own written box. Thresholds in the unit of the frame (NEAR_840, NEAR_1000). `continuous` (Dr. Seg,
    appendix A, "raw reward"): the IoU itself, `falling` of either distance.

        criteria fulfilled    true A    true B
        first object written     1         3         first-B, second-A cost 0 + 2; first-A, second-B would cost 2 + 3
        second                   1         0
    """
    boxes, points, true_boxes, true_points = _arrays(answer, target)
    N, M = len(boxes), len(true_boxes)
    if not N or not M:
        none = np.zeros(0)
        return Matched(none.astype(int), none.astype(int), none, none, np.zeros((0, 3)), max(N, M))
    iou = box_ious(boxes, true_boxes, extra)
    l1 = np.abs(boxes[:, None] - true_boxes[None]).mean(-1)
    distance = point_distances(points, true_points)
    inside = points_inside(points, boxes)[:, None]
    if continuous:
        hits = np.stack([iou, falling(l1), falling(distance) * inside], -1)
    else:
        hits = np.stack([iou > 0.5, l1 < max_l1, (distance < max_distance) & inside], -1).astype(float)
    rows, cols = linear_sum_assignment(3 - hits.sum(-1))
    pairs = (rows, cols)
    return Matched(rows, cols, iou[pairs], distance[pairs], hits[pairs], max(N, M))


# ---------------------------------------------------------------------------------------------------------- repetition

# Text that a prompt shows as "fill in here": Dr. Seg's released ones, and this project's (data.PROMPTS). Echoing it is
# not reasoning.
PLACEHOLDERS = (
    "your reasoning text",
    "your visual focus",
    "more reasoning text",
    "reasoning goes here",
    "region goes here",
)


def count_repeats(text: str, stops: str = ".", fold: bool = False) -> int:
    """How many sentences have been said before: one said k times counts k - 1. Tags are part of the text.

    Sentences end at any character of `stops`. fold: case and punctuation around a sentence do not count.

    >>> count_repeats("A cat. A dog. A cat. A cat.")
    2
    """
    sentences = [s.strip() for s in re.split(f"[{re.escape(stops)}]", text)]
    if fold:
        sentences = [s.strip(string.punctuation + string.whitespace + "“”‘’«»，、；：").casefold() for s in sentences]
    sentences = [s for s in sentences if s]
    return len(sentences) - len(set(sentences))


def echoes_placeholder(text: str) -> bool:
    """Does the text copy a placeholder of the prompt, whatever the case and the non-letters between its words?

    >>> echoes_placeholder("<think>Reasoning, goes: HERE</think>"), echoes_placeholder("<think>the left mug</think>")
    (True, False)
    """
    words = " " + re.sub(r"[\W\d_]+", " ", text.lower()) + " "  # letters of every script stay
    return any(f" {p} " in words for p in PLACEHOLDERS)


DRSEG_STOPS = ".!?…。！？｡．"


def says_new_things(text: str) -> bool:
    """The non_repeat part of Dr. Seg and GenSeg-R1: at most one sentence is said again, and no placeholder copied."""
    return count_repeats(text, DRSEG_STOPS, fold=True) < 2 and not echoes_placeholder(text)


# ------------------------------------------------------------------------------------------------------------- rewards
# Each takes (answer, target, mask_iou) and, by keyword, what it has to be told; a recipe hands over the fields of these
# names (recipes.reward_parts). It returns its named parts, weights applied: the reward is their sum.
#
#   mask_iou   the IoU of the answer's mask with the truth, where a recipe puts SAM2 in its reward (None counts 0)
#   weights    what each part is worth, by name, in place of 1 or of genseg-g's own
#   released   [C] where it differs, which also widens Dr. Seg's `answer` to 0-2 and its `accuracy` to 0-3
#
# A right [] on a request without target has no boxes or points to be paid for: VisionReasoner gives it 2 of its 7, Dr.
# Seg all but the answer part, and of the three metrics the count.


Parts = dict[str, float]


def _weighted(parts: Parts, weights: Parts | None, default: Parts | None = None) -> Parts:
    weights = (default or {}) | (weights or {})
    if unknown := weights.keys() - parts.keys() - {"look"}:  # a part that may be switched off
        raise ValueError(f"weights for {', '.join(sorted(unknown))}, which is no part: {', '.join(parts)}")
    return {name: float(value) * weights.get(name, 1.0) for name, value in parts.items()}


def _checked_iou(mask_iou: float | None) -> float:
    """The IoU of a mask as it was measured; none counts 0."""
    iou = 0.0 if mask_iou is None else float(mask_iou)
    if not 0 <= iou <= 1:
        raise ValueError(f"a mask IoU of {iou}: between 0 and 1 is meant")
    return iou


def segzero_reward(answer: Answer, target: Target, mask_iou=None, *, weights=None, released: bool = False) -> Parts:
    """Seg-Zero [C], 0 to 5, pixels of the 840 frame: think; format (three keys of the right lengths); box IoU > 0.5;
    mean L1 < 10; both points in the written box, at a distance (point_distances: the mean of two) below 100. Box parts
    count also where the points are malformed."""
    parts = {"think": answer.think_ok, "format": answer.answer_ok, "box_iou": 0.0, "box_l1": 0.0, "point": 0.0}
    boxes, points, true_boxes, true_points = _arrays(answer, target)
    if len(boxes) and len(true_boxes):
        parts["box_iou"] = box_ious(boxes[:1], true_boxes[:1], INCLUSIVE if released else 0.0)[0, 0] > 0.5
        parts["box_l1"] = np.abs(boxes[0] - true_boxes[0]).mean() < 10
        if answer.answer_ok:
            parts["point"] = points_inside(points, boxes)[0] and point_distances(points, true_points)[0, 0] < 100
    return _weighted(parts, weights)


def visionreasoner_reward(
    answer: Answer,
    target: Target,
    mask_iou=None,
    *,
    continuous: bool = False,
    look: bool = False,
    weights=None,
    released: bool = False,
) -> Parts:
    """VisionReasoner [C], 0 to 7: think 1; answer 0-2 (valid boxes + points per object); accuracy 0-3 (hits of the
    matching over the larger count: IoU > 0.5, L1 < 10, point < 30 in the 840 frame); non_repeat 1 (at most one sentence
    said again). `continuous`: the three criteria of accuracy by degrees (Dr. Seg Table 1, "raw reward", appendix A).
    `look`: Dr. Seg's part of that name, 1, comes on top (its Table 4: Look-to-Confirm without ranking)."""
    pairs = match(answer, target, **NEAR_840, extra=INCLUSIVE if released else 0.0, continuous=continuous)
    accuracy = pairs.hits.sum() / max(pairs.larger, 1)
    fresh = count_repeats(answer.text) < 2
    parts = {"think": answer.think_ok, "answer": answer.key_score, "accuracy": accuracy, "non_repeat": fresh}
    if look:
        parts["look"] = looks_somewhere(answer, released)
    return _weighted(parts, weights)


def looks_somewhere(answer: Answer, released: bool = False) -> bool:
    """Look-to-Confirm (Dr. Seg section 4.2, Eq. 8): a <look> with a letter or digit in it, within the reasoning trace
    (released: with anything in it, there or in the answer)."""
    if not released:
        return any(character.isalnum() for look in answer.looks for character in look)
    parts = (_between(answer.text, f"<{tag}>", f"</{tag}>") for tag in ("think", "answer"))
    return any(any(all_between(part[0], "<look>", "</look>")) for part in parts if part)


def drseg_metrics(answer: Answer, target: Target, released: bool = False) -> tuple[float, float, float]:
    """Dr. Seg's x = (x1, x2, x3), Eq. 13-16, each 0 to 1: mean box IoU over matched pairs; agreement of the counts,
    min(N, M) / max(N, M), 1 when both are 0; mean over matched pairs of g(point distance), see `falling`. Matching as
    in VisionReasoner. A malformed answer has N = 0 (what it loses is the `answer` part). Two of three objects, at IoU
    0.8 and 0.6, their points off by 20 and 115 px: (0.7, 2/3, 0.75)."""
    pairs = match(answer, target, **NEAR_840, extra=INCLUSIVE if released else 0.0)
    n = len(pairs.iou)
    if n == 0:
        return 0.0, float(pairs.larger == 0), 0.0
    return float(pairs.iou.mean()), n / pairs.larger, float(falling(pairs.distance).mean())


class RankQueue:
    """Dr. Seg's distribution ranking (section 4.3, Eq. 9-12): how a metric vector compares with the last `size` ones.

    rank(x) = mean over j of q_j,  q_j = (1/Q) sum_m 1(s_m <= x_j): the fraction of the queue's Q rows that x equals or
    beats, per component. Why rank at all, where GRPO takes a group's mean away and divides by its spread? A level and a
    scale that a whole reward has do cancel; what its parts weigh beside each other does not. A part of large variance
    drowns the others ("high-variance dominance", section 3.3). As ranks, IoU, count and point score spread alike, and
    the accuracy keeps its weight beside the format parts when answers have become good and much alike.

    The queue starts with one step of zeros ("a full step of zeros", section 5.1; 128 = 16 prompts x 8): at first every
    answer ranks 1, a malformed one too, and only the other parts teach; that fades as real vectors come in. These zeros
    are gone once others fill the queue (16 steps of 128); answers that score 0 bring new ones.

    New vectors wait in `pending` and enter together at the step's end (flush), so that all completions of a step are
    ranked against the same history. On several processes: gather every process's pending rows, then flush(rows) the
    same rows in the same order everywhere. Part of the checkpoint: state_dict / load_state_dict.

    >>> queue = RankQueue(size=4, dims=1, initial_zeros=0)
    >>> for iou in (0.2, 0.5, 0.9, 0.95):
    ...     queue.push([iou])
    >>> queue.flush()
    >>> queue.rank([0.6]), queue.rank([0.8]), queue.rank([0.91])  # where among the others, not how much
    (0.5, 0.5, 0.75)
    """

    def __init__(self, size: int = 2048, dims: int = 3, initial_zeros: int = 128):
        self.dims = dims
        self.rows: deque[tuple[float, ...]] = deque([(0.0,) * dims] * initial_zeros, maxlen=size)
        self.pending: list[tuple[float, ...]] = []
        self._sort()

    def _checked(self, rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
        """The rows as tuples of floats; all of them have the queue's number of components, finite ones."""
        checked = [tuple(map(float, row)) for row in rows]
        for row in checked:
            if len(row) != self.dims:
                raise ValueError(f"{len(row)} components for a queue of {self.dims}")
            if not all(map(math.isfinite, row)):
                raise ValueError(f"{row} is not of finite numbers, and cannot be ranked")
        return checked

    def _sort(self) -> None:
        self.sorted = [sorted(column) for column in zip(*self.rows, strict=True)]

    def percentiles(self, x: Sequence[float]) -> list[float]:
        """q_j per component; 1 for an empty queue (nothing beats x). ValueError if x has another number of components,
        or one that is not finite."""
        (x,) = self._checked([x])
        if not self.rows:
            return [1.0] * len(x)
        return [bisect.bisect_right(column, v) / len(column) for column, v in zip(self.sorted, x, strict=True)]

    def rank(self, x: Sequence[float]) -> float:
        """The mean of the percentiles, Eq. 12."""
        q = self.percentiles(x)
        return sum(q) / len(q)

    def push(self, x: Sequence[float]) -> None:
        """Let x wait for the end of the step. ValueError as in percentiles."""
        self.pending += self._checked([x])

    def flush(self, rows: Sequence[Sequence[float]] | None = None) -> None:
        """Let the pending rows (or `rows`: those of all processes) into the queue, oldest out first. ValueError as in
        percentiles, and nothing is let in."""
        self.rows.extend(self._checked(self.pending if rows is None else rows))
        self.pending = []
        self._sort()

    def state_dict(self) -> dict:
        """All of it, as plain lists and numbers."""
        rows = [list(r) for r in self.rows]
        pending = [list(r) for r in self.pending]
        return {"size": self.rows.maxlen, "rows": rows, "pending": pending}

    def load_state_dict(self, state: dict) -> None:
        """Become the queue that state_dict described, its size included. ValueError for rows that cannot be ranked."""
        self.dims = len(next(iter(state["rows"] or state["pending"]), (0,) * self.dims))
        self.rows = deque(self._checked(state["rows"]), maxlen=state["size"])
        self.pending = self._checked(state["pending"])
        self._sort()


def drseg_reward(
    answer: Answer,
    target: Target,
    mask_iou=None,
    *,
    queue: RankQueue | None = None,
    components: Sequence[int] = (0, 1, 2),
    look: bool = True,
    weights=None,
    released: bool = False,
) -> Parts:
    """Dr. Seg, 0 to 5: look + think + answer + non_repeat (Eq. 8), 1 each, and accuracy 0-1: the rank of x in `queue`
    (Eq. 12), or without a queue the mean of x (Table 5's raw reward). The caller pushes x.

    answer: 1 for a valid answer that names an object; a valid [] earns 0, since Eq. 8 asks for key-value pairs.
    components: which of x1, x2, x3 enter the accuracy (Table 10; with none, its first row, the format is all).
    look: False leaves that part out (Table 4: ranking without Look-to-Confirm).
    released: `answer` is 0-2, by keys; accuracy a sum, each rank rounded to a decimal: 0-3.
    """
    x = drseg_metrics(answer, target, released)
    q = queue.percentiles(x) if queue is not None else x
    q = [q[j] for j in components]
    parts = {"look": looks_somewhere(answer, released)} if look else {}
    parts |= {"think": answer.think_ok, "non_repeat": says_new_things(answer.text)}
    if released:
        parts |= {"answer": answer.key_score, "accuracy": sum(round(v, 1) for v in q)}
    else:
        parts |= {"answer": answer.answer_ok and bool(answer.instances), "accuracy": sum(q) / max(len(q), 1)}
    return _weighted(parts, weights)


def tiered(iou: float, tiers: Sequence[float] = (0.5, 0.7, 0.8), rewards: Sequence[float] = (2.0, 3.0, 4.0)) -> float:
    """SAM-R1 section 3.3: the reward of the highest tier that the IoU exceeds, else 0. One tier: a fixed threshold.

    >>> tiered(0.5), tiered(0.51), tiered(0.79), tiered(0.81)
    (0.0, 2.0, 3.0, 4.0)
    """
    return max((r for t, r in zip(tiers, rewards, strict=True) if iou > t), default=0.0)


def samr1_reward(
    answer: Answer,
    target: Target,
    mask_iou: float | None = None,
    *,
    tiers: Sequence[float] = (0.5, 0.7, 0.8),
    tier_rewards: Sequence[float] = (2.0, 3.0, 4.0),
    weights=None,
) -> Parts:
    """SAM-R1 section 3.3, -2 to 6: tiered(mask IoU) 0-4; think +1 or -1; format +1 or -1. The mask is SAM2's, from
    boxes and points."""
    iou = _checked_iou(mask_iou) if answer.instances else 0.0  # nothing written has no mask
    value = tiered(iou, tiers, tier_rewards)
    sign = {True: 1, False: -1}
    return _weighted({"tiered": value, "think": sign[answer.think_ok], "format": sign[answer.answer_ok]}, weights)


def genseg_reward(answer: Answer, target: Target, mask_iou=None, *, weights=None) -> Parts:
    """GenSeg-R1 section 3.6, 0 to 6, in the 0-1000 frame: think; format; box_iou (> 0.5); box_l1 (mean < 11.9); point
    (both inside the written box, their distance from the annotated ones, see point_distances, below 119); non_repeat.
    Box and point parts are summed over matched pairs and divided by the larger count. A right {"no_target": true} earns
    all of them, a wrong one none."""
    pairs = match(answer, target, **NEAR_1000)
    if target.no_target:
        spatial = [answer.no_target] * 3
    else:
        spatial = pairs.hits.sum(0) / max(pairs.larger, 1)
    parts = {"think": answer.think_ok, "format": answer.answer_ok}
    parts |= dict(zip(("box_iou", "box_l1", "point"), spatial)) | {"non_repeat": says_new_things(answer.text)}
    return _weighted(parts, weights)


def genseg_g_reward(
    answer: Answer,
    target: Target,
    mask_iou: float | None = None,
    *,
    negative_box: str = "truth",
    weights=None,
) -> Parts:
    """GenSeg-R1-G section 3.6: genseg_reward plus mask_iou (x 5, SAM2's mask), negative (x 10, valid_negatives) and
    no_target: on a request without target +10 for saying so and -10 for any box, in a malformed answer too. Range: 0 to
    21 with a target, -10 to 16 without."""
    parts = genseg_reward(answer, target)
    if target.no_target:
        verdict = -1.0 if answer.boxes_written else float(answer.no_target)
        parts |= {"mask_iou": 0.0, "negative": 0.0, "no_target": verdict}
    else:
        iou = _checked_iou(mask_iou) if answer.instances else 0.0
        negative = valid_negatives(answer, target, negative_box)
        parts |= {"mask_iou": iou, "negative": negative, "no_target": 0.0}
    return _weighted(parts, weights, DEFAULT_WEIGHTS["genseg-g"])


def valid_negatives(answer: Answer, target: Target, negative_box: str = "truth", clearance: float = 5 / 840) -> float:
    """GenSeg-R1-G's r_neg, 0 to 1: the fraction of an object's negative points that are valid, averaged over all
    objects written; one without negative points, or without a true partner (match), counts 0.

    Valid: "inside the bounding box but outside the ground-truth mask" (section 3.6), in the picture, and no nearer than
    `clearance` (of the picture's longer side) to the mask's boundary. Which box the paper means decides what a policy
    can be paid for (docs/results.md): the "truth"'s, that of the matched object; the "written" one, which pays a policy
    for boxes beside the object; or "both". 0 without a mask.
    """
    if negative_box not in ("truth", "written", "both"):
        raise ValueError(f"negative_box must be 'truth', 'written' or 'both', not {negative_box!r}")
    objects = answer.instances[:MAX_OBJECTS]
    if target.mask is None or not objects:
        return 0.0
    pairs = match(answer, target, **NEAR_1000)
    total = 0.0
    for i, j in zip(pairs.written, pairs.true, strict=True):
        if len(objects[i].negative_points):
            boxes = {"written": [objects[i].box], "truth": [target.boxes[j]]}
            inside = boxes.get(negative_box) or boxes["written"] + boxes["truth"]
            valid = [_is_clear(xy, inside, target, clearance) for xy in objects[i].negative_points]
            total += sum(valid) / len(valid)
    return total / len(objects)


def _is_clear(xy: Sequence[float], boxes: list, target: Target, clearance: float) -> bool:
    """Does the point lie in all boxes (of the frame), in the picture, and far enough from the mask?"""
    x, y = xy
    H, W = target.mask.shape
    px, py = x * W / target.frame[0], y * H / target.frame[1]
    if not (0 <= px < W and 0 <= py < H and all(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes)):
        return False
    if target.mask[int(py), int(px)]:
        return False
    # Only pixels of the mask in the neighbourhood can be too near. Pixel i covers i to i + 1, so what counts is the
    # distance to that square, 0 inside it: on a coarse mask, distances to pixel centres would give half a pixel away,
    # which may be all of r.
    r = clearance * max(H, W)
    x0, y0 = max(int(px - r), 0), max(int(py - r), 0)
    ys, xs = np.nonzero(target.mask[y0 : int(py + r) + 1, x0 : int(px + r) + 1])
    dx = np.abs(xs + (x0 + 0.5 - px)) - 0.5
    dy = np.abs(ys + (y0 + 0.5 - py)) - 0.5
    return bool((np.hypot(dx.clip(min=0), dy.clip(min=0)) >= r - 1e-9).all())  # "at least" r; 1e-9 for rounding


def lens_reward(answer: Answer, target: Target, mask_iou: float | None = None, *, weights=None) -> Parts:
    """LENS Eq. 6, 0 to 3: format (think-then-answer with one valid box) + box IoU^2 + mask IoU^2 (squares: the
    appendix), all lambda 1. The mask comes from the context queries, so it may be right where the box is wrong, or
    where there is none."""
    boxes, _, true_boxes, _ = _arrays(answer, target)
    iou = box_ious(boxes[:1], true_boxes[:1])[0, 0] if len(boxes) and len(true_boxes) else 0.0
    parts = {"format": answer.think_ok and answer.answer_ok, "box_iou": iou**2, "mask_iou": _checked_iou(mask_iou) ** 2}
    return _weighted(parts, weights)


REWARDS = {
    "segzero": segzero_reward,
    "visionreasoner": visionreasoner_reward,
    "drseg": drseg_reward,
    "samr1": samr1_reward,
    "genseg": genseg_reward,
    "genseg-g": genseg_g_reward,
    "lens": lens_reward,
}

# What a reward's parts weigh where a recipe does not say otherwise, and where that is not 1.
DEFAULT_WEIGHTS: dict[str, Parts] = {"genseg-g": {"mask_iou": 5.0, "negative": 10.0, "no_target": 10.0}}

# Rewards that rank an answer among earlier ones: what they rank, and the names of its components.
RANKED = {"drseg": (drseg_metrics, ("matched_iou", "count", "point"))}


# What an honest right answer earns, part by part before weights: with a target, and without one where the recipe has
# such requests. A function says it where it follows from a recipe's options.
_LOOK = {"look": lambda look=False, **_: float(look)}
_DRSEG = {
    "look": lambda look=True, **_: float(look),
    "answer": lambda released=False, **_: 2.0 if released else 1.0,
    "accuracy": lambda released=False, components=(0, 1, 2), **_: float(
        len(components) if released else bool(components)
    ),
}
_GENSEG = {"think": 1, "format": 1, "box_iou": 1, "box_l1": 1, "point": 1, "non_repeat": 1}
MAXIMUM: dict[str, tuple[dict, dict | None]] = {
    "segzero": ({"think": 1, "format": 1, "box_iou": 1, "box_l1": 1, "point": 1}, None),
    "visionreasoner": ({"think": 1, "answer": 2, "accuracy": 3, "non_repeat": 1} | _LOOK, None),
    "drseg": (_DRSEG | {"think": 1, "non_repeat": 1}, None),
    "samr1": ({"tiered": lambda tier_rewards=(2.0, 3.0, 4.0), **_: max(tier_rewards), "think": 1, "format": 1}, None),
    "genseg": (_GENSEG, _GENSEG),
    "genseg-g": (_GENSEG | {"mask_iou": 1, "negative": 1}, _GENSEG | {"no_target": 1}),
    "lens": ({"format": 1, "box_iou": 1, "mask_iou": 1}, None),
}


def maximum_parts(reward: str, no_target: bool = False, **options) -> Parts:
    """What an honest right answer earns under a recipe's options, part by part, before weights. ValueError where that
    is not known, or the recipe has no requests of that kind."""
    if reward not in MAXIMUM:
        raise ValueError(f"the reward {reward!r} has no maximum: put what a right answer earns into rewards.MAXIMUM")
    parts = MAXIMUM[reward][no_target]
    if parts is None:
        raise ValueError(f"the {reward} recipe has no answer to a request without target")
    return {name: value(**options) if callable(value) else float(value) for name, value in parts.items()}


def maximum(reward: str, no_target: bool = False, weights: Parts | None = None, **options) -> float:
    """The total of maximum_parts, each times its weight."""
    weights = DEFAULT_WEIGHTS.get(reward, {}) | (weights or {})
    parts = maximum_parts(reward, no_target, **options)
    return sum(value * weights.get(name, 1.0) for name, value in parts.items())
