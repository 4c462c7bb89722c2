# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Speed and memory beside the obvious alternatives, every pair in one run on one machine, as ratios.

    python -m studies.bench                            # about 15 minutes on 2 cores
    python -m studies.bench --quick --json bench.json  # smaller, under 2 minutes; {"update": ..., "sample": ..., ...}
    python -m studies.bench --size 3b                  # a GPU: the shapes of Qwen2.5-VL-3B, random weights, bf16
    python -m studies.bench --scaling                  # how the cost grows: docs/scaling.png
    pip install trl                                    # for the rows about its GRPOTrainer, else left out

Beside what: this project's own slow twin (each completion with its own copy of the prompt and picture), transformers'
`generate`, sam2's own predictor, and TRL's GRPOTrainer. Weights are random and no completion may end early: what is
computed does not depend on what the tokens say. In a pair both sides share model, prompt, G, lengths, kernel (sdpa),
dtype and checkpointing, and score completion tokens only, so that the ratio is the method's own; a row marked "as it
comes" is the other tool with its own defaults. Sides take turns, and a figure is the median over the runs.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import grpo
import model as models
import train
from recipes import QWEN25_3B, QWEN25_7B, RECIPES

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEARNING_RATE = 1e-6


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and the lengths it works at."""

    text: dict  # of the language model
    vision: dict
    side: int = 840  # pictures of side x side pixels: (side / 28)^2 image tokens, 900 of a prompt of 1,000
    words: int = 87  # of the request
    G: int = 8
    T: int = 200  # tokens of every completion
    dtype: torch.dtype = torch.float32
    runs: int = 5
    tied: bool = True  # the output matrix is the embedding


MROPE = {"rope_type": "default", "rope_theta": 1e6}
# The miniature keeps the proportions of the real one: the vision tower costs about what the language model costs on the
# prompt, and the output matrix about a tenth of it (hence few tokens: 152,000 of them would outweigh four layers).
MINI = Size(
    text=dict(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_parameters=MROPE | {"mrope_section": [8, 12, 12]},
    ),
    vision=dict(depth=4, hidden_size=256, num_heads=4, out_hidden_size=512, intermediate_size=768)
    | {"fullatt_block_indexes": [3]},
)


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


def real_size(hub_id: str) -> Size:
    """A Qwen2.5-VL of the Hub, by its sizes alone."""
    text = TEXT[hub_id] | {"rope_parameters": MROPE | {"mrope_section": [16, 24, 24]}}
    vision = VISION | {"out_hidden_size": text["hidden_size"]}
    return Size(text, vision, dtype=torch.bfloat16, tied=hub_id == QWEN25_3B)


SIZES = {
    "mini": MINI,
    "quick": dataclasses.replace(MINI, side=336, words=6, T=32, runs=3),
    "3b": real_size(QWEN25_3B),
}


def config_of(size: Size):
    """The Hugging Face configuration of a Qwen2.5-VL of this size, with the miniature's tokens."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(ROOT / "toy" / "qwen2_5_vl")
    token = lambda name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")  # noqa: E731
    ids = {"bos_token_id": token("endoftext"), "eos_token_id": token("im_end"), "pad_token_id": token("endoftext")}
    return hf.Qwen2_5_VLConfig(
        text_config=dict(max_position_embeddings=32768, tie_word_embeddings=size.tied, **ids, **size.text),
        vision_config=dict(patch_size=14, spatial_merge_size=2, window_size=112, tokens_per_second=2, **size.vision),
        tie_word_embeddings=size.tied,
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
    )


def decode_bytes(policy: models.Policy, prompt_tokens: int, size: Size, P: int = 1) -> float:
    """What decoding reads for one token of all P G completions: the language model's weights once, each prompt's keys
    and values once, and each completion's own, half written on average."""
    text = policy.vlm.config.text_config
    weights = sum(p.numel() * p.element_size() for p in policy.vlm.model.language_model.parameters())
    heads = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    of_a_token = 2 * text.num_hidden_layers * heads * size.dtype.itemsize
    return weights + P * (prompt_tokens + size.G * size.T / 2) * of_a_token


def build_policy(size: Size) -> models.Policy:
    """A Qwen2.5-VL of this size with random weights, and the miniature's processor."""
    import transformers as hf

    processor = hf.AutoProcessor.from_pretrained(ROOT / "toy" / "qwen2_5_vl")
    config = config_of(size)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        vlm = hf.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", dtype=size.dtype)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    vlm.generation_config = hf.GenerationConfig(**{name: getattr(config.text_config, name) for name in ids})
    policy = models.Policy(vlm, processor, image_size=size.side)
    # Never sampled, by any side: what would ask for pictures, and the end.
    never = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad", "im_end")
    policy.banned_ids = processor.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in never])
    return policy.eval()


def request(size: Size) -> tuple[Image.Image, str]:
    """A picture of noise and a text of `size.words` words."""
    picture = np.random.default_rng(0).integers(0, 255, (size.side, size.side, 3), dtype=np.uint8)
    return Image.fromarray(picture), "find " + "the red circle " * (size.words // 3)


def drawn_completions(size: Size, P: int = 1) -> Tensor:
    return torch.randint(10, 1000, (P, size.G, size.T), generator=torch.Generator().manual_seed(1)).to(DEVICE)


# -------------------------------------------------------------------------------------------------------------- updates


def grpo_backward(logp: Tensor, advantages: Tensor, shape: tuple[int, int, int]) -> None:
    """The loss of P groups from their tokens' log-probabilities (P * G * T,), and its gradient."""
    mask = torch.ones(shape, dtype=torch.bool, device=logp.device)
    logp = logp.view(shape)
    grpo.grpo_loss(logp, logp.detach(), None, advantages, grpo.token_weights(mask))[0].backward()


def packed_update(policy: models.Policy, prompts: models.Prompts, ids: Tensor) -> None:
    """One row per group (what train.py does)."""
    rows = policy.pack(prompts, [(p, list(group)) for p, group in enumerate(ids)])
    logp, _, _ = policy(rows)
    grpo_backward(logp, torch.randn(ids.shape[:2], device=ids.device), ids.shape)


def unpacked_update(policy: models.Policy, prompts: models.Prompts, ids: Tensor, full_logits: bool = False) -> None:
    """One row per completion, each with its own copy of prompt and picture.

    full_logits: (B, S + T, V) of them at once, in float32, instead of chunks of the completions'.
    """
    (P, G, T), vlm = ids.shape, policy.vlm
    prompt = prompts.inputs
    S = prompts.inputs["input_ids"].shape[1]
    rows = torch.cat([prompt["input_ids"].repeat_interleave(G, 0), ids.flatten(0, 1)], 1)
    after = prompt["position_ids"].amax(-1, keepdim=True) + 1 + torch.arange(T, device=ids.device)
    patches = prompt["image_grid_thw"].prod(-1).tolist()
    hidden = vlm.model(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        position_ids=torch.cat([prompt["position_ids"], after], -1).repeat_interleave(G, 1),
        pixel_values=torch.cat([pixels.repeat(G, 1) for pixels in prompt["pixel_values"].split(patches)]),
        image_grid_thw=prompt["image_grid_thw"].repeat_interleave(G, 0),
        use_cache=False,
    ).last_hidden_state
    if full_logits:
        logp = vlm.lm_head(hidden).float().log_softmax(-1)[:, S - 1 : -1]
        logp = logp.gather(-1, ids.flatten(0, 1)[..., None]).flatten()
    else:
        head = vlm.get_output_embeddings().weight
        states = hidden[:, S - 1 : -1].flatten(0, 1)
        logp, _ = grpo.token_logprobs(states, head, ids.flatten(), banned_ids=policy.banned_ids)
    grpo_backward(logp, torch.randn(P, G, device=ids.device), ids.shape)


UPDATES: dict[str, Callable] = {
    "packed": packed_update,
    "unpacked": unpacked_update,
    "unpacked, full logits": lambda *a: unpacked_update(*a, full_logits=True),
}


# ---------------------------------------------------------------------------------------------------------- stopwatches


def timed(f: Callable[[], object]) -> float:
    """Seconds of one call, a GPU's work included."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    f()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def race(sides: dict[str, Callable[[], object]], runs: int, warm: bool = False) -> dict[str, float]:
    """Median seconds of each side. They take turns, so that a busy minute of the machine hits all.

    Unless the sides are warm already, a first turn is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(runs + (not warm)):
        for name, f in sides.items():
            seconds = timed(f)
            if i or warm:
                times[name].append(seconds)
    return {name: statistics.median(t) for name, t in times.items()}


def peak_of_update(which: str, size: Size) -> float:
    """MB that one update adds at its peak to a process that holds the model: gradients, activations, logits."""
    policy = build_policy(size)
    ids = drawn_completions(size)
    prompts = policy.encode(*[[x] for x in request(size)])
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        UPDATES[which](policy, prompts, ids)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/status").exists():
        raise SystemExit("peak memory on a CPU is read from Linux's /proc, which this system does not have")
    field = lambda name: int(Path("/proc/self/status").read_text(encoding="utf-8").split(name)[1].split()[0]) / 1024  # noqa: E731
    before = field("VmRSS:")
    UPDATES[which](policy, prompts, ids)
    return field("VmHWM:") - before


def peak_in_fresh_process(which: str, size_name: str) -> float | None:
    """peak_of_update in a process of its own. On a CPU it is resident memory, and what is freed goes back to the system
    at once, so that the peak is what was in use."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", "studies.bench", "--size", size_name, "--peak_of", which]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  no figure for {which}: {done.stderr.strip().splitlines()[-1]}")
        return None
    return float(done.stdout.split()[-1])


def ceilings() -> tuple[float, float]:
    """What this machine can do: FLOP/s of a large matrix product, bytes/s of a large copy (read and written)."""
    n, dtype = (8192, torch.bfloat16) if DEVICE == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    x = torch.zeros(2**28 if DEVICE == "cuda" else 2**26, device=DEVICE)
    y = torch.empty_like(x)
    best = lambda f: min(timed(f) for _ in range(6))  # noqa: E731  (a ceiling: the best that was seen)
    return 2 * n**3 / best(lambda: a @ b), 2 * x.numel() * 4 / best(lambda: y.copy_(x))


# ----------------------------------------------------------------------------------------------------------- the stages


class Table:
    """Rows to print as they come, and the ratios for --json."""

    def __init__(self):
        self.ratios: dict[str, float] = {}
        self.rows: list[dict] = []

    def add(self, stage: str, sides: dict[str, float | None], unit: str, tokens: int, names: dict[str, str]) -> None:
        """sides: this project's first. names: side -> key of its ratio in the JSON."""
        ours, base = next(iter(sides.items()))
        for side, value in sides.items():
            if value is None:
                continue
            ratio = value / base if base else None
            self.rows.append({"stage": stage, "side": side, "value": value, "unit": unit, "ratio": ratio})
            speed = f"{tokens / value:10,.0f} tokens/s" if tokens else " " * 19
            beside = "" if side == ours else f"{ratio:8.2f}x"
            print(f"  {stage:8} {side:52} {value:10.3f} {unit:3} {speed} {beside}", flush=True)
            if side in names:  # memory as the part that is left, ours / theirs; seconds as a speed-up, theirs / ours
                self.ratios[names[side]] = round(1 / ratio if unit == "MB" else ratio, 3)


def generate_options(size: Size, policy: models.Policy) -> dict:
    """What makes `generate` draw the same number of tokens from the same distribution."""
    return dict(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=size.T,
        min_new_tokens=size.T,
        suppress_tokens=policy.banned_ids,
        disable_compile=True,
    )


def bench_update(size: Size, policy: models.Policy, table: Table, ceiling: float) -> None:
    """Forward, loss and backward on one group, packed and not."""
    ids = drawn_completions(size)
    prompts = policy.encode(*[[x] for x in request(size)])

    def side(f: Callable) -> Callable:
        def run() -> None:
            f(policy, prompts, ids)
            policy.zero_grad()

        return run

    seconds = race({name: side(f) for name, f in UPDATES.items()}, size.runs)
    table.add(
        "update", seconds, "s", ids.numel(), {"unpacked": "update", "unpacked, full logits": "update_full_logits"}
    )
    with FlopCounterMode(display=False) as counter:
        side(packed_update)()
    flops = counter.get_total_flops()
    reached = flops / seconds["packed"] / ceiling
    print(f"  {'':8} packed: {flops / 1e12:.3f} TFLOP, {reached:.0%} of this machine's matmul ceiling")


def bench_sampling(size: Size, policy: models.Policy, table: Table, ceiling: float) -> None:
    """One group's completions, all of the same length."""
    prompts = policy.encode(*[[x] for x in request(size)])
    uniforms = torch.rand(1, size.G, size.T)
    ours = dict(
        num_generations=size.G, max_new_tokens=size.T, eos_token_id=policy.eos_token_id, banned_ids=policy.banned_ids
    )
    one = {k: v for k, v in prompts.inputs.items() if k != "position_ids"}
    rows = {k: v.repeat(size.G, *[1] * (v.ndim - 1)) for k, v in one.items()}  # as trainers do: G prompts, G pictures
    options = generate_options(size, policy)
    sides = {
        "grpo.sample": lambda: grpo.sample(policy.vlm, prompts.inputs, uniforms, **ours),
        "generate, G rows (as trainers call it)": lambda: policy.vlm.generate(**rows, **options),
        "generate, num_return_sequences=G": lambda: policy.vlm.generate(**one, **options, num_return_sequences=size.G),
    }
    seconds = race(sides, size.runs)
    names = {
        "generate, G rows (as trainers call it)": "sample",
        "generate, num_return_sequences=G": "sample_return_sequences",
    }
    table.add("sample", seconds, "s", size.G * size.T, names)
    alone = ours | {"max_new_tokens": 1}
    prefill = race({"prefill": lambda: grpo.sample(policy.vlm, prompts.inputs, uniforms, **alone)}, 3)["prefill"]
    decoding = seconds["grpo.sample"] - prefill
    rate = decode_bytes(policy, one["input_ids"].shape[1], size) * (size.T - 1) / decoding
    print(
        f"  {'':8} grpo.sample: prefill {prefill:.2f} s, then {1e3 * decoding / (size.T - 1):.1f} ms a token: "
        f"{rate / 1e9:.1f} GB/s, {rate / ceiling:.0%} of this machine's copy ceiling"
    )


def bench_rewards(size: Size, table: Table, runs: int) -> None:
    """SAM2 (hiera tiny at its real 1024 x 1024, random weights): a picture and G answers, each a box and a point."""
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    sam = build_sam2("configs/sam2/sam2_hiera_t.yaml", None, device=DEVICE).eval()
    predictor = SAM2ImagePredictor(sam)
    segmenter = models.Segmenter.from_sam2(sam).eval()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    truth = torch.zeros(480, 640, dtype=torch.bool, device=DEVICE)
    truth[100:300, 100:300] = True
    boxes = np.concatenate([rng.uniform(0, 200, (size.G, 2)), rng.uniform(250, 450, (size.G, 2))], 1)
    points = (boxes[:, :2] + boxes[:, 2:]) / 2
    labels = np.ones((size.G, 1), dtype=np.int32)

    def ours() -> list[float]:
        with torch.no_grad():
            masks = segmenter.segment(segmenter.embed([image]), [0] * size.G, boxes, points[:, None], labels)
        return [models.mask_iou(m, truth) for m in masks]

    def theirs(once: bool) -> list[float]:
        ious = []
        array = np.array(image)
        target = truth.cpu().numpy()
        for g in range(size.G):
            if g == 0 or not once:
                predictor.set_image(array)
            masks, scores, _ = predictor.predict(points[g : g + 1], np.array([1]), box=boxes[g])
            mask = masks[scores.argmax()].astype(bool)
            ious.append((mask & target).sum() / (mask | target).sum())
        return ious

    assert np.allclose(ours(), theirs(True), atol=1e-3), "the two sides do not compute the same rewards"
    sides = {"one embedding, one decoder call": ours, "predictor, set_image per completion": lambda: theirs(False)}
    sides["predictor, set_image once per picture"] = lambda: theirs(True)
    names = {
        "predictor, set_image per completion": "reward",
        "predictor, set_image once per picture": "reward_set_image_once",
    }
    table.add("reward", race(sides, runs, warm=True), "s", 0, names)


def toy_reward(text: str) -> float:
    """Any function of the text that differs within a group: the step's reward costs nothing on either side."""
    return len(set(text)) / 100


def bench_step(size: Size, table: Table, quick: bool) -> None:
    """Picture and text in, weights changed: encode, sample, reward, advantages, update, AdamW."""
    for default in (False,) if quick else (False, True):
        policy = build_policy(size)
        twin = copy.deepcopy(policy)
        how = ", as it comes" if default else ", same settings"
        ours = "train.py's stages" + (", checkpointing as in the recipes" if default else "")
        if default:  # its vision tower as it comes, too: one call of attention per window
            twin.vlm.model.visual.config._attn_implementation = "sdpa"
        sides = {
            ours: our_step(size, policy, checkpointing=default),
            "TRL GRPOTrainer" + how: trl_step(size, twin, default),
        }
        table.add(
            "step", sides, "s", size.G * size.T, {"TRL GRPOTrainer" + how: "step_defaults" if default else "step"}
        )
    if quick:
        print(f"  {'':8} TRL as it comes (checkpointing, bf16 autocast) is left to the full run")


def our_step(size: Size, policy: models.Policy, checkpointing: bool) -> float:
    """Median seconds of a step on one prompt, through the functions that train.py calls."""
    recipe = dataclasses.replace(
        RECIPES["drseg"], beta=0.0, num_generations=size.G, prompts_per_step=1, gradient_checkpointing=checkpointing
    )
    accelerator = Accelerator(cpu=DEVICE == "cpu")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)
    image, text = request(size)
    policy.train()
    if checkpointing:
        policy.vlm.gradient_checkpointing_enable({"use_reentrant": False})

    def step() -> None:
        prompts = policy.encode([image], [text])
        rollout = grpo.sample(
            policy.vlm,
            prompts.inputs,
            torch.rand(1, size.G, size.T),
            num_generations=size.G,
            max_new_tokens=size.T,
            eos_token_id=policy.eos_token_id,
            banned_ids=policy.banned_ids,
        )
        texts = policy.decode(rollout.ids.flatten(0, 1), rollout.mask.flatten(0, 1))
        rewards = torch.tensor([[toy_reward(t) for t in texts]])
        micros = models.pack_rollout(policy, prompts, rollout, max_row_tokens=recipe.max_row_tokens, rows_per_batch=1)
        train.update(accelerator, policy, optimizer, micros, None, rollout, grpo.group_advantages(rewards), recipe)

    return race({"step": step}, size.runs)["step"]


def trl_step(size: Size, policy: models.Policy, default: bool) -> float | None:
    """Median seconds of a step of TRL's GRPOTrainer; None where TRL is not installed.

    default: with its own choices of checkpointing and precision; otherwise with this bench's.
    """
    try:
        import trl
    except ImportError:
        print("  step     TRL is not installed (pip install trl): no comparison with GRPOTrainer")
        return None
    import tempfile

    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    times = []
    lengths = set()

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.start)

    image, text = request(size)
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": text}], "image": image}] * (size.runs + 1))
    same = {} if default else {"bf16": False, "gradient_checkpointing": False}
    generation = {"min_new_tokens": size.T, "suppress_tokens": policy.banned_ids}
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.GRPOConfig(
            folder,
            per_device_train_batch_size=size.G,
            num_generations=size.G,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            max_completion_length=size.T,
            max_steps=size.runs + 1,
            beta=0.0,
            learning_rate=LEARNING_RATE,
            generation_kwargs=generation,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=DEVICE == "cpu",
            **same,
        )
        trainer = trl.GRPOTrainer(
            policy.vlm,
            reward_funcs=lambda completions, **_: [toy_reward(c[0]["content"]) for c in completions],
            args=arguments,
            train_dataset=data,
            processing_class=policy.processor,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)

        def note(_, args, kwargs) -> None:
            if torch.is_grad_enabled():
                lengths.add(tuple(kwargs["input_ids"].shape))

        policy.vlm.register_forward_pre_hook(note, with_kwargs=True)
        trainer.train()
    expected = (size.G, policy.encode([image], [text]).inputs["input_ids"].shape[1] + size.T)
    if lengths != {expected}:
        print(f"  step     careful: TRL trained on rows of shape {lengths}, where this project has {expected}")
    return statistics.median(times[1:])


# -------------------------------------------------------------------------------------------------------------- scaling


def scaling(path: Path) -> None:
    """Seconds of sampling and of both updates against G, T, P and the picture's size, one at a time; one figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    middle = dataclasses.replace(MINI, side=560, words=42, T=100, runs=3)
    sweeps = {
        "completions per prompt, G": ("G", [2, 4, 8, 16]),
        "tokens per completion": ("T", [50, 100, 200, 400]),
        "prompts per step": ("P", [1, 2, 4]),
        "picture side (px)": ("side", [280, 420, 560, 840]),
    }
    figure, axes = plt.subplots(1, len(sweeps), figsize=(15, 3.6), constrained_layout=True)
    for axis, (title, (name, values)) in zip(axes, sweeps.items(), strict=True):
        curves: dict[str, list[float]] = {}
        for value in values:
            size = middle if name == "P" else dataclasses.replace(middle, **{name: value})
            P = value if name == "P" else 1
            policy = build_policy(size)
            ids = drawn_completions(size, P)
            uniforms = torch.rand(P, size.G, size.T)
            image, text = request(size)
            prompts = policy.encode([image] * P, [text] * P)
            how = dict(num_generations=size.G, max_new_tokens=size.T, eos_token_id=policy.eos_token_id)
            sides = {
                "sample": partial(
                    grpo.sample, policy.vlm, prompts.inputs, uniforms, banned_ids=policy.banned_ids, **how
                ),
                "update, packed": partial(packed_update, policy, prompts, ids),
                "update, unpacked": partial(unpacked_update, policy, prompts, ids),
            }
            for side, seconds in race(sides, size.runs).items():
                curves.setdefault(side, []).append(seconds)
            found = ", ".join(f"{side} {c[-1]:.2f} s" for side, c in curves.items())
            print(f"  {title} {value}: {found}", flush=True)
        for side, seconds in curves.items():
            axis.plot(values, seconds, marker="o", label=side)
        axis.set(xlabel=title, ylim=(0, None))
    axes[0].set_ylabel("seconds")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"one step of the bench's model on {machine()}", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)
    print(f"  {path}")


# ----------------------------------------------------------------------------------------------------------------- main


def machine() -> str:
    """The processor or card, for the heading."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    told = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"model name\s*: (.*)", told)  # on ARM there is none
    name = found[1] if found else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> str:
    """The packages that the figures depend on."""
    found = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return ", ".join(f"{n} {found.get(n, 'not installed')}" for n in ("torch", "transformers", "sam2", "trl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--quick", action="store_true", help="--size quick: shorter prompt and completions, fewer runs")
    parser.add_argument("--json", type=Path, help="write the ratios here")
    parser.add_argument("--scaling", action="store_true", help="draw docs/scaling.png instead")
    # the fresh process of peak_in_fresh_process
    parser.add_argument("--peak_of", choices=UPDATES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    name = "quick" if args.quick else args.size
    size = SIZES[name]
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers on its own renamed options
    if args.peak_of:
        print(peak_of_update(args.peak_of, size))
        return
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{machine()}{load}; Python {platform.python_version()}, {versions()}")
    if args.scaling:
        scaling(ROOT / "docs" / "scaling.png")
        return
    policy = build_policy(size)
    table = Table()
    S = policy.encode(*[[x] for x in request(size)]).inputs["input_ids"].shape[1]
    millions = sum(p.numel() for p in policy.parameters()) / 1e6
    print(
        f"{name}: {millions:,.0f} M parameters, {str(size.dtype)[6:]}; prompt {S} tokens, "
        f"{(size.side // 28) ** 2} of them image; G {size.G}; completions {size.T}; medians of {size.runs} runs"
    )
    flops, bandwidth = ceilings()
    print(f"  ceilings measured here: matmul {flops / 1e12:.2f} TFLOP/s, copy {bandwidth / 1e9:.0f} GB/s")
    bench_update(size, policy, table, flops)
    peaks = {which: peak_in_fresh_process(which, name) for which in UPDATES}
    table.add("memory", peaks, "MB", 0, {"unpacked": "memory_chunked", "unpacked, full logits": "memory"})
    bench_sampling(size, policy, table, bandwidth)
    del policy
    bench_rewards(size, table, 1 if name == "quick" else size.runs)
    bench_step(size, table, name == "quick")
    print("ratios: " + json.dumps(table.ratios))
    if args.json:
        about = {"size": name, "machine": machine(), "versions": versions(), "rows": table.rows}
        args.json.write_text(json.dumps(table.ratios | about, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
