"""The loop: one training step is sample -> judge -> compare -> update, for every recipe, on one process or many.

    python train.py --recipe drseg --toy                       # the miniature, on a laptop's CPU
    accelerate launch --config_file configs/fsdp2.yaml train.py --recipe drseg     # the paper's size, from the Hub
    accelerate launch --config_file configs/fsdp2.yaml train.py --recipe samr1 --data_root data --resume

Any field of recipes.Recipe is an option (--learning_rate 2e-6 --weights.look 0). Outputs, in --output_dir:
metrics.jsonl, curves.png, heldout.json, checkpoint-N/ and final/ (Hugging Face format, recipe inside); and
stopped-step-N-rank-R.pt, the step's inputs, if its loss is not finite.

Shape letters: P prompts of this process, G completions per prompt, T completion tokens (padded).

The loop draws nothing from global generators: the order of samples is a function of (seed, epoch), the noise of a
completion of (seed, step, place in the step, branch). So a step is a function of a checkpoint and the step's number,
after any restart; on another number of processes it is the same up to float rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs, gather_object
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from tqdm import tqdm

import checkpoint
import data
import evaluate
import fast
import folders
import grpo
import judge
import model as models
import report
import rewards
from checkpoint import at_work
from networks import build, build_reference
from published import as_text
from recipes import RECIPES, Recipe, miniature
from step import add_reference, load_batch, make_micros, oracle_rollout, paint, update

# ------------------------------------------------------------------------------------------------------------- the data


def step_samples(order: list[int], recipe: Recipe, step: int) -> list[int]:
    """The samples of a step, over all processes: one permutation per epoch, epochs follow without a gap.

    The place in the data is a function of the step alone: there is no sampler to save, and no short last batch.
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


# ---------------------------------------------------------------------------------------------------------- the figures


def summarize(
    rollout: grpo.Rollout, reward: Tensor, parts: list, measured: dict[str, list[float]], eos_token_id: int
) -> dict[str, float]:
    """This process's share of a row of metrics.jsonl.

    reward/X: a part, its weight applied; metric/X: measured, not rewarded; length: tokens; truncated: the fraction that
    has no end token; zero_variance: the fraction of groups with equal rewards, which teach nothing.
    """
    length = rollout.mask.sum(-1).float()
    ended = ((rollout.ids == eos_token_id) & rollout.mask).any(-1).float()
    columns = {f"reward/{name}": [b[name] for group in parts for b in group] for name in parts[0][0]}
    seen = {"parsed" if name == "parsed" else f"metric/{name}": values for name, values in measured.items() if values}
    return {
        "reward": reward.mean().item(), "reward_std": reward.std(correction=0).item(),
        **{name: float(np.mean(values)) for name, values in (columns | seen).items()},
        **{f"{name}_std": float(np.std(values)) for name, values in columns.items()},
        "zero_variance": (reward.amax(-1) == reward.amin(-1)).float().mean().item(),
        "length": length.mean().item(), "length_max": length.max().item(), "truncated": 1 - ended.mean().item(),
    }  # fmt: skip


def over_processes(row: dict[str, float]) -> dict[str, float]:
    """Each column's mean over the processes that have it; of length_max the maximum."""
    rows = gather_object([row])
    means = {k: float(np.mean([r[k] for r in rows if k in r])) for k in dict.fromkeys(k for r in rows for k in r)}
    return means | {"length_max": max(r["length_max"] for r in rows)}


def tell(bar, row: dict[str, float], query: str, text: str, parts: dict[str, float], advantage: float) -> None:
    """The step on the progress bar; every 20 steps its first completion above it, with what it earned."""
    bar.set_postfix(reward=f"{row['reward']:.2f}", parsed=f"{row['parsed']:.2f}", length=f"{row['length']:.0f}")
    if (row["step"] - 1) % 20 == 0:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        bar.write(f"\n[step {row['step']}] {query!r}\n{text}\n  -> {shown}; advantage {advantage:.2f}")


def aligned_giou(recipe: Recipe, policy: models.Policy, segmenter, samples: data.Samples, indices: list[int]) -> float:
    """What LENS's alignment learns, held out: the mean mask IoU on ground-truth completions."""
    ious: list[float] = []
    for i in tqdm(range(0, len(indices), recipe.prompts_per_step), desc="held out, true text"):
        batch = load_batch(recipe, policy, segmenter, samples, indices[i : i + recipe.prompts_per_step])
        micros = make_micros(policy, batch.prompts, oracle_rollout(policy, batch, recipe), recipe)
        masks = paint(policy, micros, batch.embeddings)
        truths = [torch.as_tensor(target.mask, device=policy.device) for target in batch.targets]
        ious += [models.mask_iou(masks[p, 0], truth) for p, truth in enumerate(truths)]
    return float(np.mean(ious))


def score_heldout(recipe: Recipe, policy: models.Policy, writer: models.Policy, segmenter) -> dict:
    """Metrics (evaluate.py) on the first eval_samples that the recipe can answer. writer: policy, or its replica."""
    held = data.load(recipe.dataset, recipe.data_root or None, recipe.eval_split)
    chosen = judge.usable(held, recipe)[0][: recipe.eval_samples]
    asked = policy if recipe.num_queries else writer  # a replica has no context module
    scores = evaluate.evaluate(asked, segmenter, held, recipe, indices=chosen)
    if recipe.train == "context":
        scores["giou_true_text"] = aligned_giou(recipe, policy, segmenter, held, chosen)
    return scores


# -------------------------------------------------------------------------------------------------------------- the run


def learning_rate_factor(recipe: Recipe, total: int) -> Callable[[int], float]:
    """Warm-up, then constant, linear to 0, or cosine to 0, over `total` optimizer steps."""

    def factor(update: int) -> float:
        left = 1 - max(update - recipe.warmup_steps, 0) / max(total - recipe.warmup_steps, 1)
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * np.cos(np.pi * left)}[recipe.schedule]
        return min(1.0, (update + 1) / max(recipe.warmup_steps, 1)) * shape

    return factor


def launch(recipe: Recipe, output_dir: Path, tracker: str | None) -> Accelerator:
    """Join the other processes, if there are any. SystemExit if they cannot run this recipe together."""
    # The others wait while the first process scores and saves, which may take longer than the default ten minutes.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=2))
    # Autocast's cache would keep a second copy of all weights, in bf16, through a forward.
    handlers = [patience, AutocastKwargs(cache_enabled=False)]
    precision = "bf16" if recipe.dtype == "bfloat16" else "no"
    accelerator = Accelerator(
        mixed_precision=precision, log_with=tracker, project_dir=str(output_dir), kwargs_handlers=handlers
    )
    if tracker and not accelerator.log_with:  # it is left out silently where its package is absent
        raise SystemExit(f"--tracker {tracker} needs one more package: pip install {tracker}")
    if recipe.prompts_per_step % accelerator.num_processes:
        processes = f"{accelerator.num_processes} processes"
        raise SystemExit(f"--prompts_per_step {recipe.prompts_per_step} cannot be shared evenly by {processes}")
    if accelerator.distributed_type == "FSDP" and (recipe.lora_rank or recipe.num_queries):
        raise SystemExit("LoRA and LENS cannot be sharded: use configs/ddp.yaml, where each GPU holds the whole policy")
    if accelerator.distributed_type == "FSDP" and precision == "bf16":
        # Weights are gathered in bf16, gradients summed in float32. Accelerate's own policy would also round what goes
        # into every layer (the rotary cosines with it) and the log-probabilities that come out.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    if accelerator.device.type == "cuda":  # on a CPU it takes matrix products to kernels that pile up, one per shape
        torch.set_float32_matmul_precision("high")
    return accelerator


def frozen_copies(recipe: Recipe, accelerator: Accelerator, policy: models.Policy, needs_reference: bool):
    """(reference, replica), each a frozen VLM or None where it is not needed: up to three sets of weights.

    policy      what learns; float32 whatever the compute dtype, sharded under FSDP
    replica     what writes the completions: the same weights, renewed every step, in the compute dtype and whole (a
                sharded model would have to fetch its shards again for every token)
    reference   what KL holds on to: the model that the run started from, also after --resume
    """
    reference = replica = None
    if needs_reference and not recipe.lora_rank:
        reference = build_reference(recipe, accelerator.device)
    elif needs_reference and Path(recipe.model, "adapter_config.json").exists():
        # With LoRA the reference is the policy itself, its adapter switched off: here that is not where the run starts.
        raise SystemExit(f"{recipe.model} is a LoRA, which KL would not see: merge it first (README), or --beta 0")
    # The policy itself can write where it is whole and in the compute dtype already.
    ready = accelerator.distributed_type != "FSDP" and (recipe.dtype == "float32" or recipe.lora_rank)
    if not ready and recipe.train != "context":
        replica = checkpoint.full_copy(policy, getattr(torch, recipe.dtype))
    return reference, replica


def prepare(recipe: Recipe, accelerator: Accelerator, policy: models.Policy, steps: int):
    """(policy, optimizer, schedule) for `steps` steps: the policy sharded, or with autocast around its forward."""
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], lr=recipe.learning_rate, weight_decay=recipe.weight_decay,
        fused=accelerator.device.type == "cuda",  # the default there needs room for one more copy of the weights
    )  # fmt: skip
    if accelerator.distributed_type == "FSDP":
        policy, optimizer = accelerator.prepare(policy, optimizer)
    else:  # no DDP around it (step.average_gradients): what is left of "preparing" is autocast
        policy, optimizer = accelerator.prepare_model(policy, evaluation_mode=True), accelerator.prepare(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer.optimizer, learning_rate_factor(recipe, steps * recipe.updates_per_rollout)
    )
    return policy, optimizer, schedule


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


def train(recipe: Recipe, output_dir: Path, resume: bool = False, tracker: str | None = None) -> dict:
    """Run a recipe. Returns {"before": ..., "after": ...}: held-out metrics (empty where eval_samples is 0)."""
    accelerator = launch(recipe, output_dir, tracker)
    main, world, rank = accelerator.is_main_process, accelerator.num_processes, accelerator.process_index
    device = accelerator.device

    # ---- who learns, on what
    last = checkpoint.newest(output_dir)
    if last and not resume:
        raise SystemExit(f"{output_dir} holds a run already ({last.name}): --resume it, or name another --output_dir")
    if not last and (output_dir / "final").exists():
        raise SystemExit(f"{output_dir} holds a finished run, and no checkpoint to resume: name another --output_dir")
    differ = checkpoint.compare(last, recipe) if last else []
    policy, segmenter = build(dataclasses.replace(recipe, model=str(last)) if last else recipe, accelerator)
    samples = data.load(
        recipe.dataset, recipe.data_root or None, recipe.split, one_expression=recipe.one_expression, seed=recipe.seed
    )
    order = judge.examine(samples, segmenter, recipe, main)
    steps = recipe.max_steps or max(1, int(recipe.epochs * len(order) / recipe.prompts_per_step))

    needs_reference = recipe.beta > 0 and recipe.train != "context"
    reference, replica = frozen_copies(recipe, accelerator, policy, needs_reference)

    # ---- a checkpoint holds weights, optimizer, schedule, rank queue, step; all else is a function of the step
    policy, optimizer, schedule = prepare(recipe, accelerator, policy, steps)
    bare = accelerator.unwrap_model(policy)  # what samples, packs, and is saved; forwards go through the wrapping
    queue = rewards.RankQueue(recipe.queue_size, 3, recipe.queue_zeros)
    first, rows, heldout = 0, [], {}
    if last:
        first = checkpoint.restore(last, policy, optimizer.optimizer, schedule, queue)
        if first > steps:
            raise SystemExit(f"{last} is beyond --max_steps {steps}: give more steps, or another --output_dir")
        rows, heldout = checkpoint.history(last, first)
        if main:
            print(f"going on from {last}: step {first} of {steps}; settings that differ: {', '.join(differ) or 'none'}")
    if main:
        output_dir.mkdir(parents=True, exist_ok=True)
        folders.write_atomically(output_dir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    if tracker:
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in dataclasses.asdict(recipe).items()}
        accelerator.init_trackers("runs", config=plain)  # TensorBoard takes no tuples

    @contextlib.contextmanager
    def writing():
        """Who writes completions, its weights up to date: the replica, where there is one, or the policy itself."""
        with at_work(replica or bare, device, recipe.park and replica is not None) as writer:
            if replica is not None:
                checkpoint.refresh(replica, policy)  # a collective where weights are sharded: every process takes part
            yield writer

    def score(when: str) -> None:
        if recipe.eval_samples:
            with writing() as writer:
                if main:
                    heldout[when] = score_heldout(recipe, bare, writer, segmenter)
        if main:
            folders.write_atomically(output_dir / "heldout.json", json.dumps(heldout, indent=1))
        accelerator.wait_for_everyone()

    if first == 0:
        score("before")

    # ---- the loop
    P, G = recipe.prompts_per_step // world, recipe.num_samples
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=recipe.name, disable=not main)
    for step in bar:
        clock = [time.perf_counter()]
        # Whole groups, the same number on every process: a group's mean and deviation never cross processes.
        places = range(rank * P, (rank + 1) * P)
        here = step_samples(order, recipe, step)[rank * P : (rank + 1) * P]
        batch = load_batch(recipe, bare, segmenter, samples, here)

        # sample: G completions per prompt from the policy as it is now
        if recipe.train == "context":  # LENS's alignment samples nothing: the text is the truth, the masks learn
            rollout = oracle_rollout(bare, batch, recipe)
        else:
            with writing() as writer:
                rollout = complete(recipe, writer, batch.prompts, noise(recipe, step, places, recipe.max_completion))
        clock.append(time.perf_counter())

        # judge: texts -> answers -> masks -> reward parts. Packed here already: LENS's masks come from the same rows.
        flat = bare.decode(rollout.ids.flatten(0, 1), rollout.mask.flatten(0, 1))
        texts = [flat[p * G : (p + 1) * G] for p in range(P)]
        micros = make_micros(bare, batch.prompts, rollout, recipe)
        painted = paint(policy, micros, batch.embeddings) if recipe.num_queries else None
        reward, parts, measured = judge.judge(recipe, bare, segmenter, batch, texts, queue, painted)
        queue.flush(gather_object(queue.pending))  # the same rows, in the same order, on every process

        # compare: each completion with its own group
        advantages = grpo.group_advantages(reward)
        clock.append(time.perf_counter())

        # update: the log-probabilities of the first forward are pi_old, so a ratio can leave 1, and a clip act, only
        # from the second update on the same rollout
        if needs_reference:
            with at_work(reference or bare, device, recipe.park and reference is not None):
                add_reference(reference, bare, micros, recipe)
        rate = schedule.get_last_lr()[0]
        try:
            for _ in range(recipe.updates_per_rollout):
                learned = update(accelerator, policy, optimizer, micros, batch, rollout, advantages, recipe)
                schedule.step()
        except FloatingPointError as error:
            inputs = {"step": step, "indices": here, "texts": texts, "reward": reward, **dataclasses.asdict(rollout)}
            torch.save(inputs, output_dir / f"stopped-step-{step}-rank-{rank}.pt")
            raise SystemExit(
                f"step {step}: {error}. Its inputs are in {output_dir}; the last checkpoint is untouched."
            ) from error
        clock.append(time.perf_counter())

        # what happened, over all processes
        row = over_processes(summarize(rollout, reward, parts, measured, bare.eos_token_id) | learned)
        # sample: with reading and encoding the pictures; reward: with packing the rows
        stages = zip(("sample", "reward", "update"), np.diff(clock).tolist(), strict=True)
        row = {"step": step + 1} | row | {"learning_rate": rate} | {f"seconds/{name}": took for name, took in stages}
        row["tokens_per_second"] = row["length"] * G * recipe.prompts_per_step / (clock[-1] - clock[0])
        rows.append(row)
        if main:
            with open(output_dir / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            tell(bar, row, batch.samples[0].query, texts[0][0], parts[0][0], advantages[0, 0].item())
        if tracker:
            accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == steps:
            checkpoint.write(accelerator, policy, optimizer.optimizer, schedule, queue, recipe, output_dir, step + 1)
            if main:
                report.plot_curves(rows, output_dir / "curves.png")

    score("after")
    if main:
        print(f"checkpoint: {checkpoint.finish(output_dir, steps)}")
        for name, what in {"giou": "held-out gIoU, percent", "giou_true_text": "on ground-truth completions"}.items():
            told = [f"{as_text('giou', scores[name])} {when}" for when, scores in heldout.items() if name in scores]
            if told:
                print(f"{what}: {', '.join(told)} (up to {recipe.eval_samples} samples)")
    if tracker:
        accelerator.end_training()
    return heldout


# --------------------------------------------------------------------------------------------------------- command line


def parse_command_line(argv: list[str]) -> tuple[Recipe, argparse.Namespace]:
    """--recipe and --toy choose the defaults; every field of Recipe can then be overridden."""
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
