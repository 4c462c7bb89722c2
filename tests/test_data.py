# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""data.py, layouts.py and world.py: coordinate frames, points, the toy world, and every dataset layout.

Mostly on two pictures made here. Masks are compared with pycocotools' own COCO reader or with rectangles whose area is
plain arithmetic.
"""

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.ndimage import distance_transform_edt

import data
from benchmarks import layouts, pictures
from benchmarks.check import MARKS, contact_sheet
from toy import world

MINI = Path(__file__).parents[1].parent / "shared" / "mini_coco"
real = pytest.mark.skipif(not MINI.is_dir(), reason="the miniature of real photographs is not here")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """Tables are cached by `datasets` outside the user's own cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def rectangle(x1, y1, x2, y2) -> list[float]:
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def picture(path: Path, size=(40, 30), mode="RGB", **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **save)
    return path


def dump(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".p":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refuses(words: str, *args, **kwargs) -> None:
    with pytest.raises(data.BadData, match=words):
        data.load(*args, **kwargs)


# ---- a COCO of two pictures: 1 has two cats, a crowd of cats (RLE), a dog without polygon; 2 has one dog in two parts

CROWD = {"size": [30, 40], "counts": [0, 30 * 2, 30 * 38]}  # uncompressed RLE: the first two columns
ANNOTATIONS = [
    {"id": 10, "image_id": 1, "category_id": 1, "bbox": [5, 5, 10, 8], "segmentation": [rectangle(5, 5, 15, 13)]},
    {"id": 11, "image_id": 1, "category_id": 1, "bbox": [20, 5, 4, 4], "segmentation": [rectangle(20, 5, 24, 9)]},
    {"id": 12, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 30], "segmentation": CROWD, "iscrowd": 1},
    {"id": 13, "image_id": 1, "category_id": 2, "bbox": [1, 1, 2, 2], "segmentation": []},
    {
        "id": 14,
        "image_id": 2,
        "category_id": 2,
        "bbox": [2, 2, 20, 10],
        "segmentation": [[1, 1, 3, 3], rectangle(2, 2, 6, 12), rectangle(12, 2, 22, 12)],
    },
]
AREA = {10: 80, 11: 16, 12: 60, 14: 40 + 100}


def instances(names=("a.jpg", "b.jpg")) -> dict:
    images = [{"id": i + 1, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)]
    return {
        "images": images,
        "annotations": ANNOTATIONS,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def reference(ref_id, ann_id, image_id, texts, split="train") -> dict:
    sentences = [{"sent": text, "sent_id": i} for i, text in enumerate(texts)]
    return {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": sentences}


REFS = [
    reference(1, 10, 1, ["left cat", "big cat", "cat one"]),
    reference(2, 14, 2, ["the dog"]),
    reference(3, 13, 1, ["no polygon"]),
    reference(4, 12, 1, ["the crowd"], "val"),
]


@pytest.fixture
def refer(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "images/train2014" / name)
    for folder, file in layouts.REFERENCES.values():
        dump(tmp_path / folder / "instances.json", instances())
        dump(tmp_path / folder / file, REFS)
    dump(
        tmp_path / "grefcoco/grefs(unc).json",
        [reference(1, [10, 11], 1, ["both cats"]), reference(2, [-1], 2, ["a cow"])],
    )
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "val2017" / name)
    dump(tmp_path / "annotations/instances_val2017.json", instances())
    return tmp_path


# ---------------------------------------------------------------------------------------------------- coordinate frames


@pytest.mark.parametrize("family", data.FAMILIES)
@pytest.mark.parametrize("resized", [(840, 840), (616, 420), (28, 1204)])
def test_frames_round_trip(family, resized):
    source, frame = (640, 427), data.model_frame(family, resized)
    boxes = np.array([[0, 0, 640, 427], [12.5, 3.25, 100.75, 400]])
    there = data.to_frame(boxes, source, frame)
    np.testing.assert_allclose(data.to_frame(there, frame, source), boxes, atol=1e-9)
    np.testing.assert_allclose(there[0], [0, 0, *frame])  # the picture's far corner is the frame's
    np.testing.assert_allclose(there[1, :2], [12.5 / 640 * frame[0], 3.25 / 427 * frame[1]])
    points = boxes.reshape(2, 2, 2)
    np.testing.assert_allclose(data.to_frame(points, source, frame).reshape(2, 4), there)
    assert (frame == resized) == (family == "qwen2_5_vl")


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    path = picture(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"), (7, 5), mode)
    opened = pictures.open_image(path)
    assert (opened.mode, opened.size) == ("RGB", (7, 5))
    if mode in ("RGBA", "LA"):  # fully transparent: white, not the black hidden under it
        assert opened.getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bits_with_a_transparent_grey_are_scaled_too(tmp_path):
    """A tRNS chunk names one grey of a PNG as transparent: the picture was clipped to white."""
    ramp = Image.fromarray(np.linspace(0, 65535, 35).round().astype(np.uint16).reshape(5, 7))
    for name, more in (("plain.png", {}), ("trns.png", {"transparency": 9})):
        ramp.save(tmp_path / name, **more)
    plain, transparent = (np.asarray(pictures.open_image(tmp_path / n)) for n in ("plain.png", "trns.png"))
    assert "transparency" in Image.open(tmp_path / "trns.png").info and (plain == transparent).all()
    assert 120 < plain.mean() < 135


@pytest.mark.parametrize("size", [(1, 1), (20000, 3)])
def test_extreme_sizes_open(tmp_path, size):
    path = picture(tmp_path / "x.png", size)
    dump(tmp_path / "train.jsonl", json.dumps({"image": "x.png", "query": "it", "boxes": [[0, 0, *size]]}))
    sample = data.load("jsonl", tmp_path)[0]
    assert sample.image.size == pictures.open_image(path).size == (sample.width, sample.height) == size
    assert contact_sheet([(sample, "")]).size == (1280, 370 + 2 * 15 + 5)


@pytest.mark.parametrize("cell", [320, 110])
def test_the_foot_of_a_contact_sheet_is_not_cut_off(tmp_path, cell):
    """All that it says is in blue, below the pictures, and ends before the edge."""
    sheet = np.asarray(contact_sheet([(data.load("toy", None, "val")[1], "")], cell)).astype(int)
    foot = sheet[cell + 50 :]
    blue = (foot[..., 2] > 200) & (foot[..., 0] < 100)
    assert 0.5 < np.flatnonzero(blue.any(0)).max() / (4 * cell) < 0.99 and not blue[:, -3:].any()
    lines = np.flatnonzero(np.diff(np.r_[False, blue.any(1)].astype(int)) == 1)
    assert len(lines) >= (2 if cell == 320 else 5) and np.flatnonzero(blue.any(1)).max() < len(foot) - 3
    for mark in ("magenta", "green dots", "red crosses", "dark", "[nothing]", "[3]", "red words"):
        assert f"{mark}: " in MARKS


def test_unreadable_pictures_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:2000])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "words.jpg").write_text("not a picture")
    for name, words in [
        ("cut", "truncated"),
        ("empty", "cannot be read"),
        ("words", "cannot be read"),
        ("none", "not found"),
    ]:
        with pytest.raises(data.BadData, match=f"{name}.jpg") as error:
            pictures.open_image(tmp_path / f"{name}.jpg")
        assert words in str(error.value)


# ---------------------------------------------------------------------------------------------------- points from masks


@pytest.mark.parametrize("seed", range(8))
def test_points_lie_where_they_should(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 90), dtype=bool)
    for _ in range(3):
        r = rng.uniform(4, 12)
        mask |= (
            np.hypot(*(np.mgrid[:60, :90] + 0.5 - np.array([rng.uniform(15, 45), rng.uniform(15, 75)])[:, None, None]))
            < r
        )
    box = data.box_of(mask)
    ys, xs = np.nonzero(mask)
    assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    inside = data.inscribed_points(mask, 2)
    assert mask[tuple(np.floor(inside).astype(int).T[::-1])].all()
    # the first point: farthest from all that is outside
    outside = np.argwhere(np.pad(~mask, 1, constant_values=True)) - 1
    clear = lambda p: np.hypot(*(outside + 0.5 - p[::-1]).T).min()  # noqa: E731
    assert clear(inside[0]) == pytest.approx(max(clear(np.array([x, y]) + 0.5) for y, x in zip(ys, xs)))

    found = data.background_points(mask, box, 2, clearance=3 / 90)
    if found is not None:
        assert ((found > box[:2]) & (found < box[2:])).all()
        gap = np.hypot(found[:, None, 0] - xs - 0.5, found[:, None, 1] - ys - 0.5).min()
        assert gap >= 3 and len(np.unique(found, axis=0)) == 2


def test_annotated_points_are_taken_in_order_and_a_lone_one_again():
    three = data.Sample("q", np.zeros((1, 4)), np.array([[[1.0, 2], [3, 4], [5, 6]]]), "a", "a", 9, 9, lambda: None)
    assert three.positive_points(2).tolist() == [[[1, 2], [3, 4]]]
    three.points = three.points[:, :1]
    assert three.positive_points(2).tolist() == [[[1, 2], [1, 2]]]


def test_each_family_is_asked_in_the_units_that_it_is_read_in():
    thousand, pixels = (data.build_prompt("a mug", "genseg", data.FAMILIES[f]) for f in ("qwen3_vl", "qwen2_5_vl"))
    assert "0 to 1000" in thousand and "1000" not in pixels and "pixels" in pixels


def test_a_box_a_pixel_over_the_edge_has_its_part_of_the_mask():
    """-1 counted from the other end: the part was empty, and its point the box's centre, beside the object."""
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:25, 0:8] = mask[40:50, 50:70] = True
    boxes = np.array([[-1.0, 5, 20, 30], [50, 40, 70, 50]])
    sample = data.Sample("q", boxes, np.zeros((2, 0, 2)), "a", "a", 80, 60, lambda: None, [data.encode_rle(mask)])
    for x, y in sample.positive_points(2).reshape(-1, 2):
        assert mask[int(y), int(x)]


def test_no_room_for_background_points():
    mask = np.zeros((50, 50), dtype=bool)
    mask[10:30, 10:30] = True
    assert data.background_points(mask, data.box_of(mask), 1) is None  # a filled box
    assert data.background_points(mask, np.array([60, 60, 70, 70]), 1) is None  # a box beside the picture
    assert data.background_points(mask, np.array([0, 0, 50, 50]), 2).shape == (2, 2)
    assert data.background_points(mask, np.array([7, 7, 33, 33]), 1, clearance=1 / 50) is not None
    assert data.background_points(mask, np.array([7, 7, 33, 33]), 1, clearance=5 / 50) is None  # 3 px of room


def test_distances_in_a_box_are_those_of_the_whole_picture():
    rng = np.random.default_rng(5)
    for _ in range(200):
        mask = rng.random((40, 70)) < rng.choice([0.0, 0.002, 0.01, 0.3])
        x0, y0 = rng.integers(-5, 60), rng.integers(-5, 35)
        box = np.array([x0, y0, x0 + rng.integers(1, 40), y0 + rng.integers(1, 30)], dtype=float)
        whole = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
        own = whole[max(y0, 0) : max(int(box[3]), 0), max(x0, 0) : max(int(box[2]), 0)]
        assert np.array_equal(data.distances_in(mask, box)[0], own)


# -------------------------------------------------------------------------------------------------------- the toy world


def test_toy_world_is_the_same_every_time_and_its_parts_agree():
    first, again = data.load("toy", split="val"), data.load("toy", split="val")
    assert len(first) == 200 and first.skipped == []
    kinds = {first[i].id.rsplit("/", 1)[1] for i in range(200)}
    assert kinds == {"one", "all", "size", "place", "implicit", "absent"}
    for i in range(0, 200, 5):
        a, b = first[i], again[i]
        assert a.query == b.query and np.array_equal(a.boxes, b.boxes) and a.image.tobytes() == b.image.tobytes()
        union = np.zeros((a.height, a.width), dtype=bool)
        for rle, box in zip(a.object_masks, a.boxes, strict=True):
            mask = coco_mask.decode(rle).astype(bool)
            assert data.box_of(mask).tolist() == box.tolist()
            union |= mask
        assert np.array_equal(a.mask, union) and a.no_target == (not union.any())
    assert data.load("toy", split="test")[0].image.tobytes() != first[0].image.tobytes()


# ------------------------------------------------------------------------------------------------ layouts, made by hand


def test_refcoco_every_sentence_or_one(refer):
    samples = data.load("refcoco", refer)
    assert [s.query for s in samples] == ["left cat", "big cat", "cat one", "the dog"]
    assert len({s.id for s in samples}) == 4
    assert samples[0].boxes.tolist() == [[5, 5, 15, 13]] and samples[0].mask.sum() == AREA[10]
    # two parts; the short polygon adds nothing
    assert samples[3].mask.sum() == AREA[14] and samples[3].image.size == (
        40,
        30,
    )
    assert len(samples.skipped) == 1 and "reference 3" in samples.skipped[0] and "no polygon" in samples.skipped[0]
    assert samples.lost == 1
    assert data.load("refcoco", refer, "val")[0].mask.sum() == AREA[12]  # an RLE as COCO's crowds have it
    one = [[s.query for s in data.load("refcoco", refer, one_expression=True, seed=seed)] for seed in range(12)]
    assert all(len(queries) == 2 for queries in one) and {q[0] for q in one} == {"left cat", "big cat", "cat one"}
    assert one[5] == [s.query for s in data.load("refcoco", refer, one_expression=True, seed=5)]
    assert [s.query for s in samples[1:3]] == ["big cat", "cat one"] and samples[-1].query == "the dog"


def test_garbage_is_collected_after_a_load_as_before(refer):
    for on in (False, True):
        (gc.enable if on else gc.disable)()
        data.load("refcoco", refer)
        refuses("no split", "refcoco", refer, "none")
        assert gc.isenabled() == on


@pytest.mark.parametrize("layout", ["refcoco+", "refcocog", "refcocog-google"])
def test_refcoco_kin(refer, layout):
    assert len(data.load(layout, refer)) == 4


def test_layouts_are_joined(refer):
    both = data.load("refcoco, grefcoco", refer)
    assert [s.query for s in both][3:] == ["the dog", "both cats", "a cow"] and len({s.id for s in both}) == 6
    assert len(both.skipped) == 1


def test_grefcoco_several_and_none(refer):
    both, none = data.load("grefcoco", refer)
    assert both.boxes.tolist() == [[5, 5, 15, 13], [20, 5, 24, 9]] and both.mask.sum() == AREA[10] + AREA[11]
    assert not both.no_target and none.no_target and none.boxes.shape == (0, 4)
    assert none.mask.shape == (30, 40) and not none.mask.any()


def test_detection_and_coconut(coco):
    cats, dogs = data.load("coco-detection", coco, "val")
    assert (cats.query, dogs.query) == ("cat", "dog") and len(cats.boxes) == 2
    assert cats.mask.sum() == AREA[10] + AREA[11] and cats.ignore.sum() == AREA[12] and dogs.ignore is None
    assert "annotation 13" in data.load("coco-detection", coco, "val").skipped[0]
    (every,) = data.load("coconut", coco, "val")
    assert every.query == "All cat" and every.boxes.shape == (2, 4) and every.mask.sum() == AREA[10] + AREA[11]


def test_coconut_panoptic(coco):
    ids = np.zeros((30, 40), dtype=np.int64)
    (
        ids[2:6, 3:9],
        ids[10:12, 30:40],
        ids[20:],
    ) = 70000, 300, 5  # ids that need two and three bytes; 5 is the ground
    png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    (coco / "panoptic_val2017").mkdir()
    Image.fromarray(png).save(coco / "panoptic_val2017/a.png")
    segments = [{"id": 70000, "category_id": 1}, {"id": 300, "category_id": 1}, {"id": 5, "category_id": 3}]
    content = instances() | {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]}
    content["categories"].append({"id": 3, "name": "ground", "isthing": 0})
    dump(coco / "annotations/panoptic_val2017.json", content)
    (sample,) = data.load("coconut", coco, "val")
    assert sample.boxes.tolist() == [[3, 2, 9, 6], [30, 10, 40, 12]] and sample.mask.sum() == 24 + 20
    Image.fromarray(png[..., ::-1]).save(coco / "panoptic_val2017/a.png")  # as OpenCV writes: "nothing fits" it was
    with pytest.raises(data.BadData, match="no pixel of segment 70000"):
        list(data.load("coconut", coco, "val"))


def test_coconut_category_is_drawn_by_seed(coco):
    content = instances()
    more = [{**a, "id": 20 + i, "category_id": 2} for i, a in enumerate(ANNOTATIONS[:2])]
    dump(
        coco / "annotations/instances_val2017.json",
        content | {"annotations": [a for a in ANNOTATIONS if a["id"] != 13] + more},
    )
    drawn = [data.load("coconut", coco, "val", seed=seed)[0].query for seed in range(12)]
    assert set(drawn) == {"All cat", "All dog"}
    assert drawn[3] == data.load("coconut", coco, "val", seed=3)[0].query


def test_crowds_of_one_category_stay_apart_and_need_no_polygon(coco):
    """Two crowds became the box around both, and one without pixels counted against whoever found it."""
    for shape in ({"segmentation": {"size": [30, 40], "counts": [0, 3, 1197]}}, {}):
        kept = [a if shape else {k: v for k, v in a.items() if k != "segmentation"} for a in ANNOTATIONS[:2]]
        crowds = [
            {"id": 90 + i, "image_id": 1, "category_id": 1, "iscrowd": 1, "bbox": box} | shape
            for i, box in enumerate(([1, 2, 10, 5], [30, 20, 4, 6]))
        ]
        dump(coco / "annotations/instances_val2017.json", instances() | {"annotations": kept + crowds})
        (cats,) = data.load("coco-detection", coco, "val")
        assert cats.crowds == [[1, 2, 11, 7], [30, 20, 34, 26]] and len(cats.boxes) == 2
        assert (cats.ignore is None) == (not shape)
    for crowd in crowds:  # none is annotated: the box of its pixels, a column of three and its like
        del crowd["bbox"]
        crowd["segmentation"] = {"size": [30, 40], "counts": [30, 3, 1167]}
    both = {"annotations": ANNOTATIONS[:2] + crowds + [{**crowds[0], "id": 99, "category_id": 2}]}
    dump(coco / "annotations/instances_val2017.json", instances() | both)
    samples = data.load("coco-detection", coco, "val")
    assert samples[0].crowds == [[1, 0, 2, 3]] * 2
    assert "only a crowd" in samples.skipped[0] and (samples.lost, samples[:1].lost) == (0, 0)  # no sample is missing


def test_reasonsegs_outline_belongs_to_the_shape():
    """As LISA's cv2.polylines paints it. The slow twin walks along each edge, a whole pixel at a time."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        corners = (60 + rng.uniform(5, 50, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(int)
        shape = {"label": "target", "points": corners.tolist()}
        drawn = layouts._painted([shape], False, (120, 120))
        inside = Image.new("1", (120, 120))
        ImageDraw.Draw(inside).polygon([tuple(xy) for xy in corners.tolist()], fill=1)
        edge = np.zeros_like(drawn)
        for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
            for t in np.linspace(0, 1, max(abs(x2 - x1), abs(y2 - y1)) + 1):
                x, y = x1 + t * (x2 - x1), y1 + t * (y2 - y1)
                if abs(x % 1 - 0.5) > 0.01 and abs(y % 1 - 0.5) > 0.01:  # half-way either pixel would do
                    edge[round(y), round(x)] = True
        assert drawn[edge].all() and drawn[np.asarray(inside)].all()
        assert (edge & ~np.asarray(inside)).any()  # filling alone leaves some of it out
        extra = drawn & ~np.asarray(inside) & ~edge
        assert extra.sum() < 0.1 * edge.sum() + 4


def test_reasonseg(tmp_path):
    shape = lambda label, *box: {"label": label, "points": np.reshape(rectangle(*box), (4, 2)).tolist()}  # noqa: E731
    shapes = [shape("ignore", 8, 8, 12, 12), shape("target", 5, 5, 20, 20), shape("target", 30, 5, 34, 9)]
    shapes += [shape("flag", 0, 0, 40, 30), {"label": "target", "points": [[1, 1], [3, 3]]}]
    folder = tmp_path / "ReasonSeg/val"
    for name in ("a", "latin", "lonely"):
        picture(folder / f"{name}.jpg")
    (folder / "a.txt").write_text("0 0.5 0.5 0.1 0.1")  # another tool's labels, and no second picture
    dump(folder / "a.json", {"text": ["what purrs", "what meows"], "shapes": shapes})
    (folder / "latin.json").write_bytes(
        json.dumps({"text": ["the café’s cat"], "shapes": shapes}, ensure_ascii=False).encode("cp1252")
    )
    samples = data.load("reasonseg", tmp_path, "val")
    assert [s.query for s in samples] == ["what purrs", "what meows", "the café’s cat"]
    # ignore is smaller than the target it lies on, so on top of it, wherever it stands in the file
    # As LISA's reader draws, the outline belongs to the shape: 16 x 16 and 5 x 5 pixels, less 5 x 5 that do not count.
    assert samples[0].mask.sum() == 256 - 25 + 25 and samples[0].ignore.sum() == 25
    assert samples[0].boxes.tolist() == [[5, 5, 35, 21]]
    assert any("lonely" in reason for reason in samples.skipped) and any(
        "fewer than three" in reason for reason in samples.skipped
    )
    one = data.load("reasonseg", tmp_path / "ReasonSeg", "val", one_expression=True)
    assert [s.query for s in one] == ["what purrs", "the café’s cat"]
    assert one[0].sentences == ("what purrs", "what meows") and not samples[0].sentences  # for LENS, which draws anew


def png_bytes(size) -> dict:
    import io

    buffer = io.BytesIO()
    Image.new("L", size, 9).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(columns: dict):
    import datasets

    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


@pytest.mark.parametrize("disk", [True, False])
def test_visionreasoner(tmp_path, disk):
    solution = [
        {"bbox_2d": [84, 168, 420, 840], "point_2d": [210, 420]},
        {"bbox_2d": [0, 0, 84, 84], "point_2d": [42, 42]},
    ]
    rows = table(
        {
            "id": ["62554_1", "x"],
            "problem": ["two", "none"],
            "solution": [json.dumps(solution), "[]"],
            "image": [png_bytes((840, 840)), png_bytes((420, 210))],
        }
    )
    if disk:
        rows.save_to_disk(tmp_path)
    else:
        rows.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    two, none = data.load("visionreasoner", tmp_path)
    assert two.boxes.tolist() == [[84, 168, 420, 840], [0, 0, 84, 84]] and two.points.shape == (2, 1, 2)
    assert (
        two.image.mode == "RGB"
        and (two.width, two.height) == two.image.size
        and two.image_id == "62554"
        and two.mask is None
    )
    assert none.no_target and (none.width, none.height) == (420, 210)
    if not disk:
        for snapshot in ("old", "new"):  # as the Hub's cache has them: they were read as one table, twice over
            (tmp_path / "cache/snapshots" / snapshot / "data").mkdir(parents=True)
            rows.to_parquet(tmp_path / "cache/snapshots" / snapshot / "data/train-00000-of-00001.parquet")
        refuses("more than once: name the folder of one snapshot", "visionreasoner", tmp_path / "cache", "train")
        assert len(data.load("visionreasoner", tmp_path / "cache/snapshots/new")) == 2
        refuses("train-00000", "visionreasoner", tmp_path, "val")
        refuses("no column", "counting", tmp_path, "train")


def test_visionreasoner_boxes_follow_the_picture_in_the_table(tmp_path):
    solution = json.dumps([{"bbox_2d": [84, 168, 420, 840], "point_2d": [210, 420]}])
    rows = {"id": ["a"], "problem": ["q"], "solution": [solution], "image": [png_bytes((420, 210))]}
    table(rows).to_parquet(tmp_path / "train.parquet")
    (sample,) = data.load("visionreasoner", tmp_path)
    assert sample.boxes.tolist() == [[42, 42, 210, 210]] and sample.points.tolist() == [[[105, 105]]]
    table(rows | {"solution": ['[{"bbox_2d": [1, 2']}).to_parquet(tmp_path / "val.parquet")
    refuses("row 0", "visionreasoner", tmp_path, "val")


def test_visionreasoner_test_sets_and_counting(tmp_path):
    mask = np.zeros((30, 40), dtype=bool)
    mask[3:10, 5:25] = True
    rows = {
        "image_id": ["7", "7"],
        "ann_id": ["1", "2"],
        "text": ["it", "nothing"],
        "image": [png_bytes((40, 30))] * 2,
        "mask": [mask.tolist(), (mask & False).tolist()],
    }
    (tmp_path / "seg").mkdir()
    table(rows).to_parquet(tmp_path / "seg/test-0.parquet")
    it, nothing = data.load("visionreasoner-test", tmp_path / "seg", "test")
    assert np.array_equal(it.mask, mask) and it.boxes.tolist() == [[5, 3, 25, 10]] and nothing.no_target
    (tmp_path / "count").mkdir()
    rows = {"image": [png_bytes((40, 30))] * 2, "text": ["cups", "dogs"], "count": [3, 0]}
    table(rows).to_parquet(tmp_path / "count/test.parquet")
    cups, dogs = data.load("counting", tmp_path / "count", "test")
    assert (
        (cups.query, cups.count, cups.no_target, cups.mask) == ("cups", 3, False, None)
        and dogs.no_target
        and dogs.count == 0
    )


def test_jsonl_and_groundingsuite(tmp_path):
    picture(tmp_path / "photos/1.jpg")
    mask = np.zeros((30, 40), dtype=bool)
    mask[3:10, 5:25] = True
    rle = data.encode_rle(mask)
    lines = [
        {"query": "boxes", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "points": [[[2, 3]], [[6, 7]]]},
        {"query": "polygons", "polygons": [[rectangle(1, 1, 5, 5), rectangle(8, 1, 9, 5)]]},
        {"query": "rle", "rle": [rle]},
        {"query": "none", "no_target": True},
        {"query": "count", "count": 4},
        {"query": "gone", "boxes": [[1, 2, 3, 4]], "image": "photos/2.jpg"},
    ]
    path = dump(
        tmp_path / "train.jsonl", "\n".join(json.dumps({"image": "photos/1.jpg"} | line) for line in lines) + "\n\n"
    )
    samples = data.load("jsonl", tmp_path)
    boxes, polygons, by_rle, none, count = samples
    assert boxes.points.tolist() == [[[2, 3]], [[6, 7]]] and boxes.mask is None
    assert polygons.mask.sum() == 20 and polygons.boxes.tolist() == [[1, 1, 9, 5]]
    assert np.array_equal(by_rle.mask, mask) and none.no_target and count.count == 4 and not count.no_target
    assert len(samples.skipped) == 1 and "line 6" in samples.skipped[0] and "2.jpg" in samples.skipped[0]
    assert len(data.load("jsonl", path)) == 5
    # Polygons of another picture: no "nothing fits", and no target with half of its objects.
    outside, inside = [rectangle(900, 900, 950, 950)], [rectangle(1, 1, 5, 5)]
    lines = [
        {"query": "off", "polygons": [outside]},
        {"query": "half", "polygons": [outside, inside], "points": [[[920, 920]], [[2, 2]]]},
    ]
    dump(path, "\n".join(json.dumps({"image": "photos/1.jpg"} | line) for line in lines))
    off = data.load("jsonl", path)
    for i in range(2):
        with pytest.raises(data.BadData, match=f"line {i + 1} .*a polygon leaves its picture"):
            off[i]
    line = {"image_path": "photos/1.jpg", "caption": "it", "box": [5, 3, 25, 10], "segmentation": rle}
    suite = dump(tmp_path / "GroundingSuite-Eval.jsonl", json.dumps(line))
    for root in (tmp_path, suite):
        (sample,) = data.load("groundingsuite", root)
        assert sample.boxes.tolist() == [[5, 3, 25, 10]] and np.array_equal(sample.mask, mask)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"image": "a.jpg"}',
        '{"image": "a.jpg", "query": "q"}',
        '{"image": "a.jpg", "query": 3, "count": 1}',
        '{"image": "a.jpg", "query": "q", "boxes": [[1, 2, 3]]}',
        '{"image": "a.jpg", "query": "q", "boxes": [[9, 2, 3, 4]]}',
        '{"image": "a.jpg", "query": "q", "polygons": [[]]}',
        '{"image": "a.jpg", "query": "q", "boxes": [["a", 2, 3, 4]]}',
        '{"image": "a.jpg", "query": "q", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 9, 9]], "rle": [{"a": 1}, {}]}',
        '{"image": "a.jpg", "query": "q", "boxes": [[1, 2, 3, 4]], "points": [[[1, 2]], [[1, 2]], [[1]]]}',
        '{"image": "a.jpg", "query": "q", "boxes": [[1, 2, 3, 4]], "no_target": true}',
    ],
)
def test_bad_lines_are_named(tmp_path, line):
    picture(tmp_path / "a.jpg")
    good = '{"image": "a.jpg", "query": "q", "boxes": [[1, 2, 3, 4]]}'
    dump(tmp_path / "train.jsonl", f"{good}\n{line}\n")
    refuses("line 2", "jsonl", tmp_path)


LARGER = data.encode_rle(np.ones((60, 80), dtype=bool))["counts"]


@pytest.mark.parametrize(
    "size, counts", [([30, 40], LARGER), ([30, 40], [9, 5]), ([40, 30], [0, 1200]), ([30, 40], "")]
)
def test_broken_rle_is_refused_not_decoded_to_garbage(tmp_path, size, counts):
    picture(tmp_path / "a.jpg")
    dump(
        tmp_path / "train.jsonl",
        json.dumps({"image": "a.jpg", "query": "q", "rle": [{"size": size, "counts": counts}]}),
    )
    with pytest.raises(data.BadData, match="a.jpg"):
        data.load("jsonl", tmp_path)[0]


def test_pickles_that_run_code_are_refused(refer):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (refer / "owned",))

    for payload in (Evil(), [REFS[0], Evil()], np.zeros(2)):
        (refer / "refcoco/refs(unc).p").write_bytes(pickle.dumps(payload, protocol=2))
        refuses(r"refs\(unc\).p.*asks for", "refcoco", refer)
    assert not (refer / "owned").exists()
    for raw, words in ((b"", "is empty"), (pickle.dumps(REFS)[:-20], "cannot be read"), (b"garbage", "cannot be read")):
        (refer / "refcoco/refs(unc).p").write_bytes(raw)
        refuses(words, "refcoco", refer)


def test_bad_requests_and_folders(refer, tmp_path):
    refuses("unknown dataset 'cocoa'.*refcocog", "cocoa", refer)
    refuses("folder not found", "refcoco")
    refuses("folder not found: nowhere/at/all", "refcoco", "nowhere/at/all")
    refuses("folder not found", "visionreasoner", "nowhere/at/all")
    refuses("no split 'testC', only: train, val", "refcoco", refer, "testC")
    refuses("no split 'dev'", "toy", split="dev")
    refuses("holds none of", "reasonseg", refer, "val")
    refuses("holds none of", "coco-detection", refer, "val")
    dump(refer / "refcoco/instances.json", '{"images": [')
    refuses("instances.json cannot be read", "refcoco", refer)
    dump(refer / "refcoco+/instances.json", {"images": []})
    refuses("there is no 'annotations'", "refcoco+", refer)
    (refer / "train.jsonl").touch()
    refuses("nothing usable.*empty", "jsonl", refer)
    (refer / "ReasonSeg/val").mkdir(parents=True)
    refuses("nothing usable", "reasonseg", refer, "val")


def test_absent_and_resized_pictures(refer):
    (refer / "images/train2014/b.jpg").unlink()
    samples = data.load("refcoco", refer)
    assert len(samples) == 3 and any("reference 2" in reason and "picture" in reason for reason in samples.skipped)
    picture(refer / "images/train2014/a.jpg", (80, 60))  # a copy of another size would shift every box
    with pytest.raises(data.BadData, match="annotated as"):
        samples[0].open()
    shutil.rmtree(refer / "images")
    refuses("no picture found: a.jpg", "refcoco", refer)


# ------------------------------------------------------------------------------------------ looking, and standing alone


def test_overlay_draws_each_thing_where_it_is():
    image, mask, truth = Image.new("RGB", (100, 60)), np.zeros((60, 100), dtype=bool), np.zeros((60, 100), dtype=bool)
    mask[10:20, 10:20], truth[30:50, 30:50] = True, True
    plain = pictures.overlay(image)
    assert plain.tobytes() == image.tobytes() and plain is not image
    drawn = pictures.overlay(image, mask, truth, [[60, 5, 90, 25]], [[70, 40]], [[[90, 50]]])
    pixel = lambda x, y: drawn.getpixel((x, y))  # noqa: E731
    assert pixel(15, 15) != (0, 0, 0) and pixel(30, 40) == (255, 220, 0) and pixel(40, 40) == (0, 0, 0)
    assert pixel(60, 15) != (0, 0, 0) and pixel(75, 15) == (0, 0, 0)
    assert pixel(70, 40)[1] > 150 > pixel(70, 40)[0] and pixel(90, 50)[0] > 150 > pixel(90, 50)[1]


def test_check_reports_and_draws(coco):
    command = [
        sys.executable,
        data.__file__,
        "--check",
        "--dataset",
        "coco-detection",
        "--data_root",
        str(coco),
        "--split",
        "val",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parent)}
    done = subprocess.run([*command, "--out", str(coco / "sheet.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "2 samples on 2 pictures; 2 with masks; 0 with nothing" in done.stdout
        and "objects per sample: 1: 1, 2: 1" in done.stdout
    )
    assert "annotation 13 of picture 1 has no polygon" in done.stdout and Image.open(coco / "sheet.png").size[0] == 1280
    (coco / "val2017/b.jpg").write_bytes(b"broken")
    done = subprocess.run([*command, "--recipe", "drseg"], cwd=coco, env=environment, capture_output=True, text=True)
    assert (coco / "runs/check-coco-detection-val.png").exists()
    assert "drseg: 1 of 2 samples" in done.stdout and "1 of 2 samples do not earn the maximum" in done.stderr
    assert done.returncode == 1 and "wrong: " in done.stdout and "b.jpg" in done.stdout
    done = subprocess.run([*command[:-1], "train"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "instances_train2017.json" in done.stderr


def test_the_toy_world_needs_no_other_layout(tmp_path):
    shutil.copy(data.__file__, tmp_path)
    shutil.copytree(Path(world.__file__).parent, tmp_path / "toy", ignore=shutil.ignore_patterns("*.safetensors"))
    code = "import data; print(data.box_of(data.load('toy', split='val')[0].mask).tolist())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""})
    union = data.box_of(data.load("toy", None, "val")[0].mask).tolist()
    assert done.returncode == 0 and json.loads(done.stdout) == union, done.stderr


# ------------------------------------------------------------------------------- the same loaders on the real miniature


def mini_json(path: str):
    return json.loads((MINI / path).read_text())


@real
@pytest.mark.parametrize("split, count", [("train", 85), ("val", 71)])
def test_mini_refcoco(split, count):
    api, refs = (
        COCO(str(MINI / "refer_seg/refcoco/instances.json")),
        (MINI / "refer_seg/refcoco/refs(unc).p").read_bytes(),
    )
    refs = [r for r in pickle.loads(refs) if r["split"] == split]
    samples = data.load("refcoco", MINI / "refer_seg", split)
    assert len(samples) == count == sum(len(r["sentences"]) for r in refs) and not samples.skipped
    for ref, sample in zip(refs, samples, strict=True):
        assert sample.query == ref["sentences"][0]["sent"] and sample.image_id == str(ref["image_id"])
        assert np.array_equal(sample.mask, api.annToMask(api.anns[ref["ann_id"]]))
    assert len(data.load("refcoco", MINI, split)) == count  # the folder above will do as well


@real
def test_mini_grefcoco():
    api, refs = COCO(str(MINI / "refer_seg/grefcoco/instances.json")), mini_json("refer_seg/grefcoco/grefs(unc).json")
    refs = [r for r in refs if r["split"] == "val"]
    samples = data.load("grefcoco", MINI / "refer_seg", "val")
    assert len(samples) == len(refs) == 125 and sum(s.no_target for s in samples) == 32
    for ref, sample in zip(refs, samples, strict=True):
        masks = [api.annToMask(api.anns[i]) for i in ref["ann_id"] if i != -1]
        assert sample.no_target == ref["no_target"] and len(sample.boxes) == len(masks)
        assert np.array_equal(sample.mask, np.any(masks, axis=0) if masks else np.zeros_like(sample.mask))


@real
@pytest.mark.parametrize("split, count", [("train", 9), ("val", 10)])
def test_mini_reasonseg(split, count):
    samples = data.load("reasonseg", MINI / "reason_seg", split)
    assert len(samples) == count
    for sample in samples:
        note = mini_json(f"reason_seg/ReasonSeg/{split}/{sample.image_id}.json")
        union = np.zeros((sample.height, sample.width), dtype=bool)
        for shape in note["shapes"]:
            union |= coco_mask.decode(coco_mask.frPyObjects([np.ravel(shape["points"]).tolist()], *union.shape))[
                ..., 0
            ].astype(bool)
        ours = sample.mask | sample.ignore  # with its outline, as LISA draws it: half a pixel larger all round
        assert (ours & union).sum() > 0.99 * union.sum() and union.sum() < ours.sum() < 1.12 * union.sum()
        assert not (sample.mask & sample.ignore).any()
        assert sample.mask.any() and sample.ignore.any()


@real
def test_mini_detection_and_coconut():
    api = COCO(str(MINI / "coco/annotations/instances_val2017.json"))
    samples = data.load("coco-detection", MINI / "coco", "val")
    expected = {(a["image_id"], a["category_id"]) for a in api.anns.values() if not a["iscrowd"]}
    assert len(samples) == len(expected) == 69
    for sample in [*samples, *data.load("coconut", MINI / "coco", "val")]:
        (category,) = api.getCatIds(catNms=[sample.query.removeprefix("All ")])
        anns = api.loadAnns(api.getAnnIds(imgIds=[int(sample.image_id)], catIds=[category], iscrowd=False))
        assert np.array_equal(sample.mask, np.any([api.annToMask(a) for a in anns], axis=0)) and len(
            sample.boxes
        ) == len(anns)
        assert not sample.query.startswith("All ") or len(anns) >= 2


@real
def test_mini_tables():
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(MINI / "parquet/refcoco_val/data/test-00000-of-00001.parquet").to_pylist()
    samples = data.load("visionreasoner-test", MINI / "parquet/refcoco_val", "test")
    for row, sample in zip(rows, samples, strict=True):
        assert np.array_equal(sample.mask, np.array(row["mask"])) and sample.boxes.tolist() == [row["bbox"]]
        assert sample.image.size == (row["img_width"], row["img_height"])
        if not row["text"].startswith(("all", "both")):  # there the one box of the row is that of one object
            assert np.abs(data.box_of(sample.mask) - sample.boxes[0]).max() < 3
    train = data.load("visionreasoner", MINI / "parquet/multi_object")
    assert len(train) == 16 and all(s.image.size == (840, 840) for s in train)
    for s in train:
        assert ((s.points[:, 0] >= s.boxes[:, :2]) & (s.points[:, 0] <= s.boxes[:, 2:])).all() and s.boxes.max() <= 840


@real
def test_mini_groundingsuite():
    lines = [json.loads(line) for line in (MINI / "GroundingSuite-Eval.jsonl").read_text().splitlines()]
    samples = data.load("groundingsuite", MINI)
    for line, sample in zip(lines, samples, strict=True):
        assert np.array_equal(sample.mask, coco_mask.decode(line["segmentation"])) and sample.boxes.tolist() == [
            line["box"]
        ]
        assert Path(line["image_path"]).stem.endswith(sample.image_id)
    assert samples[0].image.size == (samples[0].width, samples[0].height)
