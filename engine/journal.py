# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What a run tells: a row of figures per step in metrics.jsonl, the progress bar, a tracker, curves.png."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

import data
import grpo
from recipes import Recipe


def of_completions(
    rollout: grpo.Rollout, reward: Tensor, parts: list, measured: dict[str, list[float]], end_ids: list[int]
) -> dict[str, list[float]]:
    """What is said of each of this process's completions (of zero_variance: of each of its groups), by name.

    reward/X: a part, its weight applied; metric/X: measured, not rewarded (box_iou: of each true object the IoU of the
    box that fits it best, a missed one counting 0; matched_iou, count, point: Dr. Seg's x1 to x3); length: tokens;
    truncated: it has no end token; zero_variance: the group's rewards are equal and teach nothing.
    """
    ended = (torch.isin(rollout.ids, torch.tensor(end_ids, device=rollout.ids.device)) & rollout.mask).any(-1)
    figures = {"reward": reward.flatten().tolist()}
    figures |= {f"reward/{name}": [b[name] for group in parts for b in group] for name in parts[0][0]}
    figures |= {"parsed" if name == "parsed" else f"metric/{name}": values for name, values in measured.items()}
    figures["zero_variance"] = (reward.amax(-1) == reward.amin(-1)).float().tolist()
    figures["length"] = rollout.mask.sum(-1).flatten().float().tolist()
    figures["truncated"] = (~ended).flatten().float().tolist()
    return figures


def over_processes(figures: dict[str, list[float]], learned: dict[str, float]) -> dict[str, float]:
    """A row of metrics.jsonl: the means of of_completions' columns over all processes' completions, the spread of the
    rewards among them (reward_std, reward/X_std), and the mean over processes of what each learned."""
    gathered = gather_object([(figures, learned)])
    columns: dict[str, list[float]] = {}
    for theirs, _ in gathered:
        for name, values in theirs.items():
            columns.setdefault(name, []).extend(values)
    row = {name: float(np.mean(values)) for name, values in columns.items() if values}
    row |= {f"{name}_std": float(np.std(values)) for name, values in columns.items() if name.startswith("reward")}
    row["length_max"] = max(columns["length"])
    return row | {name: float(np.mean([values[name] for _, values in gathered])) for name in learned}


def durations(clock: list[float], tokens: float) -> dict[str, float]:
    """Seconds of a step's three stages, from the times at their borders, and the completion tokens per second.

    sample: with reading and encoding the pictures; reward: with packing the rows.
    """
    stages = zip(("sample", "reward", "update"), np.diff(clock).tolist(), strict=True)
    return {f"seconds/{name}": s for name, s in stages} | {"tokens_per_second": tokens / (clock[-1] - clock[0])}


class Shown(NamedTuple):
    """One completion of a step, for people to read."""

    query: str
    text: str
    parts: dict[str, float]
    advantage: float


def tell(bar, row: dict[str, float], shown: Shown) -> None:
    """The step on the progress bar, in 80 columns; every 20 steps one of its completions above it, with what it earned.

    Beside the reward stands the IoU of what was sampled: a rank (Dr. Seg's reward) stays where it is while answers
    become better."""
    iou = next((row[k] for k in ("metric/mask_iou", "metric/box_iou") if k in row), float("nan"))
    bar.set_postfix(reward=f"{row['reward']:.2f}", IoU=f"{iou:.2f}", parsed=f"{row['parsed']:.2f}")
    if (row["step"] - 1) % 20 == 0:
        earned = ", ".join(f"{name} {value:.2f}" for name, value in shown.parts.items())
        bar.write(
            f"\n[step {row['step']}] {shown.query!r}\n{data.printable(shown.text)}\n"
            f"  -> {earned}; advantage {shown.advantage:.2f}"
        )


def what_next(final: Path, recipe: Recipe) -> str:
    """The commands that a run's last lines name."""
    asked = ["python", "evaluate.py", "--model", str(final)]
    toy = recipe.dataset == "toy"  # who was taught on drawn shapes knows no photographs
    ways = [] if toy else [[*asked, "--image", "PHOTO.jpg", "--query", "what to find"]]
    if recipe.eval_samples or recipe.eval_dataset or toy:  # else nobody said that there is such a split
        name, root = recipe.held_out
        where = ["--dataset", name.split(",")[0], *(["--data_root", root] * bool(root)), "--split", recipe.eval_split]
        ways.insert(0, asked + where)
    return "\n  ".join(["next:", *map(shlex.join, ways)])


def go_on() -> str:
    """The command that was typed, with --resume; of the launcher's own options, the number of processes."""
    given = [a for a in sys.argv[1:] if a != "--resume"]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = f"accelerate launch --num_processes {processes}" if processes > 1 else "python"
    return f"{launcher} train.py {shlex.join(given)} --resume"


def open_tracker(accelerator: Accelerator, recipe: Recipe) -> None:
    """Begin a run at --tracker, with the recipe as its settings."""
    plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in dataclasses.asdict(recipe).items()}
    accelerator.init_trackers("runs", config=plain)  # TensorBoard takes no tuples


def smooth(y: Sequence[float], width: int) -> np.ndarray:
    """The mean over `width` neighbours of each value; the first and last stand in for what lies beyond them."""
    padded = np.pad(np.array(y, dtype=float), (width // 2, width - 1 - width // 2), "edge")
    return np.convolve(padded, np.ones(width) / width, "valid")


def plot_curves(rows: list[dict], path: Path) -> None:
    """curves.png, by step: what is measured, the reward and its parts, lengths, the optimizer's numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {  # title: (unit of the axis, columns)
        "measured": ("0 to 1", [k for k in rows[-1] if k.startswith("metric/")]),
        "reward": ("sum of its parts", ["reward"]),
        "parts": ("weighted", [k for k in rows[-1] if k.startswith("reward/") and not k.endswith("_std")]),
        "length": ("tokens", ["length", "length_max"]),
        "entropy, KL": ("nats per token", ["entropy", "kl"]),
        "gradient norm": ("before clipping", ["grad_norm"]),
    }
    steps = [r["step"] for r in rows]
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
    for axis, (title, (unit, keys)) in zip(axes.flat, panels.items(), strict=True):
        same: dict[tuple, list[str]] = {}  # curves that coincide are drawn once, under all their names
        for key in keys:
            if key in rows[-1]:
                same.setdefault(tuple(r.get(key, np.nan) for r in rows), []).append(key.split("/")[-1])
        for y, names in same.items():
            (line,) = axis.plot(steps, smooth(y, max(len(y) // 25, 1)), label=" = ".join(names))
            axis.plot(steps, y, color=line.get_color(), alpha=0.2, linewidth=0.8)
        axis.set(title=title, xlabel="step", ylabel=unit)
        if len(keys) > 1:
            axis.legend(fontsize=8, framealpha=0.5)
    figure.suptitle(f"{path.parent.resolve().name} (bold: smoothed)", parse_math=False)
    path.unlink(missing_ok=True)  # a link is not followed
    figure.savefig(path, dpi=90)
    plt.close(figure)
