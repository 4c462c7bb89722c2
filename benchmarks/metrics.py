# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Every metric, as a pure function of records: the lines of predictions.jsonl that evaluate.make_record writes.

Integers and float64 throughout, so that each figure can be recomputed from the file to the last digit. The rules where
public code disagrees most:

    an unparsable answer is a wrong one, counted apart from an explicit "nothing fits" (LENS's mask does not come from
    the answer, and is scored all the same); no sample is left out of a mean, also none that the recipe's format has no
    words for: answerable_giou is the mean without these, a figure of its own;
    without target, "nothing fits" counts 1 in gIoU and nothing in cIoU; a mask counts 0, its area enters the union;
    pixels to ignore (ReasonSeg's 255) are in neither intersection nor union.

What segmentation_metrics reads of a record: intersection, union, area (of the written mask), each in pixels that are
not to be ignored, None without a true mask; predicted_none (the answer says that nothing fits), truth_none (nothing
does), answer_ok, boxes, answerable (recipes.unanswerable), is_sentence (ReasonSeg's long queries). The others read box
lists, the text and counts as well: evaluate.make_record has all keys.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import rewards


def iou_of(intersection: int, union: int, predicted_none: bool) -> float:
    """IoU of one sample. No pixel in either mask: 1 if the answer says so, 0 for one that is malformed or has a box."""
    return intersection / union if union else float(predicted_none)


def mean(values: Sequence[float]) -> float | None:
    """Exact summation, so that the order of records changes no digit; None of nothing."""
    return math.fsum(values) / len(values) if len(values) else None


def cumulative_iou(records: Sequence[dict]) -> float | None:
    """Sum of intersections / sum of unions, in whole pixels; None where no union has any."""
    union = sum(r["union"] for r in records)
    return sum(r["intersection"] for r in records) / union if union else None


def counts(records: Sequence[dict]) -> dict:
    """What belongs beside every table: a method may look good because half of its answers could not be read.

    parse_failures    answers that are not in the recipe's format, to the letter
    read_leniently    ... of which a box was taken all the same, as LENS's released evaluation does
    explicit_empty    answers that say that nothing fits
    false_negatives   ... where something does (GenSeg section 4.5: 3 of 642)
    """
    none = sum(r["truth_none"] for r in records)
    return {
        "n": len(records),
        "n_target": len(records) - none,
        "n_no_target": none,
        "parse_failures": sum(not r["answer_ok"] for r in records),
        "read_leniently": sum(not r["answer_ok"] and bool(r["boxes"]) for r in records),
        "explicit_empty": sum(r["predicted_none"] for r in records),
        "false_negatives": sum(r["predicted_none"] and not r["truth_none"] for r in records),
    }


def segmentation_metrics(records: Sequence[dict]) -> dict:
    """gIoU and its relatives for the records with a true mask, beside the counts of all. Fractions; None where there is
    nothing to count.

    With I_i, U_i the pixels in both masks and in either, of sample i, and IoU_i = I_i / U_i (iou_of):
    mask_n        how many records have a true mask (0 if only those have one where nothing fits: it is empty)
    giou          mean IoU_i over all of them                 (ReasonSeg; Dr. Seg Table 2 and SAM-R1 Table 1)
    ciou          sum I_i / sum U_i                           (RefCOCO's "cIoU" or "oIoU"; LENS Table 1)
    miou          mean IoU_i of the samples with a target; target_miou is the same figure   (GenSeg section 4.5)
    target_ciou   sum I_i / sum U_i of these samples
    p50, 70, 90   share of all with IoU_i >= 0.5, ...         (GenSeg Table 2)
    n_acc, t_acc  correct empty answers / samples without target; non-empty masks / samples with one  (gRefCOCO)
    answerable_n, answerable_giou   the samples that the recipe is trained for, and the mean IoU_i over them
    short_n, short_giou, short_ciou; long_n ...   ReasonSeg: the phrases and the sentences apart (is_sentence)
    """
    counted = counts(records)
    records = [r for r in records if r["intersection"] is not None]
    target, empty = ([r for r in records if r["truth_none"] == none] for none in (False, True))
    records = records if target else []  # where no target has a mask, gIoU would be n_acc under another name
    ious = [iou_of(r["intersection"], r["union"], r["predicted_none"]) for r in records]
    miou = mean([iou for iou, r in zip(ious, records, strict=True) if not r["truth_none"]])
    answerable = [iou for iou, r in zip(ious, records, strict=True) if r["answerable"]]
    by_length = {}
    for name, long in (("short", False), ("long", True)):
        some = [r for r in records if r["is_sentence"] is long]
        if some:
            giou = mean([iou for iou, r in zip(ious, records, strict=True) if r["is_sentence"] is long])
            by_length |= {f"{name}_n": len(some), f"{name}_giou": giou, f"{name}_ciou": cumulative_iou(some)}
    return counted | {
        "mask_n": len(records),
        "giou": mean(ious),
        "ciou": cumulative_iou(records),
        "miou": miou,
        **{f"p{round(100 * t)}": mean([float(iou >= t) for iou in ious]) for t in (0.5, 0.7, 0.9)},
        "target_miou": miou,
        "target_ciou": cumulative_iou(target),
        "n_acc": mean([float(r["predicted_none"] and r["area"] == 0) for r in empty]),
        "t_acc": mean([float(r["area"] > 0) for r in target]),
        "answerable_n": len(answerable),
        "answerable_giou": mean(answerable),
        **by_length,
    }


def answer_metrics(records: Sequence[dict]) -> dict:
    """What was written: counts and mean lengths (words as in Dr. Seg Table 8), and how often it looks (section 4.2)."""
    return counts(records) | {
        "think_failures": sum(not r["think_ok"] for r in records),
        "length_tokens": mean([r["length"] for r in records]),
        "length_words": mean([len(r["text"].split()) for r in records]),
        "look_share": mean([float(bool(r["looks"])) for r in records]),
        "looks": mean([len(r["looks"]) for r in records]),
    }


def best_box_ious(record: dict) -> list[float]:
    """For each true box the IoU of the written box that overlaps it most, 0 if none is written."""
    boxes = np.array(record["boxes"], dtype=float).reshape(-1, 4)  # a file may hold 10,000 of both
    truths = np.array(record["truth_boxes"], dtype=float).reshape(-1, 1, 4)
    return [float(rewards.box_ious(boxes, truth).max(initial=0.0)) for truth in truths]


def box_miou(records: Sequence[dict]) -> float | None:
    """The mean, over the records with true boxes, of best_box_ious' mean (GenSeg Table 3)."""
    return mean([mean(best_box_ious(r)) for r in records if r["truth_boxes"]])


def box_metrics(records: Sequence[dict], by_query: bool = False) -> dict:
    """Boxes, for the records with true boxes: REC accuracy (some written box has IoU > 0.5 with some true one; Dr. Seg
    Table 12), box_miou, and COCO's figures (coco_metrics, with by_query). {} without true boxes.
    """
    records = [r for r in records if r["truth_boxes"] or r["truth_none"]]
    best = [best_box_ious(r) for r in records if r["truth_boxes"]]
    if not best:
        return {}
    accuracy = mean([float(max(ious) > 0.5) for ious in best])
    own = {"box_n": len(best), "box_acc": accuracy, "box_miou": box_miou(records)}
    return own | coco_metrics(records, by_query)


def joint_table(records: Sequence[dict]) -> dict:
    """How often box and mask are right together (LENS Fig. A5: can the mask mend a wrong box?), with one true box.

    Four shares. A box is right at IoU > 0.5, a mask at IoU >= 0.5, as in box_acc and p50. {} where no sample has both.
    """
    both = [r for r in records if r["intersection"] is not None and len(r["truth_boxes"]) == 1]
    right = [(max(best_box_ious(r)) > 0.5, r["iou"] >= 0.5) for r in both]
    words = ("wrong", "right")
    cells = itertools.product((True, False), repeat=2) if both else ()
    return {f"box_{words[b]}_mask_{words[m]}": right.count((b, m)) / len(both) for b, m in cells}


def all_metrics(records: Sequence[dict], dataset: str) -> dict:
    """Every metric that these records of `dataset` (data.load's name) allow."""
    right = [float(r["answer_ok"] and len(r["boxes"]) == r["count"]) for r in records if r["count"] is not None]
    metrics = segmentation_metrics(records) if any(r["intersection"] is not None for r in records) else {}
    metrics |= box_metrics(records, by_query=dataset == "coco-detection") | joint_table(records)
    return metrics | answer_metrics(records) | ({"count_acc": mean(right)} if right else {})


# ----------------------------------------------------------------------- COCO's figures: all matching is pycocotools'


def coco_metrics(records: Sequence[dict], by_query: bool) -> dict:
    """AP, AP50, AP75; precision, recall and F1 at IoU 0.5. From records (evaluate.make_record), some with true boxes.

    A written box's score is its area over the picture's (VisionReasoner; Dr. Seg Table 7): text has no confidence.
    Precision, recall and F1 use it only as the order in which boxes are matched, of which pycocotools reads the first
    100 a picture. by_query: detection. Each query is a category, one picture has several, and a box on a crowd
    (crowds) is neither right nor wrong. Otherwise each record is a picture of its own, with one class.
    """
    # pycocotools breaks ties of the score by what it was given first: the samples' order, whatever the records' is.
    records = sorted(records, key=lambda r: r["index"])
    pictures, classes = {}, {}  # key -> id, from 1
    true, written = [], []  # COCO's annotations; ids from 1: pycocotools reads a match with id 0 as no match
    for r in records:
        image = pictures.setdefault(r["image_id"] if by_query else r["index"], len(pictures) + 1)
        category = classes.setdefault(r["query"] if by_query else "", len(classes) + 1)
        crowds = r["crowds"] if by_query else []
        kinds = (true, r["truth_boxes"], 0), (true, crowds, 1), (written, r["boxes"], 0)
        for side, (x1, y1, x2, y2), is_crowd in ((s, box, c) for s, boxes, c in kinds for box in boxes):
            area = max(x2 - x1, 0) * max(y2 - y1, 0)
            side.append(
                {
                    "id": len(side) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "score": area / (r["width"] * r["height"]),
                    "iscrowd": is_crowd,
                }
            )
    with contextlib.redirect_stdout(None):
        run = COCOeval(*(_coco(side, pictures, classes) for side in (true, written)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    # Row 0 of the matches is IoU 0.5: one-to-one, the largest box first. A box on a crowd is matched and ignored; one
    # that is only huge (over 1e10 square pixels) pycocotools ignores as well, but it is wrong.
    matches = [e for e in run.evalImgs if e is not None and e["aRng"] == run.params.areaRng[0]]
    on_crowd = [(e["dtMatches"][0] > 0) & e["dtIgnore"][0].astype(bool) for e in matches]
    ignored = int(sum(found.sum() for found in on_crowd))
    hits = int(sum((e["dtMatches"][0] > 0).sum() for e in matches)) - ignored
    n_written, n_true = len(written) - ignored, sum(not a["iscrowd"] for a in true)
    return {
        **{name: float(run.stats[i]) for i, name in enumerate(("ap", "ap50", "ap75"))},
        "precision": hits / max(n_written, 1),
        "recall": hits / n_true,
        "f1": 2 * hits / (n_written + n_true),
    }


def _coco(annotations: list[dict], pictures: dict, classes: dict) -> COCO:
    coco = COCO()
    ids = {"images": pictures, "categories": classes}
    coco.dataset = {"annotations": annotations} | {k: [{"id": i} for i in v.values()] for k, v in ids.items()}
    coco.createIndex()
    return coco
