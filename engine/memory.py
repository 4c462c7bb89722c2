# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""How much of a GPU's memory a run takes, by part, from the shapes of its networks: nothing is loaded for it.

The table of docs/memory.md (python -m studies.memory) and the sentence before a run loads anything come from here.
"""

from __future__ import annotations

import dataclasses

import torch

import model as models
from recipes import Recipe

GIB = 2**30
FITS = 0.97  # of a GPU's memory: the rest is the driver's and the allocator's
SAM2_LARGE = 0.84  # float32; and 224 M parameters are 0.84 GiB
ACTIVATIONS = 6.0 / 8192  # an update's, a token of the longest row, with gradient checkpointing: as measured at 3B, 7B


def parts(recipe: Recipe, config, gpus: int, sharded: bool) -> dict[str, float]:
    """GiB on each of `gpus` GPUs, by part, for a policy of this Hugging Face config; keys and values (cache) with every
    completion of the greatest length."""
    from transformers import AutoModelForImageTextToText

    text = config.text_config
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        context = None
        if recipe.num_queries:
            shape = {"num_queries": recipe.num_queries, "connector": recipe.connector, "collapse": recipe.collapse}
            context = models.ContextModule(text.hidden_size, **shape)
    whole = sum(p.numel() for p in vlm.parameters())
    adapted = [m for n, m in vlm.named_modules() if "language_model" in n and n.endswith("_proj")]
    adapter = recipe.lora_rank * sum(m.in_features + m.out_features for m in adapted)
    learns = adapter or whole * recipe.learns_text
    learns += sum(p.numel() for p in context.parameters()) if context else 0
    share = gpus if sharded else 1
    rows = (recipe.prompts_at_once or recipe.prompts_per_step // gpus) * recipe.num_generations
    # A picture of 840 x 840 is 900 tokens, one of max_pixels 1,275; the request about 100.
    tokens = (recipe.image_size or recipe.max_pixels**0.5) ** 2 / 28**2 + 100 + recipe.max_completion
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads  # Qwen3-VL-4B: 128, not 80
    heads = text.num_key_value_heads * width
    size = 2 if recipe.dtype == "bfloat16" else 4
    bytes_of = {
        "frozen": size * whole if adapter else 4 * whole * (not recipe.learns_text),
        "weights": 4 * learns / share,
        "gradients": 4 * learns / share,
        "Adam": 8 * learns / share,
        "reference": 0 if adapter or not recipe.needs_reference else size * whole,
        "replica": size * whole * recipe.needs_replica(sharded),
        "start": 4 * whole * sharded,  # each loads all of it, before it is shared out
        "cache": rows * tokens * 2 * text.num_hidden_layers * heads * size * recipe.learns_text,
    }
    found = {name: value / GIB for name, value in bytes_of.items()}
    found["activations"] = ACTIVATIONS * recipe.max_row_tokens * recipe.rows_per_batch
    judged = recipe.segmenter_use != "evaluation" or recipe.eval_samples
    return found | {"SAM2": SAM2_LARGE if judged and "large" in recipe.segmenter else 0.0}


def peaks(part: dict[str, float], park: bool = False) -> tuple[float, float]:
    """GiB at a step's two peaks: sampling (replica, keys and values, no gradients) and update (gradients, activations,
    no replica)."""
    always = part["frozen"] + part["weights"] + part["Adam"] + part["SAM2"] + (0 if park else part["reference"])
    return always + part["replica"] + part["cache"], always + part["gradients"] + part["activations"]


def peak(part: dict[str, float], park: bool = False) -> float:
    """GiB at the larger of the two, or at the start, if that takes more."""
    return max(*peaks(part, park), part["start"] + part["SAM2"])


def prompts_at_once(recipe: Recipe, config, gpus: int, sharded: bool, room: float) -> int:
    """How many of a process's prompts can be sampled together in `room` GiB, every completion of the greatest length: 1
    at the least."""
    one = parts(dataclasses.replace(recipe, prompts_at_once=1), config, gpus, sharded)
    free = FITS * room - peaks(one, recipe.park)[0] + one["cache"]
    every = max(1, recipe.prompts_per_step // gpus)
    return max(1, min(every, int(free / one["cache"]))) if one["cache"] else every


def fit(recipe: Recipe, config, gpus: int, sharded: bool, room: float) -> tuple[Recipe, list[str]]:
    """The recipe, sampling as many prompts at once as `room` GiB hold where it does not say; and what is to be said."""
    fits = prompts_at_once(recipe, config, gpus, sharded, room)
    said = [w for w in [warning(recipe, config, gpus, sharded, room)] if w]
    if not recipe.prompts_at_once and fits < recipe.prompts_per_step // gpus:
        recipe = dataclasses.replace(recipe, prompts_at_once=fits)
        few = f"this GPU has room for {fits} prompt{'s' * (fits > 1)} at a time while sampling (--prompts_at_once)"
        said = [few, *said]
    return recipe, said


def warning(recipe: Recipe, config, gpus: int, sharded: bool, room: float) -> str:
    """A sentence where a GPU of `room` GiB is too small, with what would fit; else ''. Where the recipe leaves open how
    many prompts it samples at once, one must fit."""
    least = dataclasses.replace(recipe, prompts_at_once=recipe.prompts_at_once or 1)
    need = peak(parts(least, config, gpus, sharded), recipe.park)
    if need <= FITS * room:
        return ""
    few = "--prompts_at_once 1 " if recipe.prompts_at_once > 1 else ""  # every way below samples one at a time
    ways: dict[str, dict] = {few: {}} if few else {}
    short = {"max_row_tokens": 4096} if recipe.max_row_tokens > 4096 else {}
    ways |= {f"{few}--max_row_tokens 4096": short} if short else {}
    ways[f"{few}--park True"] = {"park": True}
    if recipe.train == "policy" and not recipe.num_queries:
        ways[f"{few}--lora_rank 64"] = {"lora_rank": 64}
        ways[f"{few}--lora_rank 64 --max_row_tokens 4096"] = {"lora_rank": 64} | short
    said = f"{recipe.name} needs about {need:.0f} GiB on each GPU, and there are {room:.0f}"
    for option, fields in ways.items():
        other = dataclasses.replace(recipe, prompts_at_once=1, **fields)
        less = peak(parts(other, config, gpus, sharded and not other.lora_rank), other.park)
        if less <= FITS * room:
            return f"{said}. With {option.strip()} it is about {less:.0f} (docs/memory.md)."
    return f"{said}. More GPUs, or a smaller --model, would fit (docs/memory.md)."
