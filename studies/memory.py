# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Prints the table of memory by part of docs/memory.md: computed from the shapes of the networks, on no device.

python -m studies.memory
"""

import dataclasses

from transformers import Qwen2_5_VLConfig

from engine import memory
from recipes import QWEN25_3B, QWEN25_7B, RECIPES

VISION = dict(depth=32, hidden_size=1280, num_heads=16, intermediate_size=3420, fullatt_block_indexes=[7, 15, 23, 31])
TEXT = {  # as in the config.json of each on the Hub
    QWEN25_3B: dict(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
    ),
    QWEN25_7B: dict(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
}


def config_of(hub_id: str) -> Qwen2_5_VLConfig:
    """The sizes of one of the two, without a download."""
    tied = hub_id == QWEN25_3B
    d = TEXT[hub_id]["hidden_size"]
    text = dict(TEXT[hub_id], tie_word_embeddings=tied)
    return Qwen2_5_VLConfig(text_config=text, vision_config=dict(VISION, out_hidden_size=d), tie_word_embeddings=tied)


def row(name: str, title: str, gpus: int, hub_id: str, sharded: bool = False, **options) -> str:
    """One line of the table: GiB per GPU."""
    recipe = dataclasses.replace(RECIPES[name], **options)
    part = memory.parts(recipe, config_of(hub_id), gpus, sharded)
    kind = "in bf16" if recipe.lora_rank else "frozen"
    frozen = f"{part['frozen']:.1f} {kind} + " if part["frozen"] else ""
    others = ("gradients", "Adam", "reference", "replica", "cache", "activations", "SAM2")
    shown = [f"{frozen}{part['weights']:.1f}", *(f"{part[name]:.1f}" for name in others)]
    if recipe.park:
        shown[3] += ", parked"
    sampling, update = memory.peaks(part, recipe.park)
    return f"| {title} | {' | '.join(shown)} | {sampling:.0f} | {update:.0f} |"


def main() -> None:
    print(row("drseg", "`drseg`, 7B, on 4 GPUs", 4, QWEN25_7B, sharded=True))
    print(row("drseg", "the same on 8", 8, QWEN25_7B, sharded=True))
    print(row("drseg", "`drseg` at 3B, one GPU, `--prompts_at_once 4`", 1, QWEN25_3B, prompts_at_once=4))
    print(row("lens-align", "`lens-align`, 3B, one GPU", 1, QWEN25_3B))
    print(row("lens", "`lens`, 3B with context module, on each of 8", 8, QWEN25_3B))
    print(row("drseg", "`drseg`, LoRA 64, one GPU", 1, QWEN25_7B, lora_rank=64))
    print(row("drseg", "the same with `--prompts_at_once 1`", 1, QWEN25_7B, lora_rank=64, prompts_at_once=1))
    tight = {"lora_rank": 64, "prompts_at_once": 1, "max_row_tokens": 4096}
    print(row("drseg", "and `--max_row_tokens 4096`", 1, QWEN25_7B, **tight))


if __name__ == "__main__":
    main()
