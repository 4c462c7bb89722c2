# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The miniature's world: pictures of a few drawn shapes, and requests that each picture answers without doubt.

    samples = data.load("toy", split="val")     # or ToyWorld("val"); each drawn when asked for

The networks that live in it lie beside this file; make.py made them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from data import BadData, Sample, Wanted, box_of, encode_rle

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
                look = {"shape": str(rng.choice(SHAPES)), "color": str(rng.choice(list(COLORS)))}
                objects.append(look | {"center": c, "radius": r})
                break
    # A light grey ground with grain, under coloured light: redder to the right, bluer downwards. It is what lets a
    # vision tower of two layers without absolute positions learn soon where things are.
    across = np.linspace(-30, 30, size)
    light = np.stack(np.broadcast_arrays(across[None, :], 0.0, across[:, None]), -1)
    pixels = np.full((size, size, 3), float(rng.integers(185, 220))) + rng.normal(0, 5, (size, size, 1))
    for o in objects:
        o["mask"] = draw_shape(o["shape"], o["center"], o["radius"], size)
        color = np.array(COLORS[o["color"]]) + rng.normal(0, 10, 3)
        pixels[o["mask"]] = color + rng.normal(0, 5, (int(o["mask"].sum()), 1))
    query, kind, targets = toy_query(rng, objects)
    image = Image.fromarray((pixels + light).clip(0, 255).astype(np.uint8))
    return {"image": image, "objects": objects, "query": query, "kind": kind, "targets": targets}


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
    if len(objects) > 1:
        orders = {
            # x 4: radii must differ by 2 pixels, places by 8
            ("size", "the largest shape"): [-o["radius"] * 4 for o in objects],
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
    weights = np.array([3.0 if kind == "all" else 1.0 for kind in kinds])
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    query, targets = options[kind][int(rng.integers(len(options[kind])))]
    return query, kind, targets


scene_of = functools.lru_cache(4096)(toy_scene)  # what has been drawn once is kept


class ToyWorld(Sequence):
    """The miniature's samples: drawn when asked for, the same ones every time."""

    def __init__(self, split: str, size: int = 112):
        self.seed, self.length = TOY_SPLITS[split]
        self.split = split
        self.size = size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        scene = scene_of(self.seed, index, self.size)
        return scene_sample(scene, f"toy/{self.split}/{index}/{scene['kind']}")


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


def read(want: Wanted) -> list[Callable[[], Sample]]:
    """data.load's reader: for every scene of the split a function that makes its Sample."""
    if want.split not in TOY_SPLITS:
        raise BadData(f"toy has no split {want.split!r}. It has: {', '.join(TOY_SPLITS)}.")
    world = ToyWorld(want.split)
    return [functools.partial(world.__getitem__, i) for i in range(len(world))]
