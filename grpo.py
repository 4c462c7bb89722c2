# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""GRPO from the equations up: group advantages, two ways to average tokens, k3 KL, the clipped surrogate; then what it
takes to compute them fast: log-probabilities in pieces, a group in one row, and (half of this file) sampling.

Where it comes from: PPO's clipped surrogate (Schulman 2017) without a value network (GRPO; DeepSeekMath, Shao 2024).
Each prompt is answered G times, and a completion's advantage, the same for all its tokens, is its reward less its
group's mean, over its group's deviation. The KL to a frozen reference is a term of the loss, not of the reward. The
higher upper clip and the token average are DAPO's (Yu 2025); SAM-R1 takes both.

What it leaves out, on purpose: a trainer object. These are functions of tensors (`sample` takes the model, too);
docs/copying.md says what to take with each. This is a whole step on a text model of random weights, each completion in
a row of its own:

    >>> import transformers
    >>> _ = torch.manual_seed(0)
    >>> sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**sizes))
    >>> prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])  # P = 2 prompts of S = 3 tokens; shorter ones: padded left
    >>> inputs = {"input_ids": prompts}  # where prompts are padded, with an attention_mask
    >>> uniforms = torch.rand(2, 4, 6)  # (P, G, T): all the randomness there is
    >>> rollout = sample(model, inputs, uniforms, num_generations=4, max_new_tokens=6, eos_token_id=1)
    >>> rewards = (rollout.ids % 2 * rollout.mask).sum(-1).float()  # (P, G): here, the odd tokens are what is wanted
    >>> advantages = group_advantages(rewards)  # (P, G)
    >>> weights = token_weights(rollout.mask, "token")  # (P, G, T), once for the whole step; it sums to 1
    >>> rows = torch.cat([prompts[:, None].expand(2, 4, 3), rollout.ids], -1).flatten(0, 1)  # (P G, S + T)
    >>> logits = model(rows).logits[:, 2:-1]  # (P G, T, V): what stands before a token predicts it
    >>> logp = logits.log_softmax(-1).gather(-1, rollout.ids.view(8, 6, 1)).view(2, 4, 6)
    >>> loss, metrics = grpo_loss(logp, logp.detach(), None, advantages, weights)  # pi_old: nothing has changed since
    >>> loss.backward()

train.py takes the same step with the other half of this file, a prompt and its G completions in one row, so that no
prompt is computed twice. The losses of such rows simply add up, and the gradient is the same:

    >>> slow = [p.grad.clone() for p in model.parameters()]
    >>> model.zero_grad()
    >>> for p in range(2):
    ...     completions = [rollout.ids[p, g, rollout.mask[p, g]] for g in range(4)]
    ...     ids, positions, visible = pack_group(prompts[p], completions)
    ...     row = dict(input_ids=ids[None], position_ids=positions[None], attention_mask=visible[None, None])
    ...     hidden = model.model(**row, use_cache=False).last_hidden_state[0]
    ...     states = hidden[predicting_states(3, [len(o) for o in completions])]  # (M, d), M tokens written
    ...     logp, entropy = token_logprobs(states, model.lm_head.weight, torch.cat(completions))
    ...     A = advantages[p].repeat_interleave(rollout.mask[p].sum(-1))  # (M,): one per token
    ...     grpo_loss(logp, logp.detach(), None, A, weights[p][rollout.mask[p]])[0].backward()
    >>> all(torch.allclose(p.grad, q, atol=1e-6) for p, q in zip(model.parameters(), slow))
    True
    >>> torch.allclose(logp, rollout.logp[1][rollout.mask[1]], atol=1e-4)  # and the sampler said the same of its tokens
    True
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer.step()

old_logp: in the first update on a rollout, logp.detach(); a second update needs the same again, so keep it. Whoever
makes several optimizer steps over the parts of one rollout scores all of it before the first. ref_logp is what a frozen
reference gives (none here: no KL). A temperature or banned_ids that `sample` is given, token_logprobs has to be given,
too, or it and the sampler say different things of the same token.

Shape letters: P prompts, G completions per prompt, T completion tokens (padded), S prompt tokens, L packed length, M
completion tokens in a row, d hidden width, V vocabulary. A `mask` here is of tokens; `visible` says which token may
look at which. Sources: LENS Eq. 7-12, SAM-R1 Eq. 1-4 and section 3.2.2, Dr. Seg Eq. 1-2; docs/choices.md lists what
they leave open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# ----------------------------------------------------------------------------------------------------------- advantages


def group_advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + eps) within each group: rewards (P, G) -> advantages (P, G).

    LENS Eq. 8-9, SAM-R1 Eq. 1, Dr. Seg Eq. 2 (without eps). std is the unbiased one. Dividing by it makes every
    group push equally hard, whatever its rewards' scale, even a nearly unanimous one; Dr. GRPO (Liu 2025) objects to
    that. A group whose rewards are all equal has nothing to compare and gets exactly 0. That is decided by its
    range: the standard deviation of equal floats may come out as 1e-17, and dividing by it and a tiny eps would turn
    rounding into a training signal.

    Rewards of one axis, (G,), are one group: give several groups as (P, G), a group a row. Whole numbers give float32,
    floats their own type. ValueError for a reward that is not a finite number, and for other shapes.

    >>> group_advantages(torch.tensor([[6.0, 2.0, 2.0, 2.0]]))  # one right answer among four
    tensor([[ 1.4999, -0.5000, -0.5000, -0.5000]])
    """
    if rewards.ndim not in (1, 2):
        raise ValueError(f"rewards {tuple(rewards.shape)}: (P, G) is meant, a group a row")
    if not torch.isfinite(rewards).all():
        raise ValueError(f"a reward is not a finite number: {rewards.tolist()}")
    dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
    r = rewards.double()
    if r.shape[-1] < 2:  # nobody to compare with
        return torch.zeros_like(rewards, dtype=dtype)
    A = (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + eps)
    same = r.amax(-1, keepdim=True) == r.amin(-1, keepdim=True)
    return A.masked_fill(same, 0.0).to(dtype)


# ------------------------------------------------------------------------------------------------------------- the loss


def token_weights(mask: Tensor, average: str = "sequence") -> Tensor:
    """The weight of every token in the step's loss: mask (P, G, T) bool -> weights (P, G, T) float32, summing to 1.

    "sequence": mean over completions of the mean over their tokens, 1 / (P G |o_i|)   (GRPO; LENS Eq. 12).
    "token":    sum over the group's tokens / their number, then mean over groups, 1 / (P sum_i |o_i|) (SAM-R1 Eq. 4)

    Under "sequence" each token of a long completion counts less, so a long wrong answer is corrected more gently, token
    by token, than a short one. "token" here is Eq. 4's: within a group all tokens weigh the same, and so do groups.
    (TRL's "dapo" and verl's "token-mean" pool the tokens of the whole batch, mask / mask.sum(): there a group of long
    completions weighs more.)

    Call it ONCE per optimizer step, with all prompts that this process holds, and slice it for micro-batches: then the
    gradient does not depend on how the step is cut, which is what per-micro-batch means get wrong. A completion (or,
    under "token", a group) without tokens weighs nothing, and what it would have weighed goes to the others.

    With several processes, average their losses. That is the loss over all prompts as long as every process holds the
    same number of completions (groups) with a token, and `sample` returns none without.

    >>> mask = torch.tensor([[[True, True, True], [True, False, False]]])  # completions of three tokens and of one
    >>> token_weights(mask, "sequence")[0, :, 0], token_weights(mask, "token")[0, :, 0]  # of their first tokens
    (tensor([0.1667, 0.5000]), tensor([0.2500, 0.2500]))
    """
    if mask.ndim != 3:
        raise ValueError(f"mask {tuple(mask.shape)} must be (P, G, T): which completions are a group matters")
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask must be of bools, or of 0 and 1: which tokens belong to a completion")
    m = mask.double()
    length = m.sum(-1, keepdim=True)  # |o_i|: (P, G, 1)
    if average == "sequence":
        w = m / length.clamp(min=1) / (length > 0).sum().clamp(min=1)
    elif average == "token":
        total = length.sum(-2, keepdim=True)  # (P, 1, 1)
        w = m / total.clamp(min=1) / (total > 0).sum().clamp(min=1)
    else:
        raise ValueError(f"average must be 'sequence' or 'token', not {average!r}")
    return w.float()


def k3_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token, float32: exp(d) - d - 1, d = log pi_ref - log pi.

    SAM-R1 Eq. 3, LENS Eq. 11. Non-negative (near 0, exp(d) - d - 1 would be rounding: hence expm1). For tokens that
    this very policy drew, its mean is KL(policy || reference). As a term of the loss its gradient is (1 - pi_ref / pi)
    grad log pi, whose mean is the gradient of KL(reference || policy): so it is in the papers. (TRL 1.16 multiplies k3
    by the ratio by default, which changes that.) d is clamped at +-20 so that exp cannot overflow, and the value at 10,
    so that one token cannot own the gradient; beyond a clamp nothing pulls the token back.
    """
    d = (ref_logp.float() - logp.float()).clamp(-20, 20)
    return (d.expm1() - d).clamp(0, 10)


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped GRPO objective as a loss: the sum over tokens of weights * (-min(rho A, clip(rho) A) + beta kl).

    logp, old_logp, ref_logp, weights: one shape, (P, G, T), or the same slice of each, or (M,), tokens in one line.
    Log-probabilities of the sampled tokens under the policy now; under the policy that drew them (if no optimizer step
    has been made since: the first update's own logp, detached); under the reference (None: no KL). Only logp carries
    gradient. advantages: one per completion, (P, G), that is, logp's shape without its last axis; or one per token, of
    logp's shape. weights come from token_weights, so micro-batches simply add up, and the metrics (weighted sums: kl,
    ratio, clipped_low, clipped_high) do too. Padding has weight 0; its log-probabilities must be finite.

    What the minimum means: no gradient where A > 0 and rho > 1 + clip_high, or A < 0 and rho < 1 - clip_low; the full
    one everywhere else. With one update per rollout rho is identically 1 and neither clip ever acts. The log of rho is
    clamped at +-20, so that exp cannot overflow; there the gradient is 0, too.

    clip_high > clip_low is clip-higher (SAM-R1 section 3.2.2). The bound is a factor: at 0.2 a token of probability
    0.01 stops at 0.012, while one of 0.9 is hardly bound. A higher one lets rare tokens that did well grow.

    ValueError for other shapes, which would broadcast to a number, and a wrong one; for weights that are bools (a mask
    is no weight); for beta > 0 without a reference; for beta or clip bounds out of range.
    """
    if old_logp is None:
        raise ValueError("old_logp is missing: in the first update on a rollout it is logp.detach()")
    for name, given in (("old_logp", old_logp), ("ref_logp", ref_logp), ("weights", weights)):
        if given is not None and given.shape != logp.shape:
            raise ValueError(f"{name} {tuple(given.shape)}, but logp {tuple(logp.shape)}")
        if given is not None and not given.is_floating_point():
            raise ValueError(f"{name} are {given.dtype}: floats are meant (weights come from token_weights)")
    if advantages.shape not in (logp.shape, logp.shape[:-1]):
        raise ValueError(
            f"advantages {tuple(advantages.shape)}, but logp {tuple(logp.shape)}: one per completion or token"
        )
    if not (beta >= 0 and 0 <= clip_low < 1 and clip_high >= 0):
        raise ValueError(f"beta {beta}, clip_low {clip_low} or clip_high {clip_high} is out of range")
    if beta > 0 and ref_logp is None:
        raise ValueError(f"beta {beta} weighs the KL to a reference: give ref_logp")
    A = advantages.float()
    if A.shape != logp.shape:
        A = A[..., None]  # one scalar per completion, shared by its tokens
    logp = logp.float()
    rho = (logp - old_logp.detach().float()).clamp(-20, 20).exp()  # rho_it = pi_theta / pi_old
    clipped = rho.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(rho * A, clipped * A)
    metrics = {
        "ratio": rho,
        "clipped_low": (rho < 1 - clip_low) & (A < 0),  # tokens whose gradient the clip has cut
        "clipped_high": (rho > 1 + clip_high) & (A > 0),
    }
    if ref_logp is not None:
        metrics["kl"] = k3_kl(logp, ref_logp.detach())
        loss = loss + beta * metrics["kl"]
    return (weights * loss).sum(), {name: (weights * value.detach()).sum() for name, value in metrics.items()}


# ---------------------------------------------------------------------------------------------------- log-probabilities


def _chunk_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, banned: Tensor
) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight).float().index_fill(-1, banned, -torch.inf) / temperature
    logp = logits.log_softmax(-1)
    p = logp.detach()
    entropy = -(p.exp() * p.masked_fill(p == -torch.inf, 0.0)).sum(-1)  # 0 * -inf is nan: banned tokens have no share
    return logp.gather(-1, targets[:, None])[:, 0], entropy


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    banned_ids: Sequence[int] = (),
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution (nats), without ever holding all logits.

    hidden (M, d): the state that PREDICTS the target, that is, of the token before it (predicting_states);
    lm_head_weight (V, d); targets (M,). Returns logp (M,) and entropy (M,), float32; entropy carries no gradient.
    temperature > 0 and banned_ids as in `sample`: what could not be drawn has no probability here either. (There is no
    top_p: with it, what was sampled was drawn from a narrower distribution than what is trained.) The output layer is
    one matrix, as in Qwen: no bias, no scale, no cap on the logits.

    Logits exist for `chunk` tokens at a time, in forward and, by recomputation, in backward: with their gradient, 256
    tokens at V = 152,000 take 0.8 GiB, 1,600 of them at once would take 4.6.
    """
    if len(hidden) != len(targets) or not temperature > 0:
        raise ValueError(f"{len(hidden)} states for {len(targets)} targets, at temperature {temperature}")
    banned = torch.as_tensor(list(banned_ids), dtype=torch.long, device=hidden.device)
    pieces = [
        checkpoint(_chunk_logprobs, h, lm_head_weight, t, temperature, banned, use_reentrant=False)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    logp, entropy = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return logp, entropy


# -------------------------------------------------------------------------------------------------------- who sees whom


def pack_group(prompt_ids: Tensor, completions: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One prompt and its completions in a single row [prompt | o_1 | ... | o_G]: the prompt is computed once.

    prompt_ids (S,) without padding, completions a list of (t_i,) -> ids (L,), positions (L,) (of text; for M-RoPE see
    model.Policy.pack), visible (L, L) bool: visible[q, k] = q sees k.

              prompt  o_1   o_2     A completion sees the prompt and itself, never its siblings; its positions continue
     prompt   tri      .     .      the prompt's (S, S + 1, ...) as if it stood there alone. So each token gets the very
     o_1      full    tri    .      numbers that it would get in a row of its own, at 1,000 + 8 x 200 tokens instead of
     o_2      full     .    tri     8 x 1,200.

    A model loaded with attn_implementation="sdpa" takes it as attention_mask=visible[None, None]. (With "eager" it
    would add the bools to its scores, without a word: give it 0 and -inf.) It takes the place of a model's own sliding
    window, and layers that are no attention do not see it: require_plain_attention refuses models with either.
    predicting_states says which states predict the completions' tokens, token_logprobs scores them. Check that what
    comes out agrees with Rollout.logp; it will not while dropout is on.
    """
    S = len(prompt_ids)
    device = prompt_ids.device
    parts = [prompt_ids, *completions]
    part = torch.cat([torch.full((len(ids),), i, device=device) for i, ids in enumerate(parts)])  # 0: the prompt
    positions = [torch.arange(S, device=device), *(S + torch.arange(len(o), device=device) for o in completions)]
    causal = torch.ones(len(part), len(part), dtype=torch.bool, device=device).tril()
    visible = causal & ((part[None, :] == 0) | (part[None, :] == part[:, None]))
    return torch.cat(parts), torch.cat(positions), visible


def predicting_states(prompt_length: int, lengths: Sequence[int], between: int = 0) -> Tensor:
    """Where in a packed row (pack_group) stands the state that predicts each completion token: (M,), completion by
    completion.

    A token is predicted by the state before it. For the first of every completion that is the prompt's last state,
    which all share. `between`: places after each completion that belong to it and predict nothing (LENS's queries).

    >>> predicting_states(3, [2, 1, 3]).tolist()  # prompt at 0-2, completions at 3-4, 5, 6-8
    [2, 3, 2, 2, 6, 7]
    """
    states: list[int] = []
    start = prompt_length
    for length in lengths:
        states += [prompt_length - 1, *range(start, start + length - 1)][:length]
        start += length + between
    return torch.tensor(states, dtype=torch.long)


def require_plain_attention(model) -> None:
    """ValueError, by name, for what packing and sampling here cannot serve: sliding windows, layers that are no
    attention or not of transformers' registry, prompts that are seen both ways, caps or scales on logits. model: from
    transformers, text or image-text."""
    config = model.config.get_text_config()
    name = type(model).__name__
    other = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other:
        raise ValueError(
            f"{name} has layers of {', '.join(other)}: only full attention sees a packed row as it is meant"
        )
    if not getattr(model, "_supports_attention_backend", True):  # Bloom, MPT, ...
        raise ValueError(f"{name} does not attend through transformers' registry: a packed row's mask may not reach it")
    # Gemma 3, PaliGemma: a prompt that is seen both ways; and Doge, whose class does not say so in transformers 5.17.
    if hasattr(model, "create_masks_for_generate") or config.model_type == "doge":
        raise ValueError(f"{name} makes attention masks of its own, which a packed row's mask would replace")
    if getattr(config, "sliding_window", None):
        window = f"a sliding window of {config.sliding_window} tokens, which a packed row would undo"
        raise ValueError(f"{name} has {window}: where every row is shorter, set config.sliding_window = None")
    for cap in ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, cap, None) not in (None, 1, 1.0):
            raise ValueError(f"{name} has {cap} {getattr(config, cap)}, which token_logprobs and sample leave out")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"{name} has a bias on its output layer, which token_logprobs leaves out")


# ------------------------------------------------------------------------------------------------------------- sampling


@dataclasses.dataclass
class Rollout:
    """ids (P, G, T) int64, 0 after the end; mask (P, G, T) bool, the tokens that belong to the completion, its end
    token included; logp (P, G, T) float32, log-probability of each token in the distribution that it was drawn from, 0
    where not mask. It is a check (`gap` in metrics.jsonl), not pi_old: that is what the update's first forward gives,
    so that rounding between sampling and training stays out of the ratio."""

    ids: Tensor
    mask: Tensor
    logp: Tensor


def recording() -> bool:
    """Is a CUDA graph being recorded? Then no value may be looked at."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def pick_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverse CDF: the first token at which the cumulative probability exceeds u.

    logits (B, V) with -inf at tokens that must not be drawn; uniforms (B,) in [0, 1). temperature 0 takes the
    likeliest. Returns ids (B,) and their log-probabilities (B,), float32, in the distribution drawn from (after
    temperature and top_p; at temperature 0 that of the logits as they are). The randomness is an argument: the same
    uniforms give the same tokens on any rank, in any batch, after any restart.

    ValueError for temperature < 0, top_p outside (0, 1], and for a row of logits with a NaN or without any token left.
    (While a CUDA graph is being recorded nothing can be looked at: `sample` looks afterwards.)
    """
    if not (temperature >= 0 and 0 < top_p <= 1):
        raise ValueError(f"temperature {temperature} must be at least 0, top_p {top_p} above 0 and at most 1")
    logits = logits.float()
    if temperature == 0:
        ids = logits.argmax(-1)
        logp = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    else:
        every = (logits / temperature).log_softmax(-1)  # (B, V)
        if top_p < 1:  # keep the smallest set of likeliest tokens whose probability reaches top_p
            ordered, order = every.sort(-1, descending=True)
            before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of all likelier tokens
            keep = torch.zeros_like(every, dtype=torch.bool).scatter(-1, order, before < top_p)
            every = every.masked_fill(~keep, -torch.inf).log_softmax(-1)
        cdf = every.exp().cumsum(-1)
        # A float64 just below 1 would round to 1. Scaling u by the last value absorbs the sum's rounding; right=True
        # steps over tokens of zero probability when u falls on their edge.
        u = uniforms.to(cdf).clamp(max=1 - 2**-24)
        ids = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
        # Float rounding must not step past the last token that has any probability.
        last = every.shape[-1] - 1 - (every > -torch.inf).flip(-1).int().argmax(-1)
        ids = torch.minimum(ids, last)
        logp = every.gather(-1, ids[:, None])[:, 0]
    if not recording() and logp.isnan().any():
        raise ValueError("logits with a NaN, or a row in which no token may be drawn")
    return ids, logp


def scores(query: Tensor, key: Tensor) -> Tensor:
    """query (B, H, n, d) x key (B, H, m, d) -> their products (B, H, n, m), float32, from 16 bits or float32.

    A product of 16-bit matrices sums in float32 and rounds its result to 16 bits, which an attention's scores do not
    bear: Qwen2.5's keys have large biases, so scores reach tens of thousands, where neighbours in bfloat16 are 64 and
    more apart. All keys share the offset, the softmax does not see it, and the difference is what gets lost. Attention
    kernels keep scores in float32; so must this.
    """
    if query.dtype == torch.float32:
        return query @ key.transpose(-1, -2)
    if query.is_cuda:
        product = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
        return product.unflatten(0, query.shape[:2])
    return query.float() @ key.float().transpose(-1, -2)


class PromptOnce:
    """What a decode step looks at: each prompt's keys and values, once for its whole group, and each completion's own.

    It is pack_group's picture while it grows: a completion sees its prompt and itself. So a group's queries meet its
    prompt's keys in one product, and nothing is copied G times; one softmax runs over both.

        queries of a group           x the prompt's keys, held once        (P, kv, G r, S)
        each completion's query      x its own keys so far                 (P G, kv, r, room)

    kv key heads, r query heads share each. `attend` is an attention function of transformers' registry. It puts the new
    key and value into the own ones, so the model runs with use_cache=False. All that changes from token to token is in
    tensors that stay where they are, so a step can be recorded as a CUDA graph.
    """

    def __init__(self, layers: Sequence, attention_mask: Tensor, G: int):
        """layers: of a prefilled transformers cache, keys and values (P, kv, S, d); attention_mask (P, S). ValueError
        for a cache that does not hold every token."""
        kinds = {type(layer).__name__ for layer in layers} - {"DynamicLayer"}
        if kinds:
            raise ValueError(f"a cache of {', '.join(sorted(kinds))}: sampling here is for full attention")
        self.P = len(attention_mask)
        self.G = G
        self.prompt = [(layer.keys.contiguous(), layer.values.contiguous()) for layer in layers]
        # What is added to scores: 0 where there is a token, -inf at the prompts' padding and at places not yet written.
        self.prompt_bias = torch.zeros(attention_mask.shape, device=attention_mask.device)
        self.prompt_bias = self.prompt_bias.masked_fill(attention_mask == 0, -torch.inf)[:, None, None]  # (P, 1, 1, S)

        def none(x: Tensor) -> Tensor:
            return x.new_zeros(self.P * G, x.shape[1], 0, x.shape[3])

        self.own = [(none(keys), none(values)) for keys, values in self.prompt]
        self.own_bias = self.prompt_bias.new_zeros(0)  # (room,)
        self.place = torch.zeros(1, dtype=torch.long, device=attention_mask.device)  # of the token that is being fed
        self.served: set[int] = set()  # layers that have called

    def grow(self, tokens: int) -> None:
        """Room for so many more tokens of every completion."""
        for i, (keys, values) in enumerate(self.own):  # layer by layer, or all would be there twice
            self.own[i] = F.pad(keys, (0, 0, 0, tokens)), F.pad(values, (0, 0, 0, tokens))
        self.own_bias = F.pad(self.own_bias, (0, tokens), value=-torch.inf)

    def keep(self, prompts: Tensor, rows: Tensor, G: int) -> None:
        """Only these prompts (of P) go on, with these rows (of P G): G of each."""
        if len(prompts) < self.P:
            for i, (keys, values) in enumerate(self.prompt):
                self.prompt[i] = keys[prompts], values[prompts]
            self.prompt_bias = self.prompt_bias[prompts]
        for i, (keys, values) in enumerate(self.own):
            self.own[i] = keys[rows], values[rows]
        self.P = len(prompts)
        self.G = G

    def check_served(self, model) -> None:
        """ValueError if some layer went past `attend`: it has seen nothing of what came before."""
        if len(self.served) < len(self.prompt):
            raise ValueError(f"not all layers of {type(model).__name__} go through transformers' attention registry")

    @torch.compiler.disable  # its Python state would have compiled layers compiled again and again
    def attend(self, module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling=None, **other):
        """query (P G, H, 1, d), key and value (P G, kv, 1, d) -> (P G, 1, H, d), None: an attention without weights."""
        for kind in ("sliding_window", "softcap", "s_aux"):
            if other.get(kind) is not None:
                raise ValueError(f"{type(module).__name__} asks for {kind}, which sampling here does not have")
        layer = module.layer_idx
        self.served.add(layer)
        prompt_keys, prompt_values = self.prompt[layer]
        if key.shape[1::2] != prompt_keys.shape[1::2]:  # key heads and their width
            raise ValueError(f"{type(module).__name__} does not cache the keys that it attends with")
        own_keys, own_values = self.own[layer]
        own_keys.index_copy_(2, self.place, key)
        own_values.index_copy_(2, self.place, value)
        P, G, S = self.P, self.G, prompt_keys.shape[2]
        kv, d = key.shape[1], key.shape[3]
        r = query.shape[1] // kv
        scaling = d**-0.5 if scaling is None else scaling

        def by_prompt(x: Tensor) -> Tensor:  # (P G, kv, r, n) -> (P, kv, G r, n)
            return x.view(P, G, kv, r, -1).transpose(1, 2).reshape(P, kv, G * r, -1)

        def by_completion(x: Tensor) -> Tensor:  # and back
            return x.view(P, kv, G, r, -1).transpose(1, 2).reshape(P * G, kv, r, -1)

        query = query.reshape(P * G, kv, r, d)
        to_prompt = torch.add(self.prompt_bias, scores(by_prompt(query), prompt_keys), alpha=scaling)
        to_prompt = by_completion(to_prompt)
        to_own = torch.add(self.own_bias, scores(query, own_keys), alpha=scaling)
        attention = torch.cat([to_prompt, to_own], -1).softmax(-1).to(value.dtype)  # (P G, kv, r, S + room)
        seen = by_completion(by_prompt(attention[..., :S]) @ prompt_values) + attention[..., S:] @ own_values
        return seen.reshape(P * G, 1, kv * r, -1), None


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """The stream on which steps warm up, one for all: cuBLAS keeps a workspace for each that it meets."""
    return torch.cuda.Stream()


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Run a step twice, then write it down as a CUDA graph: a function that runs it again, without Python.

    Drawing one token takes a GPU a few milliseconds of reading weights, and Python more than that to launch the
    thousand small kernels that do it.
    """
    side = side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # two ordinary steps: what libraries set up on first use must not be recorded
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # writes down the step without running it
        step()
    return graph.replay


@dataclasses.dataclass
class _Batch:
    """What is being decoded: B rows, each a completion, and their state."""

    model: torch.nn.Module
    seen: PromptOnce
    draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # logits (B, V), uniforms (B,) -> tokens, their logp
    rows: Tensor  # (B,) which of the P G completions each row is
    uniforms: Tensor  # (B, T)
    position: Tensor  # (3, B, 1) or (B, 1), of the token that was fed last
    ids: Tensor  # (B, T), with logp (B, T): what has been drawn
    logp: Tensor

    def write(self, logits: Tensor) -> None:
        """Token number `place` of every row, from logits (B, V)."""
        place = self.seen.place
        tokens, logp = self.draw(logits, self.uniforms.index_select(1, place)[:, 0])
        self.ids.index_copy_(1, place, tokens[:, None])
        self.logp.index_copy_(1, place, logp[:, None])

    def step(self) -> None:
        """Feed token number `place`, draw the next one. All it reads and writes are tensors that stay where they are,
        so it can be recorded."""
        seen = self.seen
        seen.own_bias.index_fill_(0, seen.place, 0.0)
        self.position.add_(1)
        tokens = self.ids.index_select(1, seen.place)
        out = self.model(input_ids=tokens, position_ids=self.position, use_cache=False, logits_to_keep=1)
        seen.place.add_(1)
        self.write(out.logits[:, -1])

    def run(self, tokens: int) -> None:
        """So many steps: a segment. On a GPU its step is recorded, anew in every one: shapes and weights change."""
        self.seen.grow(tokens)
        step = self.step
        if self.ids.is_cuda and tokens > 4:  # for fewer, recording costs more than it saves
            step = record(self.step)  # which has made two of them already
            tokens -= 2
        for _ in range(tokens):
            step()

    def leave(self, alive: Tensor) -> None:
        """Rows (B,) that are not alive go. A group keeps as many places as the fullest one needs: rows stay P' x G'."""
        G = self.seen.G
        living = alive.view(-1, G)
        fullest = int(living.sum(-1).max())
        prompts = living.any(-1).nonzero()[:, 0]
        if fullest == G and len(prompts) == len(living):
            return
        first = (~living).int().argsort(dim=-1, stable=True)[prompts, :fullest]  # the living stand first
        kept = (prompts[:, None] * G + first).flatten()
        self.seen.keep(prompts, kept, fullest)
        self.rows = self.rows[kept]
        self.uniforms = self.uniforms[kept]
        self.position = self.position[..., kept, :]
        self.ids = self.ids[kept]
        self.logp = self.logp[kept]


def _checked(model, inputs: Mapping[str, Tensor], uniforms: Tensor, G: int, T: int, ends) -> dict[str, Tensor]:
    """What sample was given, with what may be left out; ValueError, in a sentence, for what would sample nonsense."""
    require_plain_attention(model)
    P, S = inputs["input_ids"].shape
    if len(torch.as_tensor(ends).reshape(-1)) == 0:
        raise ValueError("eos_token_id is empty: name the token that ends a completion (-1 for none)")
    if uniforms.ndim != 3 or any(has < needed for has, needed in zip(uniforms.shape, (P, G, T))):
        raise ValueError(f"uniforms {tuple(uniforms.shape)} must be at least (P, G, T) = {(P, G, T)}")
    if min(P, G, T) < 1:
        raise ValueError(f"nothing to sample: prompts, completions and tokens (P, G, T) = {(P, G, T)}")
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms must be at least 0 and below 1")
    padding = model.config.get_text_config().pad_token_id
    if "attention_mask" not in inputs and padding is not None and bool((inputs["input_ids"] == padding).any()):
        raise ValueError("prompts with padding in them, and no attention_mask that says where")
    attention_mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    if not bool((attention_mask[:, -1] != 0).all()) or bool((attention_mask[:, :-1] > attention_mask[:, 1:]).any()):
        raise ValueError("prompts must be padded on the left: each one's last token in the last column")
    inputs = {**inputs, "attention_mask": attention_mask}
    if "position_ids" not in inspect.signature(model.forward).parameters:
        why = "its forward names no position_ids; inside a wrapper (PEFT's get_base_model()) may be a model that does"
        raise ValueError(f"{type(model).__name__} cannot be sampled from here: {why}")
    if "position_ids" not in inputs:
        if hasattr(model.base_model, "get_rope_index"):
            raise ValueError("this model's positions are 3-D: give position_ids (model.Policy.encode makes them)")
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return inputs


LARGE = 2**18  # elements of a matrix from which packing it pays


@contextlib.contextmanager
def packed_linears(model, rows: int) -> Iterator[None]:
    """While tokens are drawn on a CPU: multiply `rows` rows by the language model's large float32 matrices two to three
    times as fast. The matrices are copied into the order in which oneDNN reads them for so few rows, and each such
    layer's forward is replaced until the block ends. Copies of more than 2 GiB are not made: then nothing changes."""
    onednn = torch.ops.mkldnn
    there = [m for m in (*model.get_decoder().modules(), model.get_output_embeddings()) if type(m) is torch.nn.Linear]
    large = [m for m in there if m.weight.numel() >= LARGE and m.weight.dtype == torch.float32]
    on_cpu = all(m.weight.device.type == "cpu" for m in large) and torch.backends.mkldnn.is_available()
    if not on_cpu or any("forward" in vars(m) for m in large) or sum(m.weight.numel() for m in large) > 2**29:
        large = []
    try:
        for m in large:
            weight = onednn._reorder_linear_weight(m.weight, rows)
            m.forward = lambda x, w=weight, b=m.bias: onednn._linear_pointwise(x, w, b, "none", [], "")
        yield
    finally:
        for m in large:
            vars(m).pop("forward", None)


@contextlib.contextmanager
def evaluating(model) -> Iterator[None]:
    """Evaluation mode for a while: in training mode, gradient checkpointing would throw the cache away."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def attending_by(model, seen: PromptOnce) -> Iterator[None]:
    """While it lasts, the language model's layers attend by seen.attend, and transformers makes no mask of its own (it
    makes none for a name that it does not know): PromptOnce brings one."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.get_decoder().config
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["prompt_once"] = seen.attend
    config._attn_implementation = "prompt_once"
    try:
        yield
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS["prompt_once"]


@torch.no_grad()
def sample(
    model,
    inputs: Mapping[str, Tensor],
    uniforms: Tensor,
    *,
    num_generations: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int],
    banned_ids: Sequence[int] = (),
    segment: int | None = None,
) -> Rollout:
    """G completions for each of P prompts, from a Hugging Face causal or image-text model (transformers 5.17 to 5.23).

    inputs: what the processor made, LEFT-padded, with `attention_mask` (it may be left out where nothing is padded) and
    explicit `position_ids`, (3, P, S) for the Qwen-VL families; (P, S), or left out, for text models. uniforms (P, G,
    >= max_new_tokens) in [0, 1): all the randomness there is. eos_token_id: one end token or several (-1: none).
    banned_ids can never be drawn (a policy that writes an image token crashes its own next forward).

    One prefill per prompt, vision tower included, whose keys and values are kept once per prompt (PromptOnce). Then
    token by token, in segments of `segment` tokens (256 on a GPU, where a segment's step is recorded and replayed; 16
    on a CPU): at a segment's end completions that have ended leave the batch (groups stay equally large). The idea is
    Hydragen's (2024): exact attention over a shared prefix and separate suffixes.

    ValueError before the prefill for a model of which it is known that this cannot serve it (require_plain_attention)
    and for inputs that would sample nonsense; a model with an attention of its own making fails at its first segment's
    end. Training flags, the attention, and (on a CPU) the forwards of large linear layers that packed_linears replaces
    are what they were, also after an error.
    """
    G, T = num_generations, max_new_tokens
    inputs = _checked(model, inputs, uniforms, G, T, eos_token_id)
    P = len(inputs["input_ids"])
    device = inputs["input_ids"].device
    segment = segment or (256 if device.type == "cuda" else 16)
    ends = torch.as_tensor(eos_token_id, device=device).reshape(-1)
    banned = torch.as_tensor(list(banned_ids), dtype=torch.long, device=device)
    ids = torch.zeros(P * G, T, dtype=torch.long, device=device)  # of all; the batch has those that are still written
    logp = torch.zeros(P * G, T, device=device)

    def draw(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return pick_tokens(logits.float().index_fill(-1, banned, -torch.inf), u, temperature, top_p)

    with evaluating(model):
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        batch = _Batch(
            model=model,
            seen=PromptOnce(out.past_key_values.layers, inputs["attention_mask"], G),
            draw=draw,
            rows=torch.arange(P * G, device=device),
            uniforms=uniforms[:P, :G, :T].reshape(P * G, T).to(device),
            # Text goes on from a prompt's largest position, which need not be its last token's (M-RoPE).
            position=inputs["position_ids"].amax(-1).repeat_interleave(G, -1)[..., None].clone(),
            ids=ids.clone(),
            logp=logp.clone(),
        )
        batch.write(out.logits[:, -1].repeat_interleave(G, 0))
        del out
        done = 1
        with attending_by(model, batch.seen), packed_linears(model, P * G):
            while True:
                ids[batch.rows] = batch.ids
                logp[batch.rows] = batch.logp
                if batch.logp[:, :done].isnan().any():  # nobody could look while a recorded step was replayed
                    raise ValueError("logits with a NaN, or a row in which no token may be drawn")
                alive = ~torch.isin(batch.ids[:, :done], ends).any(-1)
                if done == T or not alive.any():
                    break
                batch.leave(alive)
                batch.run(min(segment, T - done))
                done += min(segment, T - done)
                batch.seen.check_served(model)

    # The end token belongs to the completion: else stopping would get no gradient, an empty completion no weight. One
    # that was cut off at T counts with all its tokens (it seldom parses, and is trained on for what it earns).
    end = torch.isin(ids, ends)
    mask = end.cumsum(-1) - end.long() == 0
    return Rollout(ids.where(mask, 0).view(P, G, T), mask.view(P, G, T), logp.where(mask, 0.0).view(P, G, T))
