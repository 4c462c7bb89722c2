"""Prints the table of memory by part of docs/memory.md: computed from the shapes of the networks, on no device.

python -m studies.memory
"""

import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

import model as models
from recipes import QWEN25_3B, QWEN25_7B, RECIPES

GIB = 2**30
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
ADAPTED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # model.add_lora


def row(name: str, title: str, gpus: int, hub_id: str, sharded: bool = False, lora: int = 0, at_once: int = 0) -> str:
    """One line of the table: GiB per GPU, keys and values with every completion of the greatest length."""
    recipe = RECIPES[name]
    text = TEXT[hub_id]
    d = text["hidden_size"]
    tied = hub_id == QWEN25_3B
    with torch.device("meta"):
        config = Qwen2_5_VLConfig(
            text_config=dict(text, tie_word_embeddings=tied),
            vision_config=dict(VISION, out_hidden_size=d),
            tie_word_embeddings=tied,
        )
        vlm = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        context = models.ContextModule(d) if recipe.num_queries else None
    whole = sum(p.numel() for p in vlm.parameters())
    linear = [m for n, m in vlm.named_modules() if n.split(".")[-1] in ADAPTED]
    adapter = lora * sum(m.in_features + m.out_features for m in linear)
    learns = adapter or whole + (sum(p.numel() for p in context.parameters()) if context else 0)
    weights = 4 * learns / GIB / (gpus if sharded else 1)  # gradients are as many, Adam's two means twice as many
    copy = 0 if lora else 2 * whole / GIB  # the reference, and once more the replica
    rows = (at_once or recipe.prompts_per_step // gpus) * recipe.num_samples
    # A picture of 840 x 840 is 900 tokens, one of max_pixels 1,275; the request about 100.
    tokens = (recipe.image_size or recipe.max_pixels**0.5) ** 2 / 28**2 + 100 + recipe.max_completion
    per_token = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * (d // text["num_attention_heads"]) * 2
    cache = rows * tokens * per_token / GIB
    frozen = 2 * whole / GIB if lora else 0
    resting = 0 if recipe.park else 2 * copy
    held = f"{copy:.1f}{', parked' if recipe.park else ''}" if copy else "–"
    shown = f"{frozen:.1f} in bf16 + {weights:.1f}" if lora else f"{weights:.1f}"
    total = frozen + 4 * weights + resting
    return f"| {title} | {shown} | {weights:.1f} | {2 * weights:.1f} | {held} | {held} | {total:.0f} | {cache:.0f} |"


print(row("drseg", "`drseg`, 7B, FSDP2 on 4", 4, QWEN25_7B, sharded=True))
print(row("lens", "`lens`, 3B with context module, on each of 8", 8, QWEN25_3B))
print(row("drseg", "`drseg`, LoRA 64, one GPU", 1, QWEN25_7B, lora=64))
print(row("drseg", "the same with `--prompts_at_once 1`", 1, QWEN25_7B, lora=64, at_once=1))
