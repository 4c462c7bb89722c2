"""Datasets as one list of `Sample`s; the words of the prompt; the coordinate frames. No models or rewards in here.

    samples = load("refcocog", root="data", split="val")        # a sequence; pictures are read when asked for
    samples[0].query, samples[0].boxes, samples[0].image, samples[0].mask
    python data.py --check --dataset refcocog --data_root data  # counts, and a contact sheet of what was read

Every number in a Sample is in the picture's ORIGINAL pixels. There are two edges where that changes, and no third:

      original pixels ──to_frame──▶ what the model reads     (prompts and targets; supervised answers)
      original pixels ◀──to_frame── what the model wrote     (parsed answers, for SAM2 and the metrics)

A frame is a (width, height) pair, the size of the picture in some unit. Qwen2.5-VL writes pixels of the picture as
resized for it, so its frame is that size; Qwen2-VL and Qwen3-VL write 0-1000 on both axes: theirs is (1000, 1000).
Boxes are continuous [x1, y1, x2, y2] with area (x2 - x1)(y2 - y1): the pixel in column 3 covers x from 3 to 4.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps
from pycocotools import mask as coco_mask
from scipy.ndimage import distance_transform_edt

# ---------------------------------------------------------------------------------------------------- coordinate frames

# How each family writes coordinates, and the pixels that one of its image tokens covers on each side (patch x merge).
FAMILIES = {"qwen2_vl": ("thousand", 28), "qwen2_5_vl": ("pixels", 28), "qwen3_vl": ("thousand", 32)}


def model_frame(family: str, resized: tuple[int, int]) -> tuple[float, float]:
    """The frame in which a model of `family` writes coordinates on a picture resized to `resized` (width, height)."""
    return resized if FAMILIES[family][0] == "pixels" else (1000, 1000)


def to_frame(xy: np.ndarray, source: tuple[float, float], target: tuple[float, float]) -> np.ndarray:
    """Rescale points (..., 2) or boxes (..., 4), x and y alternating, from one (width, height) to another. Float64."""
    xy = np.asarray(xy, dtype=np.float64)
    scale = np.array([target[0] / source[0], target[1] / source[1]])
    return xy * np.tile(scale, xy.shape[-1] // 2)


# -------------------------------------------------------------------------------------------------------------- samples


class BadData(Exception):
    """A file or folder that cannot be used as given. The message names it and says what to do."""


@contextlib.contextmanager
def _reading(name):
    """Whatever goes wrong with a picture inside this block becomes a BadData that names it."""
    try:
        yield
    except FileNotFoundError:
        raise BadData(
            f"picture not found: {name}. Is --data_root the folder that the dataset's paths start from?"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(
            f"picture cannot be read: {name} ({error}). Fetch the file again, or take its entry out."
        ) from None


def open_image(path: str | Path | io.BytesIO, name: str = "") -> Image.Image:
    """A picture as upright RGB, whatever its mode (grey, palette, CMYK, RGBA) or EXIF rotation; or BadData."""
    with _reading(name or path), Image.open(path) as picture:
        return upright_rgb(ImageOps.exif_transpose(picture))


def picture_size(path: str | Path | io.BytesIO, name: str = "") -> tuple[int, int]:
    """(width, height) of the upright picture, from its header alone."""
    with _reading(name or path), Image.open(path) as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return picture.size[::-1] if turned else picture.size


def upright_rgb(picture: Image.Image) -> Image.Image:
    """RGB, transparency laid over white (a plain convert() would show whatever colour hides under it)."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode.startswith("I;16"):  # convert() would clip 16-bit grey to white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


def encode_rle(mask: np.ndarray) -> dict:
    """(H, W) bool to COCO's compressed run-length encoding, a few hundred bytes for most masks."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def decode_rle(rle: dict) -> np.ndarray:
    return coco_mask.decode(rle).astype(bool)


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
    ignore_mask: dict | None = None
    no_target: bool = False
    count: int | None = None  # counting sets: how many there are

    @property
    def image(self) -> Image.Image:
        return self.open()

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
        """(N, k, 2): the annotated points; a lone one is given k times; without any, from the masks."""
        n = len(self.boxes)
        if self.points.shape[1] or n == 0:
            return self.points[:, [min(i, self.points.shape[1] - 1) for i in range(k)]] if n else np.zeros((0, k, 2))
        masks = self._mask_per_object()
        centres = self.boxes.reshape(-1, 2, 2).mean(1)  # for an object too small to cover a pixel
        return np.stack(
            [inscribed_points(m, k) if m.any() else np.tile(c, (k, 1)) for m, c in zip(masks, centres, strict=True)]
        )

    def negative_points(self, k: int) -> np.ndarray | None:
        """(N, k, 2) background points inside each box, far from the mask; None if some box has no room for them."""
        union = self.mask
        if union is None:
            return None
        found = [background_points(union, box, k) for box in self.boxes]
        return None if any(points is None for points in found) else np.stack(found) if found else np.zeros((0, k, 2))

    def _mask_per_object(self) -> list[np.ndarray]:
        if len(self.object_masks) == len(self.boxes):
            return [decode_rle(rle) for rle in self.object_masks]
        union, parts = self.mask, []
        if union is None:
            raise BadData(f"sample {self.id} has neither points nor masks; this recipe needs one of them")
        for x1, y1, x2, y2 in self.boxes.round().astype(int):
            part = np.zeros_like(union)
            part[y1:y2, x1:x2] = union[y1:y2, x1:x2]
            parts.append(part)
        return parts


def box_of(mask: np.ndarray) -> np.ndarray:
    """The tight box of a non-empty (H, W) mask."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], dtype=np.float64)


def inscribed_points(mask: np.ndarray, k: int) -> np.ndarray:
    """(k, 2) centres of the largest inscribed circles of a non-empty mask, each found with those before cut out."""
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


def background_points(mask: np.ndarray, box: np.ndarray, k: int, clearance: float = 5 / 840) -> np.ndarray | None:
    """(k, 2) points inside `box`, outside `mask`, far from the mask and from each other; None if none clears the mask.

    `clearance` is the distance from the mask's boundary that GenSeg-R1-G's r_neg asks for (5 px of 840), as a fraction
    of the longer side of the picture.
    """
    x0, y0, x1, y1 = np.clip(box.round().astype(int), 0, [*mask.shape[::-1], *mask.shape[::-1]])
    if x1 <= x0 or y1 <= y0:
        return None
    room = distance_transform_edt(~mask)[y0:y1, x0:x1] if mask.any() else np.full((y1 - y0, x1 - x0), np.inf)
    ys, xs = np.mgrid[y0:y1, x0:x1] + 0.5
    # + 1: a pixel's centre, and rounding to whole coordinates
    needed, points = (clearance + 1 / 1000) * max(mask.shape) + 1, []
    for _ in range(k):
        score = np.minimum.reduce([room, *[np.hypot(xs - x, ys - y) for x, y in points]])
        score[room < needed] = -1
        i, j = np.unravel_index(score.argmax(), score.shape)
        if score[i, j] < 0:
            return None
        points.append((xs[i, j], ys[i, j]))
    return np.array(points, dtype=np.float64)


# -------------------------------------------------------------------------------------------------------------- prompts

# One prompt per answer schema, written for this project. "reasoning goes here" and "region goes here" are the places to
# fill in; rewards.py gives no points for a completion that copies them (PLACEHOLDERS there; a test keeps the two in
# step).
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
    "drseg": "Find every object that fits: {query}\n{how} First reason, and while reasoning say what you look at; "
    "then give for each a box and a point on it.\n<think>reasoning goes here <look>region goes here</look> "
    "reasoning goes here</think>"
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


# ------------------------------------------------------------------------------------------------ the miniature's world

COLORS = {
    "red": (214, 50, 44), "green": (52, 158, 70), "blue": (48, 96, 210),
    "yellow": (236, 205, 50), "purple": (138, 70, 178), "black": (40, 40, 44),
}  # fmt: skip
SHAPES = ("circle", "triangle", "diamond", "cross")  # none fills its box: a background point always fits inside one
IMPLICIT = {  # requests that name neither colour nor shape
    "circle": "the thing that would roll away", "triangle": "the thing like a tent", "diamond": "the thing like a kite",
    "cross": "the thing like a plus sign", "green": "the thing with the colour of grass",
    "yellow": "the thing as yellow as a lemon", "blue": "the thing with the colour of the sea",
    "red": "the thing with the colour of a tomato",
}  # fmt: skip
TOY_SPLITS = {"train": (1, 2000), "val": (2, 200), "test": (3, 500)}  # split -> (seed, number of scenes)


def draw_shape(shape: str, center: tuple[float, float], radius: float, size: int) -> np.ndarray:
    """(size, size) bool mask of a shape that fills the square center +- radius."""
    ys, xs = np.mgrid[:size, :size] + 0.5
    x, y = (xs - center[0]) / radius, (ys - center[1]) / radius
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "triangle":
        return (y <= 1) & (np.abs(x) <= (y + 1) / 2)
    if shape == "diamond":
        return np.abs(x) + np.abs(y) <= 1
    return (np.maximum(np.abs(x), np.abs(y)) <= 1) & (np.minimum(np.abs(x), np.abs(y)) <= 0.38)


def toy_scene(seed: int, index: int, size: int = 112) -> dict:
    """One random picture of 1-3 shapes and one request: image (PIL), objects, query, kind, targets (indices)."""
    rng = np.random.default_rng([seed, index])
    objects: list[dict] = []
    for _ in range(int(rng.integers(1, 4))):
        for _try in range(30):  # shapes do not touch
            r = rng.uniform(0.08, 0.21) * size
            c = rng.uniform(r + 1, size - r - 1, 2)
            if all(np.abs(c - o["center"]).max() > r + o["radius"] + 3 for o in objects):
                objects.append(
                    {"shape": str(rng.choice(SHAPES)), "color": str(rng.choice(list(COLORS))), "center": c, "radius": r}
                )
                break
    # A light grey ground with grain, under coloured light: redder to the right, bluer downwards. It is what lets a
    # vision tower of two layers without absolute positions learn soon where things are.
    across = np.linspace(-30, 30, size)
    light = np.stack(np.broadcast_arrays(across[None, :], 0.0, across[:, None]), -1)
    pixels = np.full((size, size, 3), float(rng.integers(185, 220))) + rng.normal(0, 5, (size, size, 1))
    for o in objects:
        o["mask"] = draw_shape(o["shape"], o["center"], o["radius"], size)
        pixels[o["mask"]] = (
            np.array(COLORS[o["color"]]) + rng.normal(0, 10, 3) + rng.normal(0, 5, (int(o["mask"].sum()), 1))
        )
    query, kind, targets = _toy_query(rng, objects)
    image = Image.fromarray((pixels + light).clip(0, 255).astype(np.uint8))
    return {"image": image, "objects": objects, "query": query, "kind": kind, "targets": targets}


def _toy_query(rng: np.random.Generator, objects: list[dict]) -> tuple[str, str, list[int]]:
    """Draw one request that the scene answers without doubt: (query, kind, indices of the objects meant)."""
    every = range(len(objects))
    options: dict[str, list[tuple[str, list[int]]]] = {
        "one": [],
        "all": [],
        "size": [],
        "place": [],
        "implicit": [],
        "absent": [],
    }
    for color in COLORS:
        for shape in SHAPES:
            hits = [i for i in every if objects[i]["color"] == color and objects[i]["shape"] == shape]
            if len(hits) == 1:
                options["one"].append((f"the {color} {shape}", hits))
            elif not hits:
                options["absent"].append((f"the {color} {shape}", []))
    for word in (*COLORS, *SHAPES):
        hits = [i for i in every if word in (objects[i]["color"], objects[i]["shape"])]
        if len(hits) > 1:
            options["all"].append(
                (f"all {word} shapes" if word in COLORS else f"all {word}{'es' if word == 'cross' else 's'}", hits)
            )
        elif len(hits) == 1 and word in IMPLICIT:
            options["implicit"].append((IMPLICIT[word], hits))
    if len(objects) > 1:
        orders = {
            ("size", "the largest shape"): [
                -o["radius"] * 4 for o in objects
            ],  # x4: radii must differ by a good quarter of the gap in places
            ("size", "the smallest shape"): [o["radius"] * 4 for o in objects],
            ("place", "the shape on the far left"): [o["center"][0] for o in objects],
            ("place", "the shape on the far right"): [-o["center"][0] for o in objects],
            ("place", "the shape at the top"): [o["center"][1] for o in objects],
            ("place", "the shape at the bottom"): [-o["center"][1] for o in objects],
        }
        for (kind, query), values in orders.items():
            first, second = np.argsort(values)[:2]
            if values[second] - values[first] > 8:
                options[kind].append((query, [int(first)]))
    kinds = [kind for kind, found in options.items() if found]
    weights = np.array([{"absent": 1.0, "all": 3.0}.get(kind, 1.0) for kind in kinds])
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    query, targets = options[kind][int(rng.integers(len(options[kind])))]
    return query, kind, targets


class ToyWorld(Sequence):
    """The miniature's samples: drawn when asked for, the same ones every time."""

    def __init__(self, split: str, size: int = 112):
        self.seed, self.length = TOY_SPLITS[split]
        self.split, self.size = split, size
        self.scene = functools.lru_cache(4096)(lambda i: toy_scene(self.seed, i, size))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        scene = self.scene(index)
        return scene_sample(scene, f"toy/{self.split}/{index}/{scene['kind']}")


def scene_sample(scene: dict, id: str) -> Sample:
    """A toy scene as a Sample."""
    masks = [scene["objects"][i]["mask"] for i in scene["targets"]]
    return Sample(
        query=scene["query"],
        boxes=np.array([box_of(m) for m in masks]).reshape(-1, 4),
        points=np.zeros((len(masks), 0, 2)),
        id=id,
        image_id=id.rsplit("/", 1)[0],
        width=scene["image"].width,
        height=scene["image"].height,
        open=lambda: scene["image"],
        object_masks=[encode_rle(m) for m in masks],
        no_target=not masks,
    )


# ---------------------------------------------------------------------------------------------- datasets as distributed
# A loader is a generator: it yields what makes one Sample when called, or a sentence that says why an entry gives none.


class Samples(Sequence):
    """What `load` returns; a slice is again a Samples. Polygons are drawn and tables read when a sample is asked for.

    `skipped` holds one sentence for each entry of the dataset that could not be used.
    """

    def __init__(self, makers: list[Callable[[], Sample]], skipped: list[str]):
        self.makers, self.skipped = makers, skipped

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, index):
        return Samples(self.makers[index], self.skipped) if isinstance(index, slice) else self.makers[index]()


class Wanted(NamedTuple):  # load's arguments
    """What `load` was asked for, handed to the reader of a layout."""

    name: str
    root: Path
    split: str
    one: bool
    seed: int


def to_rle(part: list | dict | Callable, size: tuple[int, int]) -> dict:
    """One object's mask as compressed RLE. BadData for a broken one.

    part: COCO's polygons (a list of [x, y, x, y, ...]), COCO's RLE (compressed or not), or a function of the size
    (width, height) that returns the mask (H, W) bool.
    """
    width, height = size
    if callable(part):
        return encode_rle(part(size))
    if isinstance(part, list):  # shorter ones have no area, and pycocotools would take four numbers for a box
        return coco_mask.merge(coco_mask.frPyObjects([p for p in part if len(p) >= 6], height, width))
    counts = part["counts"]
    if list(part["size"]) != [height, width] or not counts:
        raise BadData(f"an RLE of size {part['size']} (height, width), or empty, on a picture of {height} x {width}")
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise BadData(f"an RLE of {sum(counts)} pixels on a picture of {height} x {width}")
        part = coco_mask.frPyObjects(part, height, width)
    try:
        mask = coco_mask.decode(part)  # broken counts pass every other function, with garbage for an area
    except ValueError as error:
        raise BadData(f"an RLE that does not fit its picture ({error})") from None
    if mask.sum() != coco_mask.area(part):  # what too few counts leave out is memory nobody wrote
        raise BadData("an RLE that does not fill its picture")
    return encode_rle(mask)


def _drawable(part) -> bool:
    return bool(part) and (not isinstance(part, list) or any(len(p) >= 6 for p in part))


def _source(where: Path | tuple) -> Path | io.BytesIO:
    """A picture's file, or the compressed picture in a table's cell: (table, row number)."""
    if isinstance(where, Path):
        return where
    cell = where[0][where[1]]["image"]
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])


def _open(where: Path | tuple, name: str, size: tuple[int, int]) -> Image.Image:
    picture = open_image(_source(where), name)
    if picture.size != size:  # would shift every box without a word
        raise BadData(f"{name} is {picture.size} but annotated as {size}: a resized or rotated copy? Use the original.")
    return picture


def _make(query: str, id: str, image_id, where: Path | tuple, size=None, parts=(), boxes=None, points=None, *,
          ignored=(), frame=None, count=None, no_target=False) -> Sample:  # fmt: skip
    """What was put off at loading. boxes (N, 4), points (N, k, 2): in `frame`, or pixels; None: boxes of the masks."""
    name = str(where) if isinstance(where, Path) else id
    size = size or picture_size(_source(where), name)
    try:
        masks, ignore = [to_rle(part, size) for part in parts], [to_rle(part, size) for part in ignored]
    except BadData as error:
        raise BadData(f"{id}, {name}: {error}. Was the mask made for this picture?") from None
    if boxes is None:
        masks = [rle for rle in masks if coco_mask.area(rle)]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in map(coco_mask.toBbox, masks)]
    boxes = to_frame(np.reshape(boxes, (-1, 4)), frame or size, size)
    points = np.zeros((len(boxes), 0, 2)) if points is None else to_frame(points, frame or size, size)
    nothing = no_target or count == 0 or (count is None and not len(boxes))
    ignore = coco_mask.merge(ignore) if ignore and any(map(coco_mask.area, ignore)) else None
    opener = functools.partial(_open, where, name, size)
    return Sample(query, boxes, points, id, str(image_id), *size, opener, masks, ignore, nothing, count)


class PlainUnpickler(pickle.Unpickler):
    """RefCOCO comes as pickles, and a pickle may run any code; one of plain lists and dicts never asks for a class."""

    def find_class(self, module: str, name: str):
        raise BadData(f"it asks for {module}.{name}, which plain annotations never do, and was not opened")


def _read(path: Path, parse: Callable = json.loads):
    """A pickle or text (JSON); cp1252 where it is not UTF-8 (some of ReasonSeg's are not)."""
    raw = path.read_bytes()
    try:
        if path.suffix == ".p":
            return PlainUnpickler(io.BytesIO(raw), encoding="utf-8", errors="replace").load()
        with contextlib.suppress(UnicodeDecodeError):
            return parse(raw.decode("utf-8-sig"))
        return parse(raw.decode("cp1252", errors="replace"))
    except (BadData, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"cannot be read: {error}" if raw else "is empty"
        raise BadData(f"{path} {why}. Fetch it again, from a source that you trust.") from None


def _find(root: Path, *names: str) -> Path:
    """The first of `names` that exists under root."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise BadData(f"{root} holds none of: {', '.join(names)}. Is --data_root the folder above, and the split right?")


def _pictures(names: Sequence[str], roots: Sequence[Path], subfolders: Sequence[str] = ("",)) -> tuple[Path, set[str]]:
    """The folder where the pictures are, among those where people put COCO's, and which of them are not there."""
    if not names:
        return roots[0], set()
    places = ("", "images/mscoco/images", "images", "coco", "refer_seg/images/mscoco/images")
    tried = dict.fromkeys(root / place / sub for sub in subfolders for root in roots for place in places)
    for folder in tried:
        if any((folder / name).is_file() for name in names[:20]):
            # each folder is listed once: asking for 80,000 files one by one is slow on a network drive
            parts = {p: set(os.listdir(p)) if p.is_dir() else () for p in {(folder / name).parent for name in names}}
            return folder, {name for name in names if Path(name).name not in parts[(folder / name).parent]}
    raise BadData(f"no picture found: {names[0]} is in none of {', '.join(map(str, tried))}. Put or link them there.")


def _picture_id(path: str) -> str:
    """COCO's image id from any of its file names, so that overlap of datasets can be counted; else the path itself."""
    digits = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", Path(path).stem)
    return digits[1] if digits else path


def _load_toy(want: Wanted):
    if want.split not in TOY_SPLITS:
        raise BadData(f"toy has no split {want.split!r}. It has: {', '.join(TOY_SPLITS)}.")
    world = ToyWorld(want.split)
    yield from (functools.partial(world.__getitem__, i) for i in range(len(world)))


# -- COCO's annotations: RefCOCO and its kin, detection, COCONut


def _coco(query: str, id: str, image: dict, folder: Path, annotations: list[dict], crowds: Sequence = ()) -> Callable:
    """One request on one picture; crowds become pixels that no metric counts."""
    boxed = all("bbox" in a for a in annotations)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in annotations)] if boxed else None
    parts, ignored = ([a["segmentation"] for a in group] for group in (annotations, crowds))
    where, size = folder / image["file_name"], (image["width"], image["height"])
    return functools.partial(_make, query, id, image["id"], where, size, parts, boxes, ignored=ignored)


REFERENCES = {  # layout -> folder, file
    "refcoco": ("refcoco", "refs(unc).p"), "refcoco+": ("refcoco+", "refs(unc).p"),
    "refcocog": ("refcocog", "refs(umd).p"), "refcocog-google": ("refcocog", "refs(google).p"),
    "grefcoco": ("grefcoco", "grefs(unc).json"),
}  # fmt: skip


def _load_references(want: Wanted):
    folder, file = REFERENCES[want.name]
    path = _find(want.root, f"{folder}/{file}", f"refer_seg/{folder}/{file}", file)
    instances = _read(_find(path.parent, "instances.json"))
    images, annotations = ({entry["id"]: entry for entry in instances[key]} for key in ("images", "annotations"))
    every = _read(path)
    references = [ref for ref in every if ref["split"] == want.split]
    if not references:
        splits = ", ".join(sorted({ref["split"] for ref in every})) or "nothing"
        raise BadData(f"{path} has no split {want.split!r}, only: {splits}.")
    names = [images[ref["image_id"]]["file_name"] for ref in references if ref["image_id"] in images]
    pictures, absent = _pictures(names, [path.parents[1], want.root], ["train2014", ""])
    for ref in references:
        ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        ids = [] if ids == [-1] else ids  # gRefCOCO: nothing fits
        image = images.get(ref["image_id"])
        bad = [i for i in ids if i not in annotations or not _drawable(annotations[i]["segmentation"])]
        sentences = list(enumerate(s["sent"] for s in ref["sentences"]))
        if bad or not sentences or image is None or image["file_name"] in absent:
            why = (
                f"annotation {bad[0]} is missing or has no polygon"
                if bad
                else f"no sentence, or no picture in {pictures}"
            )
            yield f"{want.name}: reference {ref['ref_id']}: {why}"
            continue
        if want.one:
            sentences = [sentences[np.random.default_rng([want.seed, ref["ref_id"]]).integers(len(sentences))]]
        for k, text in sentences:
            id = f"{want.name}/{want.split}/{ref['ref_id']}/{k}"
            yield _coco(text, id, image, pictures, [annotations[i] for i in ids])


def _panoptic(png: Path, segment: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: one segment of a panoptic PNG, which writes an id as red + 256 green + 256² blue."""
    return np.asarray(open_image(png)).astype(np.int64) @ [1, 256, 65536] == segment


def _load_coco(want: Wanted):
    """coco-detection: a sample per picture and category. coconut (Dr. Seg, appendix D): one of several objects."""
    kinds = ("panoptic", "instances") if want.name == "coconut" else ("instances",)
    years, bases = ("2017", "2014", ""), ("", "coco/")
    path = _find(want.root, *(f"{b}annotations/{k}_{want.split}{y}.json" for k in kinds for b in bases for y in years))
    file = _read(path)
    category = {c["id"]: c["name"] for c in file["categories"] if c.get("isthing", 1)}
    found = file["annotations"]
    if path.name.startswith("panoptic"):
        masks = _find(path.parents[1], path.stem, f"annotations/{path.stem}")
        part = lambda a, s: functools.partial(_panoptic, masks / a["file_name"], s["id"])  # noqa: E731
        found = [s | {"image_id": a["image_id"], "segmentation": part(a, s)}
                 for a in found for s in a["segments_info"] if s["category_id"] in category]  # fmt: skip
    groups: dict[int, dict[int, list[dict]]] = {}  # image -> category -> annotations
    for a in found:
        if _drawable(a["segmentation"]):
            groups.setdefault(a["image_id"], {}).setdefault(a["category_id"], []).append(a)
        else:
            yield f"{want.name}: annotation {a['id']} of picture {a['image_id']} has no polygon"
    images = [image for image in file["images"] if image["id"] in groups]
    pictures, absent = _pictures([i["file_name"] for i in images], [want.root], [path.stem.split("_", 1)[1], ""])
    for image in images:
        if image["file_name"] in absent:
            yield f"{want.name}: picture not there: {pictures / image['file_name']}"
            continue
        group = groups[image["id"]]
        crowds = {c: [a for a in group[c] if a.get("iscrowd")] for c in group}
        objects = {c: [a for a in group[c] if not a.get("iscrowd")] for c in sorted(group)}
        chosen = [c for c in objects if len(objects[c]) >= (2 if want.name == "coconut" else 1)]
        if want.name == "coconut" and chosen:
            chosen = [chosen[np.random.default_rng([want.seed, image["id"]]).integers(len(chosen))]]
        elif want.name == "coco-detection":
            where = f"in picture {image['id']} is only a crowd"
            yield from (f"{want.name}: {category[c]} {where}" for c in objects if c not in chosen)
        for c in chosen:
            query = f"All {category[c]}" if want.name == "coconut" else category[c]
            id = f"{want.name}/{want.split}/{image['id']}/{category[c]}"
            yield _coco(query, id, image, pictures, objects[c], crowds[c])


# -- ReasonSeg


def _painted(shapes: list[dict], ignore: bool, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the target, or what to ignore. Of overlapping shapes the smaller is on top [released reader]."""
    layers = [(to_rle([np.ravel(s["points"]).tolist()], size), "ignore" in s["label"].lower()) for s in shapes]
    canvas = np.zeros(size[::-1], dtype=bool)
    for rle, is_ignore in sorted(layers, key=lambda layer: -int(coco_mask.area(layer[0]))):
        canvas[decode_rle(rle)] = is_ignore == ignore
    return canvas


def _load_reasonseg(want: Wanted):
    """One mask per request, however many polygons it takes, so one box."""
    folder = _find(want.root, *[f"{base}{want.split}" for base in ("ReasonSeg/", "reason_seg/ReasonSeg/", "")])
    pictures = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".jpg", ".jpeg", ".png")}
    notes = {p.stem: p for p in sorted(folder.glob("*.json"))}
    alone = sorted(pictures.keys() ^ notes.keys())
    yield from (f"reasonseg: {folder / stem} has no picture or no .json" for stem in alone)
    for stem in sorted(pictures.keys() & notes.keys()):
        note = _read(notes[stem])
        shapes = [s for s in note["shapes"] if "flag" not in s["label"].lower()]  # as the released reader does
        drawn = [s for s in shapes if len(s["points"]) >= 3]
        if len(drawn) < len(shapes):
            yield f"reasonseg: {notes[stem]}: {len(shapes) - len(drawn)} shapes of fewer than three points left out"
        if all("ignore" in s["label"].lower() for s in drawn):
            yield f"reasonseg: {notes[stem]} has no target polygon"
            continue
        target, ignored = (functools.partial(_painted, drawn, ignore) for ignore in (False, True))
        texts = note["text"] if isinstance(note["text"], list) else [note["text"]]
        for k, text in enumerate(texts[:1] if want.one else texts):
            where, id = pictures[stem], f"reasonseg/{want.split}/{stem}/{k}"
            yield functools.partial(_make, text, id, _picture_id(stem), where, None, [target], ignored=[ignored])


# -- tables with the pictures inside: VisionReasoner's training and test sets, counting

TABLES = {
    "visionreasoner": ("image", "id", "problem", "solution"),
    "visionreasoner-test": ("image", "text", "mask", "image_id", "ann_id"),
    "counting": ("image", "text", "count"),
}


def _table(want: Wanted):
    """A datasets.Dataset from a folder of Parquet, a save_to_disk folder, or the Hub; its pictures still compressed."""
    import datasets

    files = sorted(want.root.rglob("*.parquet"))
    chosen = [str(f) for f in files if f.stem == want.split or f.stem.startswith(f"{want.split}-")]
    if files and not chosen:
        raise BadData(f"{want.root} has no Parquet of split {want.split!r}, only: {', '.join(f.name for f in files)}.")
    try:
        if files:
            data = datasets.load_dataset("parquet", data_files=chosen, split="train")
        elif want.root.exists():
            data = datasets.load_from_disk(str(want.root))
            data = data[want.split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(want.root.as_posix(), split=want.split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        kinds = "a folder of Parquet, one made by save_to_disk, or a dataset's name on the Hub"
        raise BadData(f"cannot read split {want.split!r} of {want.root} ({error}). --data_root is {kinds}.") from error
    if lacking := set(TABLES[want.name]) - set(data.column_names):
        raise BadData(f"{want.root} has no column {', '.join(sorted(lacking))}, only {', '.join(data.column_names)}.")
    return data.cast_column("image", datasets.Image(decode=False))


def _nested_mask(masks, i: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from a cell of nested lists, without making the lists (slow)."""
    flat = masks[i]["mask"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    if flat.size != size[0] * size[1]:
        raise BadData(f"a mask of {flat.size} pixels on a picture of {size[0]} x {size[1]}")
    return flat.reshape(size[::-1]).astype(bool)


def _load_table(want: Wanted):
    rows = _table(want)
    masks = rows.select_columns("mask").with_format("arrow") if want.name == "visionreasoner-test" else None
    rows = rows.remove_columns("mask") if masks else rows
    for i, row in enumerate(rows.remove_columns("image")):
        id, where = f"{want.name}/{want.split}/{i}", (rows, i)
        if want.name == "counting":
            yield functools.partial(_make, row["text"], id, id, where, boxes=(), count=int(row["count"]))
            continue
        if masks:
            parts, boxes = [functools.partial(_nested_mask, masks, i)], [row["bbox"]] if row.get("bbox") else None
            args = row["text"], f"{id}/{row['ann_id']}", row["image_id"], where, None, parts, boxes
            yield functools.partial(_make, *args)
            continue
        try:
            objects = json.loads(row["solution"])
            boxes = np.array([o["bbox_2d"] for o in objects], dtype=np.float64).reshape(-1, 4)
            points = [[o[key] for key in sorted(o) if key.startswith("point")] for o in objects]
            points = np.array(points, dtype=np.float64).reshape(len(boxes), -1, 2) if points else None
        except (ValueError, KeyError, TypeError) as error:
            raise BadData(f"{want.root}, row {i}: solution is not a list of boxes and points ({error!r}).") from None
        image_id = _picture_id(str(row["id"]).split("_")[0])  # "<image>_<number>"
        args = row["problem"], f"{id}/{row['id']}", image_id, where, None, (), boxes, points
        # boxes are in pixels of 840 x 840, the size of the copies in the table: here these copies are the originals
        yield functools.partial(_make, *args, frame=(840, 840))


# -- one JSON object per line: GroundingSuite, and people's own data


def _load_lines(want: Wanted):
    suite = want.name == "groundingsuite"
    file = "GroundingSuite-Eval.jsonl" if suite else f"{want.split}.jsonl"
    path = want.root if want.root.is_file() else _find(want.root, file)
    lines = []
    for n, line in enumerate(_read(path, str.splitlines), 1):
        try:
            if not line.strip():
                continue
            e = json.loads(line)
            if suite:
                e = {"image": e["image_path"], "query": e["caption"], "boxes": [e["box"]], "rle": [e["segmentation"]]}
            boxes = np.array(e["boxes"], dtype=np.float64).reshape(-1, 4) if "boxes" in e else None
            parts, found = e.get("polygons", e.get("rle", [])), 0 if boxes is None else len(boxes)
            points = np.array(e["points"], dtype=np.float64) if e.get("points") else None
            points = None if points is None else points.reshape(found or len(parts), -1, 2)
            if found and not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
                raise ValueError("a box is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
            if not all(map(_drawable, parts)) or not isinstance(e["query"], str) or not isinstance(e["image"], str):
                raise ValueError("an empty polygon, or an image or query that is not text")
            if found and parts and len(parts) not in (1, found):
                raise ValueError(f"{found} boxes but masks of {len(parts)} objects")
            if not (parts or found or e.get("no_target") or "count" in e) or (e.get("no_target") and (parts or found)):
                raise ValueError('it needs boxes, polygons or rle, or else "no_target": true')
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadData(f"{path}, line {n}: {error!r}. The format is described at data.load.") from None
        more = {"count": e.get("count"), "no_target": bool(e.get("no_target"))}
        lines.append((n, e["image"], e["query"], parts, boxes if found else None if parts else (), points, more))
    folder, absent = _pictures([image for _, image, *_ in lines], [path.parent])
    for n, image, query, parts, boxes, points, more in lines:
        if image in absent:
            yield f"{path}, line {n}: picture not there: {folder / image}"
            continue
        id = f"{want.name}/{path.stem}/{n}"
        args = query, id, _picture_id(image), folder / image, None, parts, boxes, points
        yield functools.partial(_make, *args, **more)


LOADERS = {
    "toy": _load_toy, **dict.fromkeys(REFERENCES, _load_references), "reasonseg": _load_reasonseg,
    "coco-detection": _load_coco, "coconut": _load_coco, **dict.fromkeys(TABLES, _load_table),
    "groundingsuite": _load_lines, "jsonl": _load_lines,
}  # fmt: skip


def load(
    layout: str, root: str | Path | None = None, split: str = "train", *, one_expression: bool = False, seed: int = 0
) -> Samples:
    """Open a dataset laid out as its authors distribute it; several, joined by commas, follow each other.

    toy                  drawn on the spot; splits train, val, test
    refcoco, refcoco+    root/<name>/refs(unc).p, instances.json; pictures in root/images/mscoco/images/train2014,
    refcocog, grefcoco   root/images/train2014, root/train2014 or so. A sample per sentence. (refcocog: refs(umd).p;
                         refcocog-google: refs(google).p; grefcoco: grefs(unc).json)
    reasonseg            root/ReasonSeg/<split>/ or root/<split>/ with a .json beside each picture. A sample per text.
    coco-detection       root/annotations/instances_<split>2017.json, root/<split>2017/. A sample per picture, category
    coconut              the same, or panoptic_<split>2017.json and its folder of PNGs: `All <category>`, one a picture
    visionreasoner       Parquet, a save_to_disk folder, or the Hub (root is "owner/name"): id, problem, solution, image
    visionreasoner-test  the same with image, text, mask, image_id, ann_id, bbox; counting: image, text, count
    groundingsuite       root/GroundingSuite-Eval.jsonl, or root is that file; whatever the split
    jsonl                your own: root/<split>.jsonl, or root is the file. Picture paths start from the file's folder:
        {"image": "photos/1.jpg", "query": "the two red cups", "boxes": [[10, 20, 60, 90], [80, 15, 130, 88]],
         "points": [[[35, 50]], [[105, 48]]], "polygons": [[[10, 20, 60, 20, 35, 90]], [[80, 15, 130, 15, 105, 88]]]}
        in pixels of the upright picture; per object a box x1 y1 x2 y2, a list of points, a list of polygons. Needed are
        image, query, and boxes or polygons, or "rle": one COCO RLE {"size": [height, width], "counts": ...} per object;
        or "no_target": true; or "count": 3.

    one_expression: one sentence per reference, drawn by seed (ReasonSeg: the first, as released). seed also draws
    coconut's category. Raises BadData if anything needed is absent or broken; an entry without polygon or picture is
    left out and listed in the result's `skipped`.
    """
    makers, skipped = [], []
    for name in map(str.strip, layout.split(",")):
        if name not in LOADERS:
            raise BadData(f"unknown dataset {name!r}. Known: {', '.join(LOADERS)}; several are joined by commas.")
        on_hub = name in TABLES and re.fullmatch(r"[\w.-]+/[\w.-]+", str(root))
        if name != "toy" and (root is None or not (Path(root).exists() or on_hub)):
            raise BadData(f"{name}: folder not found: {root}. --data_root is where {name} lies.")
        try:
            found = list(LOADERS[name](Wanted(name, Path(root or "."), split, one_expression, seed)))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadData(f"{root} is not laid out as {name} is ({error!r}). See data.load for the layout.") from error
        reasons = [item for item in found if isinstance(item, str)]
        if len(reasons) == len(found):
            raise BadData(f"{name}: nothing usable in {root}, split {split!r}. {(reasons or ['It is empty.'])[0]}")
        makers += [item for item in found if not isinstance(item, str)]
        skipped += reasons
    return Samples(makers, skipped)


# -------------------------------------------------------------------------------------------------- pictures to look at


def overlay(
    image: Image.Image, mask=None, truth=None, boxes=(), points=(), negative_points=(), ignore=None
) -> Image.Image:
    """A copy of the picture with things drawn on it, all in its own pixels.

    mask: (H, W) bool, tinted magenta; truth: (H, W) bool, outlined yellow; ignore: (H, W) bool, darkened; boxes (N, 4):
    magenta; points (..., 2): green dots; negative_points (..., 2): red crosses. Absent ones may be None or empty.
    """
    pixels, width = np.asarray(image.convert("RGB")).astype(np.float64), max(1, round(max(image.size) / 250))
    if ignore is not None:
        pixels[ignore] *= 0.35
    if mask is not None:
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array((235, 40, 225))
    if truth is not None:
        edge = truth & (distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1] <= width)  # the border counts as outside
        pixels[edge] = (255, 220, 0)
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw, r = ImageDraw.Draw(picture), 2.5 * width
    for x1, y1, x2, y2 in np.reshape([] if boxes is None else boxes, (-1, 4)):
        draw.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], outline=(235, 40, 225), width=width)
    for x, y in np.reshape([] if points is None else points, (-1, 2)):
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(0, 190, 60), outline="white")
    for x, y in np.reshape([] if negative_points is None else negative_points, (-1, 2)):
        draw.line([x - r, y - r, x + r, y + r], fill=(230, 20, 20), width=width)
        draw.line([x - r, y + r, x + r, y - r], fill=(230, 20, 20), width=width)
    return picture


def contact_sheet(samples: Sequence[Sample], cell: int = 320) -> Image.Image:
    """Up to twelve samples, spread over the dataset, four to a row, the request under each."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, 12).astype(int))]
    sheet = Image.new("RGB", (4 * cell, -(-len(chosen) // 4) * (cell + 50)), "white")
    for i, s in enumerate(chosen):
        x, y = i % 4 * cell + 5, i // 4 * (cell + 50) + 5
        size = tuple(max(1, round(side * (cell - 10) / max(s.width, s.height))) for side in (s.width, s.height))
        given = s.positive_points(2) if s.object_masks or s.points.shape[1] else None
        marks = [
            None if m is None else to_frame(m, (s.width, s.height), size)
            for m in (s.boxes, given, s.negative_points(2))
        ]
        mask, ignore = (
            None if m is None else np.asarray(Image.fromarray(m).resize(size, 0)) for m in (s.mask, s.ignore)
        )
        sheet.paste(overlay(s.image.resize(size), mask, None, *marks, ignore), (x, y))
        said = s.query + (" [nothing]" if s.no_target else "") + (f" [{s.count}]" if s.count is not None else "")
        text = "\n".join(textwrap.wrap(said, 50)[:3])
        ImageDraw.Draw(sheet).multiline_text((x, y + size[1] + 2), text, "black", ImageFont.load_default(12), spacing=2)
    return sheet


def check(samples: Samples, out: Path, limit: int) -> list[str]:
    """Print what was read, open the first `limit` pictures, save a contact sheet; returns what was unreadable."""
    objects, pictures, empty, masked, bad = Counter(), {}, 0, 0, []
    for s in samples:
        objects[len(s.boxes)] += 1
        pictures.setdefault(s.image_id, s)
        empty, masked = empty + s.no_target, masked + bool(s.object_masks)
    for s in list(pictures.values())[:limit]:
        try:
            s.open()
        except BadData as error:
            bad.append(str(error))
    print(f"{len(samples)} samples on {len(pictures)} pictures; {masked} with masks; {empty} with nothing to find")
    print("objects per sample: " + ", ".join(f"{n}: {count}" for n, count in sorted(objects.items())))
    print(f"opened {min(limit, len(pictures))} pictures: {len(bad)} unreadable; {len(samples.skipped)} entries skipped")
    for line in [f"  unreadable: {line}" for line in bad] + [f"  skipped: {line}" for line in samples.skipped]:
        print(line)
    if not bad:
        contact_sheet(samples).save(out)
        print(f"look at {out}")
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count what a dataset holds, try its pictures, draw a contact sheet.")
    parser.add_argument("--check", action="store_true", required=True)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(LOADERS)}, or several joined by commas")
    parser.add_argument("--data_root")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, default=Path("contact_sheet.png"))
    parser.add_argument("--limit", type=int, default=200, help="how many pictures to open")
    args = parser.parse_args()
    try:
        sys.exit(1 if check(load(args.dataset, args.data_root, args.split), args.out, args.limit) else 0)
    except BadData as error:
        sys.exit(str(error))
