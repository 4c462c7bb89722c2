# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""How the published datasets lie on disk: one reader per layout. `data.load` calls them; their rows are data.LOADERS.

    refcoco, refcoco+    root/<name>/refs(unc).p, instances.json; pictures in root/images/mscoco/images/train2014,
    refcocog, grefcoco   root/images/train2014, root/train2014 or so. A sample per sentence. (refcocog: refs(umd).p;
                         refcocog-google: refs(google).p; grefcoco: grefs(unc).json)
    reasonseg            root/ReasonSeg/<split>/ or root/<split>/ with a .json beside each picture. A sample per text.
    coco-detection       root/annotations/instances_<split>2017.json, root/<split>2017/. A sample per picture, category
    coconut              the same, or panoptic_<split>2017.json and its folder of PNGs: `All <category>`, one a picture
    visionreasoner       Parquet, a save_to_disk folder, or the Hub (root is "owner/name"): id, problem, solution, image
    visionreasoner-test  the same with image, text, mask, image_id, ann_id, bbox; counting: image, text, count
    groundingsuite       root/GroundingSuite-Eval.jsonl, or root is that file; whatever the split
    jsonl                your own, described at data.load

A reader reads annotations, no pictures: it takes what was wanted and yields, for every sample, a function that makes it
(draws its polygons, opens its picture's header), or a sentence that says why an entry of the dataset gives no sample.
"""

from __future__ import annotations

import difflib
import functools
import gc
import io
import json
import math
import os
import pickle
import re
import shutil
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from benchmarks.pictures import open_image, open_mask, picture_size
from data import MAX_PIXELS, BadData, Remark, Sample, Wanted, check_truth, encode_rle, reading, rle_fault, to_frame
from engine.files import regular

Makers = Iterator[Callable[[], Sample] | str]  # what a reader yields

# ------------------------------------------------------------------------------------------------ from entry to Sample


def numbers(value, what: str = "it") -> np.ndarray:
    """A list of numbers from a file as float64. BadData where one is text, null, true, NaN, infinite or too long."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of unlike lengths
        array = np.array(None)
    broken = array.dtype.kind not in "iuf" or np.count_nonzero(np.isfinite(array)) < array.size
    if array.size and (broken or bool in set(map(type, np.asarray(value, object).flat))):  # numpy takes true for 1
        raise BadData(f"{what}: not made of numbers alone, or uneven: {value!s:.80}")
    return array.astype(np.float64)


def _plain(points, size: tuple[float, float] = (1e9, 1e9)) -> bool:
    """Is it a flat list of numbers inside the picture, as nearly all polygons are? Python is faster here than numpy."""
    if type(points) is not list or len(points) < 2 or not {*map(type, points)} <= {int, float}:
        return False
    inside = min(points) >= 0 and max(points[::2]) <= size[0] and max(points[1::2]) <= size[1]
    return inside and math.isfinite(sum(points))  # NaN passes comparisons, and no sum


def _polygon(points: list, size: tuple[int, int]) -> list | np.ndarray:
    """One polygon, checked: pycocotools reads memory that is not its own for anything else. BadData."""
    # Of so few corners the outline cannot be too long (below).
    if _plain(points, size) and len(points) in range(6, 400, 2) and max(size) <= MAX_PIXELS // 10_000:
        return points
    xy = numbers(points, "a polygon")
    if xy.ndim != 1 or xy.size % 2:
        raise BadData(f"a polygon is one flat list x, y, x, y, ..., and not {points!s:.80}")
    if not xy.size:
        return xy
    corners = xy.reshape(-1, 2)
    slack = max(2, 0.02 * max(size))  # annotators draw a little over the edge
    right, bottom = corners.max(0)
    if xy.min() < -slack or right > size[0] + slack or bottom > size[1] + slack:
        where = f"{size[0]} x {size[1]} by more than {slack:g} px: other units, or y before x?"
        raise BadData(f"a polygon leaves its picture of {where} {points!s:.80}")
    # pycocotools takes 100 bytes for each pixel of the outline, and does not look whether it got them.
    if len(corners) * (max(size) + 2 * slack) > MAX_PIXELS / 50:
        outline = np.abs(corners - np.roll(corners, 1, 0)).max(1).sum()
        if outline > MAX_PIXELS / 50:
            raise BadData(f"a polygon whose outline is {outline:,.0f} pixels long; {MAX_PIXELS // 50:,} are the most")
    return xy


def to_rle(part: list | dict | Callable, size: tuple[int, int]) -> dict:
    """One object's mask as compressed RLE. BadData for a broken one, before pycocotools sees it.

    part: COCO's polygons (a list of [x, y, x, y, ...]), COCO's RLE (compressed or not), or a function of the size
    (width, height) that returns the mask (H, W) bool.
    """
    width, height = size
    if callable(part):
        mask = part(size)
        if mask.shape != (height, width):
            raise BadData(f"a mask of {mask.shape[1]} x {mask.shape[0]} on a picture of {width} x {height}")
        return encode_rle(mask)
    if isinstance(part, list):  # shorter ones have no area, and pycocotools would take four numbers for a box
        polygons = [xy for p in part if len(xy := _polygon(p, size)) >= 6]
        drawn = coco_mask.frPyObjects(polygons, height, width)
        return drawn[0] if len(drawn) == 1 else coco_mask.merge(drawn)
    if not isinstance(part, dict):
        raise BadData(f"a mask is a list of polygons or an RLE {{size, counts}}, and not {part!r:.60}")
    counts = part.get("counts")
    given = part.get("size")
    if not counts or not isinstance(given, (list, tuple)) or list(given) != [height, width]:
        raise BadData(f"an RLE of size {given} (height, width), or empty, on a picture of {height} x {width}")
    if isinstance(counts, list):
        runs = numbers(counts, "an RLE's counts")
        if runs.ndim != 1 or runs.min() < 0 or (runs % 1).any() or runs.sum() != height * width:
            raise BadData(f"an RLE of {runs.sum():g} pixels on a picture of {height} x {width}")
        return coco_mask.frPyObjects({"size": [height, width], "counts": runs.astype(int).tolist()}, height, width)
    part = {"size": part["size"], "counts": counts}
    if fault := rle_fault(part):
        raise BadData(fault)
    return part


def _drawable(part) -> bool:
    if not part or not isinstance(part, list):
        return bool(part)
    return any((isinstance(p, list) and len(p) >= 6) or np.size(p) >= 6 for p in part)  # numpy's is the slow one


def text_fault(text) -> str | None:
    """What is wrong with a query, or None."""
    if not isinstance(text, str) or not text.strip():
        return f"the query is no text, or empty: {text!r:.40}"
    if len(text) > 2000:
        return f"the query has {len(text)} characters; 2,000 are the most"
    if (not text.isascii() or "\0" in text) and re.search("[\0\ud800-\udfff\ufffd]", text):
        return f"the query has characters that are none (a broken encoding?): {text!r:.80}"
    if "<" in text and (token := re.search(r"<\|[^|<>]*\|>|<(image|video)>", text)):
        return f"the query has {token[0]!r} in it, which a model takes for a picture or an end: take it out"
    return None


def _source(where: Path | tuple) -> Path | io.BytesIO:
    """A picture's file, or the compressed picture in a table's cell: (table, row number, folder of relative paths)."""
    if isinstance(where, Path):
        return where
    rows, i, folder = where
    if not (cell := rows[i]["image"]):
        raise BadData("there is no picture in this row")
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else folder / cell["path"]


def _open(where: Path | tuple, name: str, size: tuple[int, int]) -> Image.Image:
    picture = open_image(_source(where), name)
    if picture.size != size:  # would shift every box without a word
        raise BadData(f"{name} is {picture.size} but annotated as {size}: a resized or rotated copy? Use the original.")
    return picture


def _make(at: str, query: str, id: str, image_id, where: Path | tuple, size=None, **more) -> Sample:
    """What was put off at loading, of an entry whose place (file and line) is `at`: BadData names it."""
    name = str(where) if isinstance(where, Path) else id
    with reading(f"{at} ({name})" if isinstance(where, Path) else at):
        if fault := text_fault(query):
            raise BadData(fault)
        size = size or picture_size(_source(where), name)
        if [type(n) for n in size] != [int, int] or min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise BadData(f"a picture of {size[0]!r:.20} x {size[1]!r:.20} pixels; it takes whole numbers from 1")
        opened = functools.partial(_open, where, name, tuple(size))
        more = _truth(size, **more) | {"open": opened, "file": where.name if isinstance(where, Path) else ""}
        sample = Sample(query, id=id, image_id=str(image_id), width=size[0], height=size[1], **more)
        check_truth(sample)
        return sample


def _boxes(given, xywh: bool) -> np.ndarray:
    """(N, 4) corners. xywh: COCO's boxes, x, y, width, height."""
    boxes = numbers(given, "the boxes")
    if boxes.shape != (0,) and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise BadData(f"a box is four numbers, and not {boxes.tolist()!s:.80}")
    boxes = boxes.reshape(-1, 4)
    if xywh:
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def _around(crowd: dict, size) -> Sequence[float]:
    """A crowd's box, x, y, width, height: the annotated one, or that of its pixels."""
    return crowd.get("bbox") or coco_mask.toBbox(to_rle(crowd["segmentation"], size)).tolist()


def _truth(
    size,
    parts=(),
    boxes=None,
    points=None,
    *,
    xywh=False,
    ignored=(),
    crowds=(),
    frame=None,
    count=None,
    no_target=False,
    sentences=(),
    is_sentence=None,
) -> dict:
    """A Sample's other fields. boxes (N, 4), points (N, k, 2): in `frame`, or pixels; None: boxes of the masks. xywh:
    COCO's boxes, x, y, width, height."""
    masks = [to_rle(part, size) for part in parts]
    ignore = [to_rle(part, size) for part in ignored]
    if boxes is None:
        drawn = [bool(coco_mask.area(rle)) for rle in masks]
        # A mask of pixels may say "nothing fits"; polygons never do: these were drawn on another picture or size.
        if not all(drawn) and not any(map(callable, parts)):
            raise BadData("no pixel of it is in a mask. Was the mask made for this picture?")
        masks = [rle for rle, any_pixel in zip(masks, drawn, strict=True) if any_pixel]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in map(coco_mask.toBbox, masks)]
    boxes = _boxes(boxes, xywh)
    points = np.zeros((len(boxes), 0, 2)) if points is None else numbers(points, "the points")
    if points.ndim != 3 or len(points) != len(boxes) or points.shape[2] != 2:
        raise BadData(f"points are, for each of the {len(boxes)} objects, a list of as many [x, y]")
    ignore = coco_mask.merge(ignore) if ignore and any(map(coco_mask.area, ignore)) else None
    return {
        "boxes": to_frame(boxes, frame, size) if frame else boxes,
        "points": to_frame(points, frame, size) if frame else points,
        "object_masks": masks,
        "ignore_mask": ignore,
        "crowds": _boxes([_around(a, size) for a in crowds], xywh=True).tolist(),
        "no_target": no_target or count == 0 or (count is None and not len(boxes)),
        "count": count,
        "sentences": sentences,
        "is_sentence": is_sentence,
    }


# ---------------------------------------------------------------------------------------------------- files and folders


class PlainUnpickler(pickle.Unpickler):
    """RefCOCO comes as pickles, and a pickle may run any code; one of plain lists and dicts never asks for a class."""

    def find_class(self, module: str, name: str):
        raise BadData(f"it asks for {module}.{name}, which plain annotations never do, and was not opened")


@contextmanager
def _memory_for(size: int):
    """MemoryError for what takes a GiB and 200 times `size` bytes (RefCOCO's kind takes 4 to 8 times): a pickle's memo
    may have a number that Python makes room for up to. Only where the system keeps such limits, as Linux does."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [v for v in (soft, hard, taken + 2**30 + 200 * size) if v != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _unfolded(whole, size: int):
    """What a pickle of `size` bytes held. BadData where it unfolds to far more: a list may stand in itself, or 40 lists
    each twice in the next."""
    kinds = {list, tuple, dict, set, frozenset}
    found, level = 0, [[whole]]  # level by level: the lists and dicts that stand in those of the level before
    while level:
        found += sum(map(len, level))
        if found > 10 * size:
            raise BadData(f"its {size:,} bytes unfold to more than {found:,} values")
        level = [v for v in gc.get_referents(*level) if type(v) in kinds]
    return whole


def _read(path: Path, parse: Callable = json.loads, windows: bool = True):
    """A pickle or text (JSON). windows: Windows-1252 where it is not UTF-8 (some of ReasonSeg's are not)."""
    raw = regular(path).read_bytes()
    try:
        if path.suffix == ".p":
            with _memory_for(len(raw)):
                whole = PlainUnpickler(io.BytesIO(raw), encoding="utf-8", errors="replace").load()
            return _unfolded(whole, len(raw))
        try:
            return parse(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            # Windows-1252 has single accents and quotes; Chinese or UTF-16 would become letters that nobody wrote.
            if not windows or re.search(rb"[\xa1-\xff]{2}", raw):
                line = raw[: error.start].count(b"\n") + 1
                raise BadData(f"line {line} is not in UTF-8: save the file as UTF-8") from None
            return parse(raw.decode("cp1252"))
    except MemoryError:
        raise BadData(f"{path} asks for far more memory than its {len(raw):,} bytes can need: not opened.") from None
    except Exception as error:  # a pickle may raise anything
        why = f"cannot be read: {error}" if raw else "is empty"
        raise BadData(f"{path} {why}. Mend it, or fetch it again from a source that you trust.") from None


def _find(root: Path, *names: str) -> Path:
    """The first of `names` that exists under root."""
    for name in names:
        if (root / name).exists():
            return root / name
    there = f"only: {', '.join(sorted(os.listdir(root))[:8])}" if root.is_dir() else "as it is a file"
    there = f"{root} holds none of: {', '.join(names)}, {there}"
    raise BadData(f"{there}. Is --data_root the folder above, and the split right?")


def _pictures(names: Sequence[str], roots: Sequence[Path], subfolders: Sequence[str] = ("",)) -> tuple[Path, set[str]]:
    """The folder where the pictures are, among those where people put COCO's, and which of them are not there."""
    if wrong := [name for name in names if not isinstance(name, str) or not name or "\0" in name]:
        raise BadData(f"a picture's name is text, and not {wrong[0]!r:.40}")
    names = sorted(set(names))
    if not names:
        return roots[0], set()
    places = ("", "images/mscoco/images", "images", "coco", "refer_seg/images/mscoco/images")
    tried = list(dict.fromkeys(root / place / sub for sub in subfolders for root in roots for place in places))
    best: tuple[Path, set[str]] = tried[0], set(names)
    split = [os.path.split(name) for name in names]
    for folder in tried:
        # each folder is listed once: asking for 80,000 files one by one is slow on a network drive
        parts = {head: folder / head for head, _ in split}
        listed = {head: set(os.listdir(p)) if p.is_dir() else set() for head, p in parts.items()}
        absent = {name for name, (head, tail) in zip(names, split, strict=True) if tail not in listed[head]}
        if len(absent) < len(best[1]):
            best = folder, absent
        if not absent:
            break
    if len(best[1]) < len(names):
        return best
    places = ", ".join(map(str, tried))
    raise BadData(
        f"no picture found: {names[0]} is in none of {places}. Put or link them there.{_near(tried[0], names[0])}"
    )


def _near(folder: Path, name: str) -> str:
    """A hint, where a file of almost this name is there: its accents written otherwise, or its capitals."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    parent = (folder / name).parent
    found = [f for f in (os.listdir(parent) if parent.is_dir() else ()) if plain(f) == plain(Path(name).name)]
    if not found:
        return ""
    unlike = "capitals" if found[0].lower() == Path(name).name.lower() else "how Unicode writes its accents"
    return f" {found[0]!a} is there, which differs in {unlike}."


def _picture_id(path: str) -> str:
    """COCO's image id from any of its file names, so that overlap of datasets can be counted; else the path itself."""
    digits = re.fullmatch(r"(?:COCO_\w+_|(?=\d{12}$))0*(\d+)", Path(path).stem)
    return digits[1] if digits else path


def _by_id(entries: list[dict], what: str) -> tuple[dict[str, dict], set[str]]:
    """Entries by their id as text (files mix 1 and "1"), and the ids that stand twice."""
    found = {str(entry["id"]): entry for entry in entries}
    twice: set[str] = set()
    if len(found) < len(entries):
        twice = {key for key, n in Counter(str(entry["id"]) for entry in entries).items() if n > 1}
    if what == "images" and twice:
        raise BadData(f"the image id {sorted(twice)[0]} stands twice: which picture is meant?")
    return found, twice


# --------------------------------------------------------- COCO's annotations: RefCOCO and its kin, detection, COCONut


@functools.lru_cache(2**17)
def _join(folder: Path, name: str) -> Path:
    """A picture's path, once for all requests on it: pathlib is slow."""
    return folder / name


def _request(at: str, image: dict, folder: Path, annotations: list[dict], crowds=(), sentences=()) -> Callable:
    """What makes a Sample of a query and an id, on one picture; no metric counts what is in crowds."""
    boxed = all("bbox" in a for a in annotations)
    boxes = [a["bbox"] for a in annotations] if boxed else None
    parts, ignored = ([a["segmentation"] for a in group if a.get("segmentation")] for group in (annotations, crowds))
    where = _join(folder, image["file_name"])
    with reading(f"{at}, its picture {where.name}"):
        size = (image["width"], image["height"])
    more = {"parts": parts, "boxes": boxes, "xywh": boxed, "ignored": ignored, "crowds": crowds, "sentences": sentences}
    return functools.partial(_make, at, image_id=image["id"], where=where, size=size, **more)


REFERENCES = {  # layout -> folder, file
    "refcoco": ("refcoco", "refs(unc).p"),
    "refcoco+": ("refcoco+", "refs(unc).p"),
    "refcocog": ("refcocog", "refs(umd).p"),
    "refcocog-google": ("refcocog", "refs(google).p"),
    "grefcoco": ("grefcoco", "grefs(unc).json"),
}


def references(want: Wanted) -> Makers:
    """RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO: a sample per sentence; gRefCOCO's ann_id [-1] says that nothing fits."""
    folder, file = REFERENCES[want.name]
    path = _find(want.root, f"{folder}/{file}", f"refer_seg/{folder}/{file}", file)
    with reading(str(path.parent / "instances.json")):
        instances = _read(_find(path.parent, "instances.json"))
        images, _ = _by_id(instances["images"], "images")
        annotations, twice = _by_id(instances["annotations"], "annotations")
    with reading(str(path)):
        every = _read(path)
        references = [ref for ref in every if ref["split"] == want.split]
    if not references:
        splits = ", ".join(sorted({str(ref["split"]) for ref in every})) or "nothing"
        raise BadData(f"{path} has no split {want.split!r}, only: {splits}.")
    names = [images[i]["file_name"] for ref in references if (i := str(ref["image_id"])) in images]
    pictures, absent = _pictures(names, [path.parents[1], want.root], ["train2014", ""])
    read: dict = {}  # references by their number
    for ref in references:
        at = f"{path}, reference {ref['ref_id']}"
        if (number := str(ref["ref_id"])) in read:
            same = read[number] == ref
            yield Remark(f"{at}: stands twice" + ("" if same else ", with another content; the first is read"))
            continue
        read[number] = ref
        with reading(at):
            ids = [str(i) for i in (ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]])]
            ids, nothing = ([], True) if ids == ["-1"] else (list(dict.fromkeys(ids)), False)
            if not isinstance(ref["sentences"], list) or not all(isinstance(s, dict) for s in ref["sentences"]):
                raise BadData(f'sentences is a list of {{"sent": "..."}}, and not {ref["sentences"]!r:.60}')
            image = images.get(str(ref["image_id"]))
            why = _useless(ref, ids, nothing, annotations, twice)
            if not why and (image is None or image["file_name"] in absent):
                hint = _near(pictures, image["file_name"]) if image else ""
                why = f"no picture in {pictures}.{hint}"
            sentences = list(enumerate(s["sent"] for s in ref["sentences"]))
        if why:
            yield f"{at}: {why}"
            continue
        faults = {k: fault for k, text in sentences if (fault := text_fault(text))}
        for k, fault in faults.items():
            yield f"{at}, sentence {k}: {fault}"
        sentences = [(k, text) for k, text in sentences if k not in faults]
        if not sentences:
            continue
        every_sentence = tuple(text for _, text in sentences) if want.one else ()
        if want.one:
            sentences = [sentences[np.random.default_rng([want.seed, ref["ref_id"]]).integers(len(sentences))]]
        request = _request(at, image, pictures, [annotations[i] for i in ids], sentences=every_sentence)
        for k, text in sentences:
            yield functools.partial(request, text, f"{want.name}/{want.split}/{ref['ref_id']}/{k}")


def _useless(ref: dict, ids: list[str], nothing: bool, annotations: dict, twice: set[str]) -> str | None:
    """Why a reference gives no sample: half a target is none."""
    if not ref["sentences"]:
        return "no sentence"
    if bool(ref.get("no_target", nothing)) != nothing or not (ids or nothing):
        return f"no_target is {ref.get('no_target')!r}, and its annotations are {ref['ann_id']}"
    for i in ids:
        if i not in annotations:
            return f"annotation {i} is missing"
        if not _drawable(shape := annotations[i]["segmentation"]):
            return f"annotation {i} has no polygon [x, y, x, y, x, y, ...] in its list, which is {shape!s:.40}"
        if i in twice:
            return f"annotation {i} stands twice in instances.json: which is meant?"
        if str(annotations[i]["image_id"]) != str(ref["image_id"]):
            return f"annotation {i} is of picture {annotations[i]['image_id']}, and not of {ref['image_id']}"
        kinds = ref.get("category_id"), annotations[i].get("category_id")
        if [type(kind) for kind in kinds] == [int, int] and kinds[0] != kinds[1]:
            return f"annotation {i} is of category {kinds[1]}, and not of {kinds[0]}"
    return None


def _panoptic(png: Path, segment: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: one segment of a panoptic PNG, which writes an id as red + 256 green + 256² blue."""
    mask = np.asarray(open_image(png)).astype(np.int32) @ np.array([1, 256, 65536], np.int32) == segment
    if not mask.any():
        raise BadData(f"{png} has no pixel of segment {segment}: is its id red + 256 green + 65536 blue?")
    return mask


def _same(a: dict, b: dict) -> bool:
    return a.get("bbox") == b.get("bbox") and a.get("segmentation") == b.get("segmentation")


def coco(want: Wanted) -> Makers:
    """coco-detection: a sample per picture and category. coconut (Dr. Seg, appendix D): one of several objects."""
    kinds = ("panoptic", "instances") if want.name == "coconut" else ("instances",)
    years = ("2017", "2014", "")
    bases = ("", "coco/")
    path = _find(want.root, *(f"{b}annotations/{k}_{want.split}{y}.json" for k in kinds for b in bases for y in years))
    with reading(str(path)):
        file = _read(path)
        images, _ = _by_id(file["images"], "images")
        # Categories of one name are one: half of what is called so would be wrong.
        category = {str(c["id"]): c["name"] for c in file["categories"]}
        if len(category) < len({(str(c["id"]), c["name"]) for c in file["categories"]}):
            raise BadData("two categories have the same id: which is meant?")
        numbers = [int(c) for c in category if c.isdigit()]
        beyond = {min(numbers) - 1, max(numbers) + 1} if 1 in numbers else set()
        first = {name: c for c, name in reversed(category.items())}
        things = {str(c["id"]) for c in file["categories"] if c.get("isthing", 1)}
        found = file["annotations"]
        if path.name.startswith("panoptic"):
            masks = _find(path.parents[1], path.stem, f"annotations/{path.stem}")
            found = [
                s | {"image_id": a["image_id"], "segmentation": functools.partial(_panoptic, masks / name, s["id"])}
                for a in found
                for name, segments in [(a["file_name"], a["segments_info"])]
                for s in segments
                if str(s["category_id"]) in things
            ]
        bare = not any(a.get("segmentation") for a in found)  # detection's files: boxes serve alone
        groups: dict[str, dict[str, list[dict]]] = {}  # image -> category -> annotations
        broken: dict[tuple[str, str], str] = {}  # ... and which of them would be half a target
        at = "annotation {id} of picture {image_id}".format_map
        for a in found:
            image, c = str(a["image_id"]), str(a["category_id"])
            if c not in category and c.isdigit() and int(c) in beyond:
                raise BadData(
                    f"{at(a)} is of category {c}, one beyond the file's: are they counted from 0 here, from 1 there?"
                )
            if image not in images or c not in things:
                yield f"{path}, {at(a)}: " + ("no such picture" if image not in images else f"category {c} is none")
                continue
            if a.get("iscrowd", 0) not in (0, 1):
                raise BadData(f"{at(a)}: iscrowd is {a['iscrowd']!r}, and not 0 or 1")
            c = first[category[c]]
            groups.setdefault(image, {}).setdefault(c, []).append(a)
            if not (bare and "bbox" in a or _drawable(a.get("segmentation"))):
                broken[image, c] = f"{at(a)} has no polygon" + (", so its box goes unused too" if "bbox" in a else "")
        names = [images[image]["file_name"] for image in groups]
        pictures, absent = _pictures(names, [want.root], [path.stem.split("_", 1)[1], ""])
    for key, image in images.items():
        if key not in groups:
            continue
        if image["file_name"] in absent:
            yield f"{path}: picture not there: {pictures / image['file_name']}.{_near(pictures, image['file_name'])}"
            continue
        group = groups[key]
        yield from (
            f"{path}: {category[c]} of picture {key} left out: {broken[key, c]}" for c in group if (key, c) in broken
        )
        group = {c: group[c] for c in group if (key, c) not in broken}
        crowds = {c: [a for a in group[c] if a.get("iscrowd")] for c in group}
        objects = {c: [a for a in group[c] if not a.get("iscrowd")] for c in sorted(group, key=lambda c: (len(c), c))}
        for c, several in objects.items():
            objects[c] = [a for n, a in enumerate(several) if not any(_same(a, b) for b in several[:n])]
            if n := len(several) - len(objects[c]):
                what = f"annotations left out, which repeat another: {n}"
                yield Remark(f"{path}: {category[c]} in picture {key}: {what}")
        chosen = [c for c in objects if len(objects[c]) >= (2 if want.name == "coconut" else 1)]
        if want.name == "coconut" and chosen:
            number = int(key) if key.isdigit() else zlib.crc32(key.encode())
            chosen = [chosen[np.random.default_rng([want.seed, number]).integers(len(chosen))]]
        elif want.name == "coco-detection":
            only = [c for c in objects if c not in chosen]
            yield from (Remark(f"{path}: {category[c]} in picture {key} is only a crowd") for c in only)
        for c in chosen:
            query = f"All {category[c]}" if want.name == "coconut" else category[c]
            id = f"{want.name}/{want.split}/{key}/{category[c]}"
            request = _request(f"{path}, picture {key}", image, pictures, objects[c], crowds[c])
            yield functools.partial(request, query, id)


# ------------------------------------------------------------------------------------------------------------ ReasonSeg


def _painted(shapes: list[dict], ignore: bool, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the target, or what to ignore. Of overlapping shapes the smaller is on top. As LISA's reader has it,
    corners are cut down to whole pixels, and the outline belongs to the shape (with pycocotools' polygons, half a pixel
    smaller all round, a perfect answer to a picture of 640 x 480 would score 0.976)."""
    layers = []
    for shape in shapes:
        corners = np.reshape(_polygon(numbers(shape["points"], "a polygon").ravel(), size), (-1, 2))
        if corners.max(initial=0) <= 1:
            raise BadData(f"its {shape['label']!r:.20} lies within a pixel: are its points fractions?")
        drawn = Image.new("1", size)
        corners = [tuple(xy) for xy in corners.astype(int).tolist()]
        ImageDraw.Draw(drawn).polygon(corners, fill=1)  # of an outline in the colour of its fill Pillow draws none
        ImageDraw.Draw(drawn).line([*corners, corners[0]], fill=1)
        layers.append((np.asarray(drawn), "ignore" in shape["label"].lower()))
    canvas = np.zeros(size[::-1], dtype=bool, order="F")  # column by column, as COCO's masks are
    for drawn, is_ignore in sorted(layers, key=lambda layer: -int(layer[0].sum())):
        canvas[drawn] = is_ignore == ignore
    if not ignore and not canvas.any():
        raise BadData("its target has no pixel: is all of it ignored?")
    return canvas


PHOTOS = (".jpg", ".jpeg", ".png")


def reasonseg(want: Wanted) -> Makers:
    """One mask per request, however many polygons it takes, so one box; its note says whether the query is long."""
    folder = _find(want.root, *[f"{base}{want.split}" for base in ("ReasonSeg/", "reason_seg/ReasonSeg/", "")])
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]  # macOS leaves ._a.json beside a.json
    pictures = {p.stem: p for p in files if p.suffix.lower() in PHOTOS}
    notes = {p.stem: p for p in files if p.suffix.lower() == ".json"}
    alone = sorted(pictures.keys() ^ notes.keys())
    yield from (f"reasonseg: {folder / stem} has no picture or no .json" for stem in alone)
    several = Counter(p.stem for p in files if p.suffix.lower() in PHOTOS)
    for stem in sorted(pictures.keys() & notes.keys()):
        with reading(str(notes[stem])):
            note = _read(notes[stem])
            shapes = [s for s in note["shapes"] if s["label"].lower() != "flag"]  # as the released reader does
            drawn = [s for s in shapes if len(s["points"]) >= 3]
            other = [s["shape_type"] for s in shapes if s.get("shape_type", "polygon") != "polygon"]
            texts = note["text"] if isinstance(note["text"], list) else [note["text"]]
            why = None
            if several[stem] > 1:
                why = "several pictures have this name"
            elif other:
                why = f"left out: it has a {other[0]!r:.20}, and only polygons are read; half a target is none"
            elif all("ignore" in s["label"].lower() for s in drawn):
                why = "it has no target polygon"
            elif not texts:
                why = "it has no text"
        if why:
            yield f"reasonseg: {notes[stem]}: {why}"
            continue
        if len(drawn) < len(shapes):
            few = len(shapes) - len(drawn)
            yield Remark(f"reasonseg: {notes[stem]}: {few} shapes of fewer than three points left out")
        target, ignored = (functools.partial(_painted, drawn, ignore) for ignore in (False, True))
        ignored = [ignored] if any("ignore" in s["label"].lower() for s in drawn) else []
        said = list(enumerate(texts))
        yield from (f"reasonseg: {notes[stem]}: {fault}" for _, text in said if (fault := text_fault(text)))
        said = [(k, text) for k, text in said if not text_fault(text)]
        every_text = tuple(text for _, text in said) if want.one else ()
        for k, text in said[:1] if want.one else said:
            id = f"reasonseg/{want.split}/{stem}/{k}"
            long = note.get("is_sentence")
            more = {
                "ignored": ignored,
                "is_sentence": long if isinstance(long, bool) else None,
                "sentences": every_text,
            }
            size = note.get("imageWidth"), note.get("imageHeight")  # labelme's, where its own are kept
            args = str(notes[stem]), text, id, _picture_id(stem), pictures[stem], size if all(size) else None
            yield functools.partial(_make, *args, parts=[target], **more)


# ---------------------------------- tables with the pictures inside: VisionReasoner's training and test sets, counting

TABLES = {
    "visionreasoner": ("image", "id", "problem", "solution"),
    "visionreasoner-test": ("image", "text", "mask", "image_id", "ann_id"),
    "counting": ("image", "text", "count"),
}


MAX_CELL = 2**30  # bytes


def _bounded(files: list[Path]) -> None:
    """BadData for a Parquet that unpacks to more than MAX_CELL a row, or than the disk has left: it is a bomb, or too
    large for here."""
    import datasets
    import pyarrow.parquet

    total = 0
    for file in files:
        with reading(f"{file} cannot be read"):
            groups = pyarrow.parquet.ParquetFile(file).metadata
            for i in range(groups.num_row_groups):
                group = groups.row_group(i)
                total += group.total_byte_size
                total += sum(_dictionary_bytes(file, i, group.column(c)) for c in range(group.num_columns))
                if group.total_byte_size > MAX_CELL * max(1, group.num_rows):
                    raise BadData(
                        f"{group.total_byte_size:,} bytes in {group.num_rows} rows; {MAX_CELL:,} a row is the most"
                    )
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if total > free:
        raise BadData(f"{files[0]} and its kin unpack to {total:,} bytes, and {cache} has {free:,} left")


def _dictionary_bytes(file: Path, row_group: int, chunk) -> int:
    """How many bytes a column's chunk takes once each row has its own copy of its entry in the dictionary: looked
    at only where that could be a GiB, without making the copies. 0 elsewhere."""
    import pyarrow.compute
    import pyarrow.parquet

    if not chunk.has_dictionary_page or chunk.num_values * max(chunk.total_uncompressed_size, 8) < MAX_CELL:
        return 0
    if chunk.physical_type != "BYTE_ARRAY" or chunk.num_values > MAX_CELL:
        return 8 * chunk.num_values
    opened = pyarrow.parquet.ParquetFile(file, read_dictionary=[chunk.path_in_schema])
    unfolded = 0
    for batch in opened.iter_batches(2**16, [row_group], [chunk.path_in_schema]):
        values = batch.column(0)
        while pyarrow.types.is_nested(values.type):
            values = values.field(0) if pyarrow.types.is_struct(values.type) else values.flatten()
        if not pyarrow.types.is_dictionary(values.type):  # no text, no bytes: nothing that could be long
            return 0
        lengths = pyarrow.compute.binary_length(values.dictionary)
        unfolded += pyarrow.compute.sum(lengths.take(values.indices)).as_py() or 0
    return unfolded


def _table(want: Wanted):
    """A datasets.Dataset from a folder of Parquet, a save_to_disk folder, or the Hub, its pictures still compressed;
    and the folder that their relative paths start from."""
    import datasets

    # Three folders deep, as the Hub's cache has them (snapshots/<commit>/data): a stranger's run.json may say "/".
    below = sorted(file for depth in range(4) for file in want.root.glob("*/" * depth + "*.parquet"))
    files = [want.root] if want.root.is_file() else below
    files = [f for f in files if not f.name.startswith(".")]
    of_split = rf"{re.escape(want.split)}(-.*)?"
    # The Hub's own conversion has a folder for each split: default/train/0000.parquet
    chosen = [f for f in files if re.fullmatch(of_split, f.stem) or f.parent.name == want.split]
    if files and not chosen:
        raise BadData(f"{want.root} has no Parquet of split {want.split!r}, only: {', '.join(f.name for f in files)}.")
    parts = max((int(n[1]) for f in chosen if (n := re.search(r"-of-(\d+)$", f.stem))), default=0)
    again = [name for name, n in Counter((f.parent.name, f.name) for f in chosen).items() if n > 1]
    if again:
        raise BadData(f"{want.root} has {'/'.join(again[0])} more than once: name the folder of one snapshot.")
    if not want.root.is_file() and len(chosen) < parts:
        raise BadData(f"{want.root} has {len(chosen)} of the {parts} files of split {want.split!r}: fetch the others.")
    _bounded(chosen)
    try:
        if files:
            data = datasets.load_dataset("parquet", data_files=[str(f) for f in chosen], split="train")
        elif want.root.exists():
            data = datasets.load_from_disk(str(want.root))
            data = data[want.split] if isinstance(data, datasets.DatasetDict) else data
            data.data.validate(full=True)  # Arrow files are mapped, not read: an offset in one may lead anywhere
        else:
            data = datasets.load_dataset(want.root.as_posix(), split=want.split)
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        kinds = "a folder of Parquet, one made by save_to_disk, or a dataset's name on the Hub"
        raise BadData(f"cannot read split {want.split!r} of {want.root} ({error}). --data_root is {kinds}.") from error
    if lacking := set(TABLES[want.name]) - set(data.column_names):
        raise BadData(f"{want.root} has no column {', '.join(sorted(lacking))}, only {', '.join(data.column_names)}.")
    return data.cast_column("image", datasets.Image(decode=False)), chosen[0].parent if chosen else want.root


def _nested_mask(masks, i: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from a cell of nested lists, without making the lists (slow)."""
    rows = masks[i]["mask"].combine_chunks().flatten()
    flat = rows.flatten().to_numpy(zero_copy_only=False)
    widths = rows.value_lengths().unique().to_pylist()
    if (len(rows), widths) != (size[1], [size[0]]):  # a mask on its side has as many pixels
        raise BadData(f"a mask of {len(rows)} rows of {widths} pixels on a picture of {size[0]} x {size[1]}")
    if flat.dtype.kind not in "bui":
        raise BadData("a mask is not made of whole numbers")
    return flat.reshape(size[::-1]).astype(bool)


def _solution(text: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes (N, 4) and points (N, k, 2) from a training row's JSON."""
    objects = json.loads(text)
    boxes = numbers([o["bbox_2d"] for o in objects], "the boxes").reshape(-1, 4)
    points = [[o[key] for key in sorted(o) if key.startswith("point")] for o in objects]
    return boxes, numbers(points, "the points").reshape(len(boxes), -1, 2) if points else None


def tables(want: Wanted) -> Makers:
    """A sample per row. Masks, one cell of nested lists each, stay in Arrow until a sample is asked for."""
    rows, folder = _table(want)
    masks = rows.select_columns("mask").with_format("arrow") if want.name == "visionreasoner-test" else None
    rows = rows.remove_columns("mask") if masks else rows
    for i, row in enumerate(rows.remove_columns("image")):
        at, id = f"{want.root}, row {i}", f"{want.name}/{want.split}/{i}"
        where = (rows, i, folder)
        with reading(at):
            if want.name == "counting":
                args = at, row["text"], id, id, where
                more = {"boxes": (), "count": _count(row["count"])}
            elif masks:
                args = at, row["text"], f"{id}/{row['ann_id']}", row["image_id"], where
                mask = functools.partial(_nested_mask, masks, i)
                more = {"parts": [mask], "boxes": [row["bbox"]] if row.get("bbox") else None}
            else:
                boxes, points = _solution(row["solution"])
                number = str(row["id"]).split("_")[0]  # "<image>_<number>"
                image_id = number.lstrip("0") or "0" if number.isdigit() else number
                args = at, row["problem"], f"{id}/{row['id']}", image_id, where
                # boxes are in pixels of 840 x 840, the size of the copies in the table: here these are the originals
                more = {"boxes": boxes, "points": points, "frame": (840, 840)}
        yield functools.partial(_make, *args, **more)


# --------------------------------------------------- one JSON object per line: GroundingSuite, and people's own data


SHAPES = ("polygons", "rle", "mask")
KEYS = ("image", "query", "boxes", "points", *SHAPES, "no_target", "count")


def _count(value) -> int:
    if type(value) is not int or not 0 <= value <= 10_000:
        raise BadData(f"count is a whole number from 0 to 10,000, and not {value!r:.40}")
    return value


def _once(pairs: list[tuple]) -> dict:
    """A JSON object, no key of which may stand twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadData(f"a key stands twice: {Counter(key for key, _ in pairs).most_common(1)[0][0]!r}")
    return found


def _objects(entry: dict) -> tuple[list, np.ndarray | None, np.ndarray | None]:
    """Masks, boxes (N, 4) and points (N, k, 2) of a line, as far as they can be checked without its picture."""
    given = [key for key in SHAPES if key in entry]
    if len(given) > 1:
        raise BadData(f"give one of {' and '.join(given)}")
    parts = entry[given[0]] if given else []
    parts = [parts] if given == ["mask"] and isinstance(parts, str) else parts
    kind = {"polygons": list, "rle": dict, "mask": str}[given[0]] if given else list
    if not isinstance(parts, list) or not all(isinstance(part, kind) and _drawable(part) for part in parts):
        form = {"polygons": "a list of polygons [x, y, x, y, ...]", "rle": '{"size": [height, width], "counts": ...}'}
        raise BadData(f"{given[0]} is a list that has for each object {form.get(given[0], 'the name of a PNG')}")
    if given == ["polygons"] and any(not isinstance(points, list) for part in parts for points in part):
        raise BadData("polygons has for each object a list of polygons: here a pair of brackets is missing")
    if given == ["polygons"]:
        for points in (points for part in parts for points in part):
            if not _plain(points) and numbers(points, "a polygon").ndim != 1:
                raise BadData(f"a polygon is one flat list x, y, x, y, ..., and not {points!s:.60}")
    boxes = numbers(entry["boxes"], "boxes") if "boxes" in entry else None
    if boxes is not None and boxes.shape != (0,) and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise BadData(f"boxes is a list of [x1, y1, x2, y2], and not {entry['boxes']!s:.60}")
    boxes = None if boxes is None else boxes.reshape(-1, 4)
    listed = [] if boxes is None else boxes.tolist()
    for x1, y1, x2, y2 in listed:
        if x2 <= x1 or y2 <= y1:
            raise BadData(
                f"a box is [x1, y1, x2, y2] with x1 < x2 and y1 < y2: is {[x1, y1, x2, y2]} x, y, width, height?"
            )
    found = 0 if boxes is None else len(boxes)
    if found and parts and len(parts) not in (1, found):
        raise BadData(f"{found} boxes but masks of {len(parts)} objects")
    for name, of in (("boxes", listed), (given[0] if given else "", parts)):
        if twice := [one for n, one in enumerate(of) if one in of[:n]]:
            raise BadData(f"{name} has the same object twice: {twice[0]!s:.60}")
    points = numbers(entry["points"], "points") if entry.get("points") else None
    if points is not None and not (found or parts):
        raise BadData("points need boxes or a mask beside them")
    if points is not None and (points.ndim != 3 or len(points) != (found or len(parts)) or points.shape[2] != 2):
        raise BadData(f"points is, for each of the {found or len(parts)} objects, a list of as many [x, y]")
    return parts, boxes if found else None if parts else (), points


def _line(text: str, suite: bool) -> dict:
    """One line, checked: image, query, parts, boxes, points, count, no_target."""
    try:
        e = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        hints = {"[": "A list? Write", "{'": "JSON has double quotes. Write"}
        hint = next((said for start, said in hints.items() if text.lstrip().startswith(start)), "Write")
        said = f"no JSON: {error.msg} at character {error.pos + 1} of {text.strip()!r:.40}"
        raise BadData(f"{said}. {hint} one {{...}} a line, with no comma or bracket between lines") from None
    if not isinstance(e, dict):
        raise BadData("a line is one {...}, and no list")
    if suite:
        e = {"image": e["image_path"], "query": e["caption"], "boxes": [e["box"]], "rle": [e["segmentation"]]}
    if unknown := [key for key in e if key not in KEYS]:
        near = difflib.get_close_matches(unknown[0], KEYS, 1)
        raise BadData(
            f"unknown key {unknown[0]!r:.40}" + (f": is it {near[0]!r}?" if near else f"; known: {', '.join(KEYS)}")
        )
    if lacking := [key for key in ("image", "query") if not isinstance(e.get(key), str) or not e[key].strip()]:
        raise BadData(f"{lacking[0]!r} is missing, empty or no text")
    if fault := text_fault(e["query"]):
        raise BadData(fault)
    parts, boxes, points = _objects(e)
    found = len(parts) or (0 if boxes is None else len(boxes))
    nothing = e.get("no_target", False)
    count = _count(e["count"]) if "count" in e else None
    if not isinstance(nothing, bool):
        raise BadData(f"no_target is true or false, and not {nothing!r:.40}")
    if nothing and (found or count):
        raise BadData('"no_target": true says that nothing fits, and it has objects or a count beside it')
    if not (found or nothing or count is not None):
        raise BadData('it needs boxes, polygons, rle or mask, or else "no_target": true')
    if count is not None and boxes is not None and len(boxes) not in (0, count):
        raise BadData(f"count is {count}, but there are {len(boxes)} boxes")
    if count is not None and len(parts) > 1 and len(parts) != count:  # one may hold all objects together
        raise BadData(f"count is {count}, but there are masks of {len(parts)} objects")
    if e["image"] in parts:
        raise BadData(f"its picture is named as its mask: {e['image']}")
    more = {"parts": parts, "boxes": boxes, "points": points, "count": count, "no_target": nothing}
    return {"image": e["image"], "query": e["query"], **more}


def json_lines(want: Wanted) -> Makers:
    """A sample per line. Every line is checked before the first sample; an error names the first ten that are wrong."""
    suite = want.name == "groundingsuite"
    path = want.root if want.root.is_file() else None
    beside = want.root.parent / f"{want.split}.jsonl"
    if path and not suite and path.stem != want.split and (path.stem in ("train", "val", "test") or beside.exists()):
        advice = f"{beside} lies beside it: name that, or the folder" if beside.exists() else "Name the folder of both"
        raise BadData(f"{path} is not the split {want.split!r}. {advice}.")
    path = path or _find(want.root, "GroundingSuite-Eval.jsonl" if suite else f"{want.split}.jsonl")
    entries, wrong = [], []
    for n, line in enumerate(_read(path, lambda text: text.split("\n"), windows=False), 1):
        if not line.strip() or len(wrong) == 10:
            continue
        try:
            with reading(f"{path}, line {n}"):
                entries.append((n, _line(line, suite)))
        except BadData as error:
            wrong.append(str(error))
    if wrong:
        raise BadData("\n  ".join(wrong))
    folder, absent = _pictures([entry["image"] for _, entry in entries], [path.parent])
    paths = {name: folder / name for name in {entry["image"] for _, entry in entries}}
    numbers_of = {name: _picture_id(name) for name in paths}
    shared = Counter(numbers_of.values())  # one number in two folders: two pictures
    at, id = f"{path}, line", f"{want.name}/{path.stem}"
    for n, entry in entries:
        image, query = entry.pop("image"), entry.pop("query")
        if image in absent:
            yield f"{at} {n}: picture not there: {paths[image]}.{_near(folder, image)}"
            continue
        image_id = numbers_of[image] if shared[numbers_of[image]] == 1 else image
        args = f"{at} {n}", query, f"{id}/{n}", image_id, paths[image]
        entry["parts"] = [
            functools.partial(_drawn, path.parent / part) if isinstance(part, str) else part for part in entry["parts"]
        ]
        yield functools.partial(_make, *args, **entry)


def _drawn(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask's file as a part (to_rle). An empty one says nothing, and is refused: "no_target" says that."""
    if not (mask := open_mask(path)).any():
        raise BadData(f'{path} is empty; where nothing fits, write "no_target": true')
    return mask
