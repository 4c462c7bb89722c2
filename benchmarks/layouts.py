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

import contextlib
import functools
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.pictures import open_image, picture_size
from data import BadData, Sample, Wanted, decode_rle, encode_rle, rle_fault, to_frame

Makers = Iterator[Callable[[], Sample] | str]  # what a reader yields

# ------------------------------------------------------------------------------------------------ from entry to Sample


def numbers(value, what: str = "it") -> np.ndarray:
    """A list of numbers from a file as float64. BadData where one is text, null, NaN, infinite or too long a number."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of unlike lengths
        array = np.array(None)
    if array.size and (array.dtype.kind not in "iuf" or not np.isfinite(array).all()):
        raise BadData(f"{what} is not made of numbers alone: {value!s:.80}")
    return array.astype(np.float64)


def _polygon(points: list, size: tuple[int, int]) -> np.ndarray:
    """One polygon, checked: pycocotools reads memory that is not its own for anything else. BadData."""
    xy = numbers(points, "a polygon")
    if xy.ndim != 1 or xy.size % 2:
        raise BadData(f"a polygon is one flat list x, y, x, y, ..., and not {points!s:.80}")
    slack = max(2, 0.02 * max(size))  # annotators draw a little over the edge
    if xy.size and (xy.min() < -slack or xy[::2].max() > size[0] + slack or xy[1::2].max() > size[1] + slack):
        raise BadData(
            f"a polygon leaves its picture of {size[0]} x {size[1]} by more than {slack:g} px: {points!s:.80}"
        )
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
        polygons = [xy.tolist() for xy in (_polygon(p, size) for p in part) if len(xy) >= 6]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
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
    return part if isinstance(counts, bytes) else part | {"counts": counts.encode("ascii")}


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


def _make(
    query: str,
    id: str,
    image_id,
    where: Path | tuple,
    size=None,
    parts=(),
    boxes=None,
    points=None,
    *,
    ignored=(),
    frame=None,
    count=None,
    no_target=False,
    sentences=(),
    is_sentence=None,
) -> Sample:
    """What was put off at loading. boxes (N, 4), points (N, k, 2): in `frame`, or pixels; None: boxes of the masks."""
    name = str(where) if isinstance(where, Path) else id
    size = size or picture_size(_source(where), name)
    try:
        masks = [to_rle(part, size) for part in parts]
        ignore = [to_rle(part, size) for part in ignored]
    except BadData as error:
        raise BadData(f"{id}, {name}: {error}. Was the mask made for this picture?") from None
    if boxes is None:
        drawn = [i for i, rle in enumerate(masks) if coco_mask.area(rle)]
        # A mask of pixels may say "nothing fits"; polygons never do: these were drawn on another picture or size.
        if len(drawn) < len(masks) and not any(map(callable, parts)):
            raise BadData(f"{id}, {name}: no pixel of it is in a mask. Was the mask made for this picture?")
        masks = [masks[i] for i in drawn]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in map(coco_mask.toBbox, masks)]
    boxes = to_frame(np.reshape(boxes, (-1, 4)), frame or size, size)
    points = np.zeros((len(boxes), 0, 2)) if points is None else to_frame(points, frame or size, size)
    nothing = no_target or count == 0 or (count is None and not len(boxes))
    ignore = coco_mask.merge(ignore) if ignore and any(map(coco_mask.area, ignore)) else None
    opener = functools.partial(_open, where, name, size)
    rest = masks, ignore, nothing, count, sentences, is_sentence
    return Sample(query, boxes, points, id, str(image_id), *size, opener, *rest)


# ---------------------------------------------------------------------------------------------------- files and folders


# What values of another kind, 100,000 brackets, and lengths that no memory has come to.
_DEEP = (AttributeError, RecursionError, OverflowError, MemoryError)


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
    except (BadData, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, *_DEEP) as error:
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


# --------------------------------------------------------- COCO's annotations: RefCOCO and its kin, detection, COCONut


def _request(
    query: str, id: str, image: dict, folder: Path, annotations: list[dict], crowds=(), sentences=()
) -> Callable:
    """One request on one picture; crowds become pixels that no metric counts."""
    boxed = all("bbox" in a for a in annotations)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in annotations)] if boxed else None
    parts, ignored = ([a["segmentation"] for a in group] for group in (annotations, crowds))
    where = folder / image["file_name"]
    size = (image["width"], image["height"])
    more = {"ignored": ignored, "sentences": sentences}
    return functools.partial(_make, query, id, image["id"], where, size, parts, boxes, **more)


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
        ids = [] if ids == [-1] else ids
        image = images.get(ref["image_id"])
        bad = [i for i in ids if i not in annotations or not _drawable(annotations[i]["segmentation"])]
        sentences = list(enumerate(s["sent"] for s in ref["sentences"]))
        every_sentence = tuple(text for _, text in sentences) if want.one else ()
        if bad or not sentences or image is None or image["file_name"] in absent:
            why = f"no sentence, or no picture in {pictures}"
            why = f"annotation {bad[0]} is missing or has no polygon" if bad else why
            yield f"{want.name}: reference {ref['ref_id']}: {why}"
            continue
        if want.one:
            sentences = [sentences[np.random.default_rng([want.seed, ref["ref_id"]]).integers(len(sentences))]]
        for k, text in sentences:
            id = f"{want.name}/{want.split}/{ref['ref_id']}/{k}"
            yield _request(text, id, image, pictures, [annotations[i] for i in ids], sentences=every_sentence)


def _panoptic(png: Path, segment: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: one segment of a panoptic PNG, which writes an id as red + 256 green + 256² blue."""
    return np.asarray(open_image(png)).astype(np.int64) @ [1, 256, 65536] == segment


def coco(want: Wanted) -> Makers:
    """coco-detection: a sample per picture and category. coconut (Dr. Seg, appendix D): one of several objects."""
    kinds = ("panoptic", "instances") if want.name == "coconut" else ("instances",)
    years = ("2017", "2014", "")
    bases = ("", "coco/")
    path = _find(want.root, *(f"{b}annotations/{k}_{want.split}{y}.json" for k in kinds for b in bases for y in years))
    file = _read(path)
    category = {c["id"]: c["name"] for c in file["categories"] if c.get("isthing", 1)}
    found = file["annotations"]
    if path.name.startswith("panoptic"):
        masks = _find(path.parents[1], path.stem, f"annotations/{path.stem}")

        def segment(annotation: dict, s: dict) -> Callable:
            return functools.partial(_panoptic, masks / annotation["file_name"], s["id"])

        found = [
            s | {"image_id": a["image_id"], "segmentation": segment(a, s)}
            for a in found
            for s in a["segments_info"]
            if s["category_id"] in category
        ]
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
            yield _request(query, id, image, pictures, objects[c], crowds[c])


# ------------------------------------------------------------------------------------------------------------ ReasonSeg


def _painted(shapes: list[dict], ignore: bool, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the target, or what to ignore. Of overlapping shapes the smaller is on top [released reader]."""
    layers = [
        (to_rle([numbers(s["points"], "a polygon").ravel()], size), "ignore" in s["label"].lower()) for s in shapes
    ]
    canvas = np.zeros(size[::-1], dtype=bool)
    for rle, is_ignore in sorted(layers, key=lambda layer: -int(coco_mask.area(layer[0]))):
        canvas[decode_rle(rle)] = is_ignore == ignore
    return canvas


def reasonseg(want: Wanted) -> Makers:
    """One mask per request, however many polygons it takes, so one box; its note says whether the query is long."""
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
            where = pictures[stem]
            id = f"reasonseg/{want.split}/{stem}/{k}"
            long = note.get("is_sentence")
            more = {"ignored": [ignored], "is_sentence": long if isinstance(long, bool) else None}
            yield functools.partial(_make, text, id, _picture_id(stem), where, None, [target], **more)


# ---------------------------------- tables with the pictures inside: VisionReasoner's training and test sets, counting

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


def _solution(text: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes (N, 4) and points (N, k, 2) from a training row's JSON."""
    objects = json.loads(text)
    boxes = np.array([o["bbox_2d"] for o in objects], dtype=np.float64).reshape(-1, 4)
    points = [[o[key] for key in sorted(o) if key.startswith("point")] for o in objects]
    return boxes, np.array(points, dtype=np.float64).reshape(len(boxes), -1, 2) if points else None


def tables(want: Wanted) -> Makers:
    """A sample per row. Masks, one cell of nested lists each, stay in Arrow until a sample is asked for."""
    rows = _table(want)
    masks = rows.select_columns("mask").with_format("arrow") if want.name == "visionreasoner-test" else None
    rows = rows.remove_columns("mask") if masks else rows
    for i, row in enumerate(rows.remove_columns("image")):
        id = f"{want.name}/{want.split}/{i}"
        where = (rows, i)
        if want.name == "counting":
            yield functools.partial(_make, row["text"], id, id, where, boxes=(), count=int(row["count"]))
        elif masks:
            mask = functools.partial(_nested_mask, masks, i)
            boxes = [row["bbox"]] if row.get("bbox") else None
            args = row["text"], f"{id}/{row['ann_id']}", row["image_id"], where, None, [mask], boxes
            yield functools.partial(_make, *args)
        else:
            try:
                boxes, points = _solution(row["solution"])
            except (ValueError, KeyError, TypeError) as error:
                why = f"solution is not a list of boxes and points ({error!r})"
                raise BadData(f"{want.root}, row {i}: {why}.") from None
            image_id = _picture_id(str(row["id"]).split("_")[0])  # "<image>_<number>"
            args = row["problem"], f"{id}/{row['id']}", image_id, where, None, (), boxes, points
            # boxes are in pixels of 840 x 840, the size of the copies in the table: here these copies are the originals
            yield functools.partial(_make, *args, frame=(840, 840))


# --------------------------------------------------- one JSON object per line: GroundingSuite, and people's own data


def json_lines(want: Wanted) -> Makers:
    """A sample per line. Every line is checked before the first sample, and an error names it."""
    suite = want.name == "groundingsuite"
    file = "GroundingSuite-Eval.jsonl" if suite else f"{want.split}.jsonl"
    path = want.root if want.root.is_file() else _find(want.root, file)
    lines = []
    for n, line in enumerate(_read(path, lambda text: text.split("\n")), 1):
        try:
            if not line.strip():
                continue
            e = json.loads(line)
            if suite:
                e = {"image": e["image_path"], "query": e["caption"], "boxes": [e["box"]], "rle": [e["segmentation"]]}
            boxes = np.array(e["boxes"], dtype=np.float64).reshape(-1, 4) if "boxes" in e else None
            parts = e.get("polygons", e.get("rle", []))
            if not isinstance(parts, list) or not all(isinstance(part, (list, dict)) for part in parts):
                raise ValueError("polygons or rle are no list with one entry for each object")
            found = 0 if boxes is None else len(boxes)
            points = np.array(e["points"], dtype=np.float64) if e.get("points") else None
            points = None if points is None else points.reshape(found or len(parts), -1, 2)
            if found and not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
                raise ValueError("a box is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
            if points is not None and not np.isfinite(points).all():
                raise ValueError("a point is not two finite numbers")
            if not (e.get("count") is None or type(e["count"]) is int and 0 <= e["count"] <= 10_000):
                raise ValueError(f"count {str(e['count'])[:20]} is not a number of objects, 0 to 10,000")
            if not all(map(_drawable, parts)) or not isinstance(e["query"], str) or not isinstance(e["image"], str):
                raise ValueError("an empty polygon, or an image or query that is not text")
            if found and parts and len(parts) not in (1, found):
                raise ValueError(f"{found} boxes but masks of {len(parts)} objects")
            if not (parts or found or e.get("no_target") or "count" in e) or (e.get("no_target") and (parts or found)):
                raise ValueError('it needs boxes, polygons or rle, or else "no_target": true')
        except (ValueError, KeyError, TypeError, *_DEEP) as error:
            raise BadData(f"{path}, line {n}: {error!r:.300}. The format is described at data.load.") from None
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
