"""From a recipe to its networks: what is loaded, what is added to it, and which of its weights learn.

    policy, segmenter = build(recipe, accelerator)
    reference = build_reference(recipe, device)          # only where there is a KL term

Who learns:

    recipe          the VLM           context module     SAM2
    most            all of it         none               nothing
    --lora_rank     adapters in it    none               nothing
    lens-align      nothing           all of it          nothing
    lens            all of it         all of it          its mask decoder (--tune_decoder)
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from accelerate import Accelerator

import model as models
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
