"""A run: all that it holds, by name, and how it begins, anew or from its newest checkpoint.

    run = start(recipe, output_dir, resume=False)
    with run.writing() as writer: ...               # the policy whose completions are sampled, up to date

train.py takes its steps; checkpoint.py writes down what changes in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs
from torch.distributed.fsdp import MixedPrecisionPolicy

import data
import judge
import model as models
import rewards
from checkpoint import at_work, compare, history, newest, refresh, restore
from folders import write_atomically
from journal import open_tracker
from networks import build, frozen_copies, prepare
from recipes import Recipe


@dataclasses.dataclass
class Run:
    """All that a run holds, by name. A checkpoint has what changes: weights, optimizer, schedule, queue, step."""

    recipe: Recipe
    output_dir: Path
    accelerator: Accelerator
    samples: data.Samples
    order: list[int]  # indices of the samples that the recipe can use
    steps: int
    policy: torch.nn.Module  # what learns, as Accelerate wraps it: forwards go through here
    bare: models.Policy  # the same without the wrapping: it encodes, packs, decodes, and is saved
    segmenter: models.Segmenter
    reference: models.Policy | None  # networks.frozen_copies says what these two are for
    replica: models.Policy | None
    optimizer: AcceleratedOptimizer  # AdamW, as Accelerate wraps it
    schedule: torch.optim.lr_scheduler.LRScheduler
    queue: rewards.RankQueue  # Dr. Seg's memory of the last metric vectors
    first: int = 0  # the step to begin with
    rows: list[dict] = dataclasses.field(default_factory=list)  # metrics.jsonl so far
    heldout: dict = dataclasses.field(default_factory=dict)  # {"before": metrics, "after": metrics}

    @contextlib.contextmanager
    def writing(self) -> Iterator[models.Policy]:
        """Who writes completions, its weights up to date: the replica, where there is one, or the policy itself."""
        with at_work(self.replica, self.bare, self.accelerator.device, self.recipe.park) as writer:
            if self.replica:
                refresh(self.replica, self.policy)  # where weights are sharded all processes take part
            yield writer


def launch(recipe: Recipe, output_dir: Path, tracker: str | None) -> Accelerator:
    """Join the other processes, if there are any. SystemExit if they cannot run this recipe together."""
    # The others wait while the first process scores and saves, which may take longer than the default ten minutes.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=2))
    # Autocast's cache would keep a second copy of all weights, in bf16, through a forward.
    handlers = [patience, AutocastKwargs(cache_enabled=False)]
    precision = "bf16" if recipe.dtype == "bfloat16" else "no"
    accelerator = Accelerator(
        mixed_precision=precision, log_with=tracker, project_dir=str(output_dir), kwargs_handlers=handlers
    )
    if tracker and not accelerator.log_with:  # it is left out silently where its package is absent
        raise SystemExit(f"--tracker {tracker} needs one more package: pip install {tracker}")
    if recipe.prompts_per_step % accelerator.num_processes:
        processes = f"{accelerator.num_processes} processes"
        raise SystemExit(f"--prompts_per_step {recipe.prompts_per_step} cannot be shared evenly by {processes}")
    if accelerator.distributed_type == "FSDP" and (recipe.lora_rank or recipe.num_queries):
        raise SystemExit("LoRA and LENS cannot be sharded: use configs/ddp.yaml, where each GPU holds the whole policy")
    if accelerator.distributed_type == "FSDP" and precision == "bf16":
        # Weights are gathered in bf16, gradients summed in float32. Accelerate's own policy would also round what goes
        # into every layer (the rotary cosines with it) and the log-probabilities that come out.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    if accelerator.device.type == "cuda":  # on a CPU it takes matrix products to kernels that pile up, one per shape
        torch.set_float32_matmul_precision("high")
    return accelerator


def start(recipe: Recipe, output_dir: Path, resume: bool = False, tracker: str | None = None) -> Run:
    """From a recipe to a run, or back to the newest checkpoint of one. SystemExit, with what to do, if it cannot be."""
    accelerator = launch(recipe, output_dir, tracker)
    main = accelerator.is_main_process

    # A folder holds one run: nothing is mixed with what lies there, and nothing written over.
    last = newest(output_dir)
    if last and not resume:
        raise SystemExit(f"{output_dir} holds a run already ({last.name}): --resume it, or name another --output_dir")
    if not last and (output_dir / "final").exists():
        raise SystemExit(f"{output_dir} holds a finished run, and no checkpoint to resume: name another --output_dir")
    differ = compare(last, recipe) if last else []

    # Who learns, on what. The reference is always recipe.model, what the run started from; the policy goes on.
    policy, segmenter = build(dataclasses.replace(recipe, model=str(last)) if last else recipe, accelerator)
    samples = data.load(
        recipe.dataset, recipe.data_root or None, recipe.split, one_expression=recipe.one_expression, seed=recipe.seed
    )
    order = judge.examine(samples, segmenter, recipe, main)
    steps = recipe.max_steps or max(1, int(recipe.epochs * len(order) / recipe.prompts_per_step))
    reference, replica = frozen_copies(recipe, accelerator, policy)
    policy, optimizer, schedule = prepare(recipe, accelerator, policy, steps)
    run = Run(
        recipe, output_dir, accelerator, samples, order, steps, policy, accelerator.unwrap_model(policy), segmenter,
        reference, replica, optimizer, schedule, rewards.RankQueue(recipe.queue_size, 3, recipe.queue_zeros),
    )  # fmt: skip

    if last:
        run.first = restore(last, run)
        if run.first > steps:
            raise SystemExit(f"{last} is beyond --max_steps {steps}: give more steps, or another --output_dir")
        run.rows, run.heldout = history(last, run.first)
        if main:
            changed = ", ".join(differ) or "none"
            print(f"going on from {last}: step {run.first} of {steps}; settings that differ: {changed}")
    if main:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(output_dir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in run.rows))
    if tracker:
        open_tracker(accelerator, recipe)
    return run
