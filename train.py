# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The loop: one training step is load, sample, judge, compare, update, for every recipe, on one process or many.

    python train.py --recipe drseg --toy                       # the miniature, on a laptop's CPU
    accelerate launch train.py --recipe drseg                  # the paper's size, from the Hub, over all GPUs there are
    accelerate launch --config_file configs/fsdp2.yaml train.py --recipe samr1 --data_root data --resume      # over 4

Any field of recipes.Recipe is an option (--learning_rate 2e-6 --weights.look 0). Outputs, in --output_dir:
metrics.jsonl, curves.png, heldout.json, checkpoint-N/, final/ and (--eval_every) best/ (Hugging Face format, recipe
inside); and stopped-step-N-process-R.pt, the step's inputs, if its loss is not finite.

    draw ─▶ load_batch ─▶ complete ─▶ pack_rollout ─▶ judge ─▶ group_advantages ─▶ update               (training_step)
     which ones,  prompts,     the texts   packed rows     masks,    each completion     one or two optimizer
     pictures     embeddings                               rewards   and its siblings    steps on these texts

The loop draws nothing from global generators: the order of samples is a function of (seed, epoch), a completion's
random numbers of (seed, step, place in the step, number in its group). So a step is a function of a checkpoint and the
step's number, after any restart; on another number of processes it is the same up to float rounding.

Shape letters: P prompts of this process, G completions per prompt, T completion tokens (padded), M completion tokens of
a micro-batch, B its completions.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import data
import evaluate
import grpo
import model as models
import recipes
import rewards
from benchmarks.published import as_text, with_mask
from benchmarks.records import choose
from engine import checkpoint, journal
from engine.check import allowed, data_digest, held_in, readable
from engine.files import console, write_atomically
from engine.oracle import oracle_answer
from engine.run import Run, Stopping, reference_of, start
from engine.waiting import wait_for_the_slowest
from recipes import ABOUT, RECIPES, Recipe, miniature

# -------------------------------------------------------------------------------- load: what a step is a function of


def read_order(order: list[int], recipe: Recipe, step: int, place: int) -> Iterator[int]:
    """The sample at a place of a step, over all processes, then its stand-ins: those that follow it in its epoch's
    order, around. One permutation per epoch; epochs follow without a gap.

    The place in the data is a function of the step alone: there is no sampler to save, and no short last batch. With
    order [10, 11, 12] and two prompts a step, steps 0 to 2 may take [11, 10], [12, 10], [12, 11].
    """
    n = len(order)
    epoch, start = divmod(step * recipe.prompts_per_step + place, n)
    shuffled = permutation(recipe.seed, epoch, n)
    yield from (order[shuffled[(start + k) % n]] for k in range(n))


@functools.lru_cache(2)  # a step may end one epoch and begin the next
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of an epoch's n samples."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def draw(run: Run, step: int, places: Sequence[int]) -> list[tuple[int, data.Sample]]:
    """(index, sample) for each of these places of a step, read, with the picture in memory.

    What cannot be read is said once, and the next of its epoch's order that can stands in for it: so a step stays a
    function of its number. SystemExit where more is broken than may be.
    """
    drawn = []
    for place in places:
        for index in read_order(run.order, run.recipe, step, place):
            if index in run.broken:
                continue
            try:
                sample = run.samples[index].with_picture()
                recipes.to_target(sample, run.recipe)
            except data.BadData as error:
                run.broken[index] = str(error)
                if len(run.broken) > allowed(run.recipe, len(run.order)):
                    raise SystemExit(
                        f"{error}\n{len(run.broken)} of {len(run.order)} samples cannot be read, more than one in a "
                        "hundred: mend them, or allow them with --allow_bad N"
                    ) from error
                tqdm.write(f"left out: {error}")
                continue
            drawn.append((index, sample))
            break
    return drawn


def draw_uniforms(recipe: Recipe, step: int, places: Sequence[int], T: int) -> Tensor:
    """All the randomness of a step's sampling, (P, G, T) in [0, 1): each completion has a generator of its own, seeded
    by (seed, step, place, g).

    places: of the P prompts among those of the step, over all processes. Not their samples: a small dataset has a
    sample twice in a step, and the same numbers would write the same completions again.
    """

    def of_one(place: int, g: int) -> np.ndarray:
        return np.random.default_rng([recipe.seed, step, place, g]).random(T, dtype=np.float32)

    return torch.from_numpy(np.stack([[of_one(place, g) for g in range(recipe.num_generations)] for place in places]))


@dataclasses.dataclass
class Batch:
    """What this process works on in one step."""

    samples: list[data.Sample]
    prompts: models.Prompts
    targets: list[rewards.Target]
    embeddings: models.Embeddings | None  # one embedding per picture serves all its completions, reward and update


def redrawn(sample: data.Sample, seed: int, epoch: int, index: int) -> data.Sample:
    """The sample with another sentence of its reference, a function of (seed, epoch, index): LENS, both stages [C]."""
    if len(sample.sentences) < 2:
        return sample
    rng = np.random.default_rng([seed, epoch, index])
    return dataclasses.replace(sample, query=sample.sentences[rng.integers(len(sample.sentences))])


def load_batch(
    recipe: Recipe,
    policy: models.Policy,
    segmenter: models.Segmenter,
    samples: data.Samples | dict[int, data.Sample],
    indices: Sequence[int],
    epochs: Sequence[int] = (),  # with recipe.redraw: the epoch that each of them is drawn in
) -> Batch:
    """Read the pictures of a step, and encode prompts and (where masks are judged) SAM2's embeddings, once per prompt.

    data.BadData if a prompt is longer than the recipe allows, and, with the file's name, if a picture is broken.
    """
    chosen = [samples[i] for i in indices]
    if recipe.redraw and epochs:
        chosen = [redrawn(s, recipe.seed, e, i) for s, e, i in zip(chosen, epochs, indices, strict=True)]
    images = [s.image for s in chosen]
    space = data.FAMILIES[policy.family]
    with torch.no_grad():
        prompts = policy.encode(images, [data.build_prompt(s.query, recipe.schema, space) for s in chosen])
        lengths = prompts.inputs["attention_mask"].sum(-1).tolist()
        if max(lengths) > recipe.max_prompt:
            worst = chosen[int(np.argmax(lengths))].id
            raise data.BadData(
                f"the prompt of sample {worst} has {max(lengths)} tokens, above --max_prompt {recipe.max_prompt}"
            )
        judged = recipe.segmenter_use != "evaluation"
        embeddings = segmenter.embed(images, recipe.pictures_at_once) if judged else None
    return Batch(chosen, prompts, [recipes.to_target(s, recipe) for s in chosen], embeddings)


# --------------------------------------------------------------------------------------------------------------- sample


def complete(recipe: Recipe, writer: models.Policy, prompts: models.Prompts, uniforms: Tensor) -> grpo.Rollout:
    """G completions per prompt, from uniforms (P, G, T). A few prompts at a time where their caches need the room."""
    at_once = recipe.prompts_at_once or len(uniforms)
    rollouts = [
        grpo.sample(
            writer.vlm,
            prompts.part(i, i + at_once),
            uniforms[i : i + at_once],
            num_generations=recipe.num_generations,
            max_new_tokens=recipe.max_completion,
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            eos_token_id=writer.end_ids,
            banned_ids=writer.banned_ids,
        )
        for i in range(0, len(uniforms), at_once)
    ]
    return grpo.Rollout(
        ids=torch.cat([r.ids for r in rollouts]),
        mask=torch.cat([r.mask for r in rollouts]),
        logp=torch.cat([r.logp for r in rollouts]),
    )


def oracle_rollout(policy: models.Policy, batch: Batch, recipe: Recipe) -> grpo.Rollout:
    """LENS's alignment: one completion per prompt, written from the ground truth (an empty thought, the answer)."""
    texts = []
    for sample, size in zip(batch.samples, batch.prompts.resized, strict=True):
        texts.append(oracle_answer(sample, recipe.schema, data.model_frame(policy.family, size), recipe.text_step))
    tokens = [torch.tensor(policy.tokens(text), device=policy.device) for text in texts]
    ids = pad_sequence(tokens, batch_first=True)[:, None]  # (P, 1, T)
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in tokens], batch_first=True)[:, None]
    return grpo.Rollout(ids, mask, torch.zeros(ids.shape, device=policy.device))


# ---------------------------------------------------------------------------------------------------------------- judge
#
#   text --parse--> Answer (the model's frame) --rescaled--> the recipe's frame --reward--> parts, by name
#                       |                                                           ^
#                       +--rescaled--> the picture's pixels --SAM2--> mask, its IoU +   (recipes with a mask reward)


CompletionMasks = dict[tuple[int, int], Tensor]  # (p, g) -> (H, W) bool: a completion's mask, at its picture's size


def masks_from_answers(
    segmenter: models.Segmenter, batch: Batch, answers: list[list[rewards.Answer]], frames: Sequence[tuple]
) -> CompletionMasks:
    """SAM2's masks of all completions in one batched call. What does not parse has no objects: its mask is empty, and
    SAM2 is not asked. frames: what the coordinates of each prompt's answers are written in."""
    pairs = [(p, g) for p, group in enumerate(answers) for g in range(len(group))]
    sizes = [(s.width, s.height) for s in batch.samples]
    in_pixels = [answers[p][g].rescaled(frames[p], sizes[p]) for p, g in pairs]
    objects = [a.instances[: rewards.MAX_OBJECTS] if a.answer_ok else [] for a in in_pixels]
    return dict(zip(pairs, segmenter.union(batch.embeddings, [p for p, _ in pairs], objects), strict=True))


def judge(
    recipe: Recipe,
    policy: models.Policy,
    segmenter: models.Segmenter,
    batch: Batch,
    texts: list[list[str]],
    queue: rewards.RankQueue,
    query_masks: CompletionMasks | None,
) -> tuple[Tensor, list[list[dict[str, float]]], dict[str, list[float]]]:
    """Texts (P, G) -> rewards (P, G), their parts, and what is measured, not rewarded, by name. Dr. Seg's metrics wait
    in the queue (`pending`) for the step's end: within a step all are ranked against the same history.

    query_masks: LENS's, which come from the context queries; None for other recipes, and in its alignment.
    """
    # Read once, in the units that the model wrote; then looked at in two frames, the picture's pixels for SAM2 and the
    # recipe's for the reward.
    answers = [[rewards.parse_answer(text, recipe.schema) for text in group] for group in texts]
    frames = [data.model_frame(policy.family, size) for size in batch.prompts.resized]
    masks = query_masks
    if recipe.segmenter_use == "reward":
        masks = masks_from_answers(segmenter, batch, answers, frames)
    parts: list[list[dict[str, float]]] = []
    measured: dict[str, list[float]] = {"parsed": [], "box_iou": []}
    for p, target in enumerate(batch.targets):
        truth = None if masks is None else torch.as_tensor(target.mask, device=segmenter.device)
        parts.append([])
        for g in range(len(texts[p])):
            answer = answers[p][g].rescaled(frames[p], target.frame)
            iou = None
            if masks is not None:
                # Without a target: 1 if the answer says that nothing fits, else 0, whatever the mask.
                iou = float(answer.no_target) if target.no_target else models.mask_iou(masks[p, g], truth)
                measured.setdefault("mask_iou", []).append(iou)
            parts[p].append(recipes.reward_parts(recipe, answer, target, iou, queue))
            measured["parsed"].append(float(answer.answer_ok))
            if len(target.boxes):
                measured["box_iou"].append(rewards.best_box_iou(answer, target))
            if recipe.reward in rewards.RANKED:  # malformed answers' zeros included
                metrics, names = rewards.RANKED[recipe.reward]
                x = metrics(answer, target, recipe.released)
                queue.push(x)
                for name, value in zip(names, x, strict=True):
                    measured.setdefault(name, []).append(value)
    return torch.tensor([[sum(one.values()) for one in group] for group in parts]), parts, measured


# --------------------------------------------------------------------------------------------------------------- update
#
# How a step is cut into micro-batches and processes changes nothing: each token's weight is the whole step's
# (grpo.token_weights), so sums over any parts add up to the same loss.


@torch.no_grad()
def add_reference(reference: models.Policy, micros: list[models.MicroBatch], temperature: float) -> None:
    """log pi_ref of every token, in the distribution that was sampled from: at the same temperature, without the banned
    tokens. So the KL is between the two policies as they are sampled."""
    for micro in micros:
        # LENS's queries come after their completions, so no token sees them: the reference does without.
        rows = dataclasses.replace(micro.rows, query_places=None)
        micro.ref_logp = reference(rows, temperature)[0]


def segmentation_loss(masks: Tensor, micro: models.MicroBatch, batch: Batch, focal: bool) -> tuple[Tensor, float]:
    """LENS's L_seg, summed over a micro-batch: mask logits (B, h, w) against the truth, at the truth's resolution; and
    the sum of the masks' IoUs with it, to be logged."""
    each = []
    ious = 0.0
    for (p, _), logit in zip(micro.completions, masks, strict=True):
        truth = torch.as_tensor(batch.targets[p].mask, device=logit.device)
        logit = models.Segmenter.resize(logit, truth.shape)
        each.append(models.mask_loss(logit[None], truth[None], focal)[0])
        ious += models.mask_iou(logit > 0, truth)
    return torch.stack(each).sum(), ious


def micro_loss(
    policy,
    micro: models.MicroBatch,
    batch: Batch,
    rollout: grpo.Rollout,
    advantages: Tensor,  # (P, G)
    weights: Tensor,  # (P, G, T) of this process's whole step, which sum to 1
    recipe: Recipe,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A micro-batch's share of the step's loss and of its figures: all sums are weighted already, and simply add up.

    The first call on a rollout writes down its log-probabilities as pi_old (micro.old_logp).
    """
    P, G, T = rollout.mask.shape
    index = torch.tensor([p for p, _ in micro.completions], device=weights.device)
    embeddings = batch.embeddings if recipe.num_queries else None  # LENS: then the policy makes masks, too
    learns_text = recipe.learns_text
    logp, entropy, masks = policy(micro.rows, recipe.temperature, embeddings, index, with_logp=learns_text)
    figures: dict[str, Tensor] = {}
    loss = torch.zeros((), device=weights.device)
    if learns_text:
        w = weights.flatten()[micro.at]
        drift = (logp.detach() - rollout.logp.flatten()[micro.at]).abs()
        figures |= {"entropy": (w * entropy).sum(), "gap": (w * drift).sum()}
        if micro.old_logp is None:  # the first update: pi_old is the policy itself, no second forward is run
            micro.old_logp = logp.detach()
        loss, terms = grpo.grpo_loss(
            logp,
            micro.old_logp,
            micro.ref_logp,
            advantages.flatten()[micro.at // T],  # each token has its completion's
            w,
            clip_low=recipe.clip_low,
            clip_high=recipe.clip_high,
            beta=recipe.beta,
        )
        figures |= terms
    if masks is not None:  # LENS Eq. 7: L_GRPO + lambda L_seg, the mean over all completions
        total, ious = segmentation_loss(masks, micro, batch, recipe.focal)
        seg = total / (P * G)
        figures["seg_loss"] = seg
        if not learns_text:  # elsewhere judge has measured it
            figures["metric/mask_iou"] = torch.tensor(ious / (P * G), device=seg.device)
        loss = loss + recipe.seg_weight * seg
    return loss, figures | {"loss": loss}


def update(
    accelerator: Accelerator,
    policy,
    optimizer: torch.optim.Optimizer,
    micros: list[models.MicroBatch],
    batch: Batch,
    rollout: grpo.Rollout,
    advantages: Tensor,  # (P, G)
    recipe: Recipe,
) -> dict[str, float]:
    """One optimizer step on a rollout: micro_loss summed over micro-batches, clip the gradient, step.

    Processes hold equally many groups, none of whose completions is empty, and each one's token weights sum to 1: so
    the mean of their losses is the loss over all prompts. FSDP takes that mean of the gradients after every backward;
    without it average_gradients does, once, at the end.

    Returns what to log. Means over tokens, weighted as in the loss: entropy (nats), ratio, kl, clipped_low and
    clipped_high (fractions clipped), gap (|logp - the sampler's logp|; large for good reasons in a second update, and
    with top_p below 1). loss and seg_loss are the step's; grad_norm is that before clipping. FloatingPointError, before
    it changes a parameter, if loss or gradient is not finite.
    """
    weights = grpo.token_weights(rollout.mask, recipe.average)
    advantages = advantages.to(weights.device)
    totals: dict[str, Tensor] = {}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    # Processes may need different numbers of rows. Where weights are sharded every forward is a collective, so those
    # with fewer repeat a row, which then counts nothing.
    rounds = len(micros)
    sharded = hasattr(trained[0], "full_tensor")
    if sharded:
        rounds = max(gather_object([rounds]))
    for i in range(rounds):
        loss, figures = micro_loss(policy, micros[i % len(micros)], batch, rollout, advantages, weights, recipe)
        counts = float(i < len(micros))
        accelerator.backward(loss * counts)
        for name, value in figures.items():
            totals[name] = totals.get(name, 0) + value.detach() * counts
    if accelerator.num_processes > 1 and not sharded:
        average_gradients(trained)
    norm = accelerator.clip_grad_norm_(trained, recipe.max_grad_norm)
    totals["grad_norm"] = norm if isinstance(norm, Tensor) else torch.tensor(float(norm))
    values = {name: float(value) for name, value in totals.items()}
    finite = bool(np.isfinite([values["loss"], values["grad_norm"]]).all())
    if accelerator.num_processes > 1:  # all stop, or none: nobody is left waiting for the others
        finite = all(gather_object([finite]))
    if not finite:
        raise FloatingPointError(f"loss {values['loss']}, gradient norm {values['grad_norm']}")
    optimizer.step()
    return values


def average_gradients(parameters: list[Tensor]) -> None:
    """The mean over processes, in place: what DDP does, without its buckets, which hold every gradient twice."""
    for p in parameters:
        if p.grad is not None:
            torch.distributed.all_reduce(p.grad)
            p.grad /= torch.distributed.get_world_size()


# ------------------------------------------------------------------------------------------------------------- one step


def training_step(run: Run, step: int) -> tuple[dict[str, float], journal.Shown]:
    """Step number `step` of a run. Returns its row of metrics.jsonl, and one completion to show.

    What a Run holds (engine/run.py): `policy` is what learns, as Accelerate wraps it, and every forward with gradient
    goes through it; `unwrapped` is the same network, which encodes, packs and decodes. Who samples (`writing`) is
    either that or a whole copy of it in the compute dtype, brought up to date first. `reference`: the weights that the
    run began with (with LoRA the policy itself, its adapter switched off). The optimizer is AdamW.

    SystemExit if the loss is not finite: no file has changed then, and the step's inputs are in the output folder.
    """
    recipe = run.recipe
    accelerator = run.accelerator
    P = recipe.prompts_per_step // accelerator.num_processes
    process = accelerator.process_index
    clock = [time.perf_counter()]
    # Whole groups, the same number on every process: a group's mean and deviation never cross processes.
    places = range(process * P, (process + 1) * P)
    drawn = draw(run, step, places)
    for broken in gather_object([run.broken]):  # what may be broken is counted over all processes
        run.broken |= broken
    here = [index for index, _ in drawn]
    epochs = [(step * recipe.prompts_per_step + place) // len(run.order) for place in places]
    batch = load_batch(recipe, run.unwrapped, run.segmenter, dict(drawn), here, epochs)

    # sample: G completions per prompt from the policy as it is now. GRPO needs several: its siblings are what each is
    # measured against. (LENS's alignment samples nothing: the text is the truth, the masks learn, and what is judged
    # and compared below is only logged.)
    if not recipe.learns_text:
        rollout = oracle_rollout(run.unwrapped, batch, recipe)
    else:
        uniforms = draw_uniforms(recipe, step, places, recipe.max_completion)
        with run.writing() as writer:
            rollout = complete(recipe, writer, batch.prompts, uniforms)
    clock.append(time.perf_counter())

    # judge: (P, G) texts -> answers -> masks -> reward parts. A text that does not parse is judged like any other: it
    # earns what its parts give it, usually little. Packed here already: LENS's masks come from the same rows.
    G = rollout.ids.shape[1]
    flat = run.unwrapped.decode(rollout.ids.flatten(0, 1), rollout.mask.flatten(0, 1))
    texts = [flat[p * G : (p + 1) * G] for p in range(P)]
    micros = models.pack_rollout(run.unwrapped, batch.prompts, rollout, recipe.max_row_tokens, recipe.rows_per_batch)
    query_masks = None
    if recipe.num_queries and recipe.learns_text:  # in alignment no text is paid for its mask: the loss has it
        query_masks = models.masks_from_queries(run.policy, micros, batch.embeddings)
    reward, parts, measured = judge(recipe, run.unwrapped, run.segmenter, batch, texts, run.queue, query_masks)
    run.queue.flush(gather_object(run.queue.pending))  # the same rows, in the same order, on every process

    # compare: each completion with its own group. Where all of a group earn the same, nothing can be told from it: its
    # advantages are 0 (zero_variance in metrics.jsonl is the share of such groups).
    advantages = grpo.group_advantages(reward)
    clock.append(time.perf_counter())

    # update: the log-probabilities of the first forward are pi_old (micro_loss keeps them), so a ratio can leave 1, and
    # a clip act, only from the second update on the same rollout. What the sampler noted is only a check: its kernels
    # round otherwise than the update's, and that difference would look like a step already taken.
    if recipe.needs_reference:
        with reference_of(run.unwrapped, run.reference, accelerator.device, recipe.park) as reference:
            add_reference(reference, micros, recipe.temperature)
    rate = run.schedule.get_last_lr()[0]
    try:
        for _ in range(recipe.updates_per_rollout):
            learned = update(accelerator, run.policy, run.optimizer, micros, batch, rollout, advantages, recipe)
            run.schedule.step()
        run.optimizer.zero_grad()  # their memory is free while the next step samples
    except FloatingPointError as error:
        inputs = {"step": step, "indices": here, "texts": texts, "reward": reward, **dataclasses.asdict(rollout)}
        torch.save(inputs, run.output_dir / f"stopped-step-{step}-process-{process}.pt")
        raise SystemExit(
            f"step {step}: {error}. Its inputs are in {run.output_dir}; the last checkpoint is untouched."
        ) from error
    clock.append(time.perf_counter())

    # tell: what happened, over all processes
    figures = journal.of_completions(rollout, reward, parts, measured, run.unwrapped.end_ids)
    row = {"step": step + 1} | journal.over_processes(figures, learned) | {"learning_rate": rate}
    row |= journal.durations(clock, row["length"] * G * recipe.prompts_per_step)
    return row, journal.Shown(batch.samples[0].query, texts[0][0], parts[0][0], advantages[0, 0].item())


# -------------------------------------------------------------------------------------------------------------- the run


def aligned_giou(run: Run, samples: data.Samples, indices: list[int]) -> float:
    """What LENS's alignment learns, held out: the mean mask IoU on ground-truth completions."""
    recipe, policy = run.recipe, run.unwrapped
    ious: list[float] = []
    for i in tqdm(range(0, len(indices), recipe.prompts_per_step), desc="held out, true text"):
        batch = load_batch(recipe, policy, run.segmenter, samples, indices[i : i + recipe.prompts_per_step])
        rollout = oracle_rollout(policy, batch, recipe)
        micros = models.pack_rollout(policy, batch.prompts, rollout, recipe.max_row_tokens, recipe.rows_per_batch)
        masks = models.masks_from_queries(policy, micros, batch.embeddings)
        truths = [torch.as_tensor(target.mask, device=policy.device) for target in batch.targets]
        ious += [models.mask_iou(masks[p, 0], truth) for p, truth in enumerate(truths)]
    return float(np.mean(ious))


def held_out_metrics(run: Run, policy: models.Policy, when: str) -> dict:
    """Metrics of `policy` on a seeded draw of eval_samples held-out samples (evaluate.py --limit, with the same seed).
    Before training it is said which of them cannot be scored, or are on pictures that are trained on."""
    recipe = run.recipe
    name, root = recipe.held_out
    held = data.load(name, root, recipe.eval_split)
    chosen, bad = readable(held, choose(held, (0, 0), recipe.eval_samples, recipe.seed))
    if when == "before":
        if bad or held.skipped:
            skipped = data.plural(len(held.skipped), "skipped entry")
            print(f"held out, not scored: {data.plural(len(bad), 'wrong sample')}, {skipped} of the data")
            print(f"  {[*bad, *held.skipped][0]}")
        if name == recipe.dataset and (both := held_in(run.samples, run.order, held, chosen)):
            print(f"look: {both}")
    broken: dict[int, str] = {}
    bar = f"held out, {when}"
    found = evaluate.evaluate(policy, run.segmenter, held, recipe, indices=chosen, broken=broken, bar=bar)
    found["requests"] = data_digest(held, chosen)["digest"]
    for line in broken.values() if when == "before" else ():
        print(f"held out, not scored: {line}")
    chosen = [i for i in chosen if i not in broken]
    if not recipe.learns_text:
        there = ((i, held[i]) for i in chosen)  # of these, which have a true text and a true mask
        chosen = [i for i, s in there if s.object_masks and recipes.unanswerable(s, recipe) is None]
        if chosen:
            found["giou_true_text"] = aligned_giou(run, held, chosen)
    return found


def score(run: Run, when: str) -> None:
    """Held-out metrics into run.heldout[when] and heldout.json, by the first process; the others wait."""
    if run.recipe.eval_samples:
        with run.writing() as writer:
            if run.accelerator.is_main_process:  # (a replica has no context module)
                run.heldout[when] = held_out_metrics(run, run.unwrapped if run.recipe.num_queries else writer, when)
    if run.accelerator.is_main_process:
        write_atomically(run.output_dir / "heldout.json", json.dumps(run.heldout, indent=1))
    wait_for_the_slowest()


def due(recipe: Recipe, step: int, steps: int) -> bool:
    """Is the checkpoint of this step to be scored?"""
    return step == steps or (recipe.eval_every > 0 and step % recipe.eval_every == 0)


def score_saved(run: Run, step: int) -> None:
    """Score the checkpoint of this step, unless it was before the run was killed; the best so far becomes best/."""
    when = "after" if step == run.steps else str(step)
    if when not in run.heldout:
        score(run, when)
    if run.accelerator.is_main_process and run.recipe.eval_every and best_of(run.heldout) == when:
        checkpoint.finish(run.output_dir, step, "best")


BAR = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"  # in 80 columns


def told(heldout: dict) -> str:
    """The held-out scores in a sentence or three, each with what it counts."""
    if not heldout:
        return "nothing held out was scored (eval_samples is 0)"
    last = list(heldout.values())[-1]
    every, heldout = heldout, comparable(heldout)
    counted = {
        "giou": f"held-out gIoU, percent, over {with_mask(last)}",
        "answerable_giou": f"  over the {last['answerable_n']} that the recipe is trained for",
        "giou_true_text": "  over these, on ground-truth completions",
    }
    if not last["mask_n"]:
        none = f"held out: {data.plural(last['n'], 'request')}, and no mask that a gIoU could be told from"
        if last.get("box_miou") is None:
            return none
        counted = {"box_miou": f"{none}; the boxes' IoU, percent"}
    lines = []
    for name, what in counted.items():
        values = [f"{as_text(name, scores[name])} {when}" for when, scores in heldout.items() if name in scores]
        lines += [f"{what}: {', '.join(values)}"] if values else []
    if other := [when for when in every if when not in heldout]:
        lines.append(f"  (other requests were held out then, so these do not compare: {', '.join(other)})")
    return "\n".join(lines)


def comparable(heldout: dict) -> dict:
    """The scores that are of the same requests as the last: a resumed run may hold out others."""
    last = list(heldout.values())[-1].get("requests") if heldout else None
    return {when: scores for when, scores in heldout.items() if scores.get("requests") == last}


def best_of(heldout: dict) -> str:
    """When the held-out gIoU was highest after training began (LENS's alignment: on true text; without true masks: the
    boxes' IoU); ties: the earliest."""

    def height(when: str) -> float:
        scores = heldout[when]
        return scores.get("giou_true_text", scores["giou"] if scores["mask_n"] else scores.get("box_miou")) or 0.0

    return max((when for when in comparable(heldout) if when != "before"), key=height, default="")


def train(recipe: Recipe, output_dir: Path, resume: bool = False, tracker: str | None = None) -> dict:
    """Run a recipe. Returns {"before": ..., "after": ...}: held-out metrics (empty where eval_samples is 0)."""
    run = start(recipe, output_dir, resume, tracker)
    main = run.accelerator.is_main_process
    if run.first == 0:  # else the score is in the folder already
        score(run, "before")
    elif due(recipe, run.first, run.steps):
        score_saved(run, run.first)
    bar = tqdm(
        range(run.first, run.steps),
        initial=run.first,
        total=run.steps,
        desc=recipe.name,
        disable=not main,
        bar_format=BAR,
    )
    with Stopping(output_dir) as stopping, run.lock:
        for step in bar:
            row, shown = training_step(run, step)
            run.rows.append(row)
            if main:
                with open(output_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                journal.tell(bar, row, shown)
            if tracker:  # TensorBoard or Weights & Biases, beside the files
                run.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)
            code = stopping.asked()
            last = step + 1 == run.steps
            scored = due(recipe, step + 1, run.steps)
            if code is not None or scored or (step + 1) % recipe.save_every == 0:
                run.save(step + 1)
                if main:
                    journal.plot_curves(run.rows, output_dir / "curves.png")
            if last or (scored and code is None):
                score_saved(run, step + 1)
            if code is not None and not last:
                bar.close()
                if main:
                    print(f"stopped after step {step + 1} of {run.steps}, and saved. To go on: {journal.go_on()}")
                wait_for_the_slowest()  # the launcher ends the others as soon as one is gone
                raise SystemExit(code)
    if main:
        final = checkpoint.finish(output_dir, run.steps)
        print(f"checkpoint: {final}")
        print(told(run.heldout))
        if recipe.eval_every and (best := best_of(run.heldout)):
            print(f"best: {output_dir / 'best'}, {best}")
        print(f"curves: {output_dir / 'curves.png'}\n{journal.what_next(final, recipe)}")
    if tracker:
        run.accelerator.end_training()
    return run.heldout


# --------------------------------------------------------------------------------------------------------- command line


def parse_command_line(argv: list[str]) -> tuple[Recipe, argparse.Namespace]:
    """--recipe and --toy choose the defaults; every field of Recipe can then be overridden."""
    # Two parsers, since the first one's answer is the second one's defaults.
    first = argparse.ArgumentParser(
        add_help=False,
        prog="train.py",
        usage="[accelerate launch] train.py [--recipe NAME] [--toy] [--output_dir DIR] [--resume] [settings below]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(f"  {name:15} {line}" for name, line in ABOUT.items()),
    )
    first.add_argument("--recipe", default="drseg", choices=sorted(RECIPES), metavar="NAME", help="one of the above")
    first.add_argument("--toy", action="store_true", help="the miniature: tiny networks, drawn shapes, a laptop's CPU")
    first.add_argument(
        "--output_dir", type=Path, metavar="DIR", help="a new folder (default: runs/NAME, runs/NAME-toy)"
    )
    first.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output_dir")
    first.add_argument(
        "--tracker", choices=["tensorboard", "wandb"], help="send metrics.jsonl's figures there, too (pip install it)"
    )
    args, rest = first.parse_known_args(argv)
    recipe = miniature(RECIPES[args.recipe]) if args.toy else RECIPES[args.recipe]
    values = (tyro.conf.FlagConversionOff,)  # --released True, as every field is given
    if {"-h", "--help"} & set(rest):
        first.print_help()
        print(f"\nEvery setting of {args.recipe} can be changed:\n")
        with contextlib.redirect_stdout(io.StringIO()) as fields, contextlib.suppress(SystemExit):
            tyro.cli(Recipe, default=recipe, args=["--help"], prog="train.py", config=values)
        print(fields.getvalue().partition("\n\n")[2].partition("\n\n")[2])  # less a second usage, and its sentence
        raise SystemExit(0)
    recipe = tyro.cli(Recipe, default=recipe, args=rest, prog="train.py", config=values)
    try:
        recipes.check(recipe)
    except data.BadData as error:
        raise SystemExit(f"train.py: {error}") from error
    args.output_dir = args.output_dir or Path("runs", recipe.name + ("-toy" if args.toy else ""))
    return recipe, args


def main() -> None:
    """The command. What a person can mend ends in a sentence that says how, not in a traceback."""
    console()
    recipe, args = parse_command_line(sys.argv[1:])
    transformers.utils.logging.disable_progress_bar()  # a bar for every file read and written; ours say what is long
    try:
        train(recipe, args.output_dir, args.resume, args.tracker)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped at once: what came after the last checkpoint is lost") from None
    except (data.BadData, OSError) as error:
        hint = ""
        toy = " --toy" if args.toy else ""
        network = error if isinstance(error, models.CannotLoad) else None
        if network and network.what == "policy" and recipe.start:
            hint = f"\n(It is what the stage before makes: python train.py --recipe {recipe.start}{toy})"
        elif not toy and (isinstance(error, data.BadData) or network):
            hint = f"\n(The miniature needs nothing but this folder: python train.py --recipe {args.recipe} --toy)"
        raise SystemExit(f"{error}{hint}") from error


if __name__ == "__main__":
    main()
