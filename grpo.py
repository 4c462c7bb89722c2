"""GRPO from the equations up: sampling, group advantages, the clipped surrogate, k3 KL, two ways to average tokens.

What it leaves out, on purpose: no value network (the group's mean is the baseline), no trainer object, no engine. Every
function takes tensors and returns tensors; any of them can be lifted out alone. One step, as train.py and step.py take
it:

    rollout    = sample(model, inputs, uniforms, ...)             G completions for each of P prompts
    ids, positions, mask = pack_group(prompt_ids, completions)    one row per prompt: the prompt is computed once
    advantages = group_advantages(rewards)                        (P, G)
    weights    = token_weights(rollout.mask, "token")             (P, G, T), sums to 1; slice it for micro-batches
    logp, entropy = token_logprobs(hidden, lm_head_weight, targets)
    loss, metrics = grpo_loss(logp, old_logp, ref_logp, advantages, weights)

old_logp is the first update's own logp; ref_logp that of a frozen reference.

Shape letters: P prompts, G completions per prompt, T completion tokens (padded), S prompt tokens, L packed length, V
vocabulary. Sources: LENS Eq. 7-12, SAM-R1 Eq. 1-4 and section 3.2.2, Dr. Seg Eq. 1-2; docs/choices.md lists
what they leave open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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


def pick_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverse CDF: the first token at which the cumulative probability exceeds u.

    logits (B, V) with -inf at tokens that must not be drawn; uniforms (B,) in [0, 1). temperature 0 takes the
    likeliest. Returns ids (B,) and their log-probabilities (B,), float32, in the distribution drawn from (after
    temperature and top_p; at temperature 0 that of the logits as they are). The noise is an argument: the same uniforms
    give the same tokens on any rank, in any batch, after any restart.
    """
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(-1)
        return best, logits.log_softmax(-1).gather(-1, best[:, None])[:, 0]
    logp = (logits / temperature).log_softmax(-1)
    if top_p < 1:  # keep the smallest set of likeliest tokens whose probability reaches top_p
        ordered, order = logp.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of all likelier tokens
        keep = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, before < top_p)
        logp = logp.masked_fill(~keep, -torch.inf).log_softmax(-1)
    cdf = logp.exp().cumsum(-1)
    # Scaling u by the last value absorbs rounding; right=True steps over tokens of zero probability when u falls on
    # their edge.
    ids = torch.searchsorted(cdf, (uniforms.to(cdf) * cdf[:, -1])[:, None], right=True)[:, 0]
    # Float rounding must not step past the last token that has any probability.
    last = logp.shape[-1] - 1 - (logp > -torch.inf).flip(-1).int().argmax(-1)
    ids = torch.minimum(ids, last)
    return ids, logp.gather(-1, ids[:, None])[:, 0]


def reserve(layer, room: int = 256) -> None:
    """Let a layer of transformers' DynamicCache append in place: space for `room` more tokens, and again when full.

    Its own update concatenates, that is, copies the whole cache for every token drawn: nearly half of a decode step.
    Room for all tokens at once would be tens of gigabytes, most of it for rows that end early.
    """
    store = [F.pad(x, (0, 0, 0, room)) for x in (layer.keys, layer.values)]  # (B, heads, S + room, width)
    layer.keys, layer.values = (whole[:, :, :-room] for whole in store)  # the old ones go now, not at the next token

    def update(keys: Tensor, values: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        n = layer.keys.shape[2]
        if n + keys.shape[2] > store[0].shape[2]:
            reserve(layer, room)
            return layer.update(keys, values)
        for whole, new in zip(store, (keys, values), strict=True):
            whole[:, :, n : n + new.shape[2]] = new
        layer.keys, layer.values = (whole[:, :, : n + keys.shape[2]] for whole in store)
        return layer.keys, layer.values

    layer.update = update


@torch.no_grad()
def sample(
    model,
    inputs: Mapping[str, Tensor],
    uniforms: Tensor,
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_token_id: int,
    banned_ids: Sequence[int] = (),
) -> Rollout:
    """G completions for each of P prompts, from any Hugging Face causal or image-text model.

    inputs: what the processor made, LEFT-padded, with `attention_mask` and explicit `position_ids`, (3, P, S) for the
    Qwen-VL families or (P, S). uniforms (P, G, >= max_new_tokens): all the randomness there is. eos_token_id: one
    token. banned_ids can never be drawn (a policy that writes an image token crashes its own next forward).

    Prefill runs once per prompt, vision tower included; only its cache is copied G times. Rows that have ended leave
    the batch.
    """
    P, S = inputs["input_ids"].shape
    G = num_samples
    T = max_new_tokens
    device = inputs["input_ids"].device
    if any(has < needed for has, needed in zip(uniforms.shape, (P, G, T), strict=True)):
        raise ValueError(f"uniforms {tuple(uniforms.shape)} are fewer than (P, G, T) = {(P, G, T)}")
    training = model.training
    model.eval()  # in training mode, gradient checkpointing would throw the cache away
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    logits = out.logits[:, -1].repeat_interleave(G, 0)  # (B, V), B = P * G rows alive
    cache.batch_repeat_interleave(G)
    growing = [layer for layer in cache.layers if type(layer).__name__ == "DynamicLayer"]  # sliding windows do not grow
    for layer in growing:
        reserve(layer)
    attention_mask = inputs["attention_mask"].repeat_interleave(G, 0)  # (B, S + t)
    # The last position of each row, (3, B) or (B,).
    position = inputs["position_ids"].amax(dim=-1).repeat_interleave(G, -1)
    uniforms = uniforms[:P, :G, :T].reshape(P * G, T).to(device)
    ids, mask, logp = (torch.zeros(P * G, T, dtype=d, device=device) for d in (torch.long, torch.bool, torch.float))
    rows = torch.arange(P * G, device=device)  # which completion each row of the batch is
    banned = torch.as_tensor(list(banned_ids), dtype=torch.long, device=device)
    for t in range(T):
        logits = logits.float().index_fill(-1, banned, -torch.inf)
        tokens, token_logp = pick_tokens(logits, uniforms[rows, t], temperature, top_p)
        # The end token belongs to the completion: else stopping would get no gradient, an empty completion no weight.
        ids[rows, t] = tokens
        mask[rows, t] = True
        logp[rows, t] = token_logp
        alive = (tokens != eos_token_id).nonzero()[:, 0]
        if len(alive) == 0 or t == T - 1:
            break
        if len(alive) < len(rows):
            rows = rows[alive]
            tokens = tokens[alive]
            attention_mask = attention_mask[alive]
            position = position[..., alive]
            for layer in cache.layers:  # one by one, so that no more than a layer is there twice
                if layer in growing:
                    del layer.update  # and with it the old room
                layer.batch_select_indices(alive)
                if layer in growing:
                    reserve(layer)
        position = position + 1
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=attention_mask,
            position_ids=position[..., None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    for layer in growing:
        del layer.update  # a function that knows its layer: a circle, which would keep the cache through the update
    model.train(training)
    return Rollout(ids.view(P, G, T), mask.view(P, G, T), logp.view(P, G, T))


# ----------------------------------------------------------------------------------------------------------- advantages


def group_advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + eps) within each group: rewards (P, G) -> advantages (P, G).

    LENS Eq. 8-9, SAM-R1 Eq. 1, Dr. Seg Eq. 2 (without eps). std is the unbiased one. A group whose rewards are all
    equal has nothing to compare and gets exactly 0. That is decided by its range: the standard deviation of equal
    floats may come out as 1e-17, and dividing by it and a tiny eps would turn rounding into a training signal.

    >>> group_advantages(torch.tensor([[6.0, 2.0, 2.0, 2.0]]))  # one right answer among four
    tensor([[ 1.4999, -0.5000, -0.5000, -0.5000]])
    """
    r = rewards.double()
    dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
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

    Call it ONCE per optimizer step, with all prompts that this process holds, and slice it for micro-batches: then the
    gradient does not depend on how the step is cut, which is what per-micro-batch means get wrong. A completion (or,
    under "token", a group) without tokens weighs nothing, and what it would have weighed goes to the others.

    >>> mask = torch.tensor([[[True, True, True], [True, False, False]]])  # completions of three tokens and of one
    >>> token_weights(mask, "sequence")[0, :, 0], token_weights(mask, "token")[0, :, 0]  # of their first tokens
    (tensor([0.1667, 0.5000]), tensor([0.2500, 0.2500]))
    """
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

    SAM-R1 Eq. 3, LENS Eq. 11. Non-negative; unbiased, for tokens that this very policy drew. d is clamped at +-20 so
    that exp cannot overflow, and the value at 10, so that one token cannot own the gradient (where a clamp acts, the
    gradient is 0).
    """
    d = (ref_logp.float() - logp.float()).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(max=10)


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

    logp, old_logp, ref_logp, weights (P, G, T), or the same slice of each, of any shape (..., T); advantages (P, G), or
    (...). Log-probabilities of the sampled tokens under the policy now; under the policy that sampled them, as the
    first update on them finds it; under the reference (None: no KL). weights come from token_weights, so micro-batches
    simply add up, and the metrics (weighted sums: kl, clip_low, clip_high, ratio) do too. Padding has weight 0; its
    log-probabilities must be finite. Tokens in one line, (M,), with an advantage each: hand over logp[:, None] and so
    on, and advantages (M,).

    clip_high > clip_low is clip-higher (SAM-R1 section 3.2.2): a token that did well may grow by more than a token that
    did badly may shrink, so rare good tokens are not held back. With one update per rollout rho is identically 1 and
    neither clip ever acts.
    """
    if advantages.shape != logp.shape[:-1]:  # broadcasting would give a number, and a wrong one
        raise ValueError(f"advantages {tuple(advantages.shape)}, but logp {tuple(logp.shape)}: one per completion")
    logp, old_logp = logp.float(), old_logp.float()
    A = advantages.float()[..., None]  # one scalar per completion, shared by its tokens
    rho = (logp - old_logp).clamp(-20, 20).exp()  # rho_it = pi_theta / pi_old
    clipped = rho.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(rho * A, clipped * A)
    metrics = {
        "ratio": rho,
        "clip_low": (rho < 1 - clip_low) & (A < 0),  # tokens whose gradient the clip has cut
        "clip_high": (rho > 1 + clip_high) & (A > 0),
    }
    if ref_logp is not None:
        metrics["kl"] = k3_kl(logp, ref_logp)
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
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution (nats), without ever holding all logits.

    hidden (N, d): the state that PREDICTS the target, that is, of the token before it; lm_head_weight (V, d); targets
    (N,). Returns logp (N,) and entropy (N,), float32; entropy carries no gradient. temperature > 0 and banned_ids as in
    `sample`: what could not be drawn has no probability here either. (There is no top_p: with it, what was sampled was
    drawn from a narrower distribution than what is trained.) The output layer is one matrix, as in Qwen: no bias, no
    scale, no cap on the logits.

    Logits exist for `chunk` tokens at a time, in forward and, by recomputation, in backward: at V = 152,000, 1,600
    completion tokens would otherwise take 1 GB in float32, and three times that with their gradient.
    """
    banned = torch.as_tensor(list(banned_ids), dtype=torch.long, device=hidden.device)
    pieces = [
        checkpoint(_chunk_logprobs, h, lm_head_weight, t, temperature, banned, use_reentrant=False)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    if not pieces:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    logp, entropy = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return logp, entropy


# -------------------------------------------------------------------------------------------------------------- packing


def pack_group(prompt_ids: Tensor, completions: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One prompt and its completions in a single row [prompt | o_1 | ... | o_G]: the prompt is computed once.

    prompt_ids (S,) without padding, completions a list of (t_i,) -> ids (L,), positions (L,) (of text; for M-RoPE see
    model.Policy.pack), mask (L, L) bool: mask[q, k] = q sees k.

              prompt  o_1   o_2     A completion sees the prompt and itself, never its siblings; its positions continue
     prompt   tri      .     .      the prompt's (S, S + 1, ...) as if it stood there alone. So each token gets the very
     o_1      full    tri    .      numbers that it would get in a row of its own, at 1,000 + 8 x 200 tokens instead of
     o_2      full     .    tri     8 x 1,200.

    A model loaded with attn_implementation="sdpa" takes the mask as mask[None, None]. (With "eager" it would add the
    bools to its scores, without a word: give it 0 and -inf.) The state that predicts a completion's first token is the
    prompt's last, at S - 1, for every completion; each further token is predicted by the state before it. Check that
    what comes out agrees with Rollout.logp.
    """
    S = len(prompt_ids)
    device = prompt_ids.device
    ids = torch.cat([prompt_ids, *completions])
    branch = torch.cat(
        [torch.full((len(part),), i, device=device) for i, part in enumerate([prompt_ids, *completions])]
    )
    positions = torch.cat(
        [torch.arange(S, device=device), *[S + torch.arange(len(o), device=device) for o in completions]]
    )
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool, device=device).tril()
    mask = causal & ((branch[None, :] == 0) | (branch[None, :] == branch[:, None]))
    return ids, positions, mask
