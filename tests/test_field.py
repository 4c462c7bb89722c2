"""Trouble from the field: inputs after public bug reports and beginners' mistakes, and what is right for each."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from benchmarks import layouts, records

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
    return data.encode_rle(mask)["counts"].decode()


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
    with pytest.raises(data.BadData):
        layouts.to_rle([corners], SIZE)


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
