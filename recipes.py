# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The papers as data: one frozen dataclass, one value per recipe; what a recipe makes of a sample and of an answer.

    recipe = RECIPES["samr1"]                                    # or miniature(RECIPES["samr1"]), for a laptop
    order, left = usable(samples, recipe)                        # which samples it trains on
    target = to_target(samples[order[0]], recipe)                # the truth, in the recipe's frame
    parts = reward_parts(recipe, answer, target, mask_iou, None) # what an answer earns, part by part

Every field can be overridden on the command line: train.py --recipe samr1 --tiers 0.5 --tier_rewards 4. Most values are
the papers' own. [C]: the paper is silent and the released code does it. What neither says was decided here.
docs/choices.md lists where paper and code differ, and what was decided.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import field
from typing import Literal

import numpy as np
from tqdm import tqdm

import data
import rewards

QWEN2_2B = "Qwen/Qwen2-VL-2B-Instruct"
QWEN25_3B = "Qwen/Qwen2.5-VL-3B-Instruct"
QWEN25_7B = "Qwen/Qwen2.5-VL-7B-Instruct"
QWEN3_4B = "Qwen/Qwen3-VL-4B-Instruct"
QWEN3_8B = "Qwen/Qwen3-VL-8B-Instruct"
SAM2_LARGE = "facebook/sam2-hiera-large"
MULTI_OBJECT_7K = "Ricky06662/VisionReasoner_multi_object_7k_840"  # 7,099 samples, 840 x 840


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that one run is made of. The comment behind a field, or above it, is its --help."""

    # --- who learns
    name: str = ""  # the recipe's name; kept in checkpoints
    model: str = QWEN25_7B  # the policy: Hub id or folder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL
    start: str = ""  # the recipe whose end this one starts from, where it is a second stage
    segmenter: str = SAM2_LARGE  # Hub id, checkpoint or folder of a SAM2
    # where SAM2's masks count: nowhere in training; in the reward; in loss and reward (LENS)
    segmenter_use: Literal["evaluation", "reward", "loss"] = "evaluation"
    # what learns: the VLM; the context module alone; VLM + context module + mask decoder
    train: Literal["policy", "context", "all"] = "policy"
    # --- on what
    dataset: str = "visionreasoner"  # a layout of data.load, several joined by commas
    data_root: str = MULTI_OBJECT_7K  # the folder that the dataset lies in, or its Hub id
    split: str = "train"  # the split trained on
    one_expression: bool = False  # a sample per reference, with one of its sentences, instead of one per sentence
    redraw: bool = False  # ... drawn anew for every (seed, epoch, reference), instead of once by seed (LENS)
    limit: int = 0  # train on the first so many usable samples of a seeded walk through the split (0: all)
    image_size: int = 840  # pictures are resized to this square for the VLM; 0: native resize up to max_pixels
    max_pixels: int = 1_000_000  # pixel cap of the native resize
    # --- what it writes and what that is worth
    schema: str = "drseg"  # answer format: rewards.SCHEMAS, data.PROMPTS
    reward: str = "drseg"  # which of rewards.REWARDS
    reward_frame: tuple[int, int] = (840, 840)  # frame of answer and target in the reward; (0, 0): original pixels
    # weight of each part of the reward (not named: 1, or genseg-g's own; the recipes name all, so that each is an
    # option); metrics.jsonl has the parts with their weights, so 0 reads 0
    weights: dict[str, float] = field(default_factory=dict)
    tiers: tuple[float, ...] = (0.5, 0.7, 0.8)  # SAM-R1: IoU thresholds (exclusive) ...
    tier_rewards: tuple[float, ...] = (2.0, 3.0, 4.0)  # ... and what passing each is worth
    look: bool = False  # Look-to-Confirm's part: <look> tags in the reasoning are paid (its prompt: --schema drseg)
    continuous: bool = False  # VisionReasoner: its accuracy by degrees instead of thresholds (Dr. Seg Table 1)
    rank: Literal["queue", "raw"] = "queue"  # Dr. Seg: percentile in the queue, or the raw metrics (Table 5)
    components: tuple[int, ...] = (0, 1, 2)  # Dr. Seg: which of box IoU, count, point score; may be none (Table 10)
    queue_size: int = 2048  # Dr. Seg: vectors remembered (Table 6)
    # GenSeg-R1-G: the box that a negative point must lie in: the true one of the matched object, its own, or both
    negative_box: Literal["truth", "written", "both"] = "truth"
    # reward details as in the released code where it differs from the paper (docs/choices.md)
    released: bool = False
    # --- GRPO
    num_generations: int = 8  # G, completions per prompt
    prompts_per_step: int = 16  # over all processes
    updates_per_rollout: int = 1  # optimizer steps on each set of completions (mu); clipping acts from the second on
    average: Literal["sequence", "token"] = "sequence"  # grpo.token_weights
    clip_low: float = 0.2  # epsilon_low
    clip_high: float = 0.2  # epsilon_high; above clip_low it is clip-higher
    beta: float = 1e-2  # weight of the KL term; 0 drops the reference model
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt: int = 1300  # tokens; a longer prompt stops the run with its id
    max_completion: int = 2000  # tokens sampled at most
    # --- optimizer
    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0  # counted in optimizer updates: updates_per_rollout of them per step
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int = 0  # train this many steps, whatever epochs says (0: what epochs give)
    seed: int = 42
    # --- LENS
    num_queries: int = 0  # K context queries (0: no context module)
    connector: Literal["transformer", "mlp"] = "transformer"  # Table 4
    collapse: bool = False  # released form: K states become one prompt token
    text_step: int = 1  # alignment: coordinates in the true texts are multiples of this; the miniature writes no others
    seg_weight: float = 1.0  # lambda of L = L_GRPO + lambda L_seg (Eq. 7)
    focal: bool = False  # L_seg with focal loss (the paper's example) in place of cross-entropy (its code)
    tune_decoder: bool = True  # train SAM2's mask decoder in the joint stage (Table A3)
    # --- how it runs (of these dtype, lora_rank and freeze_vision change results, the others at most their rounding)
    prompts_at_once: int = 0  # prompts sampled together (0: all of a process); fewer need less memory
    pictures_at_once: int = 16  # pictures in SAM2's image encoder together; fewer need less memory
    max_row_tokens: int = 8192  # longest packed row; larger groups take several, a completion is never cut
    rows_per_batch: int = 1  # packed rows per forward
    gradient_checkpointing: bool = True
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # compute; weights that learn are float32 either way
    compile_layers: bool = False  # compile the VLM's layers (torch.compile, half a minute once); for GPUs
    park: bool = False  # keep the reference in the CPU's memory while it is not in use
    shard: Literal["auto", "never"] = "auto"  # several GPUs, all weights learning: FSDP2, each holds a part of them
    lora_rank: int = 0  # train a LoRA of this rank instead of all weights (needs peft)
    # samples that may turn out to be unusable before the run stops (one in a hundred may in any case)
    allow_bad: int = 0
    check_all: bool = False  # decode all masks and open all pictures before step 0, not those of a seeded 1,000
    save_every: int = 50  # steps between checkpoints
    keep: int = 2  # checkpoints kept
    eval_samples: int = 0  # held-out samples scored before and after (0: none)
    eval_split: str = "val"
    eval_dataset: str = ""  # held out from another set than is trained on ...
    eval_data_root: str = ""  # ... which lies there
    eval_every: int = 0  # score every so many steps, too; the best checkpoint is kept as best/ (0: never)
    freeze_vision: bool = False  # the vision tower and its merger do not learn

    @property
    def queue_zeros(self) -> int:
        """Dr. Seg's queue begins with one step of zeros (section 5.1): 16 prompts x 8 completions are 128."""
        return self.prompts_per_step * self.num_generations

    @property
    def held_out(self) -> tuple[str, str]:
        """(dataset, root) of what is scored: eval_dataset with its root, else the training set's own."""
        own = (self.dataset, self.data_root)
        return (self.eval_dataset or own[0], self.eval_data_root or ("" if self.eval_dataset else own[1]))

    @property
    def learns_text(self) -> bool:
        """Does the policy write, and learn from what that earned? LENS's alignment alone does not: true texts are fed
        in, and masks learned."""
        return self.train != "context"

    @property
    def needs_reference(self) -> bool:
        """Is there a KL term?"""
        return self.beta > 0 and self.learns_text

    def needs_replica(self, sharded: bool) -> bool:
        """Does a copy of the policy write? One that is whole and in the compute dtype writes itself."""
        return self.learns_text and not self.lora_rank and (sharded or self.dtype != "float32")


# Each paper with its numbers, in groups by who says so: the paper, its released code [C], or neither (decided here;
# docs/choices.md). What a recipe does not name it shares with all (the defaults above), or does not use.

# Seg-Zero (baseline of the papers): one object, a box and two points. Five parts of one point each. [C] The distance
# thresholds (10 px for boxes, 100 px for points, of the 840-pixel picture) are where GenSeg-R1's come from.
SEGZERO = Recipe(
    name="segzero",
    schema="segzero",
    reward="segzero",
    # [C]
    model=QWEN25_7B,
    dataset="refcocog",
    data_root="data",
    limit=2000,
    image_size=840,
    reward_frame=(840, 840),
    weights={"think": 1.0, "format": 1.0, "box_iou": 1.0, "box_l1": 1.0, "point": 1.0},
    num_generations=8,
    prompts_per_step=16,
    learning_rate=1e-6,
    weight_decay=1e-2,
    beta=5e-3,
    max_prompt=1300,
    max_completion=1300,
    # decided here
    average="sequence",
)

# VisionReasoner (baseline; Dr. Seg is built on it): many objects, each a box and a point. [C]
# Written and true objects are matched by Hungarian assignment; each pair earns up to 3 (IoU, box L1, point);
# the sum is divided by the larger count, so that missing objects and invented ones both cost.
VISIONREASONER = Recipe(
    name="visionreasoner",
    schema="visionreasoner",
    reward="visionreasoner",
    # [C]
    model=QWEN25_7B,
    dataset="visionreasoner",
    data_root=MULTI_OBJECT_7K,
    image_size=840,
    reward_frame=(840, 840),
    weights={"think": 1.0, "answer": 1.0, "accuracy": 1.0, "non_repeat": 1.0},
    num_generations=8,
    prompts_per_step=16,
    learning_rate=1e-6,
    weight_decay=1e-2,
    beta=1e-2,
    max_prompt=1300,
    max_completion=2000,
    # decided here
    average="sequence",
)

# Dr. Seg. Two changes to VisionReasoner, neither in the network. (1) Look-to-Confirm (section 4.2): the reasoning says
# where it looks, in <look> tags, and a format part (Eq. 8) pays for it: exploration where perception happens. (2)
# Distribution-Ranked Reward (section 4.3, Eq. 9-12): box IoU, count and point score (Eq. 13-16) are replaced by their
# percentiles among the last 2,048 answers (rewards.RankQueue), so that parts of different scale and spread weigh the
# same, and accuracy as much beside the format parts late in training as early.
DRSEG = Recipe(
    name="drseg",
    schema="drseg",
    reward="drseg",
    # the paper: sections 4.2, 4.3, 5.1, appendix
    model=QWEN25_7B,
    dataset="visionreasoner",
    data_root=MULTI_OBJECT_7K,
    look=True,
    rank="queue",
    queue_size=2048,
    weights={"look": 1.0, "think": 1.0, "answer": 1.0, "non_repeat": 1.0, "accuracy": 1.0},
    num_generations=8,
    prompts_per_step=16,
    learning_rate=1e-6,
    weight_decay=1e-2,
    beta=1e-2,
    max_steps=500,  # "around"
    # [C], as VisionReasoner
    image_size=840,
    reward_frame=(840, 840),
    max_prompt=1300,
    max_completion=3000,
    # decided here
    average="sequence",  # Eq. 1 leaves 1 / |o_i| out
)

# SAM-R1. SAM2 sits in the reward: boxes and points are turned into a mask, and its IoU with the truth is paid in tiers
# (section 3.3: more than 0.5, 0.7, 0.8 earn 2, 3, 4), finer where answers are already good. GRPO changes in two ways
# (section 3.2.2, Eq. 4): clip-higher, epsilon_high = 0.3, and the token average. 3,000 samples of RefCOCOg. KL is kept:
# without it, the paper says, training collapses after about 100 steps.
SAMR1 = Recipe(
    name="samr1",
    schema="samr1",
    reward="samr1",
    # the paper: sections 3.2, 3.3, 4.1 (as summaries of it agree where the text at hand has lost a number)
    model=QWEN25_7B,
    segmenter_use="reward",
    dataset="refcocog",
    data_root="data",
    limit=3000,
    image_size=840,
    tiers=(0.5, 0.7, 0.8),
    tier_rewards=(2.0, 3.0, 4.0),
    weights={"tiered": 1.0, "think": 1.0, "format": 1.0},
    num_generations=8,
    average="token",
    clip_low=0.2,
    clip_high=0.3,
    learning_rate=1e-6,
    # decided here
    updates_per_rollout=2,  # with one, no clip could ever act
    reward_frame=(840, 840),
    prompts_per_step=16,
    weight_decay=1e-2,
    beta=5e-3,
    max_prompt=2048,
    max_completion=1500,
)

# GenSeg-R1. Generalised referring: several targets or none. A box and two points per object (Table 4: two points prompt
# SAM2 best), or an explicit {"no_target": true}. Reward from distances alone (section 3.6), no SAM2 in training: cheap,
# on boxes and points of the 7k multi-object set. Qwen3-VL writes 0-1000, so Seg-Zero's 10 px and 100 px become 11.9 and
# 119.
GENSEG = Recipe(
    name="genseg",
    schema="genseg",
    reward="genseg",
    # the paper: sections 3.1, 3.6, 4, Table 1
    model=QWEN3_4B,
    dataset="visionreasoner",
    data_root=MULTI_OBJECT_7K,
    image_size=840,
    reward_frame=(1000, 1000),
    num_generations=8,
    prompts_per_step=8,
    learning_rate=1e-6,
    weight_decay=1e-2,
    beta=5e-3,
    max_prompt=2048,
    max_completion=1500,
    # decided here
    weights={"think": 1.0, "format": 1.0, "box_iou": 1.0, "box_l1": 1.0, "point": 1.0, "non_repeat": 1.0},
    average="sequence",
)
GENSEG_8B = dataclasses.replace(GENSEG, name="genseg-8b", model=QWEN3_8B)

# GenSeg-R1-G. The same on gRefCOCO with its no-target queries, and SAM2 in the reward: mask IoU (x 5), valid negative
# points (x 10: inside the matched object's true box, off the true mask; --negative_box has other readings) and "nothing
# fits" (+10 when true, -10 for any box then). 15,285 samples. Section 5's two-stage run is genseg first, then --recipe
# genseg-g --model its-checkpoint.
GENSEG_G = dataclasses.replace(
    GENSEG,
    name="genseg-g",
    schema="genseg-g",
    reward="genseg-g",
    segmenter_use="reward",
    dataset="grefcoco",
    data_root="data",
    limit=15_285,
    weights={**GENSEG.weights, "mask_iou": 5.0, "negative": 10.0, "no_target": 10.0},
)

# LENS. The mask does not come from the written box: 64 learned context queries are appended to the finished sequence,
# and a connector turns their last states into SAM2's prompt tokens (Eq. 2-4; model.ContextModule). Stage one,
# lens-align, trains only these, on masks. Stage two, lens, trains VLM, context module and mask decoder together: L =
# L_GRPO + lambda L_seg (Eq. 7), with the reward format + box IoU^2 + mask IoU^2 (Eq. 6): the reasoning is paid for the
# mask that it leads to. An epoch counts references, each with one of its sentences, another one every time [C].
# lens-reasonseg goes on from there on ReasonSeg's training split.
LENS_ALIGN = Recipe(
    name="lens-align",
    schema="lens",
    reward="lens",
    train="context",
    # the paper: sections 3, 4, Table A1
    model=QWEN25_3B,
    segmenter_use="loss",
    dataset="refcoco,refcoco+,refcocog",
    data_root="data",
    image_size=0,
    reward_frame=(0, 0),
    num_queries=64,
    tune_decoder=False,
    prompts_per_step=128,
    schedule="cosine",
    epochs=25,
    max_prompt=2048,
    max_completion=768,
    # [C]
    max_pixels=1_000_000,
    one_expression=True,
    redraw=True,
    learning_rate=3e-5,
    warmup_steps=150,
    weight_decay=0.0,
    # nothing is sampled, and no reward is learned from (the weights are for the log)
    num_generations=1,
    beta=0.0,
    weights={"format": 1.0, "box_iou": 1.0, "mask_iou": 1.0},
    # how it runs
    rows_per_batch=8,
)
LENS = dataclasses.replace(
    LENS_ALIGN,
    name="lens",
    model="runs/lens-align/final",
    start="lens-align",
    train="all",
    # the paper: Table A2
    weights={"format": 1.0, "box_iou": 1.0, "mask_iou": 1.0},
    num_generations=8,
    average="sequence",  # Eq. 12
    seg_weight=1.0,  # lambda, Eq. 7
    tune_decoder=True,  # Table A3
    schedule="linear",
    epochs=16,
    # [C]
    learning_rate=3e-6,
    warmup_steps=0,
    beta=0.04,
    # decided here
    prompts_per_step=64,  # "batch size 64" of Table A2 could be completions, too
    # how it runs
    rows_per_batch=1,
    park=True,
)
LENS_ALIGN_2B = dataclasses.replace(LENS_ALIGN, name="lens-align-2b", model=QWEN2_2B)
LENS_2B = dataclasses.replace(LENS, name="lens-2b", model="runs/lens-align-2b/final", start="lens-align-2b")
LENS_REASONSEG = dataclasses.replace(
    LENS,
    name="lens-reasonseg",
    model="runs/lens/final",
    start="lens",
    dataset="reasonseg",
    epochs=40,
    prompts_per_step=8,
)

_ALL = (
    DRSEG,
    SAMR1,
    GENSEG,
    GENSEG_8B,
    GENSEG_G,
    LENS_ALIGN,
    LENS,
    LENS_ALIGN_2B,
    LENS_2B,
    LENS_REASONSEG,
    VISIONREASONER,
    SEGZERO,
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}

ABOUT = {  # a line each, for those who choose one (train.py --help)
    "drseg": "Dr. Seg: rewards ranked among the last 2,048 answers; <look> tags are paid",
    "samr1": "SAM-R1: tiers of SAM2's mask IoU; clip-higher; token average",
    "genseg": "GenSeg-R1: several targets or none; a box and two points each; Qwen3-VL-4B",
    "genseg-8b": "... with Qwen3-VL-8B",
    "genseg-g": "GenSeg-R1-G: SAM2's mask, negative points and no-target in the reward",
    "lens-align": "LENS, first stage: the context queries learn from true answers; Qwen2.5-VL-3B",
    "lens": "LENS, second stage: policy and masks together, from lens-align's end",
    "lens-reasonseg": "... and on to ReasonSeg, from lens's end",
    "lens-align-2b": "LENS's first stage with Qwen2-VL-2B",
    "lens-2b": "LENS's second stage with Qwen2-VL-2B",
    "visionreasoner": "a baseline: VisionReasoner, several objects, rewards by thresholds",
    "segzero": "a baseline: Seg-Zero, one object, rewards by thresholds",
}


def miniature(recipe: Recipe) -> Recipe:
    """The same recipe at laptop size: tiny networks, drawn shapes, fewer steps, shorter prompts and completions; a
    rate, a schedule, a warm-up and a number of prompts and queries for small models; no weight decay; beta at most
    0.01; float32; coordinates in true texts in steps of 4.

    What makes a paper's recipe what it is (schema, reward, averages, clips, updates) is untouched, but for one of
    LENS's rules: the toy has one sentence per object, so none is drawn anew.
    """
    align, joint = recipe.train == "context", recipe.train == "all"
    qwen3 = "Qwen3" in recipe.model
    own = "toy/qwen3_vl" if qwen3 else "toy/qwen2_5_vl"
    model = f"runs/{recipe.start}-toy/final" if recipe.start else own
    return dataclasses.replace(
        recipe,
        model=model,
        segmenter="toy/sam2",
        dataset="toy",
        data_root="",
        limit=0,
        image_size=192 if qwen3 else 168,  # 6 x 6 image tokens
        prompts_per_step=32 if align else 16,
        weight_decay=0.0,
        warmup_steps=20 if align else 0,
        # LENS's joint stage goes gently: at 1.5e-4 its masks learned, in the miniature's first edition, to take what
        # stands out, whatever was asked for.
        learning_rate=1e-3 if align else 5e-5 if joint else 1.5e-4,
        # At a constant rate the last checkpoint was any of a swarm there: gIoU differed by seven points between seeds,
        # and genseg-g's "nothing fits" by fourteen between checkpoints (docs/first-edition.md).
        schedule="cosine" if align else "constant" if joint else "linear",
        num_queries=16 if recipe.num_queries else 0,
        text_step=4,  # a number that this policy never learned tells the queries nothing (docs/miniature.md)
        max_prompt=400,
        max_completion=160,
        max_steps=300 if align else 150,
        beta=min(recipe.beta, 1e-2),
        rows_per_batch=16,
        gradient_checkpointing=False,
        dtype="float32",
        save_every=100,
        eval_samples=200,
        one_expression=False,
        redraw=False,
    )


# ---------------------------------------------------------------------------------- what may be asked for, and what not

# What each number may be, of train.py's options and of evaluate.py's and data.py's: an interval, ")" and "(" leaving
# out the end; of each of them where an option has several. The upper ends of counts are there for typing errors.
RANGES = {
    **dict.fromkeys(("limit", "eval_samples", "eval_every", "make_up", "max_steps", "warmup_steps"), "[0, 1e9]"),
    "image_size": "[0, 16384]",  # and see `check`
    "max_pixels": "[4096, 1e9]",
    "reward_frame": "[0, 1e6]",
    "weights": "(-inf, inf)",
    "tiers": "[0, 1]",
    "tier_rewards": "(-inf, inf)",
    "components": "[0, 2]",
    "queue_size": "[1, 1e7]",
    **dict.fromkeys(
        ("num_generations", "prompts_per_step", "batch_size", "rows_per_batch", "pictures_at_once"), "[1, 1e5]"
    ),
    "updates_per_rollout": "[1, 1000]",
    "clip_low": "[0, 1)",
    "clip_high": "[0, inf)",
    "beta": "[0, inf)",
    "temperature": "(0, 1000]",  # evaluate.py: 0 too, greedy
    "top_p": "(0, 1]",
    **dict.fromkeys(("max_prompt", "max_completion", "max_row_tokens"), "[1, 1e7]"),
    "learning_rate": "[0, 1]",
    "weight_decay": "[0, inf)",
    "max_grad_norm": "(0, inf)",
    "epochs": "(0, 1e6]",
    "seed": "[0, 1e18]",
    "num_queries": "[0, 1e5]",
    "seg_weight": "[0, inf)",
    "text_step": "[1, inf)",
    "prompts_at_once": "[0, 1e5]",
    "lora_rank": "[0, 1e5]",
    "allow_bad": "[0, 1e9]",
    **dict.fromkeys(("save_every", "keep"), "[1, 1e9]"),
}
EVALUATION_RANGES = RANGES | {"temperature": "[0, 1000]"}


def check_ranges(options: dict[str, object], ranges: dict[str, str] = RANGES) -> None:
    """data.BadData, which names the option, where a number (or one of several) is outside its range, or is none."""
    for name in ranges.keys() & options.keys():
        low, high = map(float, ranges[name][1:-1].split(", "))
        left_out = [end for end, bracket in ((low, "("), (high, ")")) if bracket in ranges[name]]
        given = options[name]
        for value in given.values() if isinstance(given, dict) else np.ravel(given).tolist():
            if not low <= value <= high or value in left_out:
                raise data.BadData(f"--{name} {value} is outside its range, {ranges[name]}.")


def _is(value: object, kind) -> bool:
    """Is a value from a file of this kind (a field's type)?"""
    of = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value in of
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(k, of[0]) and _is(v, of[1]) for k, v in value.items())
    if typing.get_origin(kind) is tuple:
        right = isinstance(value, tuple) and (of[-1] is ... or len(value) == len(of))
        return right and all(_is(v, of[0]) for v in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def check(recipe: Recipe) -> None:
    """data.BadData, which names the option, where a recipe asks for what cannot be: wherever one comes in (a command
    line, a checkpoint's recipe.json)."""
    for name, kind in typing.get_type_hints(Recipe).items():
        if not _is(getattr(recipe, name), kind):
            raise data.BadData(f"--{name} {str(getattr(recipe, name))[:80]!r} is not what it takes: {kind}.")
    check_ranges({f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)})
    for name, known in (("schema", rewards.SCHEMAS), ("reward", rewards.REWARDS)):
        if getattr(recipe, name) not in known:
            raise data.BadData(f"no {name} {getattr(recipe, name)!r}; there are: {', '.join(known)}.")
    if 0 < recipe.image_size < 64:
        raise data.BadData(f"--image_size {recipe.image_size}: 0 (as it is), or 64 and more.")
    if 0 in recipe.reward_frame and any(recipe.reward_frame):
        raise data.BadData(f"--reward_frame {recipe.reward_frame}: a width and a height, or 0 0 (original pixels).")
    if len(recipe.tiers) != len(recipe.tier_rewards):
        raise data.BadData(f"--tiers {recipe.tiers} and --tier_rewards {recipe.tier_rewards} differ in number.")
    if len(set(recipe.components)) < len(recipe.components):
        raise data.BadData(f"--components {recipe.components} names one twice.")
    parts = set().union(*(kind or () for kind in rewards.MAXIMUM.get(recipe.reward, (recipe.weights,))))
    if unknown := sorted(recipe.weights.keys() - parts):
        raise data.BadData(f"--weights.{unknown[0]}: {recipe.reward} has no such part, but {', '.join(sorted(parts))}.")
    if (recipe.train == "context" or recipe.segmenter_use == "loss") and not recipe.num_queries:
        raise data.BadData("--num_queries 0: there is no context module, which this recipe trains.")
    if recipe.num_queries and recipe.segmenter_use == "evaluation":
        raise data.BadData(f"--num_queries {recipe.num_queries}: masks from queries, with --segmenter_use evaluation?")


def remarks(recipe: Recipe) -> list[str]:
    """What is allowed, and will not do what one may think: a sentence each."""
    said = []
    group = recipe.prompts_per_step * recipe.num_generations
    if recipe.num_generations == 1 and recipe.learns_text:
        said.append(
            "--num_generations 1: nothing is learned from rewards, for a completion has no siblings to be better than"
        )
    if recipe.learning_rate == 0:
        said.append("--learning_rate 0: nothing is learned, everything else runs")
    if recipe.learns_text and recipe.weights and not any(recipe.weights.values()):
        said.append("--weights: all are 0, and so is every reward")
    if recipe.eval_every and not recipe.eval_samples:
        said.append(f"--eval_every {recipe.eval_every}: nothing is held out to be scored (--eval_samples)")
    if recipe.seg_weight == 0 and not recipe.learns_text:
        said.append("--seg_weight 0: LENS's alignment learns from nothing else")
    if recipe.updates_per_rollout == 1 and recipe.clip_high != recipe.clip_low and recipe.learns_text:
        said.append("--clip_low, --clip_high: with --updates_per_rollout 1 the ratio is 1, and no clip acts")
    if recipe.reward in rewards.RANKED and recipe.rank == "queue" and recipe.queue_size < group:
        said.append(f"--queue_size {recipe.queue_size}: less than the {group} answers of one step")
    if list(recipe.tiers) != sorted(recipe.tiers):
        said.append(f"--tiers {recipe.tiers}: not ascending")
    if 0 < recipe.limit < recipe.prompts_per_step:
        said.append(f"--limit {recipe.limit}: a step of {recipe.prompts_per_step} prompts has samples more than once")
    if 0 < recipe.max_steps * recipe.updates_per_rollout <= recipe.warmup_steps:
        said.append(f"--warmup_steps {recipe.warmup_steps}: the run ends before the learning rate is reached")
    if recipe.top_p < 1 and recipe.learns_text:
        said.append("--top_p below 1: sampled from fewer words than the update scores, so the two policies differ")
    return said


# -------------------------------------------------------------------- what a recipe makes of a sample, and of an answer


def unanswerable(sample: data.Sample, recipe: Recipe) -> str | None:
    """Why the recipe is not trained for a sample; None if it is."""
    spec = rewards.SCHEMAS[recipe.schema]
    if sample.no_target and not spec.no_target:
        return "nothing fits, which this recipe does not train on"
    if len(sample.boxes) > 1 and not spec.many:
        return "several objects, where the schema has one"
    if spec.negatives and not sample.no_target and sample.negative_points(len(spec.negatives)) is None:
        return "no room for background points in a box" if sample.object_masks else "no mask to take those points from"
    return None


def usable(
    samples: data.Samples, recipe: Recipe, progress: bool = False, limit: int = 0, broken: list[str] | None = None
) -> tuple[list[int], dict[str, int]]:
    """Indices, ascending, of the samples that the recipe is trained for, and how many were left out for which
    reason. limit: a seeded walk through the samples keeps the first so many, and looks at no more. broken: a list that
    takes a line for each sample that cannot be read; without it, data.BadData."""
    kept: list[int] = []
    left: dict[str, int] = {}
    walk = np.random.default_rng(recipe.seed).permutation(len(samples)).tolist() if limit else range(len(samples))
    for i in tqdm(walk, desc="reading the data", disable=not progress, mininterval=1):
        try:
            sample = samples[i]
            alone = not (sample.no_target or len(sample.boxes))
            why = "a count alone, which does not say where" if alone else unanswerable(sample, recipe)
        except data.BadData as error:
            if broken is None:
                raise
            broken.append(str(error))
            continue
        if why is None:
            kept.append(i)
        else:
            left[why] = left.get(why, 0) + 1
        if limit and len(kept) == limit:
            break
    return sorted(kept), left


def reward_frame(recipe: Recipe, sample: data.Sample) -> tuple[float, float]:
    """The (width, height) in which this sample is judged: the recipe's, or the picture's own (LENS)."""
    return recipe.reward_frame if recipe.reward_frame[0] else (sample.width, sample.height)


def to_target(sample: data.Sample, recipe: Recipe) -> rewards.Target:
    """A sample's ground truth in the recipe's reward frame. Its mask is decoded only where the recipe looks at it.

    data.BadData where the recipe needs points or a mask that the data do not have.
    """
    frame = reward_frame(recipe, sample)
    size = (sample.width, sample.height)
    # As many points per object as the answer has, or the one that the data annotate: the distance rules take both.
    k = len(rewards.SCHEMAS[recipe.schema].points)
    points = sample.positive_points(min(k, sample.points.shape[1] or k)) if k else np.zeros((len(sample.boxes), 0, 2))
    mask = sample.mask if recipe.segmenter_use != "evaluation" else None
    if mask is None and recipe.segmenter_use != "evaluation":
        raise data.Lacks(f"sample {sample.id} has no mask, which {recipe.name} needs: give polygons, rle or mask")
    return rewards.Target(
        boxes=data.to_frame(sample.boxes, size, frame),
        points=data.to_frame(points, size, frame),
        mask=mask,
        no_target=sample.no_target,
        frame=frame,
    )


def reward_parts(
    recipe: Recipe,
    answer: rewards.Answer,
    target: rewards.Target,
    mask_iou: float | None,
    queue: rewards.RankQueue | None,
) -> dict[str, float]:
    """The recipe's reward, by part. answer and target in the recipe's frame.

    rewards.py's functions share (answer, target, mask_iou); what else one takes is handed over by name: the recipe's
    fields, and the queue where the recipe ranks.
    """
    function = rewards.REWARDS[recipe.reward]
    given = reward_options(recipe) | {"queue": queue if recipe.rank == "queue" else None}
    taken = inspect.signature(function).parameters
    return function(answer, target, mask_iou, **{name: value for name, value in given.items() if name in taken})


def reward_options(recipe: Recipe) -> dict:
    """The recipe's fields by name, of which the rewards and their maxima (rewards.maximum) take some."""
    return {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name != "reward"}
