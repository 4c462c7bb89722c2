"""From a recipe to its networks: what is loaded, what is added to it, which of its weights learn, and by what.

    policy, segmenter = build(recipe, accelerator)
    reference, replica = frozen_copies(recipe, accelerator, policy)
    policy, optimizer, schedule = prepare(recipe, accelerator, policy, steps)

Who learns:

    recipe          the VLM           context module     SAM2
    most            all of it         none               nothing
    --lora_rank     adapters in it    as the recipe      as the recipe
    lens-align      nothing           all of it          nothing
    lens            all of it         all of it          its mask decoder (--tune_decoder)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

import model as models
from checkpoint import full_copy
from recipes import Recipe


def build(recipe: Recipe, accelerator: Accelerator) -> tuple[models.Policy, models.Segmenter]:
    """The policy and the segmenter, on this process's device; requires_grad says who learns.

    The whole VLM learns, or its adapters alone (--lora_rank), or none of it (LENS's alignment). SAM2 is frozen, its
    mask decoder in LENS's joint stage excepted.
    """
    size = {"image_size": recipe.image_size or None, "max_pixels": recipe.max_pixels}
    # Weights that learn are float32, whatever the compute dtype: in bfloat16, steps of 1e-6 would be rounded away.
    only_read = recipe.lora_rank and recipe.dtype == "bfloat16"
    policy = models.load_policy(recipe.model, **size, dtype=torch.bfloat16 if only_read else torch.float32)
    if not recipe.num_queries:  # a LENS checkpoint may start another recipe: its VLM alone goes on
        policy.context = policy.segmenter = None
    segmenter = policy.segmenter or models.load_segmenter(recipe.segmenter)
    policy.requires_grad_(recipe.train != "context")
    if recipe.num_queries:
        add_context(recipe, policy, segmenter)
    add_adapters(recipe, policy)
    if recipe.gradient_checkpointing:
        policy.vlm.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()  # no dropout anywhere (load_policy): this only lets gradient checkpointing act
    segmenter.eval()
    return policy.to(accelerator.device), segmenter.to(accelerator.device)


def build_reference(recipe: Recipe, device: torch.device) -> models.Policy:
    """What KL holds on to: the VLM that the run started from, frozen, in the compute dtype."""
    policy = models.load_policy(recipe.model, dtype=getattr(torch, recipe.dtype)).requires_grad_(False)
    policy.context = policy.segmenter = None
    return policy.to(device)


def add_context(recipe: Recipe, policy: models.Policy, segmenter: models.Segmenter) -> None:
    """LENS: the context module, new or the checkpoint's own, and SAM2 as a part of the policy.

    SystemExit if the checkpoint's module is not the one that the recipe asks for.
    """
    if policy.context is None:
        torch.manual_seed(recipe.seed)
        d, c = policy.vlm.get_input_embeddings().weight.shape[1], segmenter.no_mem_embed.shape[-1]
        policy.context = models.ContextModule(d, c, recipe.num_queries, recipe.connector, recipe.collapse)
    there = policy.context.config | {"segmenter": segmenter.name}
    for name in ("num_queries", "connector", "collapse", "segmenter"):
        if (has := there[name]) != getattr(recipe, name):
            raise SystemExit(f"{recipe.model} has --{name} {has}, and this run asks for {getattr(recipe, name)}")
    policy.segmenter = segmenter.requires_grad_(False)
    policy.context.requires_grad_(True)
    if recipe.train == "all" and recipe.tune_decoder:
        segmenter.mask_decoder.requires_grad_(True)
        # Two of its layers belong to the picture's embedding, which is made without gradient, once for reward and
        # update; and no loss looks at the IoU and the presence that it predicts.
        for name in ("conv_s0", "conv_s1", "iou_prediction_head", "pred_obj_score_head"):
            if hasattr(segmenter.mask_decoder, name):
                getattr(segmenter.mask_decoder, name).requires_grad_(False)


def add_adapters(recipe: Recipe, policy: models.Policy) -> None:
    """LoRA: new adapters, or the checkpoint's own; the rest of the VLM is frozen. Nothing where lora_rank is 0.

    SystemExit if the checkpoint's rank is another, or the package is absent.
    """
    lora = getattr(policy.vlm, "peft_config", None)
    if lora and lora["default"].r != recipe.lora_rank:
        raise SystemExit(
            f"{recipe.model} is a LoRA of rank {lora['default'].r}, and --lora_rank is {recipe.lora_rank}: "
            "go on with its own rank, or merge it first (README)"
        )
    if not recipe.lora_rank:
        return
    if recipe.train == "context":
        raise SystemExit("LENS's alignment trains the context module alone: leave --lora_rank out")
    if find_spec("peft") is None:
        raise SystemExit("--lora_rank needs one more package: pip install peft")
    if not lora:
        torch.manual_seed(recipe.seed)
        models.add_lora(policy.vlm, recipe.lora_rank)
    for name, p in policy.vlm.named_parameters():
        p.requires_grad_("lora_" in name)


def frozen_copies(
    recipe: Recipe, accelerator: Accelerator, policy: models.Policy
) -> tuple[models.Policy | None, models.Policy | None]:
    """(reference, replica), each a frozen VLM or None where it is not needed: up to three sets of weights.

    policy      what learns; float32 whatever the compute dtype, sharded under FSDP
    replica     what writes the completions: the same weights, renewed every step, in the compute dtype and whole (a
                sharded model would have to fetch its shards again for every token)
    reference   what KL holds on to: recipe.model, which the run started from, also after --resume
    """
    reference = replica = None
    if recipe.needs_reference and not recipe.lora_rank:
        reference = build_reference(recipe, accelerator.device)
    elif recipe.needs_reference and Path(recipe.model, "adapter_config.json").exists():
        # With LoRA the reference is the policy itself, its adapter switched off: here that is not where the run starts.
        raise SystemExit(f"{recipe.model} is a LoRA, which KL would not see: merge it first (README), or --beta 0")
    # The policy itself can write where it is whole and in the compute dtype already.
    ready = accelerator.distributed_type != "FSDP" and (recipe.dtype == "float32" or recipe.lora_rank)
    if not ready and recipe.train != "context":
        replica = full_copy(policy, getattr(torch, recipe.dtype))
    return reference, replica


def prepare(
    recipe: Recipe, accelerator: Accelerator, policy: models.Policy, steps: int
) -> tuple[torch.nn.Module, AcceleratedOptimizer, torch.optim.lr_scheduler.LambdaLR]:
    """(policy, optimizer, schedule) for `steps` steps: the policy sharded, or with autocast around its forward."""
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], lr=recipe.learning_rate, weight_decay=recipe.weight_decay,
        fused=accelerator.device.type == "cuda",  # the default there needs room for one more copy of the weights
    )  # fmt: skip
    if accelerator.distributed_type == "FSDP":
        policy, optimizer = accelerator.prepare(policy, optimizer)
    else:  # no DDP around it (step.average_gradients): what is left of "preparing" is autocast
        policy, optimizer = accelerator.prepare_model(policy, evaluation_mode=True), accelerator.prepare(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer.optimizer, learning_rate_factor(recipe, steps * recipe.updates_per_rollout)
    )
    return policy, optimizer, schedule


def learning_rate_factor(recipe: Recipe, total: int) -> Callable[[int], float]:
    """Warm-up, then constant, linear to 0, or cosine to 0, over `total` optimizer steps."""

    def factor(update: int) -> float:
        left = 1 - max(update - recipe.warmup_steps, 0) / max(total - recipe.warmup_steps, 1)
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[recipe.schedule]
        return min(1.0, (update + 1) / max(recipe.warmup_steps, 1)) * shape

    return factor
