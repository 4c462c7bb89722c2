"""State that outlives a step: checkpoints, written whole or not at all; full copies of a policy that may be sharded.

checkpoint-N/              weights, config, processor (Hugging Face's format); LoRA's or LENS's files; the recipe
checkpoint-N/trainer.pt    optimizer, schedule, rank queue, step: what --resume needs beside the weights, and beside the
                           output folder's metrics.jsonl and heldout.json
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import folders
import model as models
from recipes import Recipe

if TYPE_CHECKING:
    from state import Run


def save(
    folder: Path, state: dict, policy: models.Policy, recipe: Recipe, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a checkpoint whole or not at all: to a temporary name, then rename. The Hugging Face format, plus
    trainer.pt to go on from.

    weights: the full state dict where the policy is sharded. Raises OSError (disk full) with the last good checkpoint
    untouched.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        policy.save(part, weights)
        folders.save_recipe(recipe, policy, part)
        torch.save(state, part / "trainer.pt")
    except (OSError, RuntimeError) as error:  # torch and safetensors report a full disk as RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"could not write the checkpoint {folder}: {error}. "
            "The one before it is untouched; free some space and --resume."
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def newest(output_dir: Path) -> Path | None:
    """The newest complete checkpoint; half-written ones (.part) do not count."""
    found = [
        p for p in output_dir.glob("checkpoint-*") if p.name.split("-")[1].isdigit() and (p / "trainer.pt").exists()
    ]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def write(run: Run, step: int) -> None:
    """checkpoint-STEP with a run's state, readable whatever the number of processes; the oldest go."""
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = {
        "optimizer": get_optimizer_state_dict(run.policy, run.optimizer.optimizer, options=whole),
        "schedule": run.schedule.state_dict(), "queue": run.queue.state_dict(), "step": step,
    }  # fmt: skip
    sharded = any(hasattr(p, "full_tensor") for p in run.policy.parameters())
    weights = get_model_state_dict(run.policy, options=whole) if sharded else None
    if run.accelerator.is_main_process:
        save(run.output_dir / f"checkpoint-{step}", state, run.bare, run.recipe, weights)
        kept = sorted(run.output_dir.glob("checkpoint-*[0-9]"), key=lambda p: int(p.name.split("-")[1]))
        for old in kept[: -run.recipe.keep]:
            shutil.rmtree(old)
    run.accelerator.wait_for_everyone()


def restore(folder: Path, run: Run) -> int:
    """What write() saved beside the weights, back into its places. Returns the step to go on with."""
    # mmap: the processes of a machine share the pages of the file, where each would hold all of it
    state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
    whole = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(run.policy, run.optimizer.optimizer, state["optimizer"], options=whole)
    run.schedule.load_state_dict(state["schedule"])
    run.queue.load_state_dict(state["queue"])
    return state["step"]


# What --resume cannot change: it lives in the optimizer's state, the queue, or the shape of what learns; and the model
# that the run started from is what KL holds on to.
KEPT = (
    "model", "learning_rate", "weight_decay", "queue_size", "train", "lora_rank", "num_queries", "connector",
    "collapse", "tune_decoder",
)  # fmt: skip


def compare(folder: Path, recipe: Recipe) -> list[str]:
    """Names of the settings that differ from the checkpoint's. SystemExit if one of them is in KEPT."""
    saved, now = (dataclasses.asdict(r) for r in (folders.load_recipe(folder), recipe))
    other = [name for name, value in now.items() if saved[name] != value]
    if stuck := [f"--{name} {saved[name]}" for name in other if name in KEPT]:
        raise SystemExit(
            f"{folder} was trained with {', '.join(stuck)}: resume it so, or start anew with --model {folder}"
        )
    return other


def history(folder: Path, step: int) -> tuple[list[dict], dict]:
    """What the run has written beside its checkpoint `folder`: metrics.jsonl's rows up to `step`, the score before."""
    lines = (folder.parent / "metrics.jsonl").read_text().splitlines()[:step]
    heldout = json.loads((folder.parent / "heldout.json").read_text())
    return [json.loads(line) for line in lines], {k: v for k, v in heldout.items() if k == "before"}


def finish(output_dir: Path, steps: int) -> Path:
    """The last checkpoint once more as final/, without what only --resume needs."""
    final = output_dir / "final"
    shutil.rmtree(final, ignore_errors=True)
    return shutil.copytree(output_dir / f"checkpoint-{steps}", final, ignore=shutil.ignore_patterns("trainer.pt"))


def full_copy(policy: models.Policy, dtype: torch.dtype) -> models.Policy:
    """A frozen copy of the VLM alone, its weights in `dtype`: the replica that completions are sampled from.

    Buffers stay what they are: rotary frequencies rounded to bfloat16 would turn a token at place 1,000 by radians.
    """
    copies = {id(p): torch.nn.Parameter(p.detach().to(dtype, copy=True), False) for p in policy.vlm.parameters()}
    vlm = copy.deepcopy(policy.vlm, memo=copies)  # cast one by one: the float32 whole does not exist twice
    vlm.gradient_checkpointing_disable()
    return models.Policy(vlm, policy.processor, policy.image_size, policy.max_pixels)


@contextlib.contextmanager
def at_work(frozen: models.Policy | None, policy: models.Policy, device: torch.device, park: bool):
    """A frozen copy, on `device` while it is needed; then, with `park`, back to the CPU's memory. None: the policy."""
    yield frozen.to(device) if frozen else policy
    if park and frozen:
        frozen.to("cpu")


@torch.no_grad()
def refresh(replica: models.Policy, policy: torch.nn.Module) -> None:
    """Copy the weights of a policy, wrapped or sharded, into its replica: once per step, not once per token."""
    target = dict(replica.named_parameters())
    for name, p in policy.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "")
        full = p.full_tensor() if hasattr(p, "full_tensor") else p  # a collective: every process walks the same list
        if name in target:
            target[name].copy_(full)
