"""Benchmarks, and one photo: what a checkpoint writes, what SAM2 makes of it, and what that is worth.

    python evaluate.py --model runs/drseg/final --dataset refcocog --split val --data_root data
    python evaluate.py --model runs/drseg/final --image photo.jpg --query "the mug nearest the window"
    python evaluate.py --model toy/qwen2_5_vl --recipe drseg --toy       # the miniature, on a laptop
    python evaluate.py --model oracle --recipe drseg --toy               # the ground truth as text, by the same path
    python evaluate.py --score OUT/predictions.jsonl                     # the table again, without a model
    accelerate launch evaluate.py ...                                    # the same figures from several processes

Three stages, with OUT/predictions.jsonl between them, one record a sample (text, boxes, mask, pixels):

    inference.py     pictures and requests  ->  records
    metrics.py       records                ->  every figure (OUT/metrics.json)
    report.py        records                ->  pictures to look at (OUT/report.html)

So a figure can be traced to the answers that it counts, a metric added later needs no model, and a run that was cut off
goes on where it was.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

import data
import model as models
import pictures
from folders import choose, claim, fingerprint, load_recipe, load_samples, merge_records, read_records, write_atomically
from inference import answer_samples, predict
from metrics import all_metrics, segmentation_metrics
from published import show
from recipes import RECIPES, Recipe, miniature


def evaluate(policy, segmenter, samples: Sequence[data.Sample], recipe: Recipe, **kw) -> dict:
    """segmentation_metrics over answer_samples, with its arguments: train.py's score before and after."""
    return segmentation_metrics(list(answer_samples(policy, segmenter, samples, recipe, **kw)))


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
    # default: eval-CKPT-DATASET-SPLIT beside a checkpoint of train.py, else runs/MODEL/eval-DATASET-SPLIT
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
    query: str = ""  # ... and what to find on it


def report_metrics(records: list[dict], run: dict, options: Options) -> dict:
    """All metrics, printed and returned. From a file or after a run: the same records, the same figures."""
    metrics = all_metrics(records, run["dataset"])
    print(show(metrics, run["dataset"], run["split"]))
    # RefCOCO's sets share COCO's pictures: a picture of the test may have been trained on, under another sentence.
    if options.overlap_with:
        training = data.load(options.overlap_with, run["data_root"] or None, options.overlap_split)
        seen = {sample.image_id for sample in training}
        for name, inside in (("overlap", True), ("clean", False)):
            metrics[name] = all_metrics([r for r in records if (r["image_id"] in seen) == inside], run["dataset"])
            print(f"\n{name}: pictures {'' if inside else 'not '}in {options.overlap_with} {options.overlap_split}")
            print(show(metrics[name], run["dataset"], ""))
    return metrics


def benchmark(policy, segmenter, recipe: Recipe, run: dict, out: Path, options: Options, how: dict, state) -> None:
    """Answer what is not answered yet, by all processes, each into a file of its own; then merge and print."""
    samples = load_samples(run)
    chosen = choose(samples, options.make_up, options.limit, options.seed)
    merged = mine = out / "predictions.jsonl"
    if state.process_index:
        mine = out / f"predictions.{state.process_index}.jsonl"
    if state.is_main_process:
        claim(out, run)
        merge_records(out)  # an interrupted run is taken up, however many processes it had
    state.wait_for_everyone()
    done = {r["index"] for r in read_records(merged)}
    state.wait_for_everyone()  # nobody writes while others read
    # What is left goes round in turn: neighbours in a dataset often share a picture, and so cost the same.
    left = [i for i in chosen if i not in done][state.process_index :: state.num_processes]
    answers = answer_samples(policy, segmenter, samples, recipe, indices=left, batch_size=options.batch_size, **how)
    with open(mine, "a") as file:
        for record in tqdm(answers, f"{run['dataset']} {run['split']}", len(left), disable=not state.is_main_process):
            file.write(json.dumps(record) + "\n")
            file.flush()  # a killed run loses the batch that it was at, and no more
    state.wait_for_everyone()
    if state.is_main_process:
        metrics = report_metrics(merge_records(out), run, options)
        write_atomically(out / "metrics.json", json.dumps(metrics, indent=1))
        print(f"\n{merged}, metrics.json and run.json written; to look at it: python report.py {out}")


def photo(policy, segmenter, recipe: Recipe, options: Options, how: dict) -> None:
    """One photo: print what the model wrote; write PHOTO.overlay.png, PHOTO.mask.png beside it or in --output_dir."""
    picture, path = pictures.open_image(options.image), Path(options.image)
    nothing = np.zeros((0, 4)), np.zeros((0, 0, 2))  # a sample without a truth: no boxes, no points
    sample = data.Sample(options.query, *nothing, path.name, path.name, *picture.size, lambda: picture)
    text, answer, mask, _ = predict(policy, segmenter, [sample], recipe, [0], **how)[0]
    print(text)
    if answer.no_target or not answer.answer_ok:
        print("(nothing fits)" if answer.no_target else "(the answer is not in the recipe's format)")
    out, objects = Path(options.output_dir or path.parent), answer.instances
    out.mkdir(parents=True, exist_ok=True)
    dots = [[xy for o in objects for xy in o.points], [xy for o in objects for xy in o.negative_points]]
    drawn = pictures.overlay(picture, mask, None, [o.box for o in objects], *dots)
    for kind, image in (("overlay", drawn), ("mask", Image.fromarray(mask.astype(np.uint8) * 255))):
        image.save(out / f"{path.stem}.{kind}.png")
        print(f"wrote {out / path.stem}.{kind}.png")


def asked_for(options: Options) -> tuple[Recipe, str, str]:
    """What a command line asks for: the recipe, the dataset ("" for a photo), and who makes the masks (--segmenter).

    data.BadData, with what to write instead, where that is nothing, or a contradiction.
    """
    if not options.model or bool(options.image) != bool(options.query):
        raise data.BadData("name --model and --dataset, or --model, --image and --query, or --score; see --help.")
    if options.recipe and options.recipe not in RECIPES:
        raise data.BadData(f"no recipe {options.recipe!r}; there are: {', '.join(RECIPES)}")
    # How to ask: the checkpoint's own recipe, or the one named.
    named = RECIPES[options.recipe] if options.recipe else None
    recipe = load_recipe(options.model, miniature(named) if named and options.toy else named)
    dataset = options.dataset or ("toy" if recipe.dataset == "toy" else "")
    # Detection and counting ask for boxes alone; SAM2 would be idle work there.
    masks = options.segmenter or ("none" if dataset in ("coco-detection", "counting") else recipe.segmenter)
    if options.image and (masks in ("none", "truth") or options.model == "oracle"):
        raise data.BadData("one photo needs a model and a SAM2: it has no truth.")
    if not options.image and not dataset:
        raise data.BadData(f"name a benchmark with --dataset ({', '.join(data.LOADERS)}), or a photo with --image.")
    return recipe, dataset, masks


def load_networks(options: Options, recipe: Recipe, masks: str, device: torch.device):
    """Who answers, a Policy or "oracle"; who makes the masks, a Segmenter, "truth" (the true ones) or None."""
    policy, segmenter = "oracle", "truth" if masks == "truth" else None
    if options.model != "oracle":
        policy = models.load_policy(
            options.model, image_size=recipe.image_size or None, max_pixels=recipe.max_pixels, device=device,
            dtype=torch.float32 if device.type == "cpu" else getattr(torch, recipe.dtype),
        ).eval()  # fmt: skip
    own = getattr(policy, "segmenter", None)  # LENS: with the mask decoder that was trained with it
    if own and options.segmenter not in ("", "none", "truth"):
        raise data.BadData("a LENS checkpoint brings its own SAM2, trained with it: leave --segmenter out.")
    if masks not in ("none", "truth"):
        segmenter = own or models.load_segmenter(masks, device)
    return policy, segmenter


def provenance(policy, recipe: Recipe, dataset: str, masks: str, options: Options) -> dict:
    """run.json: whatever could change a prediction, so that an interrupted run is only taken up by its like."""
    asked = "split data_root one_expression limit make_up seed temperature prompts prompt_variant model".split()
    return {"dataset": dataset, "segmenter": masks, **{field: getattr(options, field) for field in asked}} | {
        "weights": fingerprint(options.model), "image_size": recipe.image_size, "max_pixels": recipe.max_pixels,
        "prompt_hash": None if policy == "oracle" else data.prompt_hash(recipe.schema, data.FAMILIES[policy.family]),
        "recipe": dataclasses.asdict(recipe),
        "versions": {package: version(package) for package in ("torch", "transformers", "sam2", "numpy")},
    }  # fmt: skip


def main(options: Options) -> None:
    """The command: print a table again, or answer one photo, or a benchmark."""
    if options.score:
        run = json.loads(Path(options.score).with_name("run.json").read_text())
        report_metrics(read_records(options.score), run, options)
        return
    recipe, dataset, masks = asked_for(options)
    state = PartialState(timeout=datetime.timedelta(days=2))  # who has finished waits for the others at the barrier
    policy, segmenter = load_networks(options, recipe, masks, state.device)
    how = {"prompts_mode": options.prompts, "variant": options.prompt_variant, "temperature": options.temperature}
    how["seed"] = options.seed
    if options.image:
        return photo(policy, segmenter, recipe, options, how)
    # Beside a checkpoint, not in it: train.py renews final/ and takes old checkpoints away.
    home, what = Path(options.model), f"{dataset}-{options.split}"
    own = home.parent / f"eval-{home.name}-{what}" if (home / "recipe.json").exists() else None
    out = Path(options.output_dir or own or Path("runs", home.name, f"eval-{what}"))
    run = provenance(policy, recipe, dataset, masks, options)
    benchmark(policy, segmenter, recipe, run, out, options, how, state)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, use_underscores=True))
    except (data.BadData, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
