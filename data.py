# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Datasets as one list of `Sample`s; the words of the prompt; the coordinate frames. No models or rewards in here.

    samples = load("refcocog", root="data", split="val")        # a sequence; pictures are read when asked for
    samples[0].query, samples[0].boxes, samples[0].image, samples[0].mask
    python data.py --check --dataset refcocog --data_root data  # counts, and a contact sheet of what was read

Every number in a Sample is in the picture's ORIGINAL pixels. to_frame leads from there to the other frames, and back
(rewards.Answer.rescaled does for answers):

      what the model wrote ──▶ original pixels ──▶ SAM2 and the metrics      (model_frame; SAM2 divides by the size)
      what the model wrote ──▶ the recipe's reward frame ◀── the true boxes    (in train.judge)

A frame is a (width, height) pair, the size of the picture in some unit. Qwen2.5-VL writes pixels of the picture as
resized for it, so its frame is that size; Qwen2-VL and Qwen3-VL write 0-1000 on both axes: theirs is (1000, 1000).
Boxes are continuous [x1, y1, x2, y2] with area (x2 - x1)(y2 - y1): the pixel in column 3 covers x from 3 to 4.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import distance_transform_edt

# ---------------------------------------------------------------------------------------------------- coordinate frames

# How each family writes coordinates: 0-1000 on both axes, or pixels of the picture as resized for it.
FAMILIES = {"qwen2_vl": "thousand", "qwen2_5_vl": "pixels", "qwen3_vl": "thousand"}


def model_frame(family: str, resized: tuple[int, int]) -> tuple[float, float]:
    """The frame in which a model of `family` writes coordinates on a picture resized to `resized` (width, height)."""
    return resized if FAMILIES[family] == "pixels" else (1000, 1000)


def to_frame(xy: np.ndarray, source: tuple[float, float], target: tuple[float, float]) -> np.ndarray:
    """Rescale points (..., 2) or boxes (..., 4), x and y alternating, from one (width, height) to another. Float64.

    >>> to_frame([50, 40, 500, 400], (500, 400), (1000, 1000)).tolist()  # a box, pixels to thousandths
    [100.0, 100.0, 1000.0, 1000.0]
    """
    xy = np.asarray(xy, dtype=np.float64)
    scale = np.array([target[0] / source[0], target[1] / source[1]])
    return xy * np.tile(scale, xy.shape[-1] // 2)


# What a terminal obeys: it may rename a window, wipe the screen, or paint over what was printed before.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def printable(text: str) -> str:
    """A text from a stranger as a terminal may show it: control characters become escapes, newline and tab stay."""
    return text.translate(_CONTROLS)


def plural(n: int, noun: str) -> str:
    """A number and what is counted.

    >>> plural(1, "entry"), plural(2, "entry"), plural(0, "sample")
    ('1 entry', '2 entries', '0 samples')
    """
    several = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{n} {noun if n == 1 else several}"


class BadData(Exception):
    """A file or folder that cannot be used as given. The message names it and says what to do."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class Lacks(BadData):
    """Nothing is wrong with a sample, but it has less than a recipe needs."""


class reading:
    """Whatever a reader raises inside this block becomes BadData that says where: files may hold anything."""

    def __init__(self, at: str):
        self.at = at

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        if isinstance(error, BadData):
            raise BadData(f"{self.at}: {error}") from None
        if isinstance(error, Exception):  # the one net under all readers
            what = f"there is no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            raise BadData(f"{self.at}: {what:.300}. docs/data.md says how data lie.") from error


# -------------------------------------------------------------------------------------------------------------- samples


def encode_rle(mask: np.ndarray) -> dict:
    """(H, W) bool to COCO's compressed run-length encoding, a few hundred characters for most masks: {"size": [H, W],
    "counts": ...}, as JSON takes it."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return code | {"counts": code["counts"].decode("ascii")}


def decode_rle(rle: dict) -> np.ndarray:
    """The inverse: (H, W) bool. Broken counts make pycocotools write past its memory: rle_fault comes first."""
    return coco_mask.decode(rle).astype(bool)


MAX_PIXELS = 100_000_000  # of a picture or mask: more is taken for a bomb


def rle_fault(rle: dict) -> str | None:
    """What is wrong with a compressed encoding, or None. Nothing of pycocotools is called, nor a mask made.

    Each character holds five bits of a number, lowest first, and a sixth that says whether more follow; from the fourth
    number on, what is written is the difference to the number before the last.
    """
    size, counts = rle["size"], rle["counts"]
    if [type(n) for n in size] != [int, int] or min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        return f"a mask of size {size!s:.60}: it takes [height, width], up to {MAX_PIXELS:,} pixels together"
    text = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    if not re.fullmatch(rb"(?:[P-o]{0,6}[0-O])+", text):
        return f"counts that no run-length encoding has: {counts!r:.60}"
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32) + 1
    starts = np.concatenate([[0], ends[:-1]])
    bits = (codes & 31) << 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts))
    runs = np.add.reduceat(bits, starts) - np.where(codes[ends - 1] & 16, 1 << 5 * (ends - starts), 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    if runs.min() < 0 or runs.max() > MAX_PIXELS or runs.sum() != size[0] * size[1]:
        return f"runs that are not the {size[0]} x {size[1]} pixels (height x width) of their mask"


@dataclasses.dataclass
class Sample:
    """One picture and one request. Everything in original pixels; pictures and masks are read when asked for.

    `object_masks` holds one run-length encoding per object, in the order of `boxes`, or one for all objects together
    where the data have no more than that, or nothing (boxes only).
    """

    query: str
    boxes: np.ndarray  # (N, 4) float64
    points: np.ndarray  # (N, k, 2) float64: the annotated points, k = 0 where the data have none
    id: str
    image_id: str
    width: int
    height: int
    open: Callable[[], Image.Image]  # returns the RGB picture
    object_masks: list[dict] = dataclasses.field(default_factory=list)
    ignore_mask: dict | None = None  # pixels that no metric counts: crowds, what ReasonSeg leaves open
    crowds: list[list[float]] = dataclasses.field(default_factory=list)  # COCO's: boxes (K, 4) that no metric counts
    no_target: bool = False
    count: int | None = None  # counting sets: how many there are
    sentences: tuple[str, ...] = ()  # with one_expression: all sentences of the reference, of which query is one
    file: str = ""  # the picture's file name, where it lies in a file of its own
    is_sentence: bool | None = None  # ReasonSeg: a long query (True) or a short phrase; None elsewhere

    @property
    def image(self) -> Image.Image:
        """The RGB picture, upright; read from its file at every call. BadData if that cannot be."""
        return self.open()

    def with_picture(self) -> Sample:
        """The same with its picture in memory, read now: whoever looks at it again does not read it again."""
        image = self.image
        return dataclasses.replace(self, open=lambda: image)

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, the union of all objects; all False if nothing fits; None without masks in the data."""
        if self.no_target:
            return np.zeros((self.height, self.width), dtype=bool)
        return decode_rle(coco_mask.merge(self.object_masks)) if self.object_masks else None

    @property
    def ignore(self) -> np.ndarray | None:
        """(H, W) bool: pixels that no metric counts (ReasonSeg's 255), or None."""
        return None if self.ignore_mask is None else decode_rle(self.ignore_mask)

    def positive_points(self, k: int) -> np.ndarray:
        """(N, k, 2): the annotated points; a lone one is given k times; without any, from the masks. BadData without
        those."""
        if given := self.points.shape[1]:
            return self.points[:, [min(i, given - 1) for i in range(k)]]
        centres = self.boxes.reshape(-1, 2, 2).mean(1)  # for an object too small to cover a pixel
        pairs = zip(self._mask_per_object(), centres, strict=True)
        found = [inscribed_points(mask, k) if mask.any() else np.tile(centre, (k, 1)) for mask, centre in pairs]
        return np.reshape(found, (len(self.boxes), k, 2))

    def negative_points(self, k: int) -> np.ndarray | None:
        """(N, k, 2) background points inside each box, far from the mask; None without a mask, or if some box has no
        room for them."""
        union = self.mask
        found = [None] if union is None else [background_points(union, box, k) for box in self.boxes]
        return None if any(points is None for points in found) else np.reshape(found, (len(self.boxes), k, 2))

    def _mask_per_object(self) -> list[np.ndarray]:
        if len(self.object_masks) == len(self.boxes):
            return [decode_rle(rle) for rle in self.object_masks]
        if (union := self.mask) is None:
            raise Lacks(
                f"sample {self.id} has boxes alone, and the recipe needs points: give points, polygons, rle or mask"
            )
        parts = np.zeros((len(self.boxes), *union.shape), dtype=bool)
        for part, (x1, y1, x2, y2) in zip(parts, self.boxes.round().astype(int), strict=True):
            own = np.s_[max(y1, 0) : y2, max(x1, 0) : x2]  # a box may be drawn a pixel over the edge
            part[own] = union[own]
        return list(parts)


def check_truth(sample: Sample) -> None:
    """Are the boxes and points of a sample inside its picture, and each point in its own box? BadData with the numbers
    as they stand, and what they look like. Cheap: every sample that is read comes through here."""
    width, height = sample.width, sample.height
    boxes, points = sample.boxes.tolist(), sample.points.tolist()  # for a few numbers, plain ones are the fast ones
    inside = all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and x2 > 1 for x1, y1, x2, y2 in boxes)
    if inside and not sample.points.size:
        return
    slack = max(2.0, 0.02 * max(width, height))  # pixels: annotators draw a little over the edge
    right, bottom = width + slack, height + slack

    def leaves(name: str, numbers: list[float], among: list[float]) -> BadData:
        units = "thousandths" if max(among) <= 1000 else "another size"
        units = "840 x 840 or thousandths" if max(among) <= 840 else units
        where = f"a picture of {width} x {height} by more than {slack:g} px"
        turned = " Or y before x?" if max(numbers[1::2]) <= right and max(numbers[::2]) <= bottom else ""
        said = f"the {name} {[round(v, 1) for v in numbers]} leaves {where}"
        return BadData(f"{said}: was it written for {units}?{turned}")

    for box in boxes:
        if box[0] >= box[2] or box[1] >= box[3]:
            raise BadData(f"a box is x1, y1, x2, y2 with x1 < x2 and y1 < y2, not {box}: is it x, y, width, height?")
    if boxes and max(map(max, boxes)) <= 1 < min(width, height):
        raise BadData(f"the box {boxes[0]} is no larger than a pixel: is it a fraction of the picture's size?")
    for box in boxes:
        if min(box) < -slack or box[2] > right or box[3] > bottom:
            raise leaves("box", box, [v for b in boxes for v in b])
    for (x1, y1, x2, y2), own in zip(boxes, points):
        for x, y in own:
            if not (-slack <= x <= right and -slack <= y <= bottom):
                raise leaves("point", [x, y], [v for p in own for v in p])
            if not (x1 - slack <= x <= x2 + slack and y1 - slack <= y <= y2 + slack):
                raise BadData(f"a point is more than {slack:g} px outside its own box: {points}, {boxes}")


def box_of(mask: np.ndarray) -> np.ndarray:
    """The tight box of a non-empty (H, W) mask.

    >>> box_of(np.array([[0, 0, 0], [0, 1, 1]], dtype=bool)).tolist()  # edges, not pixels: one pixel is 1 wide
    [1.0, 1.0, 3.0, 2.0]
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], dtype=np.float64)


def inscribed_points(mask: np.ndarray, k: int) -> np.ndarray:
    """(k, 2) centres of the largest inscribed circles of a non-empty mask; a circle's inner half is then cut out, so
    that the next centre lies elsewhere."""
    x0, y0, x1, y1 = box_of(mask).astype(int)
    left = np.pad(mask[y0:y1, x0:x1], 1)  # the picture's border counts as outside
    points = []
    for _ in range(k):
        distance = distance_transform_edt(left)
        y, x = np.unravel_index(distance.argmax(), left.shape)
        if distance[y, x] == 0:  # nothing left: repeat the first
            points.append(points[0])
            continue
        points.append((x0 + x - 0.5, y0 + y - 0.5))  # -1 for the padding, +0.5 for the pixel's centre
        ys, xs = np.ogrid[: left.shape[0], : left.shape[1]]
        left = left & ((xs - x) ** 2 + (ys - y) ** 2 > (distance[y, x] / 2) ** 2)
    return np.array(points, dtype=np.float64)


def distances_in(mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, int, int]:
    """(distances, x0, y0): of each pixel of a box (rounded, within the picture) to the mask, in pixels, inf where there
    is none. (x0, y0) is the box's first pixel. Only what can matter of the picture is looked at: every sample of
    GenSeg-R1-G's training set is asked for its negative points before a run starts."""
    x0, y0, x1, y1 = np.clip(box.round().astype(int), 0, [*mask.shape[::-1], *mask.shape[::-1]])
    if x1 <= x0 or y1 <= y0:
        return np.zeros((0, 0)), x0, y0
    inside = mask[y0:y1, x0:x1]
    # No pixel of the box is farther from the mask than from what of the mask is in the box.
    pad = int(np.ceil(distance_transform_edt(~inside).max())) if inside.any() else max(mask.shape)
    left, top = max(x0 - pad, 0), max(y0 - pad, 0)
    near = mask[top : y1 + pad, left : x1 + pad]
    found = distance_transform_edt(~near) if near.any() else np.full(near.shape, np.inf)
    return found[y0 - top : y1 - top, x0 - left : x1 - left], x0, y0


def background_points(mask: np.ndarray, box: np.ndarray, k: int, clearance: float = 5 / 840) -> np.ndarray | None:
    """(k, 2) points inside `box`, outside `mask`, far from the mask and from each other (with room for one alone, it is
    there k times); None if none clears the mask.

    `clearance` is the distance from the mask's boundary that GenSeg-R1-G's r_neg asks for (5 px of 840), as a fraction
    of the longer side of the picture.
    """
    room, x0, y0 = distances_in(mask, box)
    ys, xs = np.mgrid[y0 : y0 + room.shape[0], x0 : x0 + room.shape[1]] + 0.5
    # + 1: a pixel's centre, and rounding to whole coordinates
    clear = room >= (clearance + 1 / 1000) * max(mask.shape) + 1
    if not clear.any():
        return None
    points = []
    for _ in range(k):
        score = np.minimum.reduce([room, *[np.hypot(xs - x, ys - y) for x, y in points]])
        score[~clear] = -1
        i, j = np.unravel_index(score.argmax(), score.shape)
        points.append((xs[i, j], ys[i, j]))
    return np.array(points, dtype=np.float64)


# -------------------------------------------------------------------------------------------------------------- prompts

# One prompt per answer schema, written for this project. "reasoning goes here" and "region goes here" are the places to
# fill in; a completion that copies them loses the non_repeat part of Dr. Seg's and GenSeg's rewards (PLACEHOLDERS in
# rewards.py; a test keeps the two in step).
_HOW = {
    "thousand": "Coordinates run from 0 to 1000 over the picture's width and height.",
    "pixels": "Coordinates are pixels of the picture.",
}
PROMPTS = {
    "lens": "Find the one object that fits: {query}\n{how} First reason, then give its box.\n"
    '<think>reasoning goes here</think><answer>{{"bbox_2d": [x1, y1, x2, y2]}}</answer>',
    "samr1": "Find the object that fits: {query}\n{how} First reason, then give its box, a point on it, and its name.\n"
    '<think>reasoning goes here</think><answer>[{{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y], '
    '"label": "name"}}]</answer>',
    "genseg": "Find every object that fits: {query}\n{how} First reason, then give for each a box and two points "
    'on it. If nothing fits, answer {{"no_target": true}}.\n'
    '<think>reasoning goes here</think><answer>[{{"bbox_2d": [x1, y1, x2, y2], "point_1": [x, y], '
    '"point_2": [x, y]}}]</answer>',
    "genseg-g": "Find every object that fits: {query}\n{how} First reason, then give for each a box, two points on it, "
    'and two background points inside the box. If nothing fits, answer {{"no_target": true}}.\n'
    '<think>reasoning goes here</think><answer>[{{"bbox_2d": [x1, y1, x2, y2], "point_1": [x, y], "point_2": [x, y], '
    '"negative_1": [x, y], "negative_2": [x, y]}}]</answer>',
    "drseg": "Find every object that fits: {query}\n{how} First reason; in the reasoning, say at least once, between "
    "<look> and </look>, what you look at. Then give for each a box and a point on it.\n"
    "<think>reasoning goes here <look>region goes here</look> reasoning goes here</think>"
    '<answer>[{{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}}]</answer>',
    "visionreasoner": "Find every object that fits: {query}\n{how} First reason, then give for each a box "
    "and a point on it.\n"
    '<think>reasoning goes here</think><answer>[{{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}}]</answer>',
    "segzero": "Find the one object that fits: {query}\n{how} First reason, then give its box and two points on it.\n"
    '<think>reasoning goes here</think><answer>{{"bbox": [x1, y1, x2, y2], "points_1": [x, y], '
    '"points_2": [x, y]}}</answer>',
}


def build_prompt(query: str, schema: str, space: str) -> str:
    """The user's message. schema: a key of PROMPTS; space: "pixels" or "thousand" (FAMILIES)."""
    return PROMPTS[schema].format(query=query.strip().rstrip("."), how=_HOW[space])


def prompt_hash(schema: str, space: str) -> str:
    """Eight characters that change when the prompt does; saved with predictions, to know which compare."""
    return hashlib.sha256(build_prompt("{}", schema, space).encode()).hexdigest()[:8]


# ------------------------------------------------------------------------------------------------------------- datasets


class Remark(str):
    """A line on what was left out without a sample being lost: it repeats another, or cannot be asked for."""


class Samples(Sequence):
    """What `load` returns; a slice is again a Samples. Polygons are drawn and tables read when a sample is asked for.

    `skipped` holds one sentence for each entry of the dataset that could not be used; `lost` counts those without which
    it is another dataset (no picture, no text, no mask), so not the Remarks.
    """

    def __init__(self, makers: list[Callable[[], Sample]], skipped: list[str]):
        self.makers = makers
        self.skipped = [type(line)(printable(line)) for line in skipped]
        self.lost = sum(not isinstance(line, Remark) for line in skipped)

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, index):
        return Samples(self.makers[index], self.skipped) if isinstance(index, slice) else self.makers[index]()


class Wanted(NamedTuple):
    """What `load` was asked for. A reader takes it, and yields for every sample a function that makes it, or a sentence
    that says why an entry of the dataset gives none."""

    name: str
    root: Path
    split: str
    one: bool  # one sentence per reference
    seed: int


# layout -> its reader, as file and function
LOADERS = {
    "toy": "toy.world.read",
    "refcoco": "benchmarks.layouts.references",
    "refcoco+": "benchmarks.layouts.references",
    "refcocog": "benchmarks.layouts.references",
    "refcocog-google": "benchmarks.layouts.references",
    "grefcoco": "benchmarks.layouts.references",
    "reasonseg": "benchmarks.layouts.reasonseg",
    "coco-detection": "benchmarks.layouts.coco",
    "coconut": "benchmarks.layouts.coco",
    "visionreasoner": "benchmarks.layouts.tables",
    "visionreasoner-test": "benchmarks.layouts.tables",
    "counting": "benchmarks.layouts.tables",
    "groundingsuite": "benchmarks.layouts.json_lines",
    "jsonl": "benchmarks.layouts.json_lines",
}


def load(
    layout: str, root: str | Path | None = None, split: str = "train", *, one_expression: bool = False, seed: int = 0
) -> Samples:
    """Open a dataset; several, joined by commas, follow each other. BadData if anything needed is absent or broken.

    layout: a key of LOADERS; root: the folder that benchmarks/layouts.py describes for it; split: train, val, ...
    one_expression: one sentence per reference, drawn by seed (ReasonSeg: the first). seed also draws
    coconut's category. An entry without polygon or picture is left out and listed in the result's `skipped`.

    toy     drawn on the spot; splits train, val, test
    jsonl   your own: root/<split>.jsonl, or root is the file. Picture paths start from the file's folder:
        {"image": "photos/1.jpg", "query": "the two red cups", "boxes": [[10, 20, 60, 90], [80, 15, 130, 88]],
         "points": [[[35, 50]], [[105, 48]]], "polygons": [[[10, 20, 60, 20, 35, 90]], [[80, 15, 130, 15, 105, 88]]]}
        in pixels of the upright picture; per object a box x1 y1 x2 y2, a list of points (as many for each), a list of
        polygons x y x y ..., of three corners or more. Needed are image, query, and boxes or a mask: polygons, or
        "mask": a PNG (not 0 is the object) or a list of one per object, or "rle": a list of one COCO RLE
        {"size": [height, width], "counts": ...} per object; or "no_target": true; or "count": 3.
    """
    makers: list[Callable[[], Sample]] = []
    skipped: list[str] = []
    for name in map(str.strip, layout.split(",")):
        if name not in LOADERS:
            raise BadData(f"unknown dataset {name!r}. Known: {', '.join(LOADERS)}; several are joined by commas.")
        # Imported here, when a dataset is wanted: the readers import this file, which is whole without them.
        file, function = LOADERS[name].rsplit(".", 1)
        reader = getattr(importlib.import_module(file), function)
        on_hub = function == "tables" and re.fullmatch(r"[\w.-]+/[\w.-]+", str(root))
        if name != "toy" and (not root or not (Path(root).exists() or on_hub)):
            raise BadData(f"{name}: folder not found: {root or None}. --data_root is where {name} lies.")
        collects = gc.isenabled()
        gc.disable()  # what is read is many small lists and no circles: looking for some takes a fifth of the time
        try:
            with reading(f"{root} as {name}"):
                found = list(reader(Wanted(name, Path(root or "."), split, one_expression, seed)))
        finally:
            if collects:
                gc.enable()
        usable, reasons = ([item for item in found if isinstance(item, str) == bad] for bad in (False, True))
        if not usable:
            raise BadData(f"{name}: nothing usable in {root}, split {split!r}. {(reasons or ['It is empty.'])[0]}")
        makers += usable
        skipped += reasons
    return Samples(makers, skipped)


if __name__ == "__main__":
    importlib.import_module("benchmarks.check").main()  # --check
