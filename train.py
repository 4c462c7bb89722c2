"""The loop: one training step is sample -> judge -> compare -> update, for every recipe, on one process or many.

    python train.py --recipe drseg --toy                       # the miniature, on a laptop's CPU
    accelerate launch --config_file configs/fsdp2.yaml train.py --recipe drseg     # the paper's size, from the Hub
    accelerate launch --config_file configs/fsdp2.yaml train.py --recipe samr1 --data_root data --resume

Any field of recipes.Recipe is an option (--learning_rate 2e-6 --weights.look 0). Outputs, in --output_dir:
metrics.jsonl, curves.png, heldout.json, checkpoint-N/ and final/ (Hugging Face format, recipe inside); and
stopped-step-N-rank-R.pt, the step's inputs, if its loss is not finite.

    step_samples ─▶ load_batch ─▶ complete ─▶ make_micros ─▶ judge ─▶ group_advantages ─▶ update       (training_step)
     which ones     pictures,     the texts   packed rows    masks,    each completion     one or two optimizer
                    prompts                                  rewards   and its siblings    steps on these texts

Shape letters: P prompts of this process, G completions per prompt, T completion tokens (padded).

The loop draws nothing from global generators: the order of samples is a function of (seed, epoch), the noise of a
completion of (seed, step, place in the step, branch). So a step is a function of a checkpoint and the step's number,
after any restart; on another number of processes it is the same up to float rounding.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

import checkpoint
import data
import evaluate
import fast
import grpo
import journal
import judge
import model as models
from checkpoint import at_work
from folders import write_atomically
from published import as_text
from recipes import RECIPES, Recipe, miniature
from state import Run, start
from step import add_reference, load_batch, make_micros, oracle_rollout, paint, update

# ----------------------------------------------------------------------------------------- what a step is a function of


def step_samples(order: list[int], recipe: Recipe, step: int) -> list[int]:
    """The samples of a step, over all processes: one permutation per epoch, epochs follow without a gap.

    The place in the data is a function of the step alone: there is no sampler to save, and no short last batch. With
    order [10, 11, 12] and two prompts a step, steps 0 to 2 may take [11, 10], [12, 10], [12, 11].
    """
    first, last = step * recipe.prompts_per_step, (step + 1) * recipe.prompts_per_step - 1
    epochs = range(first // len(order), last // len(order) + 1)
    shuffled = np.concatenate([np.random.default_rng([recipe.seed, epoch]).permutation(order) for epoch in epochs])
    start = first - epochs[0] * len(order)
    return shuffled[start : start + recipe.prompts_per_step].tolist()


def noise(recipe: Recipe, step: int, places: Sequence[int], T: int) -> Tensor:
    """Uniforms (P, G, T) in [0, 1): each completion's own generator, seeded by (seed, step, place, branch).

    places: of the P prompts among those of the step, over all processes. Not their samples: a small dataset has a
    sample twice in a step, and the same noise would write the same completions again.
    """
    draw = lambda i, g: np.random.default_rng([recipe.seed, step, i, g]).random(T, dtype=np.float32)  # noqa: E731
    return torch.from_numpy(np.stack([[draw(i, g) for g in range(recipe.num_samples)] for i in places]))


# ------------------------------------------------------------------------------------------------------------- one step


def complete(recipe: Recipe, writer: models.Policy, prompts: models.Prompts, uniforms: Tensor) -> grpo.Rollout:
    """G completions per prompt, from uniforms (P, G, T). A few prompts at a time where their caches need the room."""
    sampler, parts = fast.sample if recipe.capture else grpo.sample, []
    few = recipe.prompts_at_once or len(uniforms)
    for i in range(0, len(uniforms), few):
        parts.append(sampler(
            writer.vlm, prompts.part(i, i + few), uniforms[i : i + few], num_samples=recipe.num_samples,
            max_new_tokens=recipe.max_completion, temperature=recipe.temperature, top_p=recipe.top_p,
            eos_token_id=writer.eos_token_id, banned_ids=writer.banned_ids,
        ))  # fmt: skip
    return grpo.Rollout(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "mask", "logp")))


def training_step(run: Run, step: int) -> tuple[dict[str, float], journal.Shown]:
    """Step number `step` of a run. Returns its row of metrics.jsonl, and one completion to show.

    SystemExit if the loss is not finite: no file has changed then, and the step's inputs are in the output folder.
    """
    recipe, accelerator = run.recipe, run.accelerator
    P, rank = recipe.prompts_per_step // accelerator.num_processes, accelerator.process_index
    clock = [time.perf_counter()]
    # Whole groups, the same number on every process: a group's mean and deviation never cross processes.
    places = range(rank * P, (rank + 1) * P)
    here = step_samples(run.order, recipe, step)[rank * P : (rank + 1) * P]
    batch = load_batch(recipe, run.bare, run.segmenter, run.samples, here)

    # sample: G completions per prompt from the policy as it is now. GRPO needs several: what one is worth, it learns
    # from the others.
    if recipe.train == "context":  # LENS's alignment samples nothing: the text is the truth, the masks learn
        rollout = oracle_rollout(run.bare, batch, recipe)
    else:
        with run.writing() as writer:
            rollout = complete(recipe, writer, batch.prompts, noise(recipe, step, places, recipe.max_completion))
    clock.append(time.perf_counter())

    # judge: (P, G) texts -> answers -> masks -> reward parts. A text that does not parse is judged like any other: it
    # earns what its parts give it, usually little. Packed here already: LENS's masks come from the same rows.
    G = rollout.ids.shape[1]
    flat = run.bare.decode(rollout.ids.flatten(0, 1), rollout.mask.flatten(0, 1))
    texts = [flat[p * G : (p + 1) * G] for p in range(P)]
    micros = make_micros(run.bare, batch.prompts, rollout, recipe)
    painted = paint(run.policy, micros, batch.embeddings) if recipe.num_queries else None
    reward, parts, measured = judge.judge(recipe, run.bare, run.segmenter, batch, texts, run.queue, painted)
    run.queue.flush(gather_object(run.queue.pending))  # the same rows, in the same order, on every process

    # compare: each completion with its own group. Where all of a group earn the same, nothing can be told from it: its
    # advantages are 0 (zero_variance in metrics.jsonl is the share of such groups).
    advantages = grpo.group_advantages(reward)
    clock.append(time.perf_counter())

    # update: the log-probabilities of the first forward are pi_old, so a ratio can leave 1, and a clip act, only from
    # the second update on the same rollout. What the sampler noted is only a check: its kernels round otherwise than
    # the update's, and that difference would look like a step already taken.
    if recipe.needs_reference:
        with at_work(run.reference, run.bare, accelerator.device, recipe.park):
            add_reference(run.reference, run.bare, micros, recipe)
    rate = run.schedule.get_last_lr()[0]
    try:
        for _ in range(recipe.updates_per_rollout):
            learned = update(accelerator, run.policy, run.optimizer, micros, batch, rollout, advantages, recipe)
            run.schedule.step()
    except FloatingPointError as error:
        inputs = {"step": step, "indices": here, "texts": texts, "reward": reward, **dataclasses.asdict(rollout)}
        torch.save(inputs, run.output_dir / f"stopped-step-{step}-rank-{rank}.pt")
        raise SystemExit(
            f"step {step}: {error}. Its inputs are in {run.output_dir}; the last checkpoint is untouched."
        ) from error
    clock.append(time.perf_counter())

    # tell: what happened, over all processes
    figures = journal.summarize(rollout, reward, parts, measured, run.bare.eos_token_id)
    row = {"step": step + 1} | journal.over_processes(figures | learned) | {"learning_rate": rate}
    row |= journal.durations(clock, row["length"] * G * recipe.prompts_per_step)
    return row, journal.Shown(batch.samples[0].query, texts[0][0], parts[0][0], advantages[0, 0].item())


# -------------------------------------------------------------------------------------------------------------- the run


def aligned_giou(run: Run, samples: data.Samples, indices: list[int]) -> float:
    """What LENS's alignment learns, held out: the mean mask IoU on ground-truth completions."""
    ious: list[float] = []
    for i in tqdm(range(0, len(indices), run.recipe.prompts_per_step), desc="held out, true text"):
        here = indices[i : i + run.recipe.prompts_per_step]
        batch = load_batch(run.recipe, run.bare, run.segmenter, samples, here)
        micros = make_micros(run.bare, batch.prompts, oracle_rollout(run.bare, batch, run.recipe), run.recipe)
        masks = paint(run.bare, micros, batch.embeddings)
        truths = [torch.as_tensor(target.mask, device=run.bare.device) for target in batch.targets]
        ious += [models.mask_iou(masks[p, 0], truth) for p, truth in enumerate(truths)]
    return float(np.mean(ious))


def score(run: Run, when: str) -> None:
    """Held-out metrics (evaluate.py) into run.heldout[when] and heldout.json, by the first process; the others wait."""
    recipe = run.recipe
    if recipe.eval_samples:
        with run.writing() as writer:
            if run.accelerator.is_main_process:
                held = data.load(recipe.dataset, recipe.data_root or None, recipe.eval_split)
                chosen = judge.usable(held, recipe)[0][: recipe.eval_samples]
                asked = run.bare if recipe.num_queries else writer  # a replica has no context module
                run.heldout[when] = evaluate.evaluate(asked, run.segmenter, held, recipe, indices=chosen)
                if recipe.train == "context":
                    run.heldout[when]["giou_true_text"] = aligned_giou(run, held, chosen)
    if run.accelerator.is_main_process:
        write_atomically(run.output_dir / "heldout.json", json.dumps(run.heldout, indent=1))
    run.accelerator.wait_for_everyone()


def train(recipe: Recipe, output_dir: Path, resume: bool = False, tracker: str | None = None) -> dict:
    """Run a recipe. Returns {"before": ..., "after": ...}: held-out metrics (empty where eval_samples is 0)."""
    run = start(recipe, output_dir, resume, tracker)
    main = run.accelerator.is_main_process
    if run.first == 0:  # else the score is in the folder already
        score(run, "before")
    bar = tqdm(range(run.first, run.steps), initial=run.first, total=run.steps, desc=recipe.name, disable=not main)
    for step in bar:
        row, shown = training_step(run, step)
        run.rows.append(row)
        if main:
            with open(output_dir / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            journal.tell(bar, row, shown)
        if tracker:  # TensorBoard or Weights & Biases, beside the files
            run.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == run.steps:
            checkpoint.write(run, step + 1)  # all processes: where weights are sharded each has a part
            if main:
                journal.plot_curves(run.rows, output_dir / "curves.png")
    score(run, "after")
    if main:
        print(f"checkpoint: {checkpoint.finish(output_dir, run.steps)}")
        for name, what in {"giou": "held-out gIoU, percent", "giou_true_text": "on ground-truth completions"}.items():
            told = [f"{as_text('giou', scores[name])} {when}" for when, scores in run.heldout.items() if name in scores]
            if told:
                print(f"{what}: {', '.join(told)} (up to {recipe.eval_samples} samples)")
    if tracker:
        run.accelerator.end_training()
    return run.heldout


# --------------------------------------------------------------------------------------------------------- command line


def parse_command_line(argv: list[str]) -> tuple[Recipe, argparse.Namespace]:
    """--recipe and --toy choose the defaults; every field of Recipe can then be overridden."""
    # Two parsers, since the first one's answer is the second one's defaults.
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--recipe", default="drseg", choices=sorted(RECIPES))
    first.add_argument("--toy", action="store_true")
    first.add_argument("--output_dir", type=Path, default=None)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--tracker", default=None, choices=["tensorboard", "wandb"])
    args, rest = first.parse_known_args(argv)
    recipe = miniature(RECIPES[args.recipe]) if args.toy else RECIPES[args.recipe]
    if {"-h", "--help"} & set(rest):
        first.print_help()
    values = (tyro.conf.FlagConversionOff,)  # --released True, as every field is given
    recipe = tyro.cli(Recipe, default=recipe, args=rest, prog="train.py", config=values)
    if len(recipe.tiers) != len(recipe.tier_rewards):
        raise SystemExit(f"--tiers {recipe.tiers} and --tier_rewards {recipe.tier_rewards} differ in number")
    args.output_dir = args.output_dir or Path("runs", recipe.name + ("-toy" if args.toy else ""))
    return recipe, args


def main() -> None:
    """The command. What a person can mend ends in a sentence that says how, not in a traceback."""
    recipe, args = parse_command_line(sys.argv[1:])
    try:
        train(recipe, args.output_dir, args.resume, args.tracker)
    except (data.BadData, OSError) as error:
        hint, toy = "", " --toy" if args.toy else ""
        if "could not load the policy" in str(error) and recipe.train == "all" and recipe.model.startswith("runs/"):
            first = args.recipe.replace("lens", "lens-align")
            hint = f"\n(It is what the stage before makes: python train.py --recipe {first}{toy})"
        elif not toy and (isinstance(error, data.BadData) or "could not load" in str(error)):
            hint = f"\n(The miniature needs nothing but this folder: python train.py --recipe {args.recipe} --toy)"
        raise SystemExit(f"{error}{hint}") from error


if __name__ == "__main__":
    main()
