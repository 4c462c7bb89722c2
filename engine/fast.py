"""grpo.sample for a GPU: the same tokens from a decode step that is recorded once and then replayed.

    rollout = fast.sample(model, inputs, uniforms, num_samples=8, max_new_tokens=2000, eos_token_id=..., ...)

Drawing one token with a 3B model takes a GPU a few milliseconds of reading weights, and Python more than that to
launch the thousand small kernels that do it. A CUDA graph takes Python out: run the step once while every kernel and
every address is written down, then say "again" for each further token. The addresses are then fixed, so no tensor in
the step may grow, and no Python number in it may depend on t. Hence three differences from grpo.sample, and no other:

    the cache      has all S + T places from the start (StaticCache); a mask says which of them hold a token
    the time t     is a tensor on the GPU, and the step itself adds 1 to it
    ended rows     stay in the batch and go on writing; what they write after their end is erased at the close

Rows that have ended thus cost as much as live ones, which decoding hardly feels: it waits for weights, not for rows.
Shape letters as in grpo.py; B = P * G rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

import grpo

LOOK_EVERY = 32  # steps between looks at whether all rows have ended: a look makes the GPU wait for Python


def sample(model, inputs: Mapping[str, Tensor], uniforms: Tensor, **options) -> grpo.Rollout:
    """grpo.sample, argument by argument; on a CPU it is grpo.sample. Raises what that raises."""
    if inputs["input_ids"].device.type != "cuda":
        return grpo.sample(model, inputs, uniforms, **options)
    return static_sample(model, inputs, uniforms, capture=True, **options)


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Run a step twice, then write it down as a CUDA graph: a function that runs it again, without Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # two ordinary steps: what libraries set up on first use must not be recorded
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # writes down the step without running it: t stays where it is
        step()
    return graph.replay


@torch.no_grad()
def static_sample(
    model,
    inputs: Mapping[str, Tensor],
    uniforms: Tensor,
    *,
    capture: bool,
    eos_token_id: int,
    num_samples: int,
    max_new_tokens: int,
    banned_ids: Sequence[int] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> grpo.Rollout:
    """grpo.sample with nothing that grows. capture: replay the step as a CUDA graph; without it the same step runs as
    it stands, on any device, which is how the tests hold this file to grpo.sample."""
    from transformers import StaticCache

    P, S = inputs["input_ids"].shape
    G = num_samples
    T = max_new_tokens
    device = inputs["input_ids"].device

    # ---- prefill as in grpo.sample; then each prompt's keys and values go G times into a cache with room for T more
    training = model.training
    model.eval()
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    cache = StaticCache(config=model.config, max_cache_len=S + T)
    for layer, filled in zip(cache.layers, out.past_key_values.layers, strict=True):
        keys, values = (x.repeat_interleave(G, 0) for x in (filled.keys, filled.values))
        layer.lazy_initialization(keys, values)  # allocates (B, heads, S + T, width)
        layer.update(keys, values)

    # ---- everything that changes from token to token, at addresses that do not
    t = torch.zeros(1, dtype=torch.long, device=device)  # tokens drawn so far
    seen = torch.zeros(P * G, 1, 1, S + T, dtype=torch.bool, device=device)  # what a query may look at
    seen[..., :S] = inputs["attention_mask"].bool().repeat_interleave(G, 0)[:, None, None]
    position = inputs["position_ids"].amax(-1).repeat_interleave(G, -1)[..., None].clone()  # (3, B, 1) or (B, 1)
    uniforms = uniforms[:P, :G, :T].reshape(P * G, T).to(device)
    ids = torch.zeros(P * G, T, dtype=torch.long, device=device)
    logp = torch.zeros(P * G, T, device=device)
    banned = torch.as_tensor(list(banned_ids), dtype=torch.long, device=device)

    def draw(logits: Tensor) -> None:
        """Token t of every row, from logits (B, V)."""
        logits = logits.float().index_fill(-1, banned, -torch.inf)
        tokens, token_logp = grpo.pick_tokens(logits, uniforms.index_select(1, t)[:, 0], temperature, top_p)
        ids.index_copy_(1, t, tokens[:, None])
        logp.index_copy_(1, t, token_logp[:, None])
        t.add_(1)

    def step() -> None:
        """Feed token t - 1, draw token t. Reads and writes the tensors above, and nothing else."""
        position.add_(1)
        seen.index_fill_(3, t + S - 1, True)
        tokens = ids.index_select(1, t - 1)
        out = model(input_ids=tokens, attention_mask=seen, position_ids=position, past_key_values=cache, use_cache=True)
        draw(out.logits[:, -1])

    draw(out.logits[:, -1].repeat_interleave(G, 0))
    del out
    done = 1
    if capture and T > 4:
        done = 3
        step = record(step)
    for n in range(done + 1, T + 1):
        step()
        if n % LOOK_EVERY == 0:
            ended = int((ids[:, :n] == eos_token_id).any(-1).sum())
            if ended == P * G:
                break

    # ---- what grpo.sample returns: the end token belongs to the completion, and nothing after it
    end = ids == eos_token_id
    drawn = torch.arange(T, device=device) < t  # an early break leaves the rest undrawn
    mask = (end.cumsum(-1) - end.long() == 0) & drawn
    model.train(training)
    return grpo.Rollout(ids.where(mask, 0).view(P, G, T), mask.view(P, G, T), logp.where(mask, 0.0).view(P, G, T))
