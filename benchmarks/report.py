# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The page of an evaluation: five figures, how they are spread, and the pictures behind them, to filter and to sort.

    python -m benchmarks.report OUT                  # OUT as evaluate.py wrote it -> OUT/report.html
    python -m benchmarks.report AFTER --before OUT   # the same requests, before and after -> AFTER/compared.html
    (evaluate.py --image makes the page of one photo with it)

One file without network or script (page.html, a template of jinja2, which comes with torch). Everything is recomputed
from predictions.jsonl and run.json; photos are read again through data.load. What a model wrote, and what a file says,
is text from a stranger: records are read by kind (records.read_records), and the template escapes every string.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image
from tqdm import tqdm

import data
from benchmarks import pictures
from benchmarks.metrics import all_metrics, best_box_ious
from benchmarks.published import as_text, beside, explained, not_comparable, with_mask
from benchmarks.records import load_samples, read_records, read_run
from engine.files import console, write_atomically
from recipes import check_ranges

NEAREST = Image.Resampling.NEAREST
TEMPLATE = Path(__file__).with_name("page.html")

# The first screen: the first four of these that a run has, then how many answers could not be read.
FIGURES = {
    "giou": "Mean overlap (IoU) of the mask with the true one, over {requests}; 100 is perfect.",
    "p50": "of {requests} are answered by a mask that overlaps the true one by at least half (IoU 0.5).",
    "count_acc": "of the pictures have as many boxes as there are objects.",
    "box_miou": "Mean overlap (IoU) of each true box with the best box written.",
    "n_acc": "of the requests that nothing in the picture fits are answered so.",
    "box_acc": "of the requests have a box that hits a true one (IoU over 0.5).",
    "ciou": "Overlap in pixels of {requests} together: large objects count for more.",
    "length_tokens": "tokens in an answer, on average.",
    "length_words": "words in an answer, on average.",
}
KINDS = {  # what a card shows, and the filter's words for it
    "gained": "gained",
    "lost": "lost",
    "unread": "answer cannot be read",
    "nothing": "nothing fits, said or true",
    "number": "wrong number",
    "object": "wrong object",
    "loose": "loose box",
    "mask": "right box, wrong mask",
    "right": "right",
}


def score_of(record: dict) -> float:
    """What cards are sorted by: the mask's IoU; without masks the boxes' mean IoU; for counts right or wrong."""
    if record["iou"] is not None:
        return record["iou"]
    if record["truth_boxes"]:
        return float(np.mean(best_box_ious(record)))
    return float(record["answer_ok"] and len(record["boxes"]) == (record["count"] or 0))


def kind_of(record: dict) -> str:
    """Which of KINDS an answer is. Boxes, true and written, each against the best of the other side: an IoU below 0.1
    is a wrong object (or one too many, or missed), below 0.7 a loose box; then a mask below 0.5 is a wrong mask."""
    if not record["answer_ok"]:
        return "unread"
    if record["truth_none"] or record["predicted_none"]:
        return "nothing"
    if not record["truth_boxes"]:
        return "right" if score_of(record) >= 0.5 else "mask" if record["count"] is None else "number"
    swapped = record | {"boxes": record["truth_boxes"], "truth_boxes": record["boxes"]}
    worst = min(best_box_ious(record) + best_box_ious(swapped))
    if worst < 0.7:
        return "object" if worst < 0.1 else "loose"
    return "mask" if record["iou"] is not None and record["iou"] < 0.5 else "right"


# ------------------------------------------------------------------------------------------------------------ pictures


def picture_uri(record: dict, sample: data.Sample, side: int = 640) -> str:
    """The photo with what was predicted and what is true on it (pictures.overlay), as a JPEG data URI.

    BadData if the record speaks of another sample, or of a picture of another size.
    """
    w, h = sample.width, sample.height
    if (record["id"], record["width"], record["height"]) != (sample.id, w, h):
        raise data.BadData(f"the record of {record['id']!r} is of other data: {sample.id!r} stands in its place there.")
    size = (max(1, round(w * side / max(w, h))), max(1, round(h * side / max(w, h))))

    def mask(rle: dict | None) -> np.ndarray | None:
        return None if rle is None else np.asarray(Image.fromarray(data.decode_rle(rle)).resize(size, NEAREST))

    def moved(numbers: list, margin: int = 1) -> list[np.ndarray]:  # no further off than one more picture on each side
        low, high = (
            np.tile(np.multiply(size, k), len(numbers[0]) // 2 if numbers else 1) for k in (-margin, 1 + margin)
        )
        return [np.clip(data.to_frame(xy, (w, h), size), low, high) for xy in numbers]

    truth = mask(record["truth_mask"])
    if truth is None and record["truth_boxes"]:  # data without masks: the outlines of the true boxes
        truth = np.zeros(size[::-1], dtype=bool)
        for x1, y1, x2, y2 in np.round(moved(record["truth_boxes"], 0)).astype(int):
            truth[y1:y2, x1:x2] = True
    points, negative = ([xy for each in record[key] for xy in moved(each)] for key in ("points", "negative_points"))
    boxes = moved(record["boxes"])
    photo = sample.image.resize(size)
    drawn = pictures.overlay(photo, mask(record["mask"]), truth, boxes, points, negative, mask(sample.ignore_mask))
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def shot(record: dict, sample: data.Sample, when: str = "") -> dict:
    """One picture of a card, with its verdict; the template adds the reasoning and the text as it was written."""
    score = score_of(record)
    of_boxes = "box " * (record["iou"] is None and bool(record["truth_boxes"]))  # a truth without a mask
    tags = [(when, "")] * bool(when) + [(f"{of_boxes}IoU {score:.3f}", "good" if score >= 0.5 else "bad")]
    tags += [("answer cannot be read", "bad")] * (not record["answer_ok"])
    tags += [("says: nothing fits", "")] * record["predicted_none"] + [("true: nothing fits", "")] * record[
        "truth_none"
    ]
    if (kind := kind_of(record)) in ("object", "loose", "mask"):
        tags.append((KINDS[kind], ""))
    if record["count"] is not None:
        tags.append((f"{len(record['boxes'])} of {record['count']} counted", ""))
    return {"picture": picture_uri(record, sample), "tags": tags, "record": record, "file": sample.file}


# ---------------------------------------------------------------------------------------------------------------- page


def render(**what) -> str:
    """page.html filled; what is not given is left out of the page."""
    loader = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = loader.from_string(TEMPLATE.read_text(encoding="utf-8")).render(what)
    return page.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate, which JSON may hold, has no bytes


def histogram(scores: Sequence[float], before: Sequence[float] | None, left_out: int, of_boxes: int) -> dict:
    """Counts per twentieth of IoU, as bars up to 130 high; the last holds 1 too. of_boxes: how many lack a mask."""
    after, old = (np.histogram(s if s is not None else [], 20, (0, 1))[0] for s in (scores, before))
    scale = 130 / max(after.max(), old.max(), 1)
    bars = [
        {"x": 20 + 19 * i, "height": round(scale * a, 1), "before": round(scale * b, 1), "count": int(a)}
        for i, (a, b) in enumerate(zip(after, old, strict=True))
    ]
    notes = [f"Left out: {data.plural(left_out, 'request')} that the recipe's format does not answer."] * bool(left_out)
    notes += [f"{of_boxes} of them without a true mask: their IoU is that of the boxes."] * bool(of_boxes)
    title = f"IoU of {data.plural(len(scores), 'request')}"
    return {"title": title, "bars": bars, "before": before is not None, "notes": notes}


def first_figures(metrics: dict, before: dict | None) -> list[tuple[str, str, str]]:
    """The five figures of the first screen: (value, value before or "", sentence)."""

    def text(name: str, values: dict | None) -> str:
        if values is None or values.get(name) is None:
            return "-" if values is not None else ""
        return as_text(name, values[name]) if name.startswith("length") else f"{100 * values[name]:.1f}\u00a0%"

    found = [name for name in FIGURES if metrics.get(name) is not None][:4]
    requests = with_mask(metrics)
    lines = [(text(name, metrics), text(name, before), FIGURES[name].format(requests=requests)) for name in found]
    failed = f"of {data.plural(metrics['n'], 'answer')} could not be read; they count as wrong."
    return [*lines, (str(metrics["parse_failures"]), str(before["parse_failures"]) if before else "", failed)]


def ordered(records: list[dict], before: dict[int, dict] | None) -> dict[str, tuple[str, list[int]]]:
    """The orders that cards can be put in: key -> (words, positions in `records`)."""
    scores = np.array([score_of(r) for r in records])
    sizes = [
        sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in r["truth_boxes"]) / r["width"] / r["height"] for r in records
    ]
    sizes = np.where([not r["truth_boxes"] for r in records], np.inf, sizes)  # without an object: at the end
    values = {"worst": scores, "best": -scores, "middle": np.abs(scores - np.median(scores)), "small": sizes}
    words = {"small": "smallest object", "gain": "most gained", "loss": "most lost"}
    if before is not None:
        gain = scores - np.array([score_of(before[r["index"]]) for r in records])
        values = {"gain": -gain, "loss": gain} | values
    return {key: (words.get(key, key), np.argsort(v, kind="stable").tolist()) for key, v in values.items()}


def build(folder: Path, before: Path | None = None, limit: int = 12) -> str:
    """The page of an evaluation folder, beside another of the same requests if `before` names it; at most `limit`
    pictures of each kind, and of each order. Raises data.BadData, FileNotFoundError."""
    run, records = read_run(folder), read_records(folder / "predictions.jsonl")
    old = None
    if before is not None:
        there = read_run(before)
        # By id: where a picture is missing from one of the two, all indices behind it have moved.
        theirs = {(r["id"], r["query"]): r for r in read_records(before / "predictions.jsonl")}
        alone = [r for r in records if (r["id"], r["query"]) not in theirs]
        records = [r for r in records if (r["id"], r["query"]) in theirs]
        if (run["dataset"], run["split"]) != (there["dataset"], there["split"]) or not records:
            raise data.BadData(f"{before} and {folder} have no request in common: nothing to compare.")
        old = {r["index"]: theirs[r["id"], r["query"]] for r in records}
    if not records:
        raise data.BadData(f"{folder / 'predictions.jsonl'} is empty: nothing to show.")
    samples = load_samples(run)
    if max(r["index"] for r in records) >= len(samples):
        raise data.BadData(f"{folder} speaks of more samples than {run['dataset']} {run['split']} has: is it another?")
    kinds = [[kind_of(r)] for r in records]
    for r, found in zip(records, kinds, strict=True):
        if old is not None and (score_of(r) >= 0.5) != (score_of(old[r["index"]]) >= 0.5):
            found.append("gained" if score_of(r) >= 0.5 else "lost")
    orders = ordered(records, old)
    first = next(iter(orders.values()))[1]
    of_kind = {kind: [i for i in first if kind in kinds[i]] for kind in KINDS}
    wanted = {i for at in [at for _, at in orders.values()] + list(of_kind.values()) for i in at[:limit]}
    ranks = {key: {i: n for n, i in enumerate(at)} for key, (_, at) in orders.items()}
    cards = []
    for i in tqdm([i for i in first if i in wanted], "drawing", leave=False):
        r, sample = records[i], samples[records[i]["index"]]
        shots = (
            [shot(r, sample)] if old is None else [shot(old[r["index"]], sample, "before"), shot(r, sample, "after")]
        )
        where = {key: at[i] for key, at in ranks.items()}
        cards.append({"query": r["query"], "kinds": kinds[i], "ranks": where, "shots": shots})
    filters = []
    for kind, at in of_kind.items():
        here = len(wanted.intersection(at))
        filters += [(kind, KINDS[kind], f"{here} of {len(at)}" if here < len(at) else len(at))] * bool(at)
    words = _words(run, records, old, of_kind)
    if old is not None and (here := len(alone)) + (there := len(theirs) - len(records)):
        words["intro"].append(f"Left out: {here} that only this run was asked, {there} that only the other was.")
    return render(cards=cards, filters=filters, orders=[(k, w) for k, (w, _) in orders.items()], **words)


def _words(run: dict, records: list[dict], old: dict | None, of_kind: dict[str, list[int]]) -> dict:
    """What the page says beside its cards."""
    metrics = all_metrics(records, run["dataset"])
    before = None if old is None else all_metrics(list(old.values()), run["dataset"])
    recipe = run["recipe"]
    fair = [r for r in records if r["answerable"]]
    iou = any(r["iou"] is not None or r["truth_boxes"] for r in fair)
    of_boxes = sum(r["iou"] is None for r in fair)
    scores = [score_of(r) for r in fair]
    old_scores = None if old is None else [score_of(old[r["index"]]) for r in fair]
    intro = [f"{data.plural(len(records), 'request')}, asked as the recipe {recipe.get('name')} asks."]
    if old is not None:
        gained, lost = data.plural(len(of_kind["gained"]), "request"), len(of_kind["lost"])
        intro.append(f"Before and after: {gained} gained (an IoU that rose over 0.5), {lost} lost.")
    if lost := run.get("not_read"):
        intro.append(f"Without {data.plural(lost, 'sample')} of the set that could not be read.")
    published, columns = beside(run["dataset"], run["split"], run["data_root"])
    was = {name: text for found in explained(before or {}).values() for name, text, _ in found}
    lines = {how: [(n, was.get(n, ""), v, w) for n, v, w in found] for how, found in explained(metrics).items()}
    facts = [(k, v) for k, v in run.items() if not isinstance(v, dict) and v not in (None, "")]
    return {
        "title": f"{run['model']} on {run['dataset']} {run['split']}",
        "intro": intro,
        "figures": first_figures(metrics, before),
        "bars": histogram(scores, old_scores, len(records) - len(fair), of_boxes) if iou else None,
        "pairs": old is not None,
        "metrics": lines,
        "published": published,
        "columns": columns,
        "remark": not_comparable(run),
        "own": [as_text(c, metrics.get(c)) for c in columns],
        "facts": [*facts, *run["versions"].items()],
    }


# ----------------------------------------------------------------------------------------------------------- one photo


def verdict(record: dict, from_queries: bool) -> str:
    """What became of an answer, in a sentence. from_queries: its mask does not come from the text (LENS)."""
    if not record["answer_ok"]:
        rest = "; the mask is the context queries', whatever the text" if from_queries else ", so it has no mask"
        return f"the answer could not be read: it is not in the recipe's format{rest}"
    found = len(record["boxes"])
    return "nothing fits, says the answer" if record["predicted_none"] else f"{found} object{'s' * (found != 1)} found"


def photo_page(model: str, records: list[dict], sample: data.Sample, box_masks: Sequence[np.ndarray] | None) -> str:
    """The page of one photo: a card per request. box_masks: (H, W) bool each, SAM2's of the written box, which stands
    beside the mask of LENS's context queries."""
    cards = []
    for i, r in enumerate(records):
        tags = [(verdict(r, box_masks is not None), "good" if r["answer_ok"] else "bad")]
        shots = [{"picture": picture_uri(r, sample, 900), "tags": tags, "record": r}]
        if box_masks is not None:
            code = data.encode_rle(box_masks[i])
            beside_it = {"picture": picture_uri(r | {"mask": code}, sample, 900), "tags": [("the box's mask", "")]}
            shots[0]["tags"] = [("the queries' mask", ""), *tags]
            shots.append(beside_it)
        cards.append({"query": r["query"], "kinds": [], "ranks": {}, "shots": shots})
    return render(title=sample.id, intro=[f"Asked: {model}"], cards=cards, photo=True, filters=[], orders=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where evaluate.py wrote predictions.jsonl and run.json")
    parser.add_argument("--before", type=Path, help="another such folder: the same requests before and after")
    parser.add_argument("--limit", type=int, default=12, help="pictures of each kind and order at most (default 12)")
    args = parser.parse_args()
    console()
    path = args.folder / ("compared.html" if args.before else "report.html")
    try:
        check_ranges(vars(args))
        page = build(args.folder, args.before, args.limit)
        write_atomically(path, page)
    except (data.BadData, OSError) as error:
        sys.exit(f"report.py: {error}")
    print(f"wrote {path} ({len(page) / 1e6:.1f} MB): one file, open it in a browser")


if __name__ == "__main__":
    main()
