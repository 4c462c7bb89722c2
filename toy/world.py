# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The miniature's world: pictures of a few drawn shapes, and requests that each picture answers without doubt.

    samples = data.load("toy", split="val")     # each drawn when asked for

The networks that live in it lie beside this file; make.py made them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, label

from data import BadData, Sample, Wanted, box_of, encode_rle

SIDE = 112  # pixels of a picture, each way
COLORS = {
    "red": (214, 50, 44),
    "green": (52, 158, 70),
    "blue": (48, 96, 210),
    "yellow": (236, 205, 50),
    "purple": (138, 70, 178),
    "black": (40, 40, 44),
}
SHAPES = ("circle", "triangle", "diamond", "cross")  # none fills its box: a background point always fits inside one
IMPLICIT = {  # requests that name neither colour nor shape
    "circle": "the thing that would roll away",
    "triangle": "the thing like a tent",
    "diamond": "the thing like a kite",
    "cross": "the thing like a plus sign",
    "green": "the thing with the colour of grass",
    "yellow": "the thing as yellow as a lemon",
    "blue": "the thing with the colour of the sea",
    "red": "the thing with the colour of a tomato",
}
TOY_SPLITS = {"train": (1, 2000), "val": (2, 200), "test": (3, 500)}  # split -> (seed, number of scenes)


def draw_shape(shape: str, center: tuple[float, float], radius: float) -> np.ndarray:
    """(SIDE, SIDE) bool mask of a shape that fills the square center +- radius."""
    ys, xs = np.mgrid[:SIDE, :SIDE] + 0.5
    x, y = (xs - center[0]) / radius, (ys - center[1]) / radius
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "triangle":
        return (y <= 1) & (np.abs(x) <= (y + 1) / 2)
    if shape == "diamond":
        return np.abs(x) + np.abs(y) <= 1
    return (np.maximum(np.abs(x), np.abs(y)) <= 1) & (np.minimum(np.abs(x), np.abs(y)) <= 0.38)


def place_shape(rng: np.random.Generator, objects: list[dict]) -> dict | None:
    """A random shape for a scene that has `objects`, three in four against or over one of them; None without room.

    It hides what lies below it: their masks shrink.
    """
    for _try in range(20):
        look = {"shape": str(rng.choice(SHAPES)), "color": str(rng.choice(list(COLORS)))}
        r = rng.uniform(0.1, 0.2) * SIDE
        if objects and rng.random() < 0.75:
            near = objects[rng.integers(len(objects))]
            if rng.random() < 1 / 3:
                look["color"] = near["color"]
            angle = rng.uniform(0, 2 * np.pi)
            far = (r + near["radius"]) * rng.uniform(0.75, 1.1)
            c = near["center"] + far * np.array([np.cos(angle), np.sin(angle)])
        else:
            c = rng.uniform(r + 1, SIDE - r - 1, 2)
        if not ((c > r + 1) & (c < SIDE - r - 1)).all():
            continue
        full = draw_shape(look["shape"], c, r)
        parts = [o["mask"] & ~full for o in objects]  # what is left to see of what lies below
        whole = all(p.sum() >= 0.6 * o["full"].sum() and label(p)[1] == 1 for p, o in zip(parts, objects, strict=True))
        if whole:
            for o, part in zip(objects, parts, strict=True):
                o["mask"] = part
            return look | {"center": c, "radius": r, "full": full, "mask": full}
    return None


def toy_scene(seed: int, index: int) -> dict:
    """One random picture of 3-5 shapes in a heap, and a request: image (PIL), objects, query, kind, targets (indices).

    An object's "mask" is the part of it that can be seen: three fifths or more of "full", in one piece. "center" and
    "radius" are those of the whole shape.
    """
    rng = np.random.default_rng([seed, index])
    objects: list[dict] = []
    for _ in range(int(rng.integers(3, 6))):
        if (placed := place_shape(rng, objects)) is not None:
            objects.append(placed)
    # A light grey ground with grain, under coloured light: redder to the right, bluer downwards. It is what lets a
    # vision tower of three layers (Qwen2.5-VL's has no absolute positions) learn soon where things are.
    across = np.linspace(-30, 30, SIDE)
    light = np.stack(np.broadcast_arrays(across[None, :], 0.0, across[:, None]), -1)
    pixels = np.full((SIDE, SIDE, 3), float(rng.integers(185, 220))) + rng.normal(0, 5, (SIDE, SIDE, 1))
    ys, xs = np.mgrid[:SIDE, :SIDE]
    for o in objects:
        color = np.array(COLORS[o["color"]]) + rng.normal(0, 10, 3)
        turn, wave = rng.uniform(0, np.pi), rng.uniform(5, 10)  # stripes of its own tell it from another of its colour
        stripes = 14 * np.sin((xs * np.cos(turn) + ys * np.sin(turn)) * 2 * np.pi / wave)
        rim = -35.0 * (distance_transform_edt(o["full"]) < 1.5)
        paint = color + (stripes + rim + rng.normal(0, 5, (SIDE, SIDE)))[..., None]
        pixels[o["full"]] = paint[o["full"]]
    query, kind, targets = toy_query(rng, objects)
    image = Image.fromarray((pixels + light).clip(0, 255).astype(np.uint8))
    return {"image": image, "objects": objects, "query": query, "kind": kind, "targets": targets}


def comparisons(objects: list[dict]) -> list[tuple[str, str, int | None]]:
    """The six requests that compare: (kind, query, index of the object that wins without doubt; None if none does).

    Who wins must win by some pixels, and a size both as a whole and in what can be seen of it.
    """
    boxes = np.array([box_of(o["mask"]) for o in objects])
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T
    radius = np.array([o["radius"] for o in objects])
    seen = np.sqrt([float(o["mask"].sum()) for o in objects])
    orders = {
        ("size", "the largest shape"): [(-radius, 2.5), (-seen, 2.0)],
        ("size", "the smallest shape"): [(radius, 2.5), (seen, 2.0)],
        ("place", "the shape on the far left"): [(x, 8)],
        ("place", "the shape on the far right"): [(-x, 8)],
        ("place", "the shape at the top"): [(y, 8)],
        ("place", "the shape at the bottom"): [(-y, 8)],
    }
    found = []
    for (kind, query), measures in orders.items():
        first = {int(np.argmin(values)) for values, _ in measures}
        clear = len(objects) > 1 and all(np.diff(np.sort(v)[:2])[0] > margin for v, margin in measures)
        found.append((kind, query, first.pop() if clear and len(first) == 1 else None))
    return found


def toy_query(rng: np.random.Generator, objects: list[dict]) -> tuple[str, str, list[int]]:
    """Draw one request that the scene answers without doubt: (query, kind, indices of the objects meant)."""
    every = range(len(objects))
    options = {kind: [] for kind in ("one", "all", "size", "place", "implicit", "absent")}  # kind -> (query, indices)
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
            plural = f"{word} shapes" if word in COLORS else "crosses" if word == "cross" else f"{word}s"
            options["all"].append((f"all {plural}", hits))
        elif len(hits) == 1 and word in IMPLICIT:
            options["implicit"].append((IMPLICIT[word], hits))
    for kind, query, winner in comparisons(objects):
        if winner is not None:
            options[kind].append((query, [winner]))
    kinds = [kind for kind, found in options.items() if found]
    weights = np.array([3.0 if kind == "all" else 1.0 for kind in kinds])
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    query, targets = options[kind][int(rng.integers(len(options[kind])))]
    return query, kind, targets


scene_of = functools.lru_cache(512)(toy_scene)  # what is held out is drawn once


def scene_sample(scene: dict, id: str) -> Sample:
    """A toy scene as a Sample."""
    masks = [scene["objects"][i]["mask"] for i in scene["targets"]]
    boxes = np.array([box_of(m) for m in masks]).reshape(-1, 4)
    no_points = np.zeros((len(masks), 0, 2))
    return Sample(
        scene["query"],
        boxes,
        no_points,
        id,
        id.rsplit("/", 1)[0],
        *scene["image"].size,
        lambda: scene["image"],
        [encode_rle(m) for m in masks],
        no_target=not masks,
    )


def toy_sample(split: str, index: int) -> Sample:
    """The miniature's sample with this index: the same one every time."""
    seed, _ = TOY_SPLITS[split]
    scene = scene_of(seed, index)
    return scene_sample(scene, f"toy/{split}/{index}/{scene['kind']}")


def read(want: Wanted) -> list[Callable[[], Sample]]:
    """data.load's reader: for every scene of the split a function that makes its Sample."""
    if want.split not in TOY_SPLITS:
        raise BadData(f"toy has no split {want.split!r}. It has: {', '.join(TOY_SPLITS)}.")
    _, length = TOY_SPLITS[want.split]
    return [functools.partial(toy_sample, want.split, i) for i in range(length)]
