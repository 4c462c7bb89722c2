"""What a run tells: a row of figures per step in metrics.jsonl, the progress bar, a tracker, curves.png."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

import grpo
from recipes import Recipe


def summarize(
    rollout: grpo.Rollout, reward: Tensor, parts: list, measured: dict[str, list[float]], eos_token_id: int
) -> dict[str, float]:
    """This process's share of a row of metrics.jsonl.

    reward/X: a part, its weight applied; metric/X: measured, not rewarded (metric/box_iou is over matched pairs for
    drseg, its x1, and elsewhere over true objects, a missed one counting 0); length: tokens; truncated: the fraction
    that has no end token; zero_variance: the fraction of groups with equal rewards, which teach nothing.
    """
    length = rollout.mask.sum(-1).float()
    ended = ((rollout.ids == eos_token_id) & rollout.mask).any(-1).float()
    columns = {f"reward/{name}": [b[name] for group in parts for b in group] for name in parts[0][0]}
    seen = {"parsed" if name == "parsed" else f"metric/{name}": values for name, values in measured.items() if values}
    return {
        "reward": reward.mean().item(),
        "reward_std": reward.std(correction=0).item(),
        **{name: float(np.mean(values)) for name, values in (columns | seen).items()},
        **{f"{name}_std": float(np.std(values)) for name, values in columns.items()},
        "zero_variance": (reward.amax(-1) == reward.amin(-1)).float().mean().item(),
        "length": length.mean().item(),
        "length_max": length.max().item(),
        "truncated": 1 - ended.mean().item(),
    }


def over_processes(row: dict[str, float]) -> dict[str, float]:
    """Each column's mean over the processes that have it; of length_max the maximum."""
    rows = gather_object([row])
    means = {k: float(np.mean([r[k] for r in rows if k in r])) for k in dict.fromkeys(k for r in rows for k in r)}
    return means | {"length_max": max(r["length_max"] for r in rows)}


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
    """The step on the progress bar; every 20 steps one of its completions above it, with what it earned."""
    bar.set_postfix(reward=f"{row['reward']:.2f}", parsed=f"{row['parsed']:.2f}", length=f"{row['length']:.0f}")
    if (row["step"] - 1) % 20 == 0:
        earned = ", ".join(f"{name} {value:.2f}" for name, value in shown.parts.items())
        bar.write(
            f"\n[step {row['step']}] {shown.query!r}\n{shown.text}\n  -> {earned}; advantage {shown.advantage:.2f}"
        )


def open_tracker(accelerator: Accelerator, recipe: Recipe) -> None:
    """Begin a run at --tracker, with the recipe as its settings."""
    plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in dataclasses.asdict(recipe).items()}
    accelerator.init_trackers("runs", config=plain)  # TensorBoard takes no tuples


def plot_curves(rows: list[dict], path: Path) -> None:
    """curves.png, by step: reward, its parts, what is measured but not rewarded, lengths, the optimizer's numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "reward": ["reward"],
        "parts": [k for k in rows[-1] if k.startswith("reward/") and not k.endswith("_std")],
        "measured": [k for k in rows[-1] if k.startswith("metric/")],
        "length": ["length", "length_max"],
        "entropy, KL": ["entropy", "kl"],
        "gradient norm": ["grad_norm"],
    }
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
    for axis, (title, keys) in zip(axes.flat, panels.items(), strict=True):
        for key in keys:
            if key in rows[-1]:
                y = np.array([r.get(key, np.nan) for r in rows], dtype=float)
                width = max(len(y) // 25, 1)
                smooth = np.convolve(
                    np.pad(y, (width // 2, width - 1 - width // 2), "edge"), np.ones(width) / width, "valid"
                )
                (line,) = axis.plot([r["step"] for r in rows], smooth, label=key.split("/")[-1])
                axis.plot([r["step"] for r in rows], y, color=line.get_color(), alpha=0.2, linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(keys) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)
