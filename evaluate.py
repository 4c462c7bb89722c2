# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""From a picture and a sentence to an answer, its mask, a record, every metric: benchmarks, and one photo.

    python evaluate.py --model runs/drseg/final --dataset refcocog --split val --data_root data
    python evaluate.py --model runs/drseg/final --image photo.jpg --query "the mug nearest the window" "all spoons"
    python evaluate.py --model toy/qwen2_5_vl --recipe drseg --toy       # the miniature, on a laptop
    python evaluate.py --model oracle --recipe drseg --toy               # the ground truth as text, by the same path
    python evaluate.py --score OUT/predictions.jsonl                     # the table again, without a model
    accelerate launch evaluate.py ...                                    # the same figures from several processes

One path serves benchmarks, photos, and the scores before and after training:

    picture, request --predict--> text, Answer in original pixels, SAM2's mask --make_record--> a line of
    OUT/predictions.jsonl --benchmarks/metrics.py--> every figure (OUT/metrics.json)
                          --benchmarks/report.py--> pictures to look at (OUT/report.html)

So a figure can be traced to the answers that it counts, a metric added later needs no model, and a run that was cut off
goes on where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import transformers
import tyro
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import data
import grpo
import model as models
import rewards
from benchmarks import pictures
from benchmarks.metrics import all_metrics, box_miou, iou_of, segmentation_metrics
from benchmarks.overlap import overlap, seen
from benchmarks.published import show
from benchmarks.records import choose, claim, load_samples, merge_records, read_records, read_run
from benchmarks.report import photo_page, verdict
from engine.check import agreed, readable
from engine.checkpoint import load_recipe, newest, weights_digest
from engine.files import console, write_atomically
from engine.oracle import oracle_answer, true_mask
from engine.waiting import AN_HOUR, patient, wait_for_the_slowest
from recipes import EVALUATION_RANGES, RECIPES, Recipe, check_ranges, miniature, unanswerable

# ----------------------------------------------------------------------------- from a request to an answer and its mask


def to_answer(text: str, recipe: Recipe, frame: tuple[float, float], size: tuple[int, int]) -> rewards.Answer:
    """Parse a completion, and take it from the model's frame (w, h) to ORIGINAL pixels, size (w, h). Never raises.

    A malformed answer predicts nothing: `instances` is empty. LENS is read as its released evaluation reads it: in
    what is malformed (answer_ok stays False), the first four bracketed numbers are the box, whatever is around them.
    """
    lenient = rewards.SCHEMAS[recipe.schema].lenient
    answer = rewards.parse_answer(text, recipe.schema, lenient).rescaled(frame, size)
    return answer if answer.answer_ok or lenient else dataclasses.replace(answer, instances=[])


Answerer = models.Policy | Literal["oracle"]  # the oracle writes the truth
Masker = models.Segmenter | Literal["truth"] | None  # "truth" masks what was hit with its true mask; None: no masks


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


@dataclasses.dataclass
class Written:
    """What was written to P requests: texts, the frame that the numbers in each are in, lengths in tokens; and, of a
    policy, what its context queries go on from."""

    texts: list[str]
    frames: list[tuple[float, float]]
    lengths: list[int]
    prompts: models.Prompts | None = None
    rollout: grpo.Rollout | None = None


def oracle_writes(samples: Sequence[data.Sample], recipe: Recipe) -> Written:
    """The truth as texts, in the pictures' own pixels. What the schema cannot say is a parse failure, as it would be
    for any model."""
    texts = []
    sizes = [(s.width, s.height) for s in samples]
    for sample, size in zip(samples, sizes, strict=True):
        try:
            texts.append(oracle_answer(sample, recipe.schema, size))
        except rewards.CannotSay:
            texts.append("")
    return Written(texts, sizes, [0] * len(samples))


def policy_writes(
    policy: models.Policy,
    samples: Sequence[data.Sample],
    recipe: Recipe,
    uniforms: Tensor,
    temperature: float = 0.0,
    more: str = "",
) -> Written:
    """One completion per sample, from uniforms (P, 1, T). more: words at the end of every request."""
    space = data.FAMILIES[policy.family]
    requests = [data.build_prompt(s.query, recipe.schema, space) + more for s in samples]
    prompts = policy.encode([s.image for s in samples], requests)
    tokens = prompts.inputs["attention_mask"].sum(-1).tolist()
    # Training stops above max_prompt, where its memory was planned for; here longer ones may be asked, but a sentence
    # may be a megabyte.
    if max(tokens) > (limit := 8 * recipe.max_prompt):
        worst = samples[int(np.argmax(tokens))].id
        raise data.BadData(f"the prompt of sample {worst} has {max(tokens)} tokens, more than {limit}.")
    rollout = grpo.sample(
        policy.vlm,
        prompts.inputs,
        uniforms,
        num_generations=1,
        max_new_tokens=uniforms.shape[-1],
        temperature=temperature,
        eos_token_id=policy.end_ids,
        banned_ids=policy.banned_ids,
    )
    frames = [data.model_frame(policy.family, resized) for resized in prompts.resized]
    lengths = rollout.mask.sum((1, 2)).tolist()
    return Written(policy.decode(rollout.ids[:, 0], rollout.mask[:, 0]), frames, lengths, prompts, rollout)


@torch.no_grad()
def predict(
    policy: Answerer,
    segmenter: Masker,
    samples: Sequence[data.Sample],
    recipe: Recipe,
    indices: Sequence[int],
    *,
    seed: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    prompts_mode: Literal["box", "1", "2"] = "2",
    variant: str = "plain",
) -> list[Prediction]:
    """The one path from P samples to text, answer and mask. Only "oracle" and "truth" look at the samples' truth.

    A sample's randomness is seeded by (seed, its entry in `indices`): neither its batch nor the number of processes
    plays a part. prompts_mode: what SAM2 gets of each object, the "box", or the box with the first "1" or "2" written
    points (GenSeg Table 4); negative points go with the points.
    """
    longest = max(samples, key=lambda s: len(s.query))
    if len(longest.query) > 20_000:  # a tokenizer may give up on a megabyte, and end the process with it
        raise data.BadData(
            f"the request of sample {longest.id} has {len(longest.query)} characters; 20,000 are the most"
        )
    if policy == "oracle":
        written = oracle_writes(samples, recipe)
    else:
        T = max_new_tokens or recipe.max_completion
        uniforms = torch.from_numpy(np.stack([np.random.default_rng([seed, i]).random((1, T)) for i in indices]))
        written = policy_writes(policy, samples, recipe, uniforms, temperature, VARIANTS[variant])
    # Answers: in original pixels from here on.
    read = zip(samples, written.texts, written.frames, strict=True)
    answers = [to_answer(text, recipe, frame, (s.width, s.height)) for s, text, frame in read]
    # Masks: none; the true ones of the objects that were hit; LENS's, from the context queries that follow the text; or
    # SAM2's, from the written boxes and points.
    most = rewards.MAX_OBJECTS  # no more are looked at, as in the rewards: a text may name thousands
    if segmenter is None:
        masks = [None] * len(samples)
    elif segmenter == "truth":
        masks = [true_mask(s, a.instances[:most]) for s, a in zip(samples, answers, strict=True)]
    else:
        embeddings = segmenter.embed([s.image for s in samples], recipe.pictures_at_once)
        each = range(len(samples))
        if policy != "oracle" and policy.context is not None:
            rows = recipe.max_row_tokens, recipe.rows_per_batch
            micros = models.pack_rollout(policy, written.prompts, written.rollout, *rows)
            query_masks = models.masks_from_queries(policy, micros, embeddings)
            found = [query_masks[p, 0] for p in each]
        else:
            k = {"box": 0, "1": 1, "2": 2}[prompts_mode]
            asked = [
                [rewards.Instance(o.box, o.points[:k], o.negative_points if k else []) for o in a.instances[:most]]
                for a in answers
            ]
            found = segmenter.union(embeddings, each, asked)
        masks = [mask.cpu().numpy() for mask in found]
    return [Prediction(*fields) for fields in zip(written.texts, answers, masks, written.lengths, strict=True)]


def make_record(index: int, sample: data.Sample, p: Prediction, answerable: bool = True) -> dict:
    """One line of predictions.jsonl, all that metrics and report need: coordinates in original pixels, masks as RLE.

    answerable: is the recipe trained for such a sample (recipes.unanswerable)?
    """
    a = p.answer
    truth = sample.mask
    ignore = sample.ignore
    # Whole pixels: sums of integers come out the same in any order, and a metric can be redone from the file.
    pixels = dict.fromkeys(("mask", "truth_mask", "intersection", "union", "area", "iou"))
    if p.mask is not None:
        pixels["mask"] = data.encode_rle(p.mask)
    if p.mask is not None and truth is not None:
        counted = np.ones_like(truth) if ignore is None else ~ignore
        both, either, area = (int((m & counted).sum()) for m in (p.mask & truth, p.mask | truth, p.mask))
        pixels |= {"truth_mask": data.encode_rle(truth), "intersection": both, "union": either, "area": area}
        pixels["iou"] = iou_of(both, either, a.no_target)
    return {
        "index": index,
        "id": sample.id,
        "image_id": sample.image_id,
        "query": sample.query,
        "width": sample.width,
        "height": sample.height,
        "truth_none": bool(sample.no_target),
        "count": sample.count,
        "answerable": answerable,
        "is_sentence": sample.is_sentence,
        "truth_boxes": sample.boxes.tolist(),
        "crowds": sample.crowds,
        "ignore_mask": None if ignore is None else data.encode_rle(ignore),
        "text": p.text,
        "thought": a.thought,
        "looks": a.looks,
        "length": p.length,
        "answer_ok": a.answer_ok,
        "think_ok": a.think_ok,
        "predicted_none": a.no_target,
        "boxes": [o.box for o in a.instances],
        "points": [o.points for o in a.instances],
        "negative_points": [o.negative_points for o in a.instances],
        **pixels,
    }


def answer_samples(
    policy: Answerer,
    segmenter: Masker,
    samples: Sequence[data.Sample],
    recipe: Recipe,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 16,
    broken: dict[int, str] | None = None,
    **how,
) -> Iterator[dict]:
    """Answer samples[i] for i in indices (default: all), in order, and yield one record each. broken: takes a line for
    each sample whose picture cannot be read (without it: data.BadData). how: see predict."""
    chosen = range(len(samples)) if indices is None else indices
    for part in (chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size)):
        batch: dict[int, data.Sample] = {}
        for i in part:
            try:
                batch[i] = samples[i].with_picture()
            except data.BadData as error:
                if broken is None:
                    raise
                broken[i] = str(error)
        if batch:
            here = list(batch)
            found = predict(policy, segmenter, list(batch.values()), recipe, here, **how)
            answerable = [unanswerable(sample, recipe) is None for sample in batch.values()]
            yield from map(make_record, here, batch.values(), found, answerable)


# ------------------------------------------------------------------------------------------------- benchmarks, a photo


def evaluate(
    policy: Answerer,
    segmenter: Masker,
    samples: Sequence[data.Sample],
    recipe: Recipe,
    bar: str | None = None,
    **kw,
) -> dict:
    """segmentation_metrics and box_miou over answer_samples, with its arguments: train.py's score before and after.
    bar: the name of a progress bar."""
    answers = answer_samples(policy, segmenter, samples, recipe, **kw)
    chosen = samples if kw.get("indices") is None else kw["indices"]
    records = list(tqdm(answers, bar, len(chosen), disable=bar is None))
    return segmentation_metrics(records) | {"box_miou": box_miou(records)}


def report_metrics(records: list[dict], run: dict, options: Options) -> dict:
    """All metrics, printed and returned. From a file or after a run: the same records, the same figures."""
    metrics = all_metrics(records, run["dataset"])
    print(show(metrics, run))
    # RefCOCO's sets share COCO's pictures: a picture of the test may have been trained on, under another sentence.
    if options.overlap_with:
        there, queries = seen(data.load(options.overlap_with, run["data_root"], options.overlap_split))
        metrics["shared"] = overlap([(r["image_id"], r["query"]) for r in records], there, queries)
        counted = "".join(f"\n  {name.replace('_', ' '):34}{value:>8}" for name, value in metrics["shared"].items())
        print(f"\nshared with {options.overlap_with} {options.overlap_split}{counted}")
        for name, inside in (("overlap", True), ("clean", False)):
            metrics[name] = all_metrics([r for r in records if (r["image_id"] in there) == inside], run["dataset"])
            print(f"\n{name}: pictures {'' if inside else 'not '}in {options.overlap_with} {options.overlap_split}")
            print(show(metrics[name], run | {"split": "", "data_root": "", "not_read": 0}))
    return metrics


def benchmark(
    policy: Answerer,
    segmenter: Masker,
    recipe: Recipe,
    run: dict,
    out: Path,
    options: Options,
    how: dict,
    state: PartialState,
) -> None:
    """Answer what is not answered yet, by all processes, each into a file of its own; then merge and print."""
    samples = load_samples(run)
    if options.overlap_with:  # read when all is answered: a slip of the pen should not wait for that
        data.load(options.overlap_with, run["data_root"], options.overlap_split)
    chosen = choose(samples, options.make_up, options.limit, options.seed)
    chosen, bad = readable(samples, chosen)
    if state.is_main_process and (bad or samples.skipped):
        skipped = data.plural(len(samples.skipped), "skipped entry")
        print(f"not scored: {data.plural(len(bad), 'wrong sample')}, {skipped} of the data")
        print("\n".join(f"  {line}" for line in [*bad[:10], *samples.skipped[:10]]))
    if not any(gather_object([chosen])):
        raise data.BadData(f"nothing to score in {run['dataset']} {run['split']}")
    here, chosen = chosen, agreed(chosen)
    bad += [f"sample number {i}: another process could not read it" for i in sorted({*here} - {*chosen})]
    merged = mine = out / "predictions.jsonl"
    if state.process_index:
        mine = out / f"predictions.{state.process_index}.jsonl"
    if state.is_main_process:
        claim(out, run)
        merge_records(out, samples)  # an interrupted run is taken up, however many processes it had
    state.wait_for_everyone()
    done = {r["index"] for r in read_records(merged)}
    state.wait_for_everyone()  # nobody writes while others read
    # What is left goes round in turn: neighbours in a dataset often share a picture, and so cost the same.
    left = [i for i in chosen if i not in done][state.process_index :: state.num_processes]
    broken: dict[int, str] = {}
    how = how | {"batch_size": options.batch_size, "broken": broken}
    answers = answer_samples(policy, segmenter, samples, recipe, indices=left, **how)
    with open(mine, "a", encoding="utf-8") as file:
        for record in tqdm(answers, f"{run['dataset']} {run['split']}", len(left), disable=not state.is_main_process):
            file.write(json.dumps(record) + "\n")
            file.flush()  # a killed run loses the batch that it was at, and no more
    wait_for_the_slowest()
    for others in gather_object([broken]):
        broken |= others
    if state.is_main_process:
        for _, line in sorted(broken.items()):
            print(f"not scored: {line}")
            bad.append(line)
        asked = set(chosen) - broken.keys()
        if not asked:
            raise data.BadData(f"nothing to score in {run['dataset']} {run['split']}")
        answered = [r for r in merge_records(out) if r["index"] in asked]
        if len(answered) < len(asked):
            there = f"{out} has {len(answered)} of {len(asked)} answers: another run has written there meanwhile."
            raise data.BadData(f"{there} Start this one again, alone: it goes on from what is there.")
        if lost := len(bad) + samples.lost:  # the table says so now, and when it is printed again
            run = run | {"not_read": lost}
            write_atomically(out / "run.json", json.dumps(run, indent=1))
        metrics = report_metrics(answered, run, options)
        if why := [*bad, *samples.skipped]:
            metrics["not_scored"] = {"wrong": len(bad), "skipped": len(samples.skipped), "why": why[:100]}
        write_atomically(out / "metrics.json", json.dumps(metrics, indent=1))
        report = shlex.join(["python", "-m", "benchmarks.report", str(out)])
        print(f"\n{merged}, metrics.json and run.json written; to look at it: {report}")


def photo(
    policy: models.Policy, segmenter: models.Segmenter, recipe: Recipe, out: Path, options: Options, how: dict
) -> None:
    """One photo and its requests: what was written, as text, and a new folder `out` (out-2, ... where that is taken).

    OUT/index.html, to look at; OUT/answers.jsonl, a record each; OUT/N.mask.png, N.overlay.png of request N. LENS: the
    mask is the context queries', and N.box-mask.png is what SAM2 makes of the written box, to stand beside it.
    """
    path = Path(options.image)
    picture = pictures.open_image(path)
    nothing = np.zeros((0, 4)), np.zeros((0, 0, 2))  # a sample without a truth: no boxes, no points
    samples = [data.Sample(q, *nothing, path.name, path.name, *picture.size, lambda: picture) for q in options.query]
    records = list(answer_samples(policy, segmenter, samples, recipe, batch_size=options.batch_size, **how))
    masks = {"mask": [data.decode_rle(r["mask"]) for r in records]}
    if policy.context is not None:
        boxes = [[rewards.Instance(box) for box in r["boxes"]] for r in records]
        found = segmenter.union(segmenter.embed([picture]), [0] * len(boxes), boxes)
        masks["box-mask"] = [mask.cpu().numpy() for mask in found]
    taken = out
    for n in itertools.count(2):
        if not out.exists():
            break
        out = Path(f"{taken.absolute()}-{n}")  # "." has no name of its own
    out.mkdir(parents=True)
    for n, (record, mask) in enumerate(zip(records, masks["mask"], strict=True), 1):
        answer = f"{record['query']}\n  {record['text']}\n  ({verdict(record, policy.context is not None)})"
        print(data.printable(answer))
        dots = ([xy for each in record[key] for xy in each] for key in ("points", "negative_points"))
        pictures.overlay(picture, mask, None, record["boxes"], *dots).save(out / f"{n}.overlay.png")
        for name, each in masks.items():
            Image.fromarray(each[n - 1].astype(np.uint8) * 255).save(out / f"{n}.{name}.png")
    write_atomically(out / "answers.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_atomically(out / "index.html", photo_page(options.model, records, samples[0], masks.get("box-mask")))
    print(f"\nwrote {out}: open {out / 'index.html'} in a browser; masks, overlays and answers.jsonl are beside it")


# --------------------------------------------------------------------------------------------------------- command line


@dataclasses.dataclass
class Options:
    """Evaluate a checkpoint on a benchmark, or on one photo (--image, --query), or print a table again (--score)."""

    # tyro makes the command line of these fields, and --help of the comments beside them.
    model: str = ""  # checkpoint folder, Hub id (then with --recipe), or "oracle": the ground truth as text
    recipe: str = ""  # how a model without recipe.json is asked; beside one it is only checked
    dataset: str = ""  # a layout of data.load (for a miniature: toy)
    split: str = "val"  # of the dataset
    data_root: str = "data"  # where the dataset lies
    segmenter: str = ""  # SAM2 (default: the recipe's); "truth": the true mask of each box hit; "none": boxes only
    # default: eval-CKPT-DATASET-SPLIT (photo-CKPT-NAME) beside a checkpoint of train.py, else runs/MODEL/eval-...
    output_dir: str = ""
    limit: int = 0  # a seeded draw of this many samples (0: all)
    make_up: tuple[int, int] = (0, 0)  # ... of this many with and without target (GenSeg's gRefCOCO: 642 358)
    one_expression: bool = False  # one sentence per object, drawn by seed (Dr. Seg's and GenSeg's RefCOCO figures)
    batch_size: int = 16  # samples at a time: a matter of speed and memory
    temperature: float = 0.0  # 0: greedy; Dr. Seg's released evaluation samples at 1
    seed: int = 0  # of the draws above, and of sampling
    prompts: Literal["box", "1", "2"] = "2"  # what SAM2 gets of each object: box, or box and points (GenSeg Table 4)
    prompt_variant: Literal["plain", "cot", "look"] = "plain"  # longer answers by asking for them (Dr. Seg Table 8)
    toy: bool = False  # the miniature: --recipe at laptop size
    overlap_with: str = ""  # a training set: metrics again for pictures in it and for those not in it (GenSeg 4.8)
    overlap_split: str = "train"  # ... of that set
    score: str = ""  # a predictions.jsonl: print its table, without a model
    image: str = ""  # one photo instead of a dataset
    # ... and what to find on it: one request, or several, each in quotes
    query: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="")] = ()


def once(arguments: Sequence[str]) -> None:
    """data.BadData where --image or --query is named twice: of an option given twice, the last would count alone."""
    for name in ("--image", "--query"):
        if sum(given.split("=")[0] == name for given in arguments) > 1:
            one = "one photo at a time, and its requests" if name == "--image" else "several requests"
            raise data.BadData(f'{name} is given twice: {one} go behind one --query "the mug" "all spoons".')


def asked_for(options: Options) -> tuple[Recipe, str, str]:
    """What a command line asks for: the recipe, the dataset ("" for a photo), and who makes the masks (--segmenter).

    data.BadData, with what to write instead, where that is nothing, or a contradiction.
    """
    if not options.model or bool(options.image) != bool(options.query):
        raise data.BadData("name --model and --dataset, or --model, --image and --query, or --score; see --help.")
    if options.image and not Path(options.image).is_file():
        raise data.BadData(f"--image {options.image}: there is no such file.")
    home = Path(options.model)
    if home.is_dir() and not any((home / name).exists() for name in ("recipe.json", "config.json")):
        inside = home / "final" if (home / "final").is_dir() else newest(home)
        advice = f"did you mean {inside}?" if inside else "it has neither recipe.json nor config.json."
        raise data.BadData(f"{home} is no checkpoint: {advice}")
    if options.recipe and options.recipe not in RECIPES:
        raise data.BadData(f"no recipe {options.recipe!r}; there are: {', '.join(RECIPES)}")
    # How to ask: the checkpoint's own recipe, or the one named.
    named = RECIPES[options.recipe] if options.recipe else None
    recipe = load_recipe(options.model, miniature(named) if named and options.toy else named)
    dataset = options.dataset or ("toy" if recipe.dataset == "toy" else "")
    # Detection and counting ask for boxes alone; SAM2 would be idle work there.
    masks = options.segmenter or ("none" if dataset in ("coco-detection", "counting") else "")
    masks = masks or models.segmenter_to_follow(recipe.segmenter)
    if options.image and (masks in ("none", "truth") or options.model == "oracle"):
        raise data.BadData("one photo needs a model and a SAM2: it has no truth.")
    if not options.image and not dataset:
        raise data.BadData(f"name a benchmark with --dataset ({', '.join(data.LOADERS)}), or a photo with --image.")
    return recipe, dataset, masks


def load_networks(options: Options, recipe: Recipe, masks: str, device: torch.device):
    """Who answers, a Policy or "oracle"; who makes the masks, a Segmenter, "truth" (the true ones) or None."""
    policy = "oracle"
    segmenter = "truth" if masks == "truth" else None
    if options.model != "oracle":
        policy = models.load_policy(
            options.model,
            image_size=recipe.image_size,
            max_pixels=recipe.max_pixels,
            device=device,
            dtype=torch.float32 if device.type == "cpu" else getattr(torch, recipe.dtype),
            segmenter=options.segmenter,
        ).eval()
        alone = recipe.num_queries and policy.context is None and masks not in ("none", "truth")
        if alone and PartialState().is_main_process:
            print(f"note: {options.model} has no context module: masks are SAM2's, of the written boxes, not LENS's")
    own = getattr(policy, "segmenter", None)  # LENS: with the mask decoder that was trained with it
    if own and options.segmenter not in ("", "none", "truth", own.name):
        raise data.BadData("a LENS checkpoint brings its own SAM2, trained with it: leave --segmenter out.")
    if masks not in ("none", "truth"):
        segmenter = own or models.load_segmenter(masks, device)
    return policy, segmenter


def provenance(policy, recipe: Recipe, dataset: str, masks: str, options: Options) -> dict:
    """run.json: whatever could change a prediction, so that an interrupted run is only taken up by its like."""
    asked = "split data_root one_expression limit make_up seed temperature prompts prompt_variant model".split()
    return {
        "dataset": dataset,
        "segmenter": masks,
        **{field: getattr(options, field) for field in asked},
        "weights": weights_digest(options.model),
        "image_size": recipe.image_size,
        "max_pixels": recipe.max_pixels,
        "prompt_hash": None if policy == "oracle" else data.prompt_hash(recipe.schema, data.FAMILIES[policy.family]),
        "recipe": dataclasses.asdict(recipe),
        "versions": {package: version(package) for package in ("torch", "transformers", "sam2", "numpy")},
    }


def main(options: Options) -> None:
    """The command: print a table again, or answer one photo, or a benchmark."""
    check_ranges(dataclasses.asdict(options), EVALUATION_RANGES)
    if options.score:
        run = read_run(Path(options.score).parent)
        if not (records := read_records(options.score)):
            raise data.BadData(f"{options.score} is empty: nothing to score.")
        report_metrics(records, run, options)
        return
    recipe, dataset, masks = asked_for(options)
    state = PartialState(timeout=AN_HOUR)
    patient()
    policy, segmenter = load_networks(options, recipe, masks, state.device)
    how = {
        "prompts_mode": options.prompts,
        "variant": options.prompt_variant,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    # Beside a checkpoint, not in it: train.py renews final/ and takes old checkpoints away.
    home = Path(options.model)
    kind, what = ("photo", Path(options.image).stem) if options.image else ("eval", f"{dataset}-{options.split}")
    own = home.parent / f"{kind}-{home.name}-{what}" if (home / "recipe.json").exists() else None
    out = Path(options.output_dir or own or Path("runs", home.name, f"{kind}-{what}"))
    if not options.image:
        run = provenance(policy, recipe, dataset, masks, options)
        benchmark(policy, segmenter, recipe, run, out, options, how, state)
    elif state.is_main_process:
        photo(policy, segmenter, recipe, out, options, how)


if __name__ == "__main__":
    console()
    transformers.utils.logging.disable_progress_bar()  # ours says what takes long
    try:
        once(sys.argv[1:])
        main(tyro.cli(Options, use_underscores=True))
    except (data.BadData, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
