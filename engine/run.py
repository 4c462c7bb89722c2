# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""A run: all that it holds, by name, and how it begins, anew or from its newest checkpoint.

    run = start(recipe, output_dir, resume=False)
    with run.writing() as writer: ...               # the policy whose completions are sampled, up to date
    run.save(step)                                  # output_dir/checkpoint-STEP; what lies there: checkpoint.py

Who learns, and so what `build` leaves with requires_grad:

    recipe          the VLM           context module     SAM2
    most            all of it         none               nothing
    --lora_rank     adapters in it    as the recipe      as the recipe
    --freeze_vision all but vision    as the recipe      as the recipe
    lens-align      nothing           all of it          nothing
    lens            all of it         all of it          its mask decoder (--tune_decoder)

There are up to three sets of a VLM's weights:

    policy      what learns; float32 whatever the compute dtype, sharded under FSDP
    replica     what writes the completions: the same weights, renewed every step, in the compute dtype and whole (a
                sharded model would have to fetch its shards again for every token)
    reference   what KL holds on to: recipe.model, which the run started from, also after --resume
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import (
    AutocastKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    gather_object,
    parse_flag_from_env,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import distribute_tensor

import data
import model as models
import rewards
from engine import checkpoint, memory
from engine.check import data_digest, examine
from engine.files import lock, write_atomically
from engine.journal import open_tracker
from engine.waiting import AN_HOUR, patient, wait_for_the_slowest
from recipes import Recipe, remarks


@dataclasses.dataclass
class Run:
    """All that a run holds, by name. A checkpoint has what changes: weights, optimizer, schedule, queue, step."""

    recipe: Recipe
    output_dir: Path
    accelerator: Accelerator
    samples: data.Samples
    order: list[int]  # indices of the samples that the recipe can use
    seen: dict  # what a checkpoint keeps of the data (check.data_digest)
    steps: int
    policy: torch.nn.Module  # what learns, as Accelerate wraps it: forwards go through here
    unwrapped: models.Policy  # the same without the wrapping: it encodes, packs, decodes, and is saved
    segmenter: models.Segmenter | None  # None where nothing is judged by it
    reference: models.Policy | None  # None where it is not needed, as is the replica (build_reference, build_replica)
    replica: models.Policy | None
    optimizer: AcceleratedOptimizer  # AdamW, as Accelerate wraps it
    schedule: torch.optim.lr_scheduler.LRScheduler
    queue: rewards.RankQueue  # Dr. Seg's memory of the last metric vectors
    first: int = 0  # the step to begin with
    broken: dict[int, str] = dataclasses.field(default_factory=dict)  # samples that could not be read when drawn: why
    rows: list[dict] = dataclasses.field(default_factory=list)  # metrics.jsonl so far
    heldout: dict = dataclasses.field(default_factory=dict)  # {"before": metrics, "after": metrics}
    lock: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)  # on output_dir, by the first

    @contextlib.contextmanager
    def writing(self) -> Iterator[models.Policy]:
        """Who writes completions, its weights up to date: the replica, where there is one, or the policy itself."""
        if self.replica is None:
            yield self.unwrapped
            return
        give_room(self.replica, True)
        refresh(self.replica, self.policy)  # where weights are sharded all processes take part
        try:
            yield self.replica
        finally:
            give_room(self.replica, False)

    def save(self, step: int) -> None:
        """checkpoint-STEP, readable whatever the number of processes; the oldest go. All processes call it: where
        weights are sharded each has a part."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        sharded = any(hasattr(p, "full_tensor") for p in self.policy.parameters())

        def weights() -> dict | None:
            return get_model_state_dict(self.policy, options=whole) if sharded else None

        def state() -> dict:
            return {
                "optimizer": get_optimizer_state_dict(self.policy, self.optimizer.optimizer, options=whole),
                "schedule": self.schedule.state_dict(),
                "queue": self.queue.state_dict(),
                "step": step,
                "data": self.seen,
            }

        if not self.accelerator.is_main_process:
            weights(), state()  # parts are gathered from all processes, in this order
        else:
            checkpoint.save(self.output_dir / f"checkpoint-{step}", self.unwrapped, self.recipe, weights, state)
            for old in checkpoint.all_of(self.output_dir)[: -self.recipe.keep]:
                shutil.rmtree(old)
        wait_for_the_slowest()

    def restore(self, folder: Path) -> None:
        """What save() wrote beside the weights, back into its places; `first` is the step to go on with."""
        # mmap: the processes of a machine share the pages of the file, where each would hold all of it
        try:
            state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
            fill_optimizer(self.policy, self.optimizer.optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.schedule.last_epoch -= 1
            self.schedule.step()  # the rate of this very update, anew: with more steps to go it is another
            self.queue.load_state_dict(state["queue"])
            self.first = state["step"]
            if type(self.first) is not int or self.first < 0:
                raise ValueError(f"step {self.first!r}")
            before = state.get("data", self.seen)
            if before != self.seen and self.accelerator.is_main_process:
                counts = [f"{data.plural(d['samples'], 'sample')}, {d['usable']} of use" for d in (before, self.seen)]
                print(
                    f"note: the data are not those that {folder} was trained on ({counts[0]}; now {counts[1]}): "
                    "the steps from here draw from what there is now"
                )
        except Exception as error:  # a file of that name may hold anything
            why = f"{type(error).__name__}: {error}"[:200]
            raise data.BadData(f"{folder / 'trainer.pt'} is damaged, or not of this run ({why}).") from error


def fill_optimizer(policy: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """What get_optimizer_state_dict gave, whole, put back parameter by parameter, each process taking its shard:
    torch's own set_optimizer_state_dict first makes a second state of the same size."""
    names = {id(p): name.replace("_checkpoint_wrapped_module.", "") for name, p in policy.named_parameters()}
    for group, kept in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group |= {k: v for k, v in kept.items() if k != "params"}
        for p in group["params"]:
            if (entries := saved["state"].get(names[id(p)])) is None:  # it has never had a gradient
                continue
            for key, value in entries.items():
                if not torch.is_tensor(value):
                    optimizer.state[p][key] = value
                elif value.ndim == 0:  # Adam's count of steps; a fused kernel wants it where the weights are
                    optimizer.state[p][key] = value.to(p.device if group.get("fused") else "cpu", copy=True)
                elif hasattr(p, "device_mesh"):
                    whole = value.to(p.device)
                    optimizer.state[p][key] = distribute_tensor(whole, p.device_mesh, p.placements)
                else:
                    optimizer.state[p][key] = value.to(p.device, copy=True)


class Stopping:
    """Ctrl-C, a scheduler's SIGTERM, or a file `stop` in the run's folder: the step in hand is finished and saved, then
    the run ends. A second Ctrl-C ends it at once.

        with Stopping(output_dir) as stopping:
            for step in ...:
                ...
                if stopping.asked(): ...

    The file is for several GPUs: `accelerate launch` passes a signal on, and ends all processes 30 s later, whatever
    they are doing (torch's TORCH_ELASTIC_SHUTDOWN_TIMEOUT, where its version has that).
    """

    def __init__(self, output_dir: Path):
        self.file = output_dir / "stop"

    def __enter__(self) -> Stopping:
        self.signal = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handler
            self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            print(f"the launcher may not wait for it: next time, touch {self.file}", file=sys.stderr)

    def asked(self) -> int | None:
        """The exit code to end with, where some process has been asked to: 128 + the signal, 0 where it was the file;
        else None. All processes call it."""
        own = 128 + self.signal if self.signal else 0 if self.file.exists() else None
        codes = [code for code in gather_object([own]) if code is not None]
        if codes:  # everyone has looked
            self.file.unlink(missing_ok=True)
        return max(codes, default=None)

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------- how it begins


def sharding(recipe: Recipe) -> FullyShardedDataParallelPlugin | None:
    """FSDP2, as configs/fsdp2.yaml has it, where `accelerate launch` was told nothing of the kind but started several
    processes on GPUs, and all of a policy learns: every GPU would hold a whole 7B and Adam's state for it."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or not on_gpus()
    if alone or recipe.shard == "never" or recipe.lora_rank or recipe.num_queries:
        return None
    if "ACCELERATE_USE_FSDP" in os.environ:  # by a config file, which says how
        return None
    os.environ["FSDP_VERSION"] = "2"  # the plugin says in the environment that it is there, and not which it is
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )


def on_gpus() -> bool:
    """Will Accelerate put this process on a GPU?"""
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def launch(recipe: Recipe, output_dir: Path, tracker: str | None) -> Accelerator:
    """Join the other processes, if there are any. SystemExit if they cannot run this recipe together."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise SystemExit(
            "DeepSpeed is not supported: what it shards, FSDP2 does here (no config at all, or fsdp2.yaml)"
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise SystemExit("FSDP 1 is not supported: set fsdp_version: 2 in the config (configs/fsdp2.yaml has it)")
    # Every process loads the weights itself: on meta, tied ones (embedding and output matrix) would come apart.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    patience = InitProcessGroupKwargs(timeout=AN_HOUR)
    # Autocast's cache would keep a second copy of all weights, in bf16, through a forward.
    handlers = [patience, AutocastKwargs(cache_enabled=False)]
    precision = "bf16" if recipe.dtype == "bfloat16" else "no"
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=tracker,
        project_dir=str(output_dir),
        kwargs_handlers=handlers,
        fsdp_plugin=sharding(recipe),
    )
    patient()
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
    began = time.time()
    accelerator = launch(recipe, output_dir, tracker)
    main = accelerator.is_main_process
    sharded = accelerator.distributed_type == "FSDP"
    for line in remarks(recipe) if main else ():
        print(f"note: {line}")

    last = checkpoint.to_go_on_from(output_dir, resume)
    if accelerator.device.type == "cuda":
        room = torch.cuda.mem_get_info()[1] / memory.GIB
        recipe, said = memory.fit(recipe, models.config_of(recipe.model), accelerator.num_processes, sharded, room)
        for line in said if main else ():
            print(f"note: {line}")
    differ = checkpoint.compare(last, recipe) if last else []
    if recipe.needs_reference and recipe.lora_rank and Path(recipe.model, "adapter_config.json").exists():
        # With LoRA the reference is the policy itself, its adapter switched off: here that is not where the run starts.
        raise SystemExit(
            f"{recipe.model} is a LoRA, which KL would not see: merge it first (docs/lora.md), or --beta 0"
        )

    # Who learns, on what. The reference is always recipe.model, what the run started from; the policy goes on.
    policy, segmenter = build(dataclasses.replace(recipe, model=str(last)) if last else recipe, accelerator)
    samples = data.load(
        recipe.dataset, recipe.data_root, recipe.split, one_expression=recipe.one_expression, seed=recipe.seed
    )
    order = examine(samples, segmenter, recipe, main)
    steps = recipe.max_steps or max(1, int(recipe.epochs * len(order) / recipe.prompts_per_step))
    replica = build_replica(policy, getattr(torch, recipe.dtype)) if recipe.needs_replica(sharded) else None
    policy, optimizer, schedule = prepare(recipe, accelerator, policy, steps)
    # After sharding, which needs the room. Parked, it comes to the GPU only for its turn (reference_of).
    reference = build_reference(recipe, torch.device("cpu") if recipe.park else accelerator.device)
    run = Run(
        recipe=recipe,
        output_dir=output_dir,
        accelerator=accelerator,
        samples=samples,
        order=order,
        seen=data_digest(samples, order, recipe.seed),
        steps=steps,
        policy=policy,
        unwrapped=accelerator.unwrap_model(policy),
        segmenter=segmenter,
        reference=reference,
        replica=replica,
        optimizer=optimizer,
        schedule=schedule,
        queue=rewards.RankQueue(recipe.queue_size, 3, recipe.queue_zeros),
    )

    if last:
        run.restore(last)
        if run.first > steps:
            raise SystemExit(f"{last} is beyond --max_steps {steps}: give more steps, or another --output_dir")
        run.rows, run.heldout = checkpoint.history(last, run.first, steps)
        if main:
            changed = ", ".join(differ) or "none"
            print(f"going on from {last}: step {run.first} of {steps}; settings that differ: {changed}")
    if main:
        output_dir.mkdir(parents=True, exist_ok=True)
        run.lock = lock(output_dir)
        stop = output_dir / "stop"
        if stop.exists() and stop.stat().st_mtime < began:  # of a run that had ended by itself (Stopping)
            stop.unlink()
        # The scores before the rows, by which a slower process tells of which step the score "after" is.
        write_atomically(output_dir / "heldout.json", json.dumps(run.heldout, indent=1))
        write_atomically(output_dir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in run.rows))
    if tracker:
        open_tracker(accelerator, recipe)
    return run


# -------------------------------------------------------------------------------------- its networks and its optimizer


def build(recipe: Recipe, accelerator: Accelerator) -> tuple[models.Policy, models.Segmenter | None]:
    """The policy and the segmenter (None where nothing is judged by it), on this process's device; requires_grad says
    who learns.

    The whole VLM learns, or its adapters alone (--lora_rank), or none of it (LENS's alignment). SAM2 is frozen, its
    mask decoder in LENS's joint stage excepted.
    """
    size = {"image_size": recipe.image_size, "max_pixels": recipe.max_pixels}
    # Weights that learn are float32, whatever the compute dtype: in bfloat16, steps of 1e-6 would be rounded away.
    only_read = recipe.lora_rank and recipe.dtype == "bfloat16"
    dtype = torch.bfloat16 if only_read else torch.float32
    device = accelerator.device
    policy = models.load_policy(recipe.model, **size, dtype=dtype, device=device, segmenter=recipe.segmenter)
    if not recipe.num_queries:  # a LENS checkpoint may start another recipe: its VLM alone goes on
        policy.context = policy.segmenter = None
    segmenter = policy.segmenter
    if segmenter is None and (recipe.segmenter_use != "evaluation" or recipe.eval_samples):
        segmenter = models.load_segmenter(recipe.segmenter)
    policy.requires_grad_(recipe.train != "context")
    if recipe.freeze_vision:
        policy.vlm.model.visual.requires_grad_(False)
    if recipe.num_queries:
        add_context(recipe, policy, segmenter)
    add_adapters(recipe, policy)
    if recipe.gradient_checkpointing:
        policy.vlm.gradient_checkpointing_enable({"use_reentrant": False})
        # It also lets the inputs of vision tower and language model ask for gradients, which checkpoints of this kind
        # do not need, and which would send a backward pass through a tower that does not learn (LoRA, LENS, frozen).
        policy.vlm.disable_input_require_grads()
    if recipe.compile_layers:
        models.compile_layers(policy.vlm)
    policy.train()  # no dropout anywhere (load_policy): this only lets gradient checkpointing act
    return policy.to(device), None if segmenter is None else segmenter.eval().to(device)


def build_reference(recipe: Recipe, device: torch.device) -> models.Policy | None:
    """What KL holds on to: the VLM that the run started from, frozen, in the compute dtype. None where there is no KL
    term, or where the policy can stand in for it (LoRA, its adapter switched off)."""
    if not recipe.needs_reference or recipe.lora_rank:
        return None
    dtype = getattr(torch, recipe.dtype)
    policy = models.load_policy(recipe.model, dtype=dtype, device=device, segmenter=recipe.segmenter)
    policy.context = policy.segmenter = None
    return policy.requires_grad_(False)


def add_context(recipe: Recipe, policy: models.Policy, segmenter: models.Segmenter) -> None:
    """LENS: the context module, new or the checkpoint's own, and SAM2 as a part of the policy.

    SystemExit if the checkpoint's module is not the one that the recipe asks for.
    """
    if policy.context is None:
        torch.manual_seed(recipe.seed)
        d = policy.vlm.get_input_embeddings().weight.shape[1]
        c = segmenter.no_mem_embed.shape[-1]
        policy.context = models.ContextModule(d, c, recipe.num_queries, recipe.connector, recipe.collapse)
        if recipe.train == "all" and PartialState().is_main_process:
            print(f"note: {recipe.model} has no context module: it starts new, without LENS's stage one (lens-align)")
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
            "go on with its own rank, or merge it first (docs/lora.md)"
        )
    if not recipe.lora_rank:
        return
    if find_spec("peft") is None:
        raise SystemExit("--lora_rank needs one more package: pip install peft")
    if recipe.train == "context":
        raise SystemExit("LENS's alignment trains the context module alone: leave --lora_rank out")
    if not lora:
        torch.manual_seed(recipe.seed)
        models.add_lora(policy.vlm, recipe.lora_rank)
    for name, p in policy.vlm.named_parameters():
        p.requires_grad_("lora_" in name)


def prepare(
    recipe: Recipe, accelerator: Accelerator, policy: models.Policy, steps: int
) -> tuple[torch.nn.Module, AcceleratedOptimizer, torch.optim.lr_scheduler.LambdaLR]:
    """(policy, optimizer, schedule) for `steps` steps: the policy sharded, or with autocast around its forward."""
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=accelerator.device.type == "cuda",  # the default there needs room for one more copy of the weights
    )
    if accelerator.distributed_type == "FSDP":
        policy, optimizer = accelerator.prepare(policy, optimizer)
    else:  # no DDP around it (train.average_gradients): what is left of "preparing" is autocast
        policy = accelerator.prepare_model(policy, evaluation_mode=True)
        optimizer = accelerator.prepare(optimizer)
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


# ------------------------------------------------------------------------------------------------- the frozen copies


def build_replica(policy: models.Policy, dtype: torch.dtype) -> models.Policy:
    """The replica that completions are sampled from: a frozen copy of the VLM alone, its weights in `dtype`, with their
    shapes and no memory yet (give_room, refresh).

    Buffers stay what they are: rotary frequencies rounded to bfloat16 would turn a token at place 1,000 by radians.
    """

    def like(p: torch.nn.Parameter) -> torch.nn.Parameter:
        new = torch.empty_like(p, dtype=dtype, requires_grad=False)
        new.untyped_storage().resize_(0)
        return torch.nn.Parameter(new, False)

    copies = {id(p): like(p) for p in policy.vlm.parameters()}
    vlm = copy.deepcopy(policy.vlm, memo=copies)  # one by one: the float32 whole does not exist twice
    vlm.gradient_checkpointing_disable()
    return models.Policy(vlm, policy.processor, policy.image_size, policy.max_pixels)


@contextlib.contextmanager
def reference_of(policy: models.Policy, frozen: models.Policy | None, device: torch.device, park: bool):
    """What answers as pi_ref: the frozen copy, on `device` while it is needed (then, with `park`, back in the CPU's
    memory); with LoRA, where there is no copy, the policy with its adapter switched off."""
    if frozen is None:
        policy.vlm.disable_adapters()
    try:
        yield frozen.to(device) if frozen else policy
    finally:
        if frozen is None:
            policy.vlm.enable_adapters()
        elif park:
            frozen.to("cpu")


def give_room(replica: models.Policy, room: bool) -> None:
    """Give the replica's weights their memory, with anything in it (refresh fills it), or take it away: between two
    samplings nobody reads them."""
    for p in replica.parameters():
        p.data.untyped_storage().resize_(p.numel() * p.element_size() if room else 0)


@torch.no_grad()
def refresh(replica: models.Policy, policy: torch.nn.Module) -> None:
    """Copy the weights of a policy, wrapped or sharded, into its replica: once per step, not once per token."""
    target = dict(replica.named_parameters())
    for name, p in policy.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "")
        full = p.full_tensor() if hasattr(p, "full_tensor") else p  # a collective: every process walks the same list
        if name in target:
            target[name].copy_(full)
