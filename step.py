"""The parts of a training step: load pictures, pack completions, and from their advantages make one optimizer step.

    batch = load_batch(recipe, policy, segmenter, samples, indices)
    micros = make_micros(policy, batch.prompts, rollout, recipe)       # rows [prompt | o_1 | ... | o_G], some at a time
    values = update(accelerator, policy, optimizer, micros, batch, rollout, advantages, recipe)

How a step is cut into micro-batches and processes changes nothing: each token's weight is the whole step's
(grpo.token_weights), so sums over any parts add up to the same loss. LENS's masks come from the same rows. train.py
puts the parts in order.

Shape letters: P prompts of this process, G completions per prompt, T completion tokens (padded), M completion tokens of
a micro-batch, B its completions.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

import data
import grpo
import judge
import model as models
import rewards
from oracle import oracle_answer
from recipes import Recipe


@dataclasses.dataclass
class Batch:
    """What this process works on in one step."""

    samples: list[data.Sample]
    prompts: models.Prompts
    targets: list[rewards.Target]
    embeddings: models.Embeddings | None  # one embedding per picture serves all its completions, reward and update


def load_batch(recipe: Recipe, policy: models.Policy, segmenter, samples: data.Samples, indices: list[int]) -> Batch:
    """Read the pictures of a step, and encode prompts and (where masks are judged) SAM2's embeddings, once per prompt.

    SystemExit if a prompt is longer than the recipe allows; data.BadData, with the file's name, if a picture is broken.
    """
    chosen = [samples[i] for i in indices]
    images = [s.image for s in chosen]
    space = data.FAMILIES[policy.family]
    with torch.no_grad():
        prompts = policy.encode(images, [data.build_prompt(s.query, recipe.schema, space) for s in chosen])
        lengths = prompts.inputs["attention_mask"].sum(-1).tolist()
        if max(lengths) > recipe.max_prompt:
            worst = chosen[int(np.argmax(lengths))].id
            raise SystemExit(
                f"the prompt of sample {worst} has {max(lengths)} tokens, above --max_prompt {recipe.max_prompt}"
            )
        embeddings = segmenter.embed(images) if recipe.segmenter_use != "evaluation" else None
    return Batch(chosen, prompts, [judge.to_target(s, recipe) for s in chosen], embeddings)


@dataclasses.dataclass
class Micro:
    """Packed rows that go through the network together, and what the loss needs of their M tokens (B completions)."""

    rows: models.Rows
    at: Tensor  # (M,) index of each token in the flattened (P, G, T)
    branches: list[tuple[int, int]]  # (p, g) of each of the B completions
    old_logp: Tensor | None = None  # (M,)
    ref_logp: Tensor | None = None  # (M,)


def make_micros(policy: models.Policy, prompts: models.Prompts, rollout: grpo.Rollout, recipe: Recipe) -> list[Micro]:
    """Cut a step into micro-batches of packed rows. That changes no gradient: the weights are the whole step's.

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


def paint(policy, micros: list[Micro], embeddings: models.Embeddings) -> dict[tuple[int, int], Tensor]:
    """LENS (Eq. 2-4): the mask of every completion from its context queries, (p, g) -> (H, W) bool, at original size.

    The written box plays no part, so a text that does not parse has a mask too. Without gradient: reward and evaluation
    look at it; the loss makes its own. policy: a Policy with a context module, bare or as Accelerate wrapped it.
    """
    masks = {}
    with torch.no_grad():
        for micro in micros:
            index = torch.tensor([p for p, _ in micro.branches], device=embeddings.features.device)
            logits = policy(micro.rows, grpo.token_logprobs, embeddings=embeddings, index=index)[2]
            for (p, g), logit in zip(micro.branches, logits, strict=True):
                masks[p, g] = models.Segmenter.resize(logit, embeddings.sizes[p]) > 0
    return masks


def segmentation_loss(masks: Tensor, micro: Micro, batch: Batch) -> Tensor:
    """LENS's L_seg, summed over a micro-batch: mask logits (B, h, w) against the truth, at the truth's resolution."""
    each = []
    for (p, _), logit in zip(micro.branches, masks, strict=True):
        truth = torch.as_tensor(batch.targets[p].mask, device=logit.device)
        logit = models.Segmenter.resize(logit, truth.shape[::-1])
        each.append(models.mask_loss(logit[None], truth[None])[0])
    return torch.stack(each).sum()


def micro_loss(
    policy,
    micro: Micro,
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
    index = torch.tensor([p for p, _ in micro.branches], device=weights.device)
    painting = batch.embeddings if recipe.num_queries else None
    logp, entropy, masks = policy(micro.rows, grpo.token_logprobs, recipe.temperature, painting, index)
    w, drift = weights.flatten()[micro.at], (logp.detach() - rollout.logp.flatten()[micro.at]).abs()
    figures = {"entropy": (w * entropy).sum(), "gap": (w * drift).sum()}
    loss = torch.zeros((), device=weights.device)
    if recipe.train != "context":
        if micro.old_logp is None:  # the first update: pi_old is the policy itself, no second forward is run
            micro.old_logp = logp.detach()
        # The micro-batch's tokens are in one line, (M,); grpo_loss takes (..., T) with an advantage for each (...):
        # (M, 1) with (M,) advantages. The sum is the same in any shape.
        column = lambda x: None if x is None else x[:, None]  # noqa: E731
        loss, terms = grpo.grpo_loss(
            column(logp), column(micro.old_logp), column(micro.ref_logp), advantages.flatten()[micro.at // T],
            column(w), clip_low=recipe.clip_low, clip_high=recipe.clip_high, beta=recipe.beta,
        )  # fmt: skip
        figures |= terms
    if masks is not None:  # LENS Eq. 7: L_GRPO + lambda L_seg, the mean over all rollouts
        seg = segmentation_loss(masks, micro, batch) / (P * G)
        figures["seg_loss"] = seg
        loss = loss + recipe.seg_weight * seg
    return loss, figures | {"loss": loss}


def update(
    accelerator: Accelerator,
    policy,
    optimizer: torch.optim.Optimizer,
    micros: list[Micro],
    batch: Batch,
    rollout: grpo.Rollout,
    advantages: Tensor,  # (P, G)
    recipe: Recipe,
) -> dict[str, float]:
    """One optimizer step on a rollout: micro_loss summed over micro-batches, clip the gradient, step.

    Processes hold equally many groups, and each one's token weights sum to 1: so the mean of their losses is the loss
    over all prompts. FSDP takes that mean of the gradients after every backward; without it average_gradients does,
    once, at the end.

    Returns what to log. Means over tokens, weighted as in the loss: entropy (nats), ratio, kl, clip_low and clip_high
    (fractions clipped), gap (|log-probability now less when sampled|; without meaning for alignment's written
    completions; in a second update it has the first one's step in it; with top_p below 1, what was cut off). loss and
    seg_loss are the step's; grad_norm is that before clipping. FloatingPointError, before it changes a weight, if loss
    or gradient is not finite.
    """
    weights = grpo.token_weights(rollout.mask, recipe.average)
    advantages = advantages.to(weights.device)
    totals: dict[str, Tensor] = {}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    # Processes may need different numbers of rows. Where weights are sharded every forward is a collective, so those
    # with fewer repeat a row, which then counts nothing.
    rounds, sharded = len(micros), hasattr(trained[0], "full_tensor")
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


@torch.no_grad()
def add_reference(reference, policy, micros: list[Micro], recipe: Recipe) -> None:
    """log pi_ref of every token, by the frozen copy; with LoRA (no copy) by the policy, its adapter switched off."""
    model = policy if reference is None else reference
    if reference is None:
        policy.vlm.disable_adapters()
    for micro in micros:
        rows = dataclasses.replace(micro.rows, queries=None)  # last in their branches: no token sees what is there
        micro.ref_logp = model(rows, grpo.token_logprobs, recipe.temperature)[0]
    if reference is None:
        policy.vlm.enable_adapters()


def oracle_rollout(policy: models.Policy, batch: Batch, recipe: Recipe) -> grpo.Rollout:
    """LENS's alignment: one completion per prompt, written from the ground truth (an empty thought, the answer)."""
    texts = []
    for sample, size in zip(batch.samples, batch.prompts.resized, strict=True):
        texts.append(oracle_answer(sample, recipe.schema, data.model_frame(policy.family, size), digits=0))
    tokens = [policy.processor.tokenizer(t).input_ids + [policy.eos_token_id] for t in texts]
    ids = torch.zeros(len(tokens), 1, max(map(len, tokens)), dtype=torch.long, device=policy.device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for p, row in enumerate(tokens):
        ids[p, 0, : len(row)], mask[p, 0, : len(row)] = torch.tensor(row), True
    return grpo.Rollout(ids, mask, torch.zeros(ids.shape, device=policy.device))
