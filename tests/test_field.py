# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Trouble from the field: inputs after public bug reports and beginners' mistakes, and what is right for each."""

import dataclasses
import json
import pickle
import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import data
import evaluate
import model as models
import recipes
import rewards
from benchmarks import check as sheet
from benchmarks import layouts, pictures, records, report
from engine import check

SIZE = (200, 120)
RED = [40, 30, 120, 90]  # what is red in the picture
CORNERS = [40, 30, 120, 30, 120, 90, 40, 90]


def photo(path: Path, size=SIZE, **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, "grey")
    picture.paste("red", RED)
    picture.save(path, **save)
    return path


def lines(folder: Path, *entries: dict, split="train") -> Path:
    """A folder with a.jpg and a line of <split>.jsonl for each entry, which is added to a line that is right."""
    photo(folder / "a.jpg")
    text = "".join(json.dumps({"image": "a.jpg", "query": "the red box"} | entry) + "\n" for entry in entries)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def first_error(*args) -> str:
    """What loading or making the samples says."""
    with pytest.raises(data.BadData) as error:
        list(data.load(*args))
    return str(error.value)


# ------------------------------------------------------------------------------- nothing broken reaches pycocotools


def compressed(mask) -> str:
    return data.encode_rle(mask)["counts"]


WHOLE = compressed(np.ones(SIZE[::-1], dtype=bool))
BROKEN_COUNTS = [
    "\0",
    "\0" * 900,
    WHOLE[:-1] + "\0",
    WHOLE + "\0" * 80,
    "P",
    "oooooooo0",
    "n" * 99,
    "é0",
    "\ud8000",
    "0",
]
BROKEN_COUNTS += [WHOLE + WHOLE, "0" + "O" * 50, "Q", " ", "ooooooO" * 40, b"\xff\xff".decode("latin1")]


@pytest.mark.parametrize("counts", BROKEN_COUNTS, ids=range(len(BROKEN_COUNTS)))
def test_broken_counts_are_refused_before_pycocotools_reads_them(tmp_path, counts):
    """A NUL among them overflowed its heap; broken ones decoded to whatever lay in memory."""
    rle = {"size": [120, 200], "counts": counts}
    assert data.rle_fault(rle)
    assert "a.jpg" in first_error("jsonl", lines(tmp_path, {"rle": [rle]}))


def test_whole_encodings_pass():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 60, 2)) < rng.random()
        assert data.rle_fault(data.encode_rle(mask)) is None
    wide = np.zeros((300, 4000), dtype=bool)
    wide[:, 1500:1502] = wide[200:, 3000:] = True
    assert data.rle_fault(data.encode_rle(wide)) is None


@pytest.mark.parametrize(
    "size", [[10**6, 10**6], [0, 5], [-3, -4], [120.0, 200], [True, True], ["120", 200], [2**70, 1]]
)
def test_sizes_of_masks_are_bounded(tmp_path, size):
    assert data.rle_fault({"size": size, "counts": WHOLE})
    assert first_error("jsonl", lines(tmp_path, {"rle": [{"size": size, "counts": WHOLE}]}))


ODD = [None, float("nan"), float("inf"), -float("inf"), 1e8, -1e8, 1e300, "40", [1], {}, 10**400]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_polygons_of_no_coordinates(tmp_path, odd):
    """null, NaN, inf and 1e8 were segmentation faults, in every layout that has polygons."""
    corners = [*CORNERS[:-1], odd]
    message = first_error("jsonl", lines(tmp_path, {"polygons": [[corners]]}))
    assert "polygon" in message and "Traceback" not in message
    folder = tmp_path / "val"
    photo(folder / "b.jpg")
    shape = {"label": "target", "points": [[40, 30], [120, 30], [120, odd]]}
    (folder / "b.json").write_text(json.dumps({"text": ["it"], "shapes": [shape]}), encoding="utf-8")
    assert "polygon" in first_error("reasonseg", tmp_path, "val")
    for place in range(len(CORNERS)):
        with pytest.raises(data.BadData):
            layouts.to_rle([[*CORNERS[:place], odd, *CORNERS[place + 1 :]]], SIZE)


def test_records_with_broken_masks_are_refused(tmp_path):
    """predictions.jsonl reaches pycocotools through the report."""
    for counts in BROKEN_COUNTS[:4]:
        blank = {str: "x", bool: False, int: 5, float: 0.5}
        record = {k: blank[kind] if isinstance(kind, type) else [] for k, kind in records.KINDS.items()}
        record = {k: None if isinstance(records.KINDS[k], tuple) else v for k, v in record.items()}
        record |= {"width": 200, "height": 120}
        for whole, mask in ((True, WHOLE), (False, counts)):
            path = tmp_path / "predictions.jsonl"
            path.write_text(
                json.dumps(record | {"mask": {"size": [120, 200], "counts": mask}}) + "\n", encoding="utf-8"
            )
            if whole:
                assert len(records.read_records(path)) == 1
            else:
                with pytest.raises(data.BadData, match="line 1"):
                    records.read_records(path)


# ------------------------------------------------------------------------------------------------------------- jsonl

REFUSED = {
    "polygon of pairs": ({"polygons": [[np.reshape(CORNERS, (4, 2)).tolist()]]}, "flat list"),
    "brackets missing": ({"polygons": [CORNERS]}, "a list of polygons"),
    "count as text": ({"count": "1"}, "whole number"),
    "count below 0": ({"count": -1}, "whole number"),
    "count true": ({"count": True}, "whole number"),
    "count of other boxes": ({"count": 2, "boxes": [RED]}, "count is 2, but there are 1 boxes"),
    "no_target as text": ({"no_target": "false"}, "true or false"),
    "no_target and a mask": ({"no_target": True, "polygons": [[CORNERS]]}, "nothing fits"),
    "no_target and a count": ({"no_target": True, "count": 3}, "nothing fits"),
    "one flat box": ({"boxes": RED}, r"boxes is a list of \[x1"),
    "x, y, width, height": ({"boxes": [[150, 90, 40, 20]]}, "x, y, width, height"),
    "numbers as text": ({"boxes": [["40", "30", "120", "90"]]}, "numbers alone"),
    "null": ({"boxes": [[40, 30, None, 90]]}, "numbers alone"),
    "true": ({"boxes": [[True, 30, 120, 90]]}, "numbers alone"),
    "true in a polygon": ({"polygons": [[[*CORNERS[:-1], True]]]}, "numbers alone"),
    "400 digits": ({"boxes": [[40, 30, 10**400, 90]]}, "numbers alone"),
    "unknown key": ({"boxes": [RED], "polygon": []}, "'polygon': is it 'polygons'"),
    "two kinds of mask": ({"polygons": [[CORNERS]], "mask": "a.png"}, "give one of"),
    "points of one object": ({"boxes": [RED], "points": [[50, 50]]}, "points is"),
    "empty query": ({"query": "  ", "boxes": [RED]}, "query"),
    "null query": ({"query": None, "boxes": [RED]}, "query"),
    "a picture's token": ({"query": "the <|image_pad|> cup", "boxes": [RED]}, "image_pad"),
    "a surrogate": ({"query": "\ud800", "boxes": [RED]}, "characters that are none"),
    "long query": ({"query": "x" * 3000, "boxes": [RED]}, "3000 characters"),
    "picture null": ({"image": None, "boxes": [RED]}, "'image' is missing"),
    "nothing": ({}, "no_target"),
    "box of none": ({"boxes": [[]]}, r"boxes is a list of \[x1"),
    "the same box twice": ({"boxes": [RED, RED]}, "same object twice"),
    "the same mask twice": ({"mask": ["a.png", "a.png"]}, "same object twice"),
    "a count of other masks": ({"count": 3, "mask": ["a.png", "b.png"]}, "masks of 2 objects"),
    "points alone": ({"points": [[[50, 50]]]}, "need boxes or a mask"),
    "the picture as mask": ({"mask": "a.jpg"}, "named as its mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_line_that_is_wrong_is_refused_with_its_number(tmp_path, name):
    entry, words = REFUSED[name]
    with pytest.raises(data.BadData, match=f"train.jsonl, line 2.*{words}"):
        list(data.load("jsonl", lines(tmp_path, {"boxes": [RED]}, entry)))


def test_lines_that_are_no_json_or_no_utf_8(tmp_path):
    photo(tmp_path / "a.jpg")
    right = b'{"image": "a.jpg", "query": "q", "boxes": [[1, 2, 30, 40]]}\n'
    for line, words in (
        (b"[" * 100_000, "line 2.*Recursion"),
        (right.replace(b'"q"', b'"q", "query": "r"'), "line 2: a key stands twice: 'query'"),
        (right.replace(b"q", "杯子".encode("gb2312")), "line 2 is not in UTF-8"),
        (right.decode().encode("utf-16"), "not in UTF-8"),
        (b"[" + right, "line 2: no JSON.*A list"),
        (b"[" + right.strip() + b"]", "line 2: a line is one"),
        (right.replace(b"}", b"},"), "line 2: no JSON: Extra data.*no comma"),
        (right.replace(b'"', b"'"), "line 2: no JSON.*double quotes"),
    ):
        (tmp_path / "train.jsonl").write_bytes(right + line)
        assert pytest.raises(data.BadData, data.load, "jsonl", tmp_path).match(words)


def test_masks_as_files(tmp_path):
    """A PNG per line or per object; black is nothing, whatever else is the object."""
    lines(tmp_path, {"mask": "m.png"}, {"mask": ["m.png", "n.png"]}, {"mask": "m.png", "boxes": [RED]})
    inside = Image.new("L", SIZE)
    inside.paste(255, RED)
    inside.save(tmp_path / "m.png")
    Image.new("1", SIZE, 1).save(tmp_path / "n.png")
    one, two, boxed = data.load("jsonl", tmp_path)
    assert one.boxes.tolist() == boxed.boxes.tolist() == [RED] and one.mask.sum() == 80 * 60
    assert two.boxes.tolist() == [RED, [0, 0, *SIZE]] and len(two.object_masks) == 2
    for kind, words in (("small", "100 x 60 on a picture of 200 x 120"), ("empty", "no_target"), ("gone", "not found")):
        if kind != "gone":
            Image.new("L", *((SIZE, 0) if kind == "empty" else ((100, 60), 1))).save(tmp_path / f"{kind}.png")
        assert words in first_error("jsonl", lines(tmp_path, {"mask": f"{kind}.png"}))
    photo(tmp_path / "blurred.jpg")
    assert "JPEG" in first_error("jsonl", lines(tmp_path, {"mask": "blurred.jpg"}))


def test_masks_whose_nothing_is_not_black(tmp_path):
    """Read as "not 0", these were masks of the whole picture, of a wide rim more, or turned inside out."""
    inside = np.zeros(SIZE[::-1], dtype=np.uint8)
    inside[30:90, 40:120] = 255
    edge = np.asarray(Image.fromarray(inside).filter(ImageFilter.GaussianBlur(0.6)))
    numbers = inside.copy()
    numbers[40:60, 50:110] = np.arange(60)[None] + 1  # numbers of objects, and a void of 255 around them
    palette = Image.fromarray(inside // 255).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    coloured = np.where(inside[..., None] > 0, (255, 0, 0), (10, 10, 10)).astype(np.uint8)
    blurred = Image.fromarray(inside).filter(ImageFilter.GaussianBlur(8))
    for name, mask, words in (
        ("edge", Image.fromarray(edge), None),
        ("few numbers", Image.fromarray(inside // 255 * 3), None),
        ("numbers", Image.fromarray(numbers), None),
        ("deep", Image.fromarray(inside.astype(np.uint16) * 257), None),
        ("soft", blurred, "greys"),
        ("deep soft", Image.fromarray(np.asarray(blurred).astype(np.uint16) * 257), "greys"),
        ("photo", Image.fromarray(coloured), "none is 0"),
        ("palette", palette, r"\(255, 255, 255\)"),
    ):
        mask.save(tmp_path / "m.png")
        if words is None:
            read = pictures.open_mask(tmp_path / "m.png")
            assert np.abs(data.box_of(read) - RED).max() <= 2, name
        else:
            assert pytest.raises(data.BadData, pictures.open_mask, tmp_path / "m.png").match(f"m.png: .*{words}"), name


def test_a_file_serves_no_other_split(tmp_path):
    """Held-out figures were of train.jsonl, while val.jsonl lay beside it."""
    lines(tmp_path, {"boxes": [RED]})
    lines(tmp_path, {"boxes": [RED]}, split="own")
    assert len(data.load("jsonl", tmp_path / "own.jsonl", "val")) == 1  # a file that no split is named for
    assert "is not the split 'val'" in first_error("jsonl", tmp_path / "train.jsonl", "val")
    lines(tmp_path, {"boxes": [RED]}, split="val")
    assert "lies beside it" in first_error("jsonl", tmp_path / "own.jsonl", "val")


# ---------------------------------------------------------------------------------------------------------- pictures


def test_only_turns_that_exist_are_turned(tmp_path):
    """EXIF's orientation 9, or text, is none; a TIFF's size is the upright one already."""
    for orientation, size in ((6, SIZE[::-1]), (9, SIZE), (3, SIZE)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a.jpg", "a.tif", "a.png"):
            path = photo(tmp_path / name, exif=exif)
            assert pictures.picture_size(path) == pictures.open_image(path).size == size, (name, orientation)


def test_deep_grey_is_neither_black_nor_white(tmp_path):
    ramp = np.linspace(0, 1, 5)[None]
    for name, values in (
        ("float.tif", ramp.astype(np.float32)),
        ("twelve.png", (ramp * 4095).astype(np.uint16)),
        ("int.tif", (ramp * 65535).astype(np.int32)),
        ("bytes.tif", (ramp * 255).astype(np.float32)),
        ("sixteen.png", (ramp * 65535).astype(np.uint16)),
    ):
        Image.fromarray(values).save(tmp_path / name)
        assert np.abs(np.asarray(pictures.open_image(tmp_path / name))[0, :, 0] - ramp * 255).max() <= 1
    for values in (ramp - 0.5, ramp * 1e6, ramp * np.nan):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "odd.tif")
        assert pytest.raises(data.BadData, pictures.open_image, tmp_path / "odd.tif").match("its grey goes from")


def test_pictures_too_large_are_not_unpacked(tmp_path):
    """A PNG of a few kilobytes may claim any size: the header is asked first, and the bound is said."""
    path = photo(tmp_path / "bomb.png", (8, 8))
    raw = bytearray(path.read_bytes())
    for side in (10_001, 200_000):
        raw[16:24] = struct.pack(">II", side, side)
        raw[29:33] = struct.pack(">I", zlib.crc32(bytes(raw[12:29])))
        path.write_bytes(raw)
        for read in (pictures.open_image, pictures.open_mask, pictures.picture_size):
            assert pytest.raises(data.BadData, read, path).match("bomb.png.*(100,000,000|178956970|357913940)")


def test_one_number_in_two_folders_is_two_pictures(tmp_path):
    names = [
        "cam1/0001.jpg",
        "cam2/0001.jpg",
        "x/000000000007.jpg",
        "y/000000000007.jpg",
        "COCO_val2014_000000000009.jpg",
    ]
    for name in names:
        photo(tmp_path / name)
    lines(tmp_path, *({"image": name, "boxes": [RED]} for name in names))
    assert [s.image_id for s in data.load("jsonl", tmp_path)] == [*names[:4], "9"]


def test_absent_pictures_are_counted_over_all_names(tmp_path):
    """None of the first twenty there was 'no picture found'; a name that differs in Unicode's form is pointed out."""
    photo(tmp_path / "cafe\u0301.jpg")
    names = [*(f"{n}.jpg" for n in range(30)), "caf\u00e9.jpg", "a.jpg"]
    lines(tmp_path, *({"image": name, "boxes": [RED]} for name in names))
    samples = data.load("jsonl", tmp_path)
    assert len(samples) == 1 and len(samples.skipped) == 31
    assert "how Unicode writes" in samples.skipped[-1] and "line 31" in samples.skipped[-1]


# ------------------------------------------------------------------------------------------------------ other layouts


def instances(folder: Path, annotations: list[dict], images=(1, 2), categories=({"id": 1, "name": "box"},)) -> Path:
    whole = {"category_id": 1, "bbox": [40, 30, 80, 60], "iscrowd": 0, "segmentation": [CORNERS]}
    annotations = [{"id": n, "image_id": 1} | whole | a for n, a in enumerate(annotations, 1)]
    for annotation in annotations:
        if annotation["segmentation"] == "none":
            del annotation["segmentation"]
    for i in images:
        photo(folder / f"train/{i}.jpg")
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 120} for i in images]
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    path = folder / "annotations/instances_train.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("shape", ["none", []])
def test_detection_without_masks_has_boxes(tmp_path, shape):
    (sample,) = data.load("coco-detection", instances(tmp_path, [{"segmentation": shape}]))
    assert sample.boxes.tolist() == [RED] and sample.mask is None


def test_ids_as_text_and_categories_of_one_name(tmp_path):
    other = {"bbox": [5, 5, 20, 20], "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
    two = [{"image_id": "1", "category_id": "2"}, {"image_id": 1} | other, {"image_id": 9}, {"category_id": 7}]
    kinds = [{"id": 1, "name": "box"}, {"id": 2, "name": "box"}]
    samples = data.load("coco-detection", instances(tmp_path, two, categories=kinds))
    assert len(samples) == 1 and samples[0].boxes.tolist() == [RED, [5, 5, 25, 25]]
    assert "no such picture" in samples.skipped[0] and "category 7" in samples.skipped[1]


def test_coco_entries_that_are_wrong(tmp_path):
    half = [{}, {"segmentation": []}, {"image_id": 2}]
    samples = data.load("coco-detection", instances(tmp_path, half))
    assert [s.image_id for s in samples] == ["2"] and "annotation 2 of picture 1" in samples.skipped[0]
    for entry, words in (
        ({"iscrowd": "0"}, "iscrowd is '0'"),
        ({"segmentation": [np.reshape(CORNERS, (4, 2)).tolist()]}, "picture 1 .*flat list"),
        ({"bbox": [40, 30, 80]}, "numbers alone"),
        ({"bbox": ["40", 30, 80, 60]}, "numbers alone"),
        ({"segmentation": "masks/1.png"}, "picture 1 .*a list of polygons or an RLE.*masks/1.png"),
        ({"category_id": 0}, "category 0, one beyond the file's"),
        ({"category_id": 2}, "category 2, one beyond the file's"),
    ):
        with pytest.raises(data.BadData, match=words):
            list(data.load("coco-detection", instances(tmp_path, [{"id": 7}, entry])))
    merged = instances(tmp_path, [{"id": 7}, {"id": 7, "image_id": 2}])  # nothing looks annotations up by their ids
    assert len(data.load("coco-detection", merged)) == 2
    path = instances(tmp_path, [{}]) / "annotations/instances_train.json"
    for size in ("200", 0, None, 10**6, 200.5):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["images"][0]["width"] = size
        path.write_text(json.dumps(content), encoding="utf-8")
        assert "picture 1 " in first_error("coco-detection", tmp_path)


def test_objects_that_stand_twice(tmp_path):
    """An object annotated twice asked for two answers at one place; text ids were no numbers for coconut's draw."""
    apart = {"bbox": [5, 5, 20, 20], "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
    path = instances(tmp_path, [{}, {}, apart]) / "annotations/instances_train.json"
    samples = data.load("coco-detection", tmp_path)
    assert (
        samples[0].boxes.tolist() == [RED, [5, 5, 25, 25]]
        and "annotations left out, which repeat another: 1" in samples.skipped[0]
    )
    path.write_text(
        path.read_text().replace('"image_id": 1', '"image_id": "a"').replace('"id": 1, "file', '"id": "a", "file')
    )
    assert data.load("coconut", tmp_path)[0].image_id == "a"
    instances(tmp_path, [{}], categories=[{"id": 1, "name": "box"}, {"id": 1, "name": "cup"}])
    assert "two categories have the same id" in first_error("coco-detection", tmp_path)
    instances(tmp_path, [{"bbox": []}])
    assert "four numbers" in first_error("coco-detection", tmp_path)


def test_references_that_are_wrong(tmp_path):
    instances(tmp_path / "refcoco", [{}, {"id": 11}, {"id": 11}, {"image_id": 2}])
    (tmp_path / "refcoco/annotations/instances_train.json").rename(tmp_path / "refcoco/instances.json")
    (tmp_path / "refcoco/train").rename(tmp_path / "train2014")

    def reference(n, ann, texts, **more):
        sentences = [{"sent": text} for text in texts]
        return {"ref_id": n, "ann_id": ann, "image_id": 1, "split": "train", "sentences": sentences} | more

    refs = [reference(1, "1", ["the box", "", None]), reference(2, 11, ["x"]), reference(3, 4, ["x"])]
    refs += [reference(4, [], ["x"]), reference(5, [1], ["x"], no_target=True), reference(6, [-1], ["nothing"])]
    refs += [reference(7, 1, ["x"], category_id=3), refs[5], reference(6, 1, ["y"])]
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs))
    samples = data.load("refcoco", tmp_path)
    assert [(s.query, s.no_target) for s in samples] == [("the box", False), ("nothing", True)]
    said = ["sentence 1", "sentence 2", "stands twice", "is of picture 2", "no_target is None", "no_target is True"]
    said += ["category 1, and not of 3", "reference 6: stands twice", "another content; the first is read"]
    assert all(words in line for words, line in zip(said, samples.skipped, strict=True))
    for refs, words in (
        ([reference(1, 1, ["x"]) | {"sentences": ["the box"]}], r"reference 1: sentences is a list of \{"),
        ({"1": reference(1, 1, ["x"])}, r"refs\(unc\).p: TypeError"),
    ):
        (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs))
        assert pytest.raises(data.BadData, data.load, "refcoco", tmp_path).match(words)


def test_reasonseg_as_labelme_writes_it(tmp_path):
    def note(name, text, *shapes, encoding="utf-8"):
        photo(tmp_path / f"test/{name}.jpg")
        shapes = [{"label": "target", "points": np.reshape(CORNERS, (4, 2)).tolist()} | shape for shape in shapes]
        content = json.dumps({"text": text, "shapes": shapes}, ensure_ascii=False)
        (tmp_path / f"test/{name}.json").write_bytes(content.encode(encoding))

    note("a", ["the red box", ""], {})
    (tmp_path / "test/._a.json").write_bytes(b"\0\5\x16\7")
    for kind in ("rectangle", "circle", "linestrip"):
        note(kind, ["it"], {}, {"shape_type": kind})
    note("none", ["it"])
    note("silent", [], {})
    photo(tmp_path / "test/twin.png")
    note("twin", ["it"], {})
    samples = data.load("reasonseg", tmp_path, "test")
    assert [s.query for s in samples] == ["the red box"] and len(samples.skipped) == 7
    assert sum("half a target" in line for line in samples.skipped) == 3
    for name, more, words in (
        ("fractions", {"points": [[0.2, 0.2], [0.4, 0.2], [0.4, 0.3]]}, "are its points fractions"),
        ("size", {}, "annotated as \\(100, 60\\)"),
    ):
        note(name, ["it"], {} | more)
        path = tmp_path / f"test/{name}.json"
        if name == "size":  # labelme's own note of it
            content = json.loads(path.read_text()) | {"imageWidth": 100, "imageHeight": 60}
            content["shapes"][0]["points"] = np.reshape(CORNERS, (4, 2)).__truediv__(2).tolist()
            path.write_text(json.dumps(content))
        with pytest.raises(data.BadData, match=words):
            [sample.open() for sample in data.load("reasonseg", tmp_path, "test")]
        path.unlink()
    note(
        "pole",
        ["the pole and the box"],
        {},
        {"label": "flagpole", "points": [[150, 5], [160, 5], [160, 90], [150, 90]]},
    )
    masks = [sample.mask for sample in data.load("reasonseg", tmp_path, "test") if sample.id.split("/")[-2] == "pole"]
    assert masks[0][50, 155] and masks[0][50, 80]  # a shape called "flag" is none; this one is
    note("chinese", ["红色的盒子"], {}, encoding="gb2312")
    assert "not in UTF-8" in first_error("reasonseg", tmp_path, "test")


def test_tables_with_odd_cells(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    photo(tmp_path / "images/a.jpg")
    solution = json.dumps([{"bbox_2d": [168, 210, 504, 630], "point_2d": [336, 420]}])
    rows = {"image": [{"bytes": None, "path": "images/a.jpg"}] * 3, "id": ["1_0", "1_1", "1_2"]}
    rows |= {"problem": ["the red box", None, "it"], "solution": [solution] * 3}
    rows["image"] = [*rows["image"][:2], None]
    (tmp_path / "default/train").mkdir(parents=True)  # as the Hub converts
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "default/train/0000.parquet")
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    samples = data.load("visionreasoner", tmp_path / "train-00000-of-00001.parquet")
    assert samples[0].boxes.tolist() == [RED] and samples[0].image.size == SIZE
    for i, words in ((1, "row 1: the query"), (2, "row 2.*no picture")):
        with pytest.raises(data.BadData, match=words):
            samples[i]
    assert len(data.load("visionreasoner", tmp_path / "default")) == 3
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "shards/train-00001-of-00004.parquet")
    assert "1 of the 4 files" in first_error("visionreasoner", tmp_path / "shards")
    (tmp_path / "shards/train-00001-of-00004.parquet").unlink()
    monkeypatch.setattr(layouts, "MAX_CELL", 100)
    assert "100 a row is the most" in first_error("visionreasoner", tmp_path)


def test_tables_are_looked_for_three_folders_deep(tmp_path):
    """A stranger's run.json may call "/" the folder of its data: the whole disk was searched."""
    pytest.importorskip("datasets")
    for name in ("a/b/c", "d/e/f/g"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "test.parquet").touch()
        (tmp_path / name / f"{name[0]}.parquet").touch()
    assert "only: a.parquet, test.parquet." in first_error("visionreasoner", tmp_path, "train")


def test_a_mask_on_its_side_is_not_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    image = {"bytes": photo(tmp_path / "a.jpg").read_bytes(), "path": None}
    mask = np.zeros(SIZE, dtype=bool)
    mask[30:90, 40:100] = True
    rows = {"image": [image], "text": ["it"], "mask": [mask.tolist()], "image_id": ["1"], "ann_id": ["1"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "test.parquet")
    assert "200 rows of [120] pixels" in first_error("visionreasoner-test", tmp_path, "test")


# ------------------------------------------------------------------------ the truth against its pictures and its masks

BESIDE = {
    "of 840 x 840": ({"boxes": [[168, 210, 504, 630]], "points": [[[336, 420]]]}, "written for 840 x 840"),
    "in thousandths": ({"boxes": [[200, 250, 600, 950]]}, "thousandths"),
    "in fractions": ({"boxes": [[0.1, 0.2, 0.5, 0.9]]}, "fraction"),
    "beside its mask": ({"boxes": [[150, 5, 190, 25]], "polygons": [[CORNERS]]}, "not that of its mask"),
    "x, y, width, height": ({"boxes": [[40, 30, 80, 60]], "polygons": [[CORNERS]]}, "x, y, width, height"),
    "nothing of the mask": ({"boxes": [RED, [150, 5, 190, 25]], "polygons": [[CORNERS]]}, "nothing of the mask"),
    "mask beside its boxes": (
        {"boxes": [RED, [5, 5, 25, 25]], "polygons": [[[0, 0, 200, 0, 200, 120, 0, 120]]]},
        "outside the boxes",
    ),
    "point outside its box": ({"boxes": [RED], "points": [[[150, 100]]]}, "outside its own box"),
    "point off its mask": ({"polygons": [[[40, 30, 120, 30, 40, 90]]], "points": [[[112, 84]]]}, "off the mask"),
    "along rows": ({"rle": [{"size": [120, 200], "counts": [6040, *[80, 120] * 59, 80, 6080]}]}, "all stripes"),
    "centre, width, height": ({"boxes": [[80, 60, 100, 66]], "polygons": [[[30, 27, 130, 27, 130, 93]]]}, "its centre"),
    "y before x": ({"boxes": [[30, 40, 90, 119]], "polygons": [[CORNERS]]}, "y before x"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_truth_that_is_not_its_pictures(tmp_path, name):
    """All of these passed every check, and trained. Training, evaluation and --check refuse them alike."""
    entry, words = BESIDE[name]
    samples = data.load("jsonl", lines(tmp_path, entry, {"boxes": [RED], "polygons": [[CORNERS]]}))
    good, bad = check.readable(samples, [0, 1])
    assert good == [1] and words in bad[0]
    assert [words in line for line in sheet.check(samples, tmp_path / "out/sheet.png", 10)] == [True]
    assert Image.open(tmp_path / "out/sheet.png").size[0] == 1280
    _, failed = check.check_rewards(samples, [0, 1], recipes.RECIPES["drseg"])
    assert len(failed) == 1 and words in failed[0]


def test_a_box_without_a_pixel_of_mask(tmp_path):
    """COCO's polygons as fractions drew nothing, beside boxes in pixels; a speck's box is as small as it."""
    fractions = (np.reshape(CORNERS, (4, 2)) / SIZE / 2).ravel().tolist()
    speck = {"segmentation": [[50, 50, 50.2, 50, 50.2, 50.2]], "bbox": [50, 50, 0.2, 0.2], "image_id": 2}
    samples = data.load("coco-detection", instances(tmp_path, [{"segmentation": [fractions]}, speck]))
    good, bad = check.readable(samples, [0, 1])
    assert good == [1] and "empty mask" in bad[0] and bad[0].count(samples[0].id) == 1


def test_what_looks_like_stripes_and_is_none():
    """Things from top to bottom of the picture, on their own or in a row, in all shapes of picture."""
    for height, width in ((120, 200), (400, 90), (90, 400)):
        mask = np.zeros((height, width), dtype=bool)
        for band in (np.s_[:, 30:40], np.s_[:, ::9], np.s_[::7]):
            mask[band] = True
            assert not check._along_rows(mask)


def test_what_only_many_samples_show(tmp_path, capsys):
    """None of these is a fault of one line; training and --check say them, and go on."""

    def said(*entries) -> str:
        samples = data.load("jsonl", lines(tmp_path, *entries))
        assert not sheet.check(samples, tmp_path / "sheet.png", 100)
        first = capsys.readouterr().out
        check.examine(samples, None, recipes.RECIPES["visionreasoner"], True)
        assert [line for line in capsys.readouterr().out.splitlines() if "look:" in line] == [
            line for line in first.splitlines() if "look:" in line
        ]
        return first

    def line(n, *box):
        x1, y1, x2, y2 = box
        return {"query": f"box {n}", "polygons": [[[x1, y1, x2, y1, x2, y2, x1, y2]]]}

    assert "look:" not in said(*(line(n, *RED) for n in range(9)))
    assert "4 of 4 objects fill" in said(*(line(n, 0, 0, *SIZE) for n in range(4)))
    assert "none of 8 boxes reaches" in said(*(line(n, 20, 15, 60, 45) for n in range(8)))
    twice = said(line(1, *RED), line(2, *RED), line(1, *RED), line(1, 50, 30, 120, 90))
    assert "2 requests said before of the same picture, 1 with another truth: ('a.jpg', 'box 1')" in twice
    again = [[CORNERS], [[*CORNERS[2:], *CORNERS[:2]]]]
    assert "1 object with the box of another" in said(line(1, *RED), line(1, *RED) | {"polygons": again})
    for query in ("photos/a.jpg", "nan", "the &quot;red&quot; cup", "die grÃ¼ne Tasse", '[{"bbox_2d": [1]}]', "--"):
        assert "1 query that may be no request" in said(line(1, *RED), line(1, *RED) | {"query": query})
    fine = ("a cup (red)", "the café & bar", "none of the cups", "[left] the man in null shirt", "Â la carte", "?b2")
    assert "look:" not in said(*(line(1, *RED) | {"query": query} for query in fine))


def test_few_broken_among_many_do_not_stop_a_run(monkeypatch, capsys):
    """All are read, some looked at closely: each count is held against its own number. One of 300 was one of 21."""
    monkeypatch.setattr(check, "CLOSELY", 20)
    toy, recipe = data.load("toy", None, "train"), recipes.miniature(recipes.RECIPES["samr1"])
    makers = [partial(toy.__getitem__, i) for i in range(300)]
    makers[7] = partial(_raise, data.BadData("no picture"))
    examined = partial(check.examine, data.Samples(makers, []), models.load_segmenter("toy/sam2"), recipe, True)
    order = examined()
    assert 7 not in order and "reward check: 1 of 300 and 0 of 20" in capsys.readouterr().out
    # a picture that nobody looked at closely is not opened for the ceiling of the masks either
    kept = sorted(np.random.default_rng(recipe.seed).choice(order, 20, replace=False).tolist())
    unseen = next(i for i in order if i not in kept)
    makers[unseen] = lambda: dataclasses.replace(toy[unseen], open=partial(_raise, data.BadData("half a picture")))
    assert unseen in examined()
    for i in order[:9]:
        makers[i] = partial(_raise, data.BadData("no picture"))
    with pytest.raises(SystemExit, match="10 of 300 samples"):
        examined()


def _raise(error):
    raise error


def test_what_is_held_out_is_not_trained_on(tmp_path):
    """val.jsonl was a copy of train.jsonl, and the score rose."""
    same = data.load("jsonl", lines(tmp_path / "mine", *[{"boxes": [RED]}] * 3))
    assert check.held_in(same, [0, 2], same, [1]).startswith("2 of 2 samples")
    photo(tmp_path / "mine/b.jpg")
    other = data.load("jsonl", lines(tmp_path / "mine", {"image": "b.jpg", "boxes": [RED]}, split="val"), "val")
    assert check.held_in(same, [0, 1, 2], other, [0]) is None


def test_a_count_says_not_where(tmp_path):
    """Counts without boxes were a ValueError before step 0."""
    samples = data.load("jsonl", lines(tmp_path, {"count": 2}, {"boxes": [RED], "points": [[[60, 60]]]}))
    assert recipes.usable(samples, recipes.RECIPES["drseg"]) == ([1], {"a count alone, which does not say where": 1})


def test_a_little_over_the_edge_is_no_fault(tmp_path):
    samples = data.load("jsonl", lines(tmp_path, {"boxes": [[-1, 0, 201.5, 120]], "points": [[[3, 4]]]}))
    assert check.readable(samples, [0]) == ([0], [])


def test_all_that_is_broken_is_listed(tmp_path, capsys):
    for n in range(12):
        photo(tmp_path / f"{n}.png")
    for n in (3, 7):
        (tmp_path / f"{n}.png").write_bytes((tmp_path / f"{n}.png").read_bytes()[:70])
    photo(tmp_path / "5.png", (20, 12))
    lines(tmp_path, *({"image": f"{n}.png", "boxes": [RED]} for n in range(12)))
    bad = sheet.check(data.load("jsonl", tmp_path), tmp_path / "sheet.png", 100)
    assert [name in line for name, line in zip(("3.png", "5.png", "7.png"), sorted(bad), strict=False)]
    assert len(bad) == 3 and "3 wrong" in capsys.readouterr().out


def test_boxes_alone_and_what_a_recipe_needs(tmp_path, capsys):
    """Boxes serve where boxes do; elsewhere what is needed is said, and not that something is wrong."""
    samples = data.load("jsonl", lines(tmp_path, {"boxes": [RED]}))
    with pytest.raises(SystemExit, match="drseg needs more.*boxes alone.*give points, polygons, rle or mask"):
        check.examine(samples, None, recipes.RECIPES["drseg"], True)


def test_check_with_a_recipe_says_each_line_once(tmp_path, monkeypatch, capsys):
    """It said what was wrong twice, and advised to run itself; a folder's space went unquoted."""
    mine = tmp_path / "my photos"
    beside, right = {"boxes": [[150, 5, 190, 25]], "polygons": [[CORNERS]]}, {"polygons": [[CORNERS]]}
    lines(mine, beside, right, right | {"image": "b.jpg"})
    asked = ["--dataset", "jsonl", "--data_root", str(mine), "--recipe", "drseg", "--out", str(tmp_path / "s.png")]
    monkeypatch.setattr("sys.argv", ["data.py", "--check", *asked])
    with pytest.raises(SystemExit, match="1 of 2 samples do not earn .* Mend them") as end:
        sheet.main()
    said = capsys.readouterr().out
    assert said.count("not that of its mask") == said.count("picture not there") == said.count("skipped:") == 1
    assert "--check" not in str(end.value) and "1 skipped" in said
    recipe = dataclasses.replace(recipes.RECIPES["drseg"], dataset="jsonl", data_root=str(mine))
    with pytest.raises(SystemExit, match=f"--check --dataset jsonl --data_root '{mine}' --split train"):
        check.examine(data.load("jsonl", mine), None, recipe, True)
    said = capsys.readouterr().out
    assert said.count("not that of its mask") == said.count("picture not there") == 1
    assert "1 entry of the data skipped" in said


def test_a_card_names_the_picture_file(tmp_path):
    """A line of the JSONL was named, and the photograph had to be looked up in it."""
    sample = data.load("jsonl", lines(tmp_path, {"boxes": [RED], "polygons": [[CORNERS]]}))[0]
    said = evaluate.make_record(0, sample, evaluate.Prediction("", rewards.parse_answer("", "drseg"), sample.mask, 3))
    page = report.render(cards=[{"query": "it", "kinds": [], "ranks": {}, "shots": [report.shot(said, sample)]}])
    assert "answer, 3 tokens; a.jpg; jsonl/train/1<" in page


def test_answers_to_data_that_changed_are_dropped(tmp_path, capsys):
    """Four lines were evaluated, the first was deleted, and its answer still counted."""
    kinds = [{"query": f"box {n}", "boxes": [RED], "polygons": [[CORNERS]]} for n in range(4)]
    samples = data.load("jsonl", lines(tmp_path, *kinds))
    empty = evaluate.Prediction("", rewards.parse_answer("", "drseg"), samples[0].mask, 0)
    said = [json.dumps(evaluate.make_record(i, s, empty)) for i, s in enumerate(samples)]

    def kept(*entries):
        (tmp_path / "predictions.jsonl").write_text("\n".join(said) + "\n", encoding="utf-8")
        return [r["index"] for r in records.merge_records(tmp_path, data.load("jsonl", lines(tmp_path, *entries)))]

    assert kept(*kinds) == [0, 1, 2, 3]
    assert kept(*kinds[1:]) == []  # each line has moved up
    assert kept(*kinds[:2], kinds[2] | {"query": "other"}, kinds[3]) == [0, 1, 3]
    assert kept(kinds[0] | {"polygons": [[[40, 30, 120, 30, 120, 90, 41, 90]]]}, *kinds[1:]) == [1, 2, 3]
    assert "dropped: 1 answer to samples that have changed" in capsys.readouterr().out
    (tmp_path / "predictions.jsonl").write_text("\n".join(said) + "\n", encoding="utf-8")
    without = data.Samples([samples.makers[0], *samples.makers[2:]], [])  # a picture is gone: what is behind it moves
    assert [(r["index"], r["query"]) for r in records.merge_records(tmp_path, without)] == [
        (0, "box 0"),
        (1, "box 2"),
        (2, "box 3"),
    ]
    assert "dropped: 1 answer" in capsys.readouterr().out
    assert [(r["index"], r["query"]) for r in records.merge_records(tmp_path, samples)] == [
        (0, "box 0"),
        (2, "box 2"),
        (3, "box 3"),
    ]
    assert capsys.readouterr().out == ""


def test_all_wrong_lines_are_named_at_once(tmp_path):
    """Three slips in a file are three sentences, not three attempts."""
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    good = {"image": "a.png", "query": "it", "boxes": [[1, 1, 20, 20]]}
    lines = [good, good | {"boxes": [[30, 30, 5, 5]]}, good, good | {"boxs": []}, "{"]
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(data.BadData) as error:
        data.load("jsonl", tmp_path)
    assert [re.search(r"line (\d)", line)[1] for line in str(error.value).splitlines()] == ["2", "4", "5"]
