"""Metrics, benchmarks, and one photo: what a checkpoint writes, what SAM2 makes of it, and what that is worth.

    python evaluate.py --model runs/drseg/final --dataset refcocog --split val --data_root data
    python evaluate.py --model runs/drseg/final --image photo.jpg --query "the mug nearest the window"
    python evaluate.py --model toy/qwen2_5_vl --recipe drseg --toy       # the miniature, on a laptop
    python evaluate.py --model oracle --recipe drseg --toy               # the ground truth as text, by the same path
    python evaluate.py --score OUT/predictions.jsonl                     # the table again, without a model
    accelerate launch evaluate.py ...                                    # the same figures from several processes

One path for all: picture and prompt -> text -> Answer in original pixels -> SAM2's mask -> one record, a line of
OUT/predictions.jsonl. Every metric is a pure function of records, in integers and float64, so that each figure can be
recomputed from the file to the last digit. The rules where public code disagrees most:

    an unparsable answer is a wrong one, counted apart from an explicit "nothing fits"; no sample is left out of a mean;
    without target, a correct empty answer is IoU 1 in gIoU and nothing in cIoU; a mask is 0, its area enters the union;
    pixels to ignore (ReasonSeg's 255) are in neither intersection nor union.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import data
import grpo
import model as models
import recipes
import rewards
from recipes import Recipe

# ---------------------------------------------------------------------------------------------------- from text to mask


def to_answer(
    text: str, recipe: Recipe, frame: tuple[float, float], size: tuple[int, int], lenient: bool = False
) -> rewards.Answer:
    """Parse a completion, and take it from the model's frame (w, h) to ORIGINAL pixels, size (w, h). Never raises."""
    answer = rewards.parse_answer(text, recipe.schema, lenient).rescaled(frame, size)
    numbers = [v for o in answer.instances for xy in (o.box, *o.points, *o.negative_points) for v in xy]
    if not all(map(math.isfinite, numbers)):  # 1e308 is finite as written, and not after rescaling
        answer = dataclasses.replace(answer, instances=[], answer_ok=False)
    return answer


def oracle_answer(sample: data.Sample, schema: str, frame: tuple[float, float], digits: int | None = None) -> str:
    """The ground truth as a completion in `schema`, in `frame` (w, h), rounded to `digits` decimals (None: in full).

    Raises ValueError where the schema has no words for it: no target, or several objects where it has one.
    Without annotated points and masks a box's centre is the point; without boxes (counting sets) the whole picture is a
    box, as often as there are objects. Negative points are left out where a box has no room for them.
    """
    spec, size, boxes = rewards.SCHEMAS[schema], (sample.width, sample.height), sample.boxes
    if not len(boxes) and sample.count:
        boxes = np.array([[0, 0, *size]] * sample.count)
    positive = np.repeat((boxes[:, None, :2] + boxes[:, None, 2:]) / 2, len(spec.points), axis=1)
    if sample.points.shape[1] or sample.object_masks:
        positive = sample.positive_points(len(spec.points))
    negative = sample.negative_points(len(spec.negatives)) if spec.negatives else None
    negative = np.zeros((len(boxes), 0, 2)) if negative is None else negative
    parts = [[data.to_frame(xy, size, frame) for xy in part] for part in (boxes, positive, negative)]
    return rewards.write_answer([rewards.Instance(*o) for o in zip(*parts, strict=True)], schema, digits=digits)


def true_mask(sample: data.Sample, objects: Sequence[rewards.Instance]) -> np.ndarray:
    """`--segmenter truth`: for each written box the true mask of the object that it overlaps most, in one (H, W) bool.

    What a perfect segmenter would give. Data with one mask for all objects give the whole of it for any hit.
    """
    mask = np.zeros((sample.height, sample.width), dtype=bool)
    for o in objects:
        ious = [rewards.box_iou(o.box, box) for box in sample.boxes]
        if max(ious, default=0) > 0:
            each = len(sample.object_masks) == len(sample.boxes)
            mask |= data.decode_rle(sample.object_masks[int(np.argmax(ious))]) if each else sample.mask
    return mask


def context_masks(
    policy: models.Policy, segmenter: models.Segmenter, prompts: models.Prompts, completions: Sequence[Tensor],
    embeddings: models.Embeddings, index: Sequence[int],
) -> list[Tensor]:  # fmt: skip
    """LENS (Eq. 2-4): masks from the context queries, which read the finished sequence. With gradient if it is on.

    completions: B token tensors (t_i,), end token included; index: B, the prompt (and picture) of each; neighbours of
    one prompt share a packed row. Returns B mask logits (H, W), float32, at original size: the mask is logits > 0.
    The written box plays no part, so a malformed text has a mask too. segmenter: the policy's own.
    """
    pairs = itertools.groupby(zip(index, completions, strict=True), key=lambda pair: pair[0])
    rows = policy.pack(prompts, [(i, [o for _, o in group]) for i, group in pairs], grpo.pack_group)
    pictures = torch.as_tensor(list(index), device=segmenter.device)
    _, _, logits = policy(rows, grpo.token_logprobs, embeddings=embeddings, index=pictures)
    return [segmenter.resize(logit, embeddings.sizes[i]) for logit, i in zip(logits, index, strict=True)]


class Prediction(NamedTuple):
    """What was answered to one sample, read and turned into a mask."""

    text: str
    answer: rewards.Answer  # original pixels; no instances if malformed
    mask: np.ndarray | None  # (H, W) bool; None without a segmenter
    length: int  # completion tokens, the end token included


VARIANTS = {  # Dr. Seg Table 8: added to the prompt to get longer answers without any training
    "plain": "",
    "cot": "\nWork it out step by step, at length, before you answer.",
    "look": "\nBefore you answer, name each region that you look at, and look at it again to make sure.",
}


@torch.no_grad()
def predict(
    policy: models.Policy | Literal["oracle"], segmenter: models.Segmenter | Literal["truth"] | None,
    samples: Sequence[data.Sample], recipe: Recipe, uniforms: Tensor, *, temperature: float = 0.0,
    max_new_tokens: int | None = None, prompts_mode: str = "2", variant: str = "plain",
) -> list[Prediction]:  # fmt: skip
    """The one path from P samples to text, answer and mask. Only "oracle" and "truth" look at the samples' truth.

    uniforms (P, 1, >= max_new_tokens) is all the randomness. prompts_mode: what SAM2 gets of each object, the "box", or
    the box with the first "1" or "2" written points (GenSeg Table 4); negative points go with the points.
    """
    images, sizes = [s.image for s in samples], [(s.width, s.height) for s in samples]
    if policy == "oracle":
        texts, frames, lengths = [], sizes, [0] * len(samples)
        for s in samples:
            try:
                texts.append(oracle_answer(s, recipe.schema, (s.width, s.height)))
            except ValueError:  # what the schema cannot say is a parse failure, as it would be for any model
                texts.append("")
    else:
        space = data.FAMILIES[policy.family][0]
        asked = [data.build_prompt(s.query, recipe.schema, space) + VARIANTS[variant] for s in samples]
        prompts = policy.encode(images, asked)
        rollout = grpo.sample(
            policy.vlm, prompts.inputs, uniforms, num_samples=1, max_new_tokens=max_new_tokens or recipe.max_completion,
            temperature=temperature, eos_token_id=policy.eos_token_id, banned_ids=policy.banned_ids,
        )  # fmt: skip
        ids, written = rollout.ids[:, 0], rollout.mask[:, 0]
        texts, lengths = policy.decode(ids, written), written.sum(-1).tolist()
        frames = [data.model_frame(policy.family, resized) for resized in prompts.resized]
    # The released LENS reads the first four bracketed numbers at evaluation, whatever is around them.
    lenient = recipe.schema == "lens"
    answers = [to_answer(t, recipe, frame, size, lenient) for t, frame, size in zip(texts, frames, sizes, strict=True)]
    for answer in answers:  # a malformed answer predicts nothing (the parser keeps a box of one for Seg-Zero's reward)
        answer.instances = answer.instances if answer.answer_ok else []
    if segmenter is None:
        masks = [None] * len(samples)
    elif segmenter == "truth":
        masks = [true_mask(s, a.instances) for s, a in zip(samples, answers, strict=True)]
    else:
        embeddings, index = segmenter.embed(images), range(len(samples))
        if policy != "oracle" and policy.context is not None:
            completions = [row[keep] for row, keep in zip(ids, written, strict=True)]
            logits = context_masks(policy, segmenter, prompts, completions, embeddings, index)
            found = [logit > 0 for logit in logits]
        else:
            k = {"box": 0, "1": 1, "2": 2}[prompts_mode]
            cut = lambda o: rewards.Instance(o.box, o.points[:k], o.negative_points if k else [])  # noqa: E731
            found = segmenter.union(embeddings, index, [[cut(o) for o in a.instances] for a in answers])
        masks = [mask.cpu().numpy() for mask in found]
    return [Prediction(*fields) for fields in zip(texts, answers, masks, lengths, strict=True)]


def make_record(index: int, sample: data.Sample, p: Prediction) -> dict:
    """One line of predictions.jsonl, all that metrics and report need: coordinates in original pixels, masks as RLE."""
    a, truth, ignore = p.answer, sample.mask, sample.ignore
    pixels = dict.fromkeys(("mask", "truth_mask", "intersection", "union", "area", "iou"))
    if p.mask is not None:
        pixels["mask"] = _rle(p.mask)
    if p.mask is not None and truth is not None:
        counted = np.ones_like(truth) if ignore is None else ~ignore
        both, either, area = (int((m & counted).sum()) for m in (p.mask & truth, p.mask | truth, p.mask))
        pixels |= {"truth_mask": _rle(truth), "intersection": both, "union": either, "area": area}
        pixels["iou"] = iou_of(both, either, a.no_target)
    return {
        "index": index, "id": sample.id, "image_id": sample.image_id, "query": sample.query,
        "width": sample.width, "height": sample.height, "truth_none": bool(sample.no_target), "count": sample.count,
        "truth_boxes": sample.boxes.tolist(),
        "ignore_box": data.box_of(ignore).tolist() if ignore is not None and ignore.any() else None,
        "text": p.text, "thought": a.thought, "looks": a.looks, "length": p.length,
        "answer_ok": a.answer_ok, "think_ok": a.think_ok, "predicted_none": a.no_target,
        "boxes": [list(o.box) for o in a.instances], "points": [[list(q) for q in o.points] for o in a.instances],
        "negative_points": [[list(q) for q in o.negative_points] for o in a.instances], **pixels,
    }  # fmt: skip


def _rle(mask: np.ndarray) -> dict:
    rle = data.encode_rle(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def answer_samples(
    policy: models.Policy | Literal["oracle"], segmenter: models.Segmenter | Literal["truth"] | None,
    samples: Sequence[data.Sample], recipe: Recipe, *, indices: Sequence[int] | None = None, temperature: float = 0.0,
    seed: int = 0, batch_size: int = 16, max_new_tokens: int | None = None, prompts_mode: str = "2",
    variant: str = "plain",
) -> Iterator[dict]:  # fmt: skip
    """Answer samples[i] for i in indices (default: all), in order, and yield one record each (make_record).

    A sample's randomness is seeded by (seed, i): neither its batch nor the number of processes plays a part.
    """
    T = max_new_tokens or recipe.max_completion
    chosen = list(range(len(samples)) if indices is None else indices)
    for at in range(0, len(chosen), batch_size):
        part = chosen[at : at + batch_size]
        batch = [samples[i] for i in part]
        uniforms = torch.from_numpy(np.stack([np.random.default_rng([seed, i]).random((1, T)) for i in part]))
        found = predict(
            policy, segmenter, batch, recipe, uniforms, temperature=temperature, max_new_tokens=T,
            prompts_mode=prompts_mode, variant=variant,
        )  # fmt: skip
        yield from (make_record(i, s, p) for i, s, p in zip(part, batch, found, strict=True))


# -------------------------------------------------------------------------------------------------------------- metrics


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


def segmentation_metrics(records: Sequence[dict]) -> dict:
    """gIoU and its relatives for the records with a true mask. Fractions; None where there is nothing to count.

    Reads intersection, union, area (predicted pixels), truth_none, answer_ok, predicted_none; integers until divided.
    giou: mean IoU. ciou: cumulative. miou, target_miou (GenSeg's name): gIoU of the samples with a target. p50: share
    with IoU >= 0.5. n_acc: correct empty answers / samples without target. t_acc: non-empty masks / samples with one.
    """
    records = [r for r in records if r["intersection"] is not None]
    ious = [iou_of(r["intersection"], r["union"], r["predicted_none"]) for r in records]
    target, empty = ([r for r in records if r["truth_none"] == none] for none in (False, True))
    miou = mean([iou for iou, r in zip(ious, records, strict=True) if not r["truth_none"]])
    return {
        "n": len(records), "n_target": len(target), "n_no_target": len(empty),
        "parse_failures": sum(not r["answer_ok"] for r in records),
        "explicit_empty": sum(r["predicted_none"] for r in records),
        "giou": mean(ious), "ciou": cumulative_iou(records), "miou": miou,
        **{f"p{round(100 * t)}": mean([float(iou >= t) for iou in ious]) for t in (0.5, 0.7, 0.9)},
        "target_miou": miou, "target_ciou": cumulative_iou(target),
        "n_acc": mean([float(r["predicted_none"] and r["area"] == 0) for r in empty]),
        "t_acc": mean([float(r["area"] > 0) for r in target]),
    }  # fmt: skip


def evaluate(policy, segmenter, samples: Sequence[data.Sample], recipe: Recipe, **kw) -> dict:
    """segmentation_metrics over answer_samples, with its arguments: train.py's score before and after."""
    return segmentation_metrics(list(answer_samples(policy, segmenter, samples, recipe, **kw)))


def answer_metrics(records: Sequence[dict]) -> dict:
    """What was written: counts that belong beside every table, and lengths (words as in Dr. Seg Table 8)."""
    return {
        "n": len(records),
        "n_target": sum(not r["truth_none"] for r in records), "n_no_target": sum(r["truth_none"] for r in records),
        "parse_failures": sum(not r["answer_ok"] for r in records),
        "explicit_empty": sum(r["predicted_none"] for r in records),
        "think_failures": sum(not r["think_ok"] for r in records),
        "length_tokens": mean([r["length"] for r in records]),
        "length_words": mean([len(r["text"].split()) for r in records]),
        "look_share": mean([float(bool(r["looks"])) for r in records]),
        "looks": mean([len(r["looks"]) for r in records]),
    }  # fmt: skip


def best_box_ious(record: dict) -> list[float]:
    """For each true box the IoU of the written box that overlaps it most, 0 if none is written."""
    return [max([rewards.box_iou(b, truth) for b in record["boxes"]], default=0.0) for truth in record["truth_boxes"]]


def box_metrics(records: Sequence[dict], by_query: bool = False) -> dict:
    """Boxes, for the records with true boxes: REC accuracy (some written box has IoU > 0.5), box mIoU, COCO's figures.

    AP, AP50, AP75 by pycocotools. A written box's score is its area over the picture's (VisionReasoner; Dr. Seg Table
    7): text has no confidence. Precision, recall and F1 at IoU 0.5 use it only as the order in which boxes are matched.
    by_query: detection. Each query is a category, one picture has several, and a box on a crowd (ignore_box) is neither
    right nor wrong. Otherwise each record is a picture of its own, with one class. {} without true boxes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    records = [r for r in records if r["truth_boxes"] or r["truth_none"]]
    best = [best_box_ious(r) for r in records if r["truth_boxes"]]
    if not best:
        return {}
    pictures, classes, sides = {}, {}, ([], [])  # ids from 1: pycocotools reads a match with id 0 as no match
    for r in records:
        image = pictures.setdefault(r["image_id"] if by_query else r["index"], len(pictures) + 1)
        category = classes.setdefault(r["query"] if by_query else "", len(classes) + 1)
        crowd = [r["ignore_box"]] if by_query and r["ignore_box"] else []
        for side, boxes in zip(sides, (r["truth_boxes"] + crowd, r["boxes"]), strict=True):
            for i, (x1, y1, x2, y2) in enumerate(boxes):
                area = max(x2 - x1, 0) * max(y2 - y1, 0)
                side.append({
                    "id": len(side) + 1, "image_id": image, "category_id": category, "area": area,
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "score": area / (r["width"] * r["height"]),
                    "iscrowd": int(side is sides[0] and i >= len(r["truth_boxes"])),
                })  # fmt: skip
    truth, found = COCO(), COCO()
    with contextlib.redirect_stdout(None):
        for coco, side in zip((truth, found), sides, strict=True):
            ids = {"images": pictures, "categories": classes}
            coco.dataset = {"annotations": side} | {k: [{"id": i} for i in v.values()] for k, v in ids.items()}
            coco.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    # Row 0 of the matches is IoU 0.5: one-to-one, the largest box first. A box on a crowd is matched and ignored.
    matches = [e for e in run.evalImgs if e is not None and e["aRng"] == run.params.areaRng[0]]
    ignored = int(sum(e["dtIgnore"][0].sum() for e in matches))
    hits = int(sum((e["dtMatches"][0] > 0).sum() for e in matches)) - ignored
    written, true = len(sides[1]) - ignored, sum(not a["iscrowd"] for a in sides[0])
    return {
        "box_n": len(best), "box_acc": mean([float(max(ious) > 0.5) for ious in best]),
        "box_miou": mean([mean(ious) for ious in best]),
        **{name: float(run.stats[i]) for i, name in enumerate(("ap", "ap50", "ap75"))},
        "precision": hits / max(written, 1), "recall": hits / true, "f1": 2 * hits / (written + true),
    }  # fmt: skip


def joint_table(records: Sequence[dict]) -> dict:
    """How often box and mask are right together (LENS: can the mask mend a wrong box?), for samples with one true box.

    Four shares. A box is right at IoU > 0.5, a mask at IoU >= 0.5, as in box_acc and p50. {} where no sample has both.
    """
    both = [r for r in records if r["intersection"] is not None and len(r["truth_boxes"]) == 1]
    right = [(max(best_box_ious(r)) > 0.5, r["iou"] >= 0.5) for r in both]
    words = {True: "right", False: "wrong"}
    cells = itertools.product((True, False), repeat=2) if both else ()
    return {f"box_{words[b]}_mask_{words[m]}": right.count((b, m)) / len(both) for b, m in cells}


def all_metrics(records: Sequence[dict], dataset: str) -> dict:
    """Every metric that these records of `dataset` (data.load's name) allow."""
    counts = [float(r["answer_ok"] and len(r["boxes"]) == r["count"]) for r in records if r["count"] is not None]
    metrics = segmentation_metrics(records) if any(r["intersection"] is not None for r in records) else {}
    metrics |= box_metrics(records, by_query=dataset == "coco-detection") | joint_table(records)
    return metrics | answer_metrics(records) | ({"count_acc": mean(counts)} if counts else {})


# What the papers print, in percent, to stand beside a run's own figures. A heading names paper and table, then
# benchmarks (with a "/"), each with its metrics; "unnamed" where the paper does not say which of its metrics it is.
# Rows for others' methods are as that paper gives them. GenSeg's gRefCOCO is a draw of 642 + 358 (--make_up 642 358).
_TABLES = """
LENS Table 1: refcoco/val ciou refcoco/testA ciou refcoco/testB ciou
  LENS-2B 80.7 82.7 77.1
  LENS-3B 84.2 85.3 81.0
LENS Table 1: refcoco+/val ciou refcoco+/testA ciou refcoco+/testB ciou refcocog/val ciou refcocog/test ciou
  LENS-2B 73.8 78.0 67.3 75.7 76.4
  LENS-3B 79.4 82.8 74.3 81.2 81.0
LENS Table 2: reasonseg/val giou ciou reasonseg/test giou ciou groundingsuite/val giou ciou
  LENS-3B 62.1 64.9 57.2 58.0 67.0 78.3
SAM-R1 Table 1: reasonseg/val giou ciou reasonseg/test giou ciou
  SAM-R1 64.0 55.8 60.2 54.3
SAM-R1 Table 2: refcoco/testA unnamed refcoco+/testA unnamed refcocog/test unnamed
  SAM-R1 79.2 74.7 73.1
SAM-R1 Table 3 (boxes): reasonseg/test unnamed
  SAM-R1 63.8
GenSeg-R1 Table 2: refcocog/val ciou miou p50 p70 p90
  VisionReasoner-7B 65.30 69.66 76.80 65.33 31.60
  Seg-Zero-7B 67.94 71.55 79.13 68.52 33.93
  GENSEG-R1-4B 70.62 73.18 81.66 71.20 35.33
  GENSEG-R1-8B 71.27 73.82 82.32 73.14 35.45
GenSeg-R1 Table 3: refcocog/val box_miou ap ap50 ap75
  VisionReasoner-7B 79.67 71.49 85.81 76.02
  GENSEG-R1-4B 81.01 73.47 87.80 78.90
  GENSEG-R1-8B 80.28 72.77 87.17 78.35
GenSeg-R1 Table 5: grefcoco/val target_miou target_ciou n_acc
  Seg-Zero-7B 66.11 65.90 0.00
  GENSEG-R1-4B 75.58 75.54 79.05
  GENSEG-R1-G 76.69 76.83 82.40
GenSeg-R1 Table 6: reasonseg/test miou ciou
  Seg-Zero-7B 61.41 55.63
  GENSEG-R1-G 65.93 57.83
  GENSEG-R1-4B 68.40 62.73
Dr. Seg Table 2: refcoco/testA giou refcoco+/testA giou refcocog/test giou
  Qwen2.5-VL 79.9 76.8 72.8
  VisionReasoner 79.0 75.3 72.5
  Dr. Seg 80.2 76.8 74.2
Dr. Seg Table 2: reasonseg/val giou reasonseg/test giou coconut/val giou
  Qwen2.5-VL 56.9 52.1 31.8
  VisionReasoner 65.5 61.5 78.1
  Dr. Seg 67.8 65.6 79.6
Dr. Seg Table 3 Pixmo: counting/val count_acc counting/test count_acc
  VisionReasoner 70.1 69.5
  Dr. Seg 74.6 72.4
Dr. Seg Table 3 CountBench: counting/test count_acc
  VisionReasoner 87.6
  Dr. Seg 91.5
Dr. Seg Table 7: coco-detection/val ap ap50 precision recall f1
  VisionReasoner 37.7 57.3 62.6 63.9 63.3
  Dr. Seg 40.1 59.0 69.6 64.3 66.8
Dr. Seg Table 12: refcoco/val box_acc refcoco/testA box_acc refcoco+/val box_acc refcoco+/testA box_acc
  VisionReasoner 88.6 90.6 83.6 87.9
  Dr. Seg 89.4 91.5 83.6 88.0
Dr. Seg Table 12: refcocog/val box_acc refcocog/test box_acc
  VisionReasoner 86.1 87.5
  Dr. Seg 88.1 88.0
"""


def published_rows(tables: str) -> dict[str, list[tuple[str, str, dict[str, float]]]]:
    """_TABLES, read: "dataset/split" -> rows of (method, source, {metric: percent})."""
    found: dict[str, list] = {}
    source, columns = "", []
    for line in tables.strip().splitlines():
        if line[0] != " ":
            source, heading = line.split(": ")
            parts = [part.split() for part in re.split(r"\s(?=\S+/)", heading)]  # a benchmark, then its metrics
            columns = [(benchmark, metric) for benchmark, *metrics in parts for metric in metrics]
            continue
        method, *values = line.strip().rsplit(maxsplit=len(columns))
        for benchmark in dict.fromkeys(b for b, _ in columns):
            row = {m: float(v) for (b, m), v in zip(columns, values, strict=True) if b == benchmark}
            found.setdefault(benchmark, []).append((method, source, row))
    return found


PUBLISHED = published_rows(_TABLES)


def as_text(name: str, value: float | None) -> str:
    """A metric for people: counts as they are, mean lengths with two decimals, fractions in percent."""
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return f"{value:.2f}" if name.startswith(("length_", "looks")) else f"{100 * value:.2f}"


def show(metrics: dict, dataset: str, split: str) -> str:
    """The metrics as text, one a line; then the papers' rows for this benchmark, with this run's below them."""
    lines = [f"{dataset} {split}", *(f"  {name:28}{as_text(name, value):>10}" for name, value in metrics.items())]
    if rows := PUBLISHED.get(f"{dataset}/{split}"):
        columns = list(dict.fromkeys(metric for _, _, row in rows for metric in row))
        lines += ["", f"  {'published, percent':46}" + "".join(f"{c:>13}" for c in columns)]
        for method, source, row in rows:
            lines.append(f"  {method:20}{source:26}" + "".join(f"{row.get(c, '-'):>13}" for c in columns))
        lines.append(f"  {'this run':46}" + "".join(f"{as_text(c, metrics.get(c)):>13}" for c in columns))
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def save_recipe(recipe: Recipe, policy: models.Policy, folder: str | Path) -> None:
    """Write recipe.json into a checkpoint: the run's settings, and in which coordinates its model writes."""
    extra = {"family": policy.family, "space": data.FAMILIES[policy.family][0]}
    Path(folder, "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe) | extra, indent=1))


def load_recipe(folder: str | Path, override: Recipe | None = None) -> Recipe:
    """The recipe of a checkpoint folder; for a model that has none (a Hub id, base weights) it is `override`.

    Raises data.BadData, with a sentence that says why, if `override` would have the checkpoint asked or read otherwise
    than it was trained: another schema, picture size or family. Swapped frames give plausible boxes in wrong places.
    """
    path = Path(folder, "recipe.json")
    if not path.exists():
        if override is None:
            raise data.BadData(f"{folder} has no recipe.json that says how to ask it: name a recipe with --recipe.")
        return override
    saved = json.loads(path.read_text())
    family, space = saved.pop("family"), saved.pop("space")
    recipe = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
    config = json.loads(Path(folder, "config.json").read_text())["model_type"]
    checks = [("family", family, config, "config.json"), ("space", space, data.FAMILIES[config][0], "config.json")]
    if override is not None:
        checks += [(f, getattr(recipe, f), getattr(override, f), "--recipe") for f in ("schema", "image_size")]
        # The family is in the name of the policy that a recipe starts from; a folder's name need not tell.
        named = [f for f in data.FAMILIES if f in re.sub("[-.]", "_", override.model.lower())]
        checks += [("family", family, f, "--recipe") for f in named]
    for what, there, here, whose in checks:
        if there != here:
            raise data.BadData(
                f"{folder} was trained with {what} {there!r}, and {whose} says {here!r}: its answers would be misread. "
                "Leave --recipe out to use the checkpoint's own."
            )
    return recipe


def fingerprint(folder: str | Path) -> str | None:
    """Eight characters that change with a checkpoint's weights (the ends of its files are read); None for a Hub id."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:8] if files else None


# ---------------------------------------------------------------------------------------------------- an output folder


def read_records(path: str | Path) -> list[dict]:
    """The records of a predictions.jsonl. A torn last line, left by an interruption, is cut off the file."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(path, sum(map(len, lines[:-1])))
        lines.pop()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise data.BadData(f"{path} is no predictions.jsonl ({error}). Delete it to start again.") from None


def write_atomically(path: Path, text: str) -> None:
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def claim(folder: Path, run: dict) -> None:
    """Write run.json, or check that the predictions already in the folder are of this very run (else data.BadData)."""
    path, run = folder / "run.json", json.loads(json.dumps(run))
    there = json.loads(path.read_text()) if path.exists() else run
    if differ := {k: v for k, v in run.items() if there.get(k) != v}:
        what = [k if isinstance(v, dict) else f"{k}: {there.get(k)!r} there, {v!r} here" for k, v in differ.items()]
        what = "; ".join(what)
        raise data.BadData(f"{folder} has another run's predictions ({what}). Delete it, or name another --output_dir.")
    write_atomically(path, json.dumps(run, indent=1))


def load_samples(run: dict) -> data.Samples:
    """The samples that a run.json speaks of; the records' "index" counts in them."""
    root, one = run["data_root"] or None, run["one_expression"]
    return data.load(run["dataset"], root, run["split"], one_expression=one, seed=run["seed"])


def choose(samples: data.Samples, make_up: Sequence[int], limit: int, seed: int) -> list[int]:
    """Indices of a seeded draw, ascending: of make_up = (with, without target) samples, then of `limit`; 0 is all."""
    chosen, rng = list(range(len(samples))), np.random.default_rng(seed)
    if any(make_up):
        empty = [samples[i].no_target for i in chosen]
        kinds = [[i for i in chosen if empty[i] == none] for none in (False, True)]
        if any(len(kind) < n for kind, n in zip(kinds, make_up, strict=True)):
            raise data.BadData(f"--make_up {tuple(make_up)} is more than there are: {tuple(map(len, kinds))}.")
        chosen = [int(i) for kind, n in zip(kinds, make_up, strict=True) for i in rng.permutation(kind)[:n]]
    return sorted(rng.permutation(chosen)[:limit].tolist() if limit else chosen)


# --------------------------------------------------------------------------------------------------------- command line


@dataclasses.dataclass
class Options:
    """Evaluate a checkpoint on a benchmark, or on one photo (--image, --query), or print a table again (--score)."""

    model: str = ""  # checkpoint folder, Hub id (then with --recipe), or "oracle": the ground truth as text
    recipe: str = ""  # how a model without recipe.json is asked; beside one it is only checked
    dataset: str = ""  # a layout of data.load (for a miniature: toy)
    split: str = "val"
    data_root: str = "data"  # where the dataset lies
    segmenter: str = ""  # SAM2 (default: the recipe's); "truth": the true mask of each box hit; "none": boxes only
    output_dir: str = ""  # default: CKPT/eval-DATASET-SPLIT
    limit: int = 0  # a seeded draw of this many samples (0: all)
    make_up: tuple[int, int] = (0, 0)  # ... of this many with and without target (GenSeg's gRefCOCO: 642 358)
    one_expression: bool = False  # one sentence per object, drawn by seed (Dr. Seg's and GenSeg's RefCOCO figures)
    batch_size: int = 16
    temperature: float = 0.0  # 0: greedy; Dr. Seg's released evaluation samples at 1
    seed: int = 0
    prompts: Literal["box", "1", "2"] = "2"  # what SAM2 gets of each object: box, or box and points (GenSeg Table 4)
    prompt_variant: Literal["plain", "cot", "look"] = "plain"  # longer answers by asking for them (Dr. Seg Table 8)
    toy: bool = False  # the miniature: --recipe at laptop size
    overlap_with: str = ""  # a training set: metrics again for pictures in it and for those not in it (GenSeg 4.8)
    overlap_split: str = "train"
    score: str = ""  # a predictions.jsonl: print its table, without a model
    image: str = ""  # one photo instead of a dataset
    query: str = ""  # ... and what to find on it


def summarize(records: list[dict], run: dict, options: Options) -> dict:
    """All metrics, printed and returned. From a file or after a run: the same records, the same figures."""
    metrics = all_metrics(records, run["dataset"])
    print(show(metrics, run["dataset"], run["split"]))
    if options.overlap_with:
        training = data.load(options.overlap_with, run["data_root"] or None, options.overlap_split)
        seen = {sample.image_id for sample in training}
        for name, inside in (("overlap", True), ("clean", False)):
            metrics[name] = all_metrics([r for r in records if (r["image_id"] in seen) == inside], run["dataset"])
            print(f"\n{name}: pictures {'' if inside else 'not '}in {options.overlap_with} {options.overlap_split}")
            print(show(metrics[name], run["dataset"], ""))
    return metrics


def photo(policy, segmenter, recipe: Recipe, options: Options) -> None:
    """One photo: print what the model wrote; write PHOTO.overlay.png, PHOTO.mask.png beside it or in --output_dir."""
    picture, path = data.open_image(options.image), Path(options.image)
    nothing = np.zeros((0, 4)), np.zeros((0, 0, 2))
    sample = data.Sample(options.query, *nothing, path.name, path.name, *picture.size, lambda: picture)
    uniforms = torch.from_numpy(np.random.default_rng([options.seed, 0]).random((1, 1, recipe.max_completion)))
    text, answer, mask, _ = predict(
        policy, segmenter, [sample], recipe, uniforms, temperature=options.temperature, prompts_mode=options.prompts,
        variant=options.prompt_variant,
    )[0]  # fmt: skip
    print(text)
    if answer.no_target or not answer.answer_ok:
        print("(nothing fits)" if answer.no_target else "(the answer is not in the recipe's format)")
    stem = Path(options.output_dir or path.parent, path.stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    objects = answer.instances
    dots = [[xy for o in objects for xy in o.points], [xy for o in objects for xy in o.negative_points]]
    drawn = data.overlay(picture, mask, None, [o.box for o in objects], *dots)
    for kind, image in (("overlay", drawn), ("mask", data.Image.fromarray(mask.astype(np.uint8) * 255))):
        image.save(f"{stem}.{kind}.png")
        print(f"wrote {stem}.{kind}.png")


def benchmark(policy, segmenter, recipe: Recipe, run: dict, out: Path, options: Options, state) -> None:
    """Answer what is not answered yet, by all processes; then merge and print.

    Of several processes each appends to a file of its own; what any holds is done, however many there were before.
    """
    from tqdm import tqdm

    samples = load_samples(run)
    chosen = choose(samples, options.make_up, options.limit, options.seed)
    merged = mine = out / "predictions.jsonl"
    if state.num_processes > 1:
        mine = out / f"predictions.{state.process_index}.jsonl"
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        claim(out, run)
        for part in out.glob("predictions*.jsonl"):
            read_records(part)  # cuts torn lines while nobody writes
    state.wait_for_everyone()
    done = {r["index"] for part in out.glob("predictions*.jsonl") for r in read_records(part)}
    state.wait_for_everyone()
    left = [i for i in chosen if i not in done][state.process_index :: state.num_processes]
    answers = answer_samples(
        policy, segmenter, samples, recipe, indices=left, temperature=options.temperature, seed=options.seed,
        batch_size=options.batch_size, prompts_mode=options.prompts, variant=options.prompt_variant,
    )  # fmt: skip
    with open(mine, "a") as file:
        for record in tqdm(answers, f"{run['dataset']} {run['split']}", len(left), disable=not state.is_main_process):
            file.write(json.dumps(record) + "\n")
            file.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        parts = set(out.glob("predictions*.jsonl"))
        records = sorted((r for part in parts for r in read_records(part)), key=lambda r: r["index"])
        write_atomically(merged, "".join(json.dumps(r) + "\n" for r in records))
        for part in parts - {merged}:
            part.unlink()
        write_atomically(out / "metrics.json", json.dumps(summarize(records, run, options), indent=1))
        print(f"\n{merged}, metrics.json and run.json written; to look at it: python report.py {out}")


def main(options: Options) -> None:
    from accelerate import PartialState

    if options.score:
        run = json.loads(Path(options.score).with_name("run.json").read_text())
        summarize(read_records(options.score), run, options)
        return
    if not options.model or bool(options.image) != bool(options.query):
        raise data.BadData("name --model and --dataset, or --model, --image and --query, or --score; see --help.")
    if options.recipe and options.recipe not in recipes.RECIPES:
        raise data.BadData(f"no recipe {options.recipe!r}; there are: {', '.join(recipes.RECIPES)}")
    named = recipes.RECIPES[options.recipe] if options.recipe else None
    recipe = load_recipe(options.model, recipes.miniature(named) if named and options.toy else named)
    dataset = options.dataset or ("toy" if recipe.dataset == "toy" else "")
    # Detection and counting ask for boxes alone; SAM2 would be idle work there.
    name = options.segmenter or ("none" if dataset in ("coco-detection", "counting") else recipe.segmenter)
    if options.image and (name in ("none", "truth") or options.model == "oracle"):
        raise data.BadData("one photo needs a model and a SAM2: it has no truth.")
    if not options.image and not dataset:
        raise data.BadData(f"name a benchmark with --dataset ({', '.join(data.LOADERS)}), or a photo with --image.")
    state = PartialState(timeout=datetime.timedelta(days=2))  # who has finished waits for the others at the barrier
    policy, segmenter = "oracle", "truth" if name == "truth" else None
    if options.model != "oracle":
        policy = models.load_policy(
            options.model, image_size=recipe.image_size or None, max_pixels=recipe.max_pixels, device=state.device,
            dtype=torch.float32 if state.device.type == "cpu" else getattr(torch, recipe.dtype),
        ).eval()  # fmt: skip
    if name not in ("none", "truth"):  # a LENS checkpoint has its own, with the mask decoder that was trained with it
        own = None if policy == "oracle" or options.segmenter else policy.segmenter
        segmenter = models.load_segmenter(name, state.device) if own is None else own
    if options.image:
        return photo(policy, segmenter, recipe, options)
    asked = "split data_root one_expression limit make_up seed temperature prompts prompt_variant model".split()
    run = {"dataset": dataset, "segmenter": name, **{field: getattr(options, field) for field in asked}} | {
        "weights": fingerprint(options.model), "image_size": recipe.image_size, "max_pixels": recipe.max_pixels,
        "prompt_hash": None if policy == "oracle" else data.prompt_hash(recipe.schema, data.FAMILIES[policy.family][0]),
        "recipe": dataclasses.asdict(recipe),
        "versions": {package: version(package) for package in ("torch", "transformers", "sam2", "numpy")},
    }  # fmt: skip
    home = Path(options.model) if Path(options.model).is_dir() else Path("runs", options.model)
    out = Path(options.output_dir or home / f"eval-{dataset}-{options.split}")
    benchmark(policy, segmenter, recipe, run, out, options, state)


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Options, use_underscores=True))
    except (data.BadData, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
