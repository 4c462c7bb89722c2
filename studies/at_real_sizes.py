# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What a GPU does at the papers' sizes, in one call of some minutes: random weights, pictures and requests made here.

python -m studies.at_real_sizes                # every stage in a process of its own, then a table
python -m studies.at_real_sizes --mini         # the same code at tiny sizes on a CPU, in about two minutes
python -m studies.at_real_sizes decode update  # some stages

decode       milliseconds a token at 8, 32 and 128 rows, and what reading weights and keys alone would take (floor)
update       one packed group, forward and backward, in percent of the matmul ceiling; as train.py takes it
             (float32 weights under autocast, checkpointing); with compiled layers
drseg, samr1, lens-align, lens, lora
             two training steps through train.training_step: seconds by stage, GiB at the start and at the peak;
             lens is saved and resumed as well (but for the policy's weights, which are made anew)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import grpo
import model as models
import recipes
from studies import bench

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.cuda.is_available()
SECONDS = {"decode": 90, "update": 150, "drseg": 90, "samr1": 90, "lens-align": 90, "lens": 150, "lora": 120}
B7 = bench.real_size(recipes.QWEN25_7B)
TINY = dataclasses.replace(
    bench.SIZES["quick"],
    text=bench.SIZES["quick"].text
    | dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    | dict(num_attention_heads=2, rope_parameters=bench.MROPE | {"mrope_section": [8, 12, 12]}),
    vision=dict(depth=2, hidden_size=64, num_heads=2, out_hidden_size=128, intermediate_size=128)
    | {"fullatt_block_indexes": [1]},
    T=16,
)


def gib() -> tuple[float, float]:
    """GiB that tensors hold now, and held at most since the last call; zeros on a CPU."""
    if not CUDA:
        return 0.0, 0.0
    found = torch.cuda.memory_allocated() / 2**30, torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return found


# ------------------------------------------------------------------------------------------------------- the two halves


def stage_decode(mini: bool) -> list[dict]:
    """Sampling alone: P prompts of some 1,000 tokens, G = 8, completions of 200 tokens."""
    size = TINY if mini else bench.SIZES["3b"]
    policy = bench.build_policy(size)
    _, bandwidth = bench.ceilings()
    image, request = bench.request(size)
    found = []
    for P in (1, 2) if mini else (1, 4, 16):
        prompts = policy.encode([image] * P, [request] * P)
        S = prompts.inputs["input_ids"].shape[1]
        how = dict(num_generations=size.G, eos_token_id=policy.eos_token_id, banned_ids=policy.banned_ids)
        uniforms = torch.rand(P, size.G, size.T)
        sampled = partial(grpo.sample, policy.vlm, prompts.inputs, uniforms, **how)
        times = {T: min(bench.timed(partial(sampled, max_new_tokens=T)) for _ in range(2)) for T in (1, size.T)}
        token = (times[size.T] - times[1]) / (size.T - 1)
        floor = bench.decode_bytes(policy, S, size, P) / bandwidth
        what = {"rows": P * size.G, "ms a token": 1e3 * token, "floor, ms": 1e3 * floor, "of the floor": floor / token}
        found.append({"stage": f"decode, {P * size.G} rows", **what, "prefill, s": times[1], "GiB, peak": gib()[1]})
    return found


def stage_update(mini: bool) -> list[dict]:
    """One packed group: as the bench has it; as train.py has it; with compiled layers."""
    from torch.utils.flop_counter import FlopCounterMode

    size = TINY if mini else bench.SIZES["3b"]
    policy = bench.build_policy(size)
    ceiling, _ = bench.ceilings()
    ids = bench.drawn_completions(size)
    prompts = policy.encode(*[[x] for x in bench.request(size)])
    found = []

    def measure(name: str) -> None:
        def run() -> None:
            bench.packed_update(policy, prompts, ids)
            policy.zero_grad()

        first = bench.timed(run)
        seconds = min(bench.timed(run) for _ in range(3))
        with FlopCounterMode(display=False) as counter:
            run()
        reached = counter.get_total_flops() / seconds / ceiling
        what = {"seconds": seconds, "of the matmul ceiling": reached, "first, s": first, "GiB, peak": gib()[1]}
        found.append({"stage": f"update, {name}", **what})

    measure("as the bench has it")
    policy.float().train()
    policy.vlm.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.autocast(bench.DEVICE, torch.bfloat16, enabled=CUDA, cache_enabled=False):
        measure("float32 weights, autocast, checkpointing")
    policy.to(size.dtype).eval()
    policy.vlm.gradient_checkpointing_disable()
    if not mini:  # compiling for a CPU takes minutes
        models.compile_layers(policy.vlm)
        measure("compiled layers")
    return found


# ------------------------------------------------------------------------------------------------------- training steps


def random_networks(size: bench.Size, mini: bool) -> None:
    """From now on networks are made of random weights, on the device at once: no files, no downloads."""
    from sam2.build_sam import build_sam2

    def policy(name, *, image_size=None, max_pixels=1_000_000, dtype=torch.float32, **rest) -> models.Policy:
        made = bench.build_policy(dataclasses.replace(size, dtype=dtype))
        made.image_size = image_size
        made.max_pixels = max_pixels
        return made

    def segmenter(name, device="cpu") -> models.Segmenter:
        torch.manual_seed(1)
        if mini:
            made = models.load_segmenter_here("toy/sam2")
        else:
            made = models.Segmenter.from_sam2(build_sam2("configs/sam2/sam2_hiera_l.yaml", None, device=bench.DEVICE))
        made.name = name
        return made.eval().requires_grad_(False)

    models.load_segmenter_here = models.load_segmenter
    models.config_of = lambda name: bench.config_of(size)  # what the memory is counted from
    models.load_policy = policy
    models.load_segmenter = segmenter


def write_data(folder: Path, n: int = 32) -> None:
    """n pictures of 640 x 480 with a bright rectangle each, and train.jsonl that says where it is."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(n):
        pixels = rng.integers(0, 120, (480, 640, 3), dtype=np.uint8)
        x, y = rng.integers(20, 300, 2).tolist()
        pixels[y : y + 120, x : x + 200] += 100
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        corners = [x, y, x + 200, y, x + 200, y + 120, x, y + 120]
        entry = {"image": f"{i}.jpg", "query": "the bright rectangle", "boxes": [[x, y, x + 200, y + 120]]}
        lines.append(json.dumps(entry | {"polygons": [[corners]]}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")


STEPS = {  # stage -> recipe, what is changed, size
    "drseg": ("drseg", {"max_completion": 300, "prompts_per_step": 4}, "3b"),
    "samr1": ("samr1", {"max_completion": 300, "prompts_per_step": 4}, "3b"),
    "lens-align": ("lens-align", {"prompts_per_step": 8}, "3b"),
    "lens": ("lens", {"max_completion": 200, "prompts_per_step": 4}, "3b"),
    "lora": ("drseg", {"max_completion": 300, "prompts_per_step": 2, "lora_rank": 64, "prompts_at_once": 1}, "7b"),
}


def stage_steps(stage: str, mini: bool) -> list[dict]:
    """Two steps of a recipe through the loop's own functions, the second one reported."""
    import train
    from engine.run import start

    name, changes, which = STEPS[stage]
    sizes = {"3b": bench.SIZES["3b"], "7b": B7}
    random_networks(TINY if mini else sizes[which], mini)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        recipe = dataclasses.replace(
            recipes.RECIPES[name],
            model="random",
            segmenter="toy/sam2" if mini else "random",
            dataset="jsonl",
            data_root=folder,
            limit=0,
            start="",
            redraw=False,
            one_expression=False,
            max_steps=9,
            eval_samples=0,
            max_prompt=4096,
            **changes,
        )
        if mini:
            small = {"image_size": 112 if recipe.image_size else 0, "max_pixels": 112 * 112, "max_completion": 12}
            few = {"num_queries": min(recipe.num_queries, 4), "prompts_per_step": 2, "dtype": "float32"}
            recipe = dataclasses.replace(recipe, **small, **few, lora_rank=min(recipe.lora_rank, 4))
        gib()
        run = start(recipe, Path(folder, "out"))
        at_start, _ = gib()
        rows = [train.training_step(run, step)[0] for step in (0, 1)]
        _, peak = gib()
        seconds = {key.split("/")[1]: value for key, value in rows[1].items() if key.startswith("seconds/")}
        what = {f"{key}, s": value for key, value in seconds.items()}
        what |= {
            "step, s": sum(seconds.values()),
            "first step, s": sum(v for k, v in rows[0].items() if "seconds" in k),
        }
        found = [{"stage": stage, **what, "GiB, start": at_start, "GiB, peak": peak}]
        if stage == "lens":
            train.score(run, "before")
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (run.output_dir / "metrics.jsonl").write_text(lines, encoding="utf-8")
            began = time.perf_counter()
            run.save(2)
            saved = time.perf_counter() - began
            run.lock.close()  # the folder is another's now
            del run
            began = time.perf_counter()
            again = start(recipe, Path(folder, "out"), resume=True)
            resumed = time.perf_counter() - began
            train.training_step(again, 2)
            what = {"saved, s": saved, "resumed, s": resumed, "GiB, peak": gib()[1]}
            found.append({"stage": "lens, saved and resumed", **what})
    return found


def run_stage(stage: str, mini: bool) -> list[dict]:
    """A stage's rows, in this process."""
    if stage in STEPS:
        return stage_steps(stage, mini)
    return {"decode": stage_decode, "update": stage_update}[stage](mini)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(SECONDS)} (default: all)")
    parser.add_argument("--mini", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one stage, in this process
    args = parser.parse_args()
    if args.alone:
        print("ROWS " + json.dumps(run_stage(args.stages[0], args.mini)))
        return
    print(f"{bench.machine()}; {bench.versions()}", flush=True)
    failed = False
    for stage in args.stages or SECONDS:
        command = [sys.executable, "-m", "studies.at_real_sizes", stage, "--alone", *["--mini"] * args.mini]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS[stage])
        except subprocess.TimeoutExpired:
            print(f"{stage}: not done in {SECONDS[stage]} s", flush=True)
            failed = True
            continue
        rows = [line for line in done.stdout.splitlines() if line.startswith("ROWS ")]
        if not rows:
            print(f"{stage}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}", flush=True)
            failed = True
            continue
        for row in json.loads(rows[0].removeprefix("ROWS ")):
            figures = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if k != "stage")
            print(f"{row['stage']:45} {figures}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
