"""The loop: one training step is sample -> judge -> compare -> update, for every recipe, on one process or many.

    python train.py --recipe drseg --toy                       # the miniature, on a laptop's CPU
    accelerate launch train.py --recipe drseg                  # the paper's run: model and data from the Hub
    accelerate launch --config_file configs/fsdp2.yaml train.py --recipe samr1 --data_root data --resume

Any field of recipes.Recipe is an option (--learning_rate 2e-6 --tiers 0.5 --weights.look 0). Outputs, in --output_dir:
metrics.jsonl, curves.png, heldout.json, checkpoint-N/ and final/ (Hugging Face format, recipe inside).

Shape letters: P prompts of this process, G completions per prompt, T completion tokens (padded), M completion tokens of
a micro-batch. No randomness is drawn from global generators: the order of samples is a function of (seed, epoch), the
noise of a completion of (seed, step, sample, branch). So a step is a function of the weights and its number, on any
number of processes, after any restart.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from tqdm import tqdm

import data
import evaluate
import fast
import grpo
import model as models
import rewards
from recipes import RECIPES, Recipe, miniature

# ------------------------------------------------------------------------------------------------------------- the data


def usable(samples: data.Samples, recipe: Recipe, progress: bool = False) -> tuple[list[int], dict[str, int]]:
    """Indices of the samples whose request the recipe's schema can answer, and how many were left out for which
    reason."""
    spec, kept, left = rewards.SCHEMAS[recipe.schema], [], {}
    for i in tqdm(range(len(samples)), desc="reading the data", disable=not progress, mininterval=1):
        sample, why = samples[i], None
        if sample.no_target and not spec.no_target:
            why = "nothing fits, which the schema cannot say"
        elif len(sample.boxes) > 1 and not spec.many:
            why = "several objects, where the schema has one"
        elif spec.negatives and not sample.no_target and sample.negative_points(len(spec.negatives)) is None:
            why = "no room for background points in a box"
        if why is None:
            kept.append(i)
        else:
            left[why] = left.get(why, 0) + 1
    if recipe.limit and recipe.limit < len(kept):
        kept = sorted(np.random.default_rng(recipe.seed).choice(kept, recipe.limit, replace=False).tolist())
    return kept, left


def step_samples(order: list[int], recipe: Recipe, step: int) -> list[int]:
    """The samples of a step, over all processes: one permutation per epoch, read on without a gap from one epoch to the
    next.

    The place in the data is a function of the step alone: there is no sampler to save, and no short last batch.
    """
    first, last = step * recipe.prompts_per_step, (step + 1) * recipe.prompts_per_step - 1
    epochs = range(first // len(order), last // len(order) + 1)
    shuffled = np.concatenate([np.random.default_rng([recipe.seed, epoch]).permutation(order) for epoch in epochs])
    start = first - epochs[0] * len(order)
    return shuffled[start : start + recipe.prompts_per_step].tolist()


def noise(recipe: Recipe, step: int, indices: list[int], T: int) -> Tensor:
    """Uniforms (P, G, T) in [0, 1): each completion's own generator, seeded by (seed, step, sample index, branch)."""
    draw = lambda i, g: np.random.default_rng([recipe.seed, step, i, g]).random(T, dtype=np.float32)  # noqa: E731
    return torch.from_numpy(np.stack([[draw(i, g) for g in range(recipe.num_samples)] for i in indices]))


def reward_frame(recipe: Recipe, sample: data.Sample) -> tuple[float, float]:
    return recipe.reward_frame if recipe.reward_frame[0] else (sample.width, sample.height)


def to_target(sample: data.Sample, recipe: Recipe) -> rewards.Target:
    """A sample's ground truth in the recipe's reward frame. Its mask is decoded only where the recipe looks at it."""
    frame, size = reward_frame(recipe, sample), (sample.width, sample.height)
    k = len(rewards.SCHEMAS[recipe.schema].points)
    points = sample.positive_points(min(k, sample.points.shape[1] or k)) if k else np.zeros((len(sample.boxes), 0, 2))
    mask = sample.mask if recipe.segmenter_use != "evaluation" else None
    return rewards.Target(
        data.to_frame(sample.boxes, size, frame), data.to_frame(points, size, frame), mask, sample.no_target, frame
    )


def reward_parts(
    recipe: Recipe,
    answer: rewards.Answer,
    target: rewards.Target,
    mask_iou: float | None,
    queue: rewards.RankQueue | None,
) -> dict[str, float]:
    """The recipe's reward, by part. answer and target in the recipe's frame."""
    options: dict = {"weights": recipe.weights}
    if recipe.reward == "drseg":
        options |= {"queue": queue if recipe.rank == "queue" else None, "components": recipe.components}
    if recipe.reward == "samr1":
        options |= {"tiers": recipe.tiers, "tier_rewards": recipe.tier_rewards}
    if recipe.reward in ("drseg", "visionreasoner", "segzero"):
        options |= {"released": recipe.released}
    return rewards.REWARDS[recipe.reward](answer, target, mask_iou, **options)


def check_rewards(
    samples: data.Samples, indices: list[int], recipe: Recipe, progress: bool = False
) -> tuple[list[int], list[str]]:
    """Before step 0: does the data's own ground truth, written in the recipe's format, earn the maximum?

    It is written and parsed as a model's text would be; where a mask is judged, its IoU is put in as 1. Returns the
    indices that pass, and a line for each that does not. A frame mixed up, or a point outside its own box, shows here,
    and not as a reward that stays flat for a day.
    """
    weights = dict(recipe.weights)
    if recipe.reward == "samr1":  # tiers may have been changed
        weights["tiered"] = weights["tiered"] * max(recipe.tier_rewards) / 4
    if recipe.reward == "drseg" and recipe.released:
        weights |= {"answer": 2 * weights["answer"], "accuracy": len(recipe.components) * weights["accuracy"]}
    good, bad = [], []
    for i in tqdm(indices, desc="reward check", disable=not progress, mininterval=1):
        sample = samples[i]
        try:
            text = evaluate.oracle_answer(sample, recipe.schema, reward_frame(recipe, sample))
            answer, target = rewards.parse_answer(text, recipe.schema), to_target(sample, recipe)
            parts = reward_parts(recipe, answer, target, 1.0, rewards.RankQueue(initial_zeros=1))
        except data.BadData as error:
            bad.append(f"{sample.id}: {error}")
            continue
        most = rewards.maximum(recipe.reward, sample.no_target, weights)
        if sum(parts.values()) < most - 1e-6:
            bad.append(f"{sample.id}: earns {sum(parts.values()):.3f} of {most:g}, {parts}")
        else:
            good.append(i)
    return good, bad


# ------------------------------------------------------------------------------------------------- one step, as stages


@dataclasses.dataclass
class Batch:
    """What this process works on in one step."""

    indices: list[int]
    samples: list[data.Sample]
    images: list
    prompts: models.Prompts
    targets: list[rewards.Target]
    embeddings: models.Embeddings | None  # one embedding per picture serves all its completions, reward and update


def load_batch(recipe: Recipe, policy: models.Policy, segmenter, samples: data.Samples, indices: list[int]) -> Batch:
    """Read the pictures of a step, and encode prompts and (where masks are judged) SAM2's embeddings, once per prompt.

    SystemExit if a prompt is longer than the recipe allows; data.BadData, with the file's name, if a picture is broken.
    """
    chosen = [samples[i] for i in indices]
    images = [s.image for s in chosen]
    space = data.FAMILIES[policy.family][0]
    with torch.no_grad():
        prompts = policy.encode(images, [data.build_prompt(s.query, recipe.schema, space) for s in chosen])
        lengths = prompts.inputs["attention_mask"].sum(-1).tolist()
        if max(lengths) > recipe.max_prompt:
            worst = chosen[int(np.argmax(lengths))].id
            raise SystemExit(
                f"the prompt of sample {worst} has {max(lengths)} tokens, above --max_prompt {recipe.max_prompt}"
            )
        embeddings = segmenter.embed(images) if recipe.segmenter_use != "evaluation" else None
    return Batch(indices, chosen, images, prompts, [to_target(s, recipe) for s in chosen], embeddings)


@dataclasses.dataclass
class Micro:
    """Packed rows that go through the network together, and what the loss needs to know of their M tokens (B
    completions)."""

    rows: models.Rows
    at: Tensor  # (M,) index of each token in the flattened (P, G, T)
    branches: list[tuple[int, int]]  # (p, g) of each of the B completions
    old_logp: Tensor | None = None  # (M,)
    ref_logp: Tensor | None = None  # (M,)


def make_micros(policy: models.Policy, prompts: models.Prompts, rollout: grpo.Rollout, recipe: Recipe) -> list[Micro]:
    """Cut a step into micro-batches of packed rows. How it is cut changes no gradient: the weights are those of the
    whole step.

    A group fills one row, or several where it has more than max_row_tokens, each repeating the prompt. Rows of similar
    length go together, so that little is padded.
    """
    P, G, T = rollout.mask.shape
    lengths = rollout.mask.sum(-1).tolist()
    tail = recipe.num_queries
    plan: list[tuple[int, int, list[int]]] = []  # (tokens, p, branches)
    for p in range(P):
        prompt = int(prompts.inputs["attention_mask"][p].sum())
        row: list[int] = []
        tokens = prompt
        for g in range(G):
            if row and tokens + lengths[p][g] + tail > recipe.max_row_tokens:
                plan.append((tokens, p, row))
                row, tokens = [], prompt
            row.append(g)
            tokens += lengths[p][g] + tail
        plan.append((tokens, p, row))
    plan.sort(key=lambda r: (-r[0], r[1], r[2]))  # the longest first: if memory runs out, it does at once
    micros = []
    for i in range(0, len(plan), recipe.rows_per_batch):
        part = plan[i : i + recipe.rows_per_batch]
        branches = [(p, g) for _, p, row in part for g in row]
        groups = [(p, [rollout.ids[p, g, : lengths[p][g]] for g in row]) for _, p, row in part]
        at = torch.cat([(p * G + g) * T + torch.arange(lengths[p][g]) for p, g in branches]).to(rollout.ids.device)
        micros.append(Micro(policy.pack(prompts, groups, grpo.pack_group), at, branches))
    return micros


def judge(
    recipe: Recipe, policy: models.Policy, segmenter, batch: Batch, texts: list[list[str]], queue, painted: dict | None
) -> tuple[Tensor, list[list[dict[str, float]]], dict[str, list[float]]]:
    """Texts (P, G) -> rewards (P, G), their parts, and what is measured without being rewarded. Pushes into the rank
    queue.

    painted: (p, g) -> (H, W) bool, LENS's masks from the context queries; None where SAM2 is prompted with the written
    boxes.
    """
    G = len(texts[0])
    answers = [[rewards.parse_answer(text, recipe.schema) for text in group] for group in texts]
    frames = [data.model_frame(policy.family, size) for size in batch.prompts.resized]
    sizes = [(s.width, s.height) for s in batch.samples]
    masks: dict | None = painted
    if recipe.segmenter_use == "reward":  # SAM2 in the reward: boxes and points of all completions in one batched call
        pairs = [(p, g) for p in range(len(texts)) for g in range(G)]
        prompts = [
            answers[p][g].rescaled(frames[p], sizes[p]).instances if answers[p][g].answer_ok else [] for p, g in pairs
        ]
        masks = dict(zip(pairs, segmenter.union(batch.embeddings, [p for p, _ in pairs], prompts), strict=True))
    parts, logged = [], {"parsed": [], "box_iou": []}
    for p, target in enumerate(batch.targets):
        truth = None if masks is None else torch.as_tensor(target.mask, device=segmenter.device)
        parts.append([])
        for g in range(G):
            answer = answers[p][g].rescaled(frames[p], target.frame)
            iou = None
            if masks is not None:
                iou = models.mask_iou(masks[p, g], truth)
                logged.setdefault("mask_iou", []).append(iou)
            parts[-1].append(reward_parts(recipe, answer, target, iou, queue))
            logged["parsed"].append(float(answer.answer_ok))
            if recipe.reward == "drseg":
                x = rewards.drseg_metrics(answer, target, recipe.released)
                queue.push(x)
                for name, value in zip(("box_iou", "count", "point"), x, strict=True):
                    logged.setdefault(name, []).append(value)
            elif len(target.boxes):
                boxes = np.array([o.box for o in answer.instances[: rewards.MAX_OBJECTS]]).reshape(-1, 4)
                best = rewards.box_ious(boxes, target.boxes).max(0) if len(boxes) else np.zeros(len(target.boxes))
                logged["box_iou"].append(float(best.mean()))
    return torch.tensor([[sum(b.values()) for b in group] for group in parts]), parts, logged


def paint(policy: models.Policy, micros: list[Micro], batch: Batch, recipe: Recipe) -> dict[tuple[int, int], Tensor]:
    """LENS: the mask of every completion, (p, g) -> (H, W) bool, by one packed forward without gradient (the reward
    needs it first)."""
    masks = {}
    with torch.no_grad():
        for micro in micros:
            index = torch.tensor([p for p, _ in micro.branches], device=policy.device)
            logits = policy(micro.rows, grpo.token_logprobs, recipe.temperature, batch.embeddings, index)[2]
            for (p, g), logit in zip(micro.branches, logits, strict=True):
                masks[p, g] = models.Segmenter.resize(logit, batch.embeddings.sizes[p]) > 0
    return masks


def update(
    accelerator: Accelerator,
    policy,
    optimizer: torch.optim.Optimizer,
    micros: list[Micro],
    batch: Batch,
    rollout: grpo.Rollout,
    advantages: Tensor,
    recipe: Recipe,
) -> dict[str, float]:
    """One optimizer step on a rollout: the sum over micro-batches of grpo_loss (and LENS's L_seg), then clip, then
    step.

    Every process holds the same number of whole groups, so the mean that DDP and FSDP take over processes of these
    sums, each with weights that sum to 1, is the loss over all prompts; no other denominator is needed. Returns
    weighted sums to log.
    """
    P, G, _ = rollout.mask.shape
    weights = grpo.token_weights(rollout.mask, recipe.average).flatten()
    per_token = advantages.to(weights.device).flatten().repeat_interleave(rollout.mask.shape[-1])
    sampled = rollout.logp.flatten()
    totals: dict[str, Tensor] = {}
    optimizer.zero_grad()
    # Processes may need different numbers of rows; under FSDP every forward is a collective, so the short ones repeat a
    # row at weight 0.
    rounds = len(micros)
    if accelerator.num_processes > 1:
        rounds = max(gather_object([rounds]))
    for i in range(rounds):
        micro, real = micros[i % len(micros)], float(i < len(micros))
        last = i == rounds - 1
        with nullcontext() if last else accelerator.no_sync(policy):
            index = torch.tensor([p for p, _ in micro.branches], device=weights.device)
            painting = batch.embeddings if recipe.num_queries else None
            logp, entropy, masks = policy(micro.rows, grpo.token_logprobs, recipe.temperature, painting, index)
            w = weights[micro.at] * real
            metrics = {"entropy": (w * entropy).sum(), "gap": (w * (logp.detach() - sampled[micro.at]).abs()).sum()}
            loss = torch.zeros((), device=weights.device)
            if recipe.train != "context":
                if micro.old_logp is None:  # the first update: pi_old is the policy itself, no second forward is run
                    micro.old_logp = logp.detach()
                # a token is a completion of length one here: (M, 1) log-probabilities, (M,) advantages, weights of the
                # whole step
                column = lambda x: None if x is None else x[:, None]  # noqa: E731
                loss, terms = grpo.grpo_loss(
                    column(logp), column(micro.old_logp), column(micro.ref_logp), per_token[micro.at], column(w),
                    clip_low=recipe.clip_low, clip_high=recipe.clip_high, beta=recipe.beta,
                )  # fmt: skip
                metrics |= terms
            if (
                masks is not None
            ):  # LENS Eq. 7: L = L_GRPO + lambda L_seg, the mean over rollouts, at the truth's resolution
                each = []
                for (p, _), logit in zip(micro.branches, masks, strict=True):
                    truth = torch.as_tensor(batch.targets[p].mask, device=logit.device)
                    each.append(
                        models.mask_loss(models.Segmenter.resize(logit, truth.shape[::-1])[None], truth[None])[0]
                    )
                seg = torch.stack(each).sum() / (P * G) * real
                metrics["seg_loss"] = seg.detach()
                loss = loss + recipe.seg_weight * seg
            metrics["loss"] = loss.detach()
            accelerator.backward(loss)
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0) + value.detach()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = accelerator.clip_grad_norm_(trained, recipe.max_grad_norm)
    totals["grad_norm"] = norm if isinstance(norm, Tensor) else torch.tensor(float(norm))
    values = {name: float(value) for name, value in totals.items()}
    if not np.isfinite([values["loss"], values["grad_norm"]]).all():
        raise FloatingPointError(f"loss {values['loss']}, gradient norm {values['grad_norm']}")
    optimizer.step()
    return values


@torch.no_grad()
def add_reference(reference, policy, micros: list[Micro], recipe: Recipe) -> None:
    """log pi_ref of every token. With LoRA the reference is the policy with its adapter switched off; otherwise a
    frozen copy."""
    model = policy if reference is None else reference
    if reference is None:
        policy.vlm.disable_adapters()
    for micro in micros:
        rows = dataclasses.replace(
            micro.rows, queries=None
        )  # the queries' places come last: no token sees what stands there
        micro.ref_logp = model(rows, grpo.token_logprobs, recipe.temperature)[0]
    if reference is None:
        policy.vlm.enable_adapters()


# --------------------------------------------------------------------------------------------- checkpoints and figures


def save(
    folder: Path, state: dict, policy: models.Policy, recipe: Recipe, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a checkpoint whole or not at all: to a temporary name, then rename. The Hugging Face format, plus
    trainer.pt to go on from.

    weights: the full state dict where the policy is sharded. Raises OSError (disk full) with the last good checkpoint
    untouched.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        policy.save(part, weights)
        evaluate.save_recipe(recipe, policy, part)
        torch.save(state, part / "trainer.pt")
    except (OSError, RuntimeError) as error:  # torch and safetensors report a full disk as RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"could not write the checkpoint {folder}: {error}. "
            "The one before it is untouched; free some space and --resume."
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint; half-written ones (.part) do not count."""
    found = [
        p for p in output_dir.glob("checkpoint-*") if p.name.split("-")[1].isdigit() and (p / "trainer.pt").exists()
    ]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def plot_curves(rows: list[dict], path: Path) -> None:
    """curves.png: reward and its parts, what is measured but not rewarded, lengths, and the optimizer's own numbers, by
    step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "reward": ["reward"],
        "parts": [k for k in rows[-1] if k.startswith("reward/") and not k.endswith("_std")],
        "measured": [k for k in rows[-1] if k.startswith("metric/")],
        "length": ["length", "length_max"],
        "entropy, KL": ["entropy", "kl"],
        "gradient norm": ["grad_norm"],
    }
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
    for axis, (title, keys) in zip(axes.flat, panels.items(), strict=True):
        for key in keys:
            if key in rows[-1]:
                y = np.array([r.get(key, np.nan) for r in rows], dtype=float)
                width = max(len(y) // 25, 1)
                smooth = np.convolve(
                    np.pad(y, (width // 2, width - 1 - width // 2), "edge"), np.ones(width) / width, "valid"
                )
                (line,) = axis.plot([r["step"] for r in rows], smooth, label=key.split("/")[-1])
                axis.plot([r["step"] for r in rows], y, color=line.get_color(), alpha=0.2, linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(keys) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


# -------------------------------------------------------------------------------------------------------------- the run


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
    recipe = tyro.cli(Recipe, default=recipe, args=rest, prog="train.py")
    args.output_dir = args.output_dir or Path("runs", recipe.name + ("-toy" if args.toy else ""))
    return recipe, args


def build(recipe: Recipe, accelerator: Accelerator) -> tuple[models.Policy, models.Segmenter]:
    """The policy, with a context module where the recipe wants one, and the segmenter; what the recipe does not train
    is frozen."""
    size = {"image_size": recipe.image_size or None, "max_pixels": recipe.max_pixels}
    policy = models.load_policy(
        recipe.model, **size, dtype=torch.float32
    )  # float32 master weights, whatever the compute dtype
    segmenter = policy.segmenter or models.load_segmenter(recipe.segmenter)
    policy.requires_grad_(recipe.train != "context")
    if recipe.num_queries:
        if policy.context is None:
            torch.manual_seed(recipe.seed)
            d, c = policy.vlm.get_input_embeddings().weight.shape[1], segmenter.no_mem_embed.shape[-1]
            policy.context = models.ContextModule(d, c, recipe.num_queries, recipe.connector, recipe.collapse)
        policy.segmenter = segmenter.requires_grad_(False)
        policy.context.requires_grad_(True)
        if (
            recipe.train == "all" and recipe.tune_decoder
        ):  # all of the decoder but what belongs to the picture's embedding
            segmenter.mask_decoder.requires_grad_(True)
            segmenter.mask_decoder.conv_s0.requires_grad_(False)
            segmenter.mask_decoder.conv_s1.requires_grad_(False)
    else:
        policy.context = None
    if recipe.lora_rank:
        from peft import LoraConfig

        policy.vlm.requires_grad_(False)
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        policy.vlm.add_adapter(
            LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules=names, lora_dropout=0.0)
        )
    if recipe.gradient_checkpointing:
        policy.vlm.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()  # no dropout anywhere (load_policy): this only lets gradient checkpointing act
    segmenter.eval()
    return policy.to(accelerator.device), segmenter.to(accelerator.device)


def oracle_rollout(policy: models.Policy, batch: Batch, recipe: Recipe) -> grpo.Rollout:
    """LENS's alignment: one completion per prompt, written from the ground truth (an empty thought, then the
    answer)."""
    texts = []
    for sample, size in zip(batch.samples, batch.prompts.resized, strict=True):
        texts.append(evaluate.oracle_answer(sample, recipe.schema, data.model_frame(policy.family, size), digits=0))
    tokens = [policy.processor.tokenizer(t).input_ids + [policy.eos_token_id] for t in texts]
    ids = torch.zeros(len(tokens), 1, max(map(len, tokens)), dtype=torch.long, device=policy.device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for p, row in enumerate(tokens):
        ids[p, 0, : len(row)], mask[p, 0, : len(row)] = torch.tensor(row), True
    return grpo.Rollout(ids, mask, torch.zeros(ids.shape, device=policy.device))


def summarize(
    rollout: grpo.Rollout, reward: Tensor, parts: list, measured: dict[str, list[float]], eos_token_id: int
) -> dict[str, float]:
    """This process's share of a row of metrics.jsonl. zero_variance: groups whose rewards are all equal, which teach
    nothing."""
    length = rollout.mask.sum(-1).float()
    ended = ((rollout.ids == eos_token_id) & rollout.mask).any(-1).float()
    row = {"reward": reward.mean().item(), "reward_std": reward.std(correction=0).item()}
    for name in parts[0][0]:
        values = [b[name] for group in parts for b in group]
        row |= {f"reward/{name}": float(np.mean(values)), f"reward/{name}_std": float(np.std(values))}
    row |= {
        f"metric/{name}": float(np.mean(values)) for name, values in measured.items() if values and name != "parsed"
    }
    row |= {
        "parsed": float(np.mean(measured["parsed"])),
        "zero_variance": (reward.amax(-1) == reward.amin(-1)).float().mean().item(),
    }
    return row | {
        "length": length.mean().item(),
        "length_max": length.max().item(),
        "truncated": 1 - ended.mean().item(),
    }


def checkpoint_now(
    accelerator, policy, optimizer, schedule, queue, recipe: Recipe, output_dir: Path, step: int
) -> None:
    """checkpoint-STEP with everything that --resume needs, readable whatever the number of processes; the oldest go."""
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = {
        "optimizer": get_optimizer_state_dict(policy, optimizer, options=whole),
        "schedule": schedule.state_dict(), "queue": queue.state_dict(), "step": step,
    }  # fmt: skip
    sharded = any(hasattr(p, "full_tensor") for p in policy.parameters())
    weights = get_model_state_dict(policy, options=whole) if sharded else None
    if accelerator.is_main_process:
        save(output_dir / f"checkpoint-{step}", state, accelerator.unwrap_model(policy), recipe, weights)
        kept = sorted(output_dir.glob("checkpoint-*[0-9]"), key=lambda p: int(p.name.split("-")[1]))
        for old in kept[: -recipe.keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def low_precision_copy(policy: models.Policy, dtype: torch.dtype) -> models.Policy:
    """A frozen copy of the VLM alone: the reference of the KL term, or the replica that completions are sampled
    from."""
    vlm = copy.deepcopy(policy.vlm).requires_grad_(False).to(dtype)
    vlm.gradient_checkpointing_disable()
    return models.Policy(vlm, policy.processor, policy.image_size, policy.max_pixels)


@torch.no_grad()
def refresh(replica: models.Policy, policy: torch.nn.Module) -> None:
    """Copy the weights of a policy, wrapped or sharded, into its replica: once per optimizer step, not once per
    token."""
    target = dict(replica.named_parameters())
    for name, p in policy.named_parameters():
        name = name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")
        full = (
            p.full_tensor() if hasattr(p, "full_tensor") else p
        )  # a collective under FSDP: every process walks the same list
        if name in target:
            target[name].copy_(full)


def learning_rate_factor(recipe: Recipe, total: int) -> Callable[[int], float]:
    """Warm-up, then constant, linear to 0, or cosine to 0, over `total` optimizer steps."""

    def factor(update: int) -> float:
        left = 1 - max(update - recipe.warmup_steps, 0) / max(total - recipe.warmup_steps, 1)
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * np.cos(np.pi * left)}[recipe.schedule]
        return min(1.0, (update + 1) / max(recipe.warmup_steps, 1)) * shape

    return factor


def examine(samples: data.Samples, segmenter, recipe: Recipe, main: bool) -> list[int]:
    """The indices to train on; says what was left out and why; SystemExit if the data do not fit the recipe."""
    order, left = usable(samples, recipe, main)
    order, bad = check_rewards(samples, order, recipe, main)
    if main:
        print(
            f"{recipe.name}: {len(order)} of {len(samples)} samples; left out: {left or 'none'}; "
            f"failed the reward check: {len(bad)}"
        )
        for line in [*samples.skipped[:5], *bad[:10]]:
            print(f"  skipped: {line}")
    if len(bad) > 0.01 * (len(order) + len(bad)):
        raise SystemExit(
            f"{len(bad)} of {len(order) + len(bad)} samples do not earn the maximum "
            "with their own ground truth (see above): "
            "a frame, a point or a mask is wrong in the data. Look at them with: python data.py --check"
        )
    if not order:
        raise SystemExit(
            f"no sample of {recipe.dataset!r} ({recipe.split}) can be used by recipe "
            f"{recipe.name!r}: see the reasons above"
        )
    if main and recipe.segmenter_use == "reward":  # the ceiling of a mask reward
        ious = []
        for i in [i for i in order if not samples[i].no_target][:32]:
            text = evaluate.oracle_answer(samples[i], recipe.schema, (samples[i].width, samples[i].height))
            answer = rewards.parse_answer(text, recipe.schema)
            mask = segmenter.union(segmenter.embed([samples[i].image]), [0], [answer.instances])[0]
            ious.append(models.mask_iou(mask.cpu(), torch.as_tensor(samples[i].mask)))
        print(f"  SAM2's own IoU, given true boxes and points: {np.mean(ious):.3f} ({len(ious)} samples)")
    return order


def train(recipe: Recipe, output_dir: Path, resume: bool = False, tracker: str | None = None) -> dict:
    """Run a recipe. Returns {"before": ..., "after": ...}: held-out metrics (empty where eval_samples is 0)."""
    bf16, joint = recipe.dtype == "bfloat16", recipe.train == "all"
    # The mask decoder has outputs that no loss of LENS looks at. Buffers never change, and broadcasting them would make
    # every forward a collective, also where processes run different numbers of them.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=joint, broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no", log_with=tracker, project_dir=str(output_dir), kwargs_handlers=[ddp]
    )
    main, world, rank = accelerator.is_main_process, accelerator.num_processes, accelerator.process_index
    if recipe.prompts_per_step % world:
        raise SystemExit(f"--prompts_per_step {recipe.prompts_per_step} cannot be shared evenly by {world} processes")
    sharded = accelerator.distributed_type == "FSDP"
    if sharded and (recipe.lora_rank or recipe.num_queries):
        raise SystemExit(
            "LoRA and LENS train under DDP (configs/ddp.yaml): what they train, or all of a 3B policy, fits one GPU"
        )
    torch.set_float32_matmul_precision("high")

    # ---- who learns, on what, from where
    checkpoint = newest_checkpoint(output_dir) if resume else None
    policy, segmenter = build(dataclasses.replace(recipe, model=str(checkpoint)) if checkpoint else recipe, accelerator)
    samples = data.load(
        recipe.dataset, recipe.data_root or None, recipe.split, one_expression=recipe.one_expression, seed=recipe.seed
    )
    order = examine(samples, segmenter, recipe, main)
    steps = recipe.max_steps or max(1, int(recipe.epochs * len(order) / recipe.prompts_per_step))
    compute = torch.bfloat16 if bf16 else torch.float32
    reference = None  # what KL holds on to: the model that the run started from, also after --resume
    needs_reference = recipe.beta > 0 and recipe.train != "context"
    if needs_reference and not recipe.lora_rank:
        reference = low_precision_copy(build(recipe, accelerator)[0] if checkpoint else policy, compute)

    # ---- a checkpoint holds weights, optimizer, schedule, rank queue, step; all else is a function of the step
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    replica = low_precision_copy(policy, compute) if bf16 or sharded else None
    policy, optimizer = accelerator.prepare(policy, optimizer)
    bare = accelerator.unwrap_model(policy)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer.optimizer, learning_rate_factor(recipe, steps * recipe.updates_per_rollout)
    )
    queue = rewards.RankQueue(recipe.queue_size, 3, recipe.queue_zeros)
    first, rows, heldout = 0, [], {}
    if checkpoint:
        state = torch.load(checkpoint / "trainer.pt", map_location="cpu", weights_only=True)
        set_optimizer_state_dict(
            policy, optimizer.optimizer, state["optimizer"], options=StateDictOptions(full_state_dict=True)
        )
        schedule.load_state_dict(state["schedule"])
        queue.load_state_dict(state["queue"])
        first = state["step"]
        rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()[:first]]
        heldout = {k: v for k, v in json.loads((output_dir / "heldout.json").read_text()).items() if k == "before"}
        if main:
            print(f"going on from {checkpoint}: step {first} of {steps}")
    if main:
        output_dir.mkdir(parents=True, exist_ok=True)
        evaluate.write_atomically(output_dir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    if tracker:
        accelerator.init_trackers("runs", config=dataclasses.asdict(recipe))

    def score_heldout(when: str) -> None:
        if replica is not None:
            refresh(replica, policy)
        if main and recipe.eval_samples:
            held = data.load(recipe.dataset, recipe.data_root or None, recipe.eval_split)
            asked = replica if replica is not None and not recipe.num_queries else bare
            heldout[when] = evaluate.evaluate(
                asked, segmenter, held, recipe, indices=usable(held, recipe)[0][: recipe.eval_samples]
            )
        if main:
            evaluate.write_atomically(output_dir / "heldout.json", json.dumps(heldout, indent=1))
        accelerator.wait_for_everyone()

    if "before" not in heldout:
        score_heldout("before")

    # ---- the loop
    P, G = recipe.prompts_per_step // world, recipe.num_samples
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=recipe.name, disable=not main)
    for step in bar:
        clock = [time.perf_counter()]
        here = step_samples(order, recipe, step)[
            rank * P : (rank + 1) * P
        ]  # whole groups, the same number on every process
        batch = load_batch(recipe, bare, segmenter, samples, here)

        # sample: G completions per prompt from the policy as it is now
        if recipe.train == "context":
            rollout = oracle_rollout(bare, batch, recipe)
        else:
            if replica is not None:
                refresh(replica, policy)
            rollout = (fast.sample if recipe.capture else grpo.sample)(
                (replica or bare).vlm, batch.prompts.inputs, noise(recipe, step, here, recipe.max_completion),
                num_samples=G, max_new_tokens=recipe.max_completion, temperature=recipe.temperature, top_p=recipe.top_p,
                eos_token_id=bare.eos_token_id, banned_ids=bare.banned_ids,
            )  # fmt: skip
        clock.append(time.perf_counter())

        # judge: texts -> answers -> masks -> reward parts
        flat = bare.decode(rollout.ids.flatten(0, 1), rollout.mask.flatten(0, 1))
        texts = [flat[p * G : (p + 1) * G] for p in range(P)]
        micros = make_micros(bare, batch.prompts, rollout, recipe)
        painted = paint(policy, micros, batch, recipe) if recipe.num_queries else None
        reward, parts, measured = judge(recipe, bare, segmenter, batch, texts, queue, painted)
        queue.flush(gather_object(queue.pending))  # the same rows, in the same order, on every process

        # compare: each completion with its own group
        advantages = grpo.group_advantages(reward)
        clock.append(time.perf_counter())

        # update
        if needs_reference:
            add_reference(reference, bare, micros, recipe)
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

        # ---- what happened, over all processes
        row = summarize(rollout, reward, parts, measured, bare.eos_token_id) | learned
        rows_of_all = gather_object([row])
        row = {"step": step + 1} | {k: float(np.mean([r[k] for r in rows_of_all if k in r])) for k in row}
        row["length_max"] = max(r["length_max"] for r in rows_of_all)
        row["learning_rate"] = schedule.get_last_lr()[0]
        row |= {
            f"seconds/{name}": b - a
            for name, a, b in zip(("sample", "reward", "update"), clock, clock[1:], strict=False)
        }
        row["tokens_per_second"] = row["length"] * G * recipe.prompts_per_step / (clock[-1] - clock[0])
        rows.append(row)
        if main:
            with open(output_dir / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix(reward=f"{row['reward']:.2f}", parsed=f"{row['parsed']:.2f}", length=f"{row['length']:.0f}")
            if step % 20 == 0:
                shown = ", ".join(f"{name} {value:.2f}" for name, value in parts[0][0].items())
                bar.write(
                    f"\n[step {step + 1}] {batch.samples[0].query!r}\n{texts[0][0]}\n"
                    f"  -> {shown}; advantage {advantages[0, 0]:.2f}"
                )
        if tracker:
            accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == steps:
            checkpoint_now(accelerator, policy, optimizer.optimizer, schedule, queue, recipe, output_dir, step + 1)
            if main:
                plot_curves(rows, output_dir / "curves.png")
    score_heldout("after")
    if main:
        shutil.rmtree(output_dir / "final", ignore_errors=True)
        shutil.copytree(
            output_dir / f"checkpoint-{steps}", output_dir / "final", ignore=shutil.ignore_patterns("trainer.pt")
        )
        print(f"checkpoint: {output_dir / 'final'}")
        if recipe.eval_samples:
            before, after = (evaluate.as_text("giou", heldout[when]["giou"]) for when in ("before", "after"))
            print(f"held-out gIoU, percent: {before} before, {after} after ({recipe.eval_samples} samples at most)")
    if tracker:
        accelerator.end_training()
    return heldout


def main() -> None:
    recipe, args = parse_command_line(sys.argv[1:])
    try:
        train(recipe, args.output_dir, args.resume, args.tracker)
    except (data.BadData, OSError) as error:
        missing = isinstance(error, data.BadData) or "could not load" in str(error)
        hint = (
            f"\n(The miniature needs nothing but this folder: python train.py --recipe {args.recipe} --toy)"
            if missing
            else ""
        )
        raise SystemExit(f"{error}{hint}") from error


if __name__ == "__main__":
    main()
