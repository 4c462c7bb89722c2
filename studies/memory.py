# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Prints the table of memory by part of docs/memory.md: computed from the shapes of the networks, on no device.

python -m studies.memory
"""

import dataclasses

from engine import memory
from recipes import QWEN25_3B, QWEN25_7B, RECIPES
from studies.bench import config_of, real_size


def row(name: str, title: str, gpus: int, hub_id: str, sharded: bool = False, **options) -> str:
    """One line of the table: GiB per GPU."""
    recipe = dataclasses.replace(RECIPES[name], **options)
    part = memory.parts(recipe, config_of(real_size(hub_id)), gpus, sharded)
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
