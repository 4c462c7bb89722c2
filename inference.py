"""From a picture and a sentence to an answer and its mask: one path for benchmarks, photos, and scores while training.

    for record in answer_samples(policy, segmenter, samples, recipe): ...

picture and prompt -> text -> Answer in original pixels -> SAM2's mask -> one record, a line of predictions.jsonl, from
which metrics.py makes every figure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

import data
import grpo
import model as models
import rewards
from metrics import iou_of
from oracle import CannotSay, oracle_answer, true_mask
from recipes import Recipe
from step import make_micros, paint


def to_answer(text: str, recipe: Recipe, frame: tuple[float, float], size: tuple[int, int]) -> rewards.Answer:
    """Parse a completion, and take it from the model's frame (w, h) to ORIGINAL pixels, size (w, h). Never raises.

    A malformed answer predicts nothing: `instances` is empty. LENS is read as its released evaluation reads it: in
    what is malformed, the first four bracketed numbers are the box, whatever is around them.
    """
    answer = rewards.parse_answer(text, recipe.schema, lenient=recipe.schema == "lens").rescaled(frame, size)
    numbers = [v for o in answer.instances for xy in (o.box, *o.points, *o.negative_points) for v in xy]
    ok = answer.answer_ok and all(map(math.isfinite, numbers))  # 1e308 is finite as written, and not after rescaling
    return answer if ok else dataclasses.replace(answer, instances=[], answer_ok=False)


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
    samples: Sequence[data.Sample], recipe: Recipe, indices: Sequence[int], *, seed: int = 0, temperature: float = 0.0,
    max_new_tokens: int | None = None, prompts_mode: Literal["box", "1", "2"] = "2", variant: str = "plain",
) -> list[Prediction]:  # fmt: skip
    """The one path from P samples to text, answer and mask. Only "oracle" and "truth" look at the samples' truth.

    A sample's randomness is seeded by (seed, its entry in `indices`): neither its batch nor the number of processes
    plays a part. prompts_mode: what SAM2 gets of each object, the "box", or the box with the first "1" or "2" written
    points (GenSeg Table 4); negative points go with the points.
    """
    images, sizes = [s.image for s in samples], [(s.width, s.height) for s in samples]
    # Texts, and the frame that the numbers in each are written in. The oracle's frame is the picture itself.
    if policy == "oracle":
        texts, frames, lengths = [], sizes, [0] * len(samples)
        for s in samples:
            try:
                texts.append(oracle_answer(s, recipe.schema, (s.width, s.height)))
            except CannotSay:  # what the schema cannot say is a parse failure, as it would be for any model
                texts.append("")
    else:
        space, T = data.FAMILIES[policy.family], max_new_tokens or recipe.max_completion
        asked = [data.build_prompt(s.query, recipe.schema, space) + VARIANTS[variant] for s in samples]
        prompts = policy.encode(images, asked)
        uniforms = torch.from_numpy(np.stack([np.random.default_rng([seed, i]).random((1, T)) for i in indices]))
        rollout = grpo.sample(
            policy.vlm, prompts.inputs, uniforms, num_samples=1, max_new_tokens=T, temperature=temperature,
            eos_token_id=policy.eos_token_id, banned_ids=policy.banned_ids,
        )  # fmt: skip
        texts, lengths = policy.decode(rollout.ids[:, 0], rollout.mask[:, 0]), rollout.mask.sum((1, 2)).tolist()
        frames = [data.model_frame(policy.family, resized) for resized in prompts.resized]
    # Answers: in original pixels from here on.
    answers = [to_answer(t, recipe, frame, size) for t, frame, size in zip(texts, frames, sizes, strict=True)]
    # Masks: none; the true ones of the objects that were hit; LENS's, from the context queries that follow the text; or
    # SAM2's, from the written boxes and points.
    if segmenter is None:
        masks = [None] * len(samples)
    elif segmenter == "truth":
        masks = [true_mask(s, a.instances) for s, a in zip(samples, answers, strict=True)]
    else:
        embeddings, each = segmenter.embed(images), range(len(samples))
        if policy != "oracle" and policy.context is not None:
            painted = paint(policy, make_micros(policy, prompts, rollout, recipe), embeddings)
            found = [painted[p, 0] for p in each]
        else:
            k = {"box": 0, "1": 1, "2": 2}[prompts_mode]
            cut = lambda o: rewards.Instance(o.box, o.points[:k], o.negative_points if k else [])  # noqa: E731
            found = segmenter.union(embeddings, each, [[cut(o) for o in a.instances] for a in answers])
        masks = [mask.cpu().numpy() for mask in found]
    return [Prediction(*fields) for fields in zip(texts, answers, masks, lengths, strict=True)]


def make_record(index: int, sample: data.Sample, p: Prediction) -> dict:
    """One line of predictions.jsonl, all that metrics and report need: coordinates in original pixels, masks as RLE."""

    def rle(mask: np.ndarray) -> dict:
        return (code := data.encode_rle(mask)) | {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}

    a, truth, ignore = p.answer, sample.mask, sample.ignore
    # Whole pixels: sums of integers come out the same in any order, and a metric can be redone from the file.
    pixels = dict.fromkeys(("mask", "truth_mask", "intersection", "union", "area", "iou"))
    if p.mask is not None:
        pixels["mask"] = rle(p.mask)
    if p.mask is not None and truth is not None:
        counted = np.ones_like(truth) if ignore is None else ~ignore
        both, either, area = (int((m & counted).sum()) for m in (p.mask & truth, p.mask | truth, p.mask))
        pixels |= {"truth_mask": rle(truth), "intersection": both, "union": either, "area": area}
        pixels["iou"] = iou_of(both, either, a.no_target)
    return {
        "index": index, "id": sample.id, "image_id": sample.image_id, "query": sample.query,
        "width": sample.width, "height": sample.height, "truth_none": bool(sample.no_target), "count": sample.count,
        "truth_boxes": sample.boxes.tolist(),
        "ignore_box": data.box_of(ignore).tolist() if ignore is not None and ignore.any() else None,
        "text": p.text, "thought": a.thought, "looks": a.looks, "length": p.length,
        "answer_ok": a.answer_ok, "think_ok": a.think_ok, "predicted_none": a.no_target,
        "boxes": [o.box for o in a.instances], "points": [o.points for o in a.instances],
        "negative_points": [o.negative_points for o in a.instances], **pixels,
    }  # fmt: skip


def answer_samples(
    policy, segmenter, samples: Sequence[data.Sample], recipe: Recipe, *, indices=None, batch_size: int = 16, **how
) -> Iterator[dict]:
    """Answer samples[i] for i in indices (default: all), in order, and yield one record each. how: see predict."""
    chosen = range(len(samples)) if indices is None else indices
    for part in (chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size)):
        batch = [samples[i] for i in part]
        yield from map(make_record, part, batch, predict(policy, segmenter, batch, recipe, part, **how))
