# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Writes docs/papers/*.png: one small picture per paper for the README, each drawn by calling the paper's own function.

python -m studies.thumbnails
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import data
import grpo
import rewards

DOCS = Path(__file__).resolve().parents[1] / "docs" / "papers"
INK, WARM, COOL = "#222222", "#d95f02", "#1b6ca8"


def drseg(axis) -> None:
    """What a box IoU is worth while the queue holds a beginner's answers, and when it holds an expert's."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 201)
    for name, (a, b), style, at in (("early", (2, 4), "--", (0.05, 0.62)), ("later", (9, 3), "-", (0.72, 0.2))):
        queue = rewards.RankQueue(dims=1, initial_zeros=0)
        for iou in rng.beta(a, b, 2048):
            queue.push([iou])
        queue.flush()
        axis.plot(x, [queue.rank([v]) for v in x], style, color=COOL)
        axis.text(*at, name, color=COOL)
    axis.axvline(0.6, color=WARM, linewidth=1)
    axis.set(xlabel="box IoU of an answer", ylabel="its rank", xlim=(0, 1), ylim=(0, 1.02))
    axis.set(xticks=[0, 0.6, 1], yticks=[0, 0.5, 1])


def samr1(axis) -> None:
    """Tiers, and beside them the plain IoU on the same scale."""
    x = np.linspace(0, 1, 1001)
    axis.plot(x, [rewards.tiered(v) for v in x], color=COOL)
    axis.plot(x, 4 * x, ":", color=INK, linewidth=1.5)
    axis.text(0.53, 1.5, "tiered", color=COOL)
    axis.text(0.03, 1.5, "4 × IoU", color=INK)
    axis.set(xlabel="IoU of SAM2's mask", ylabel="reward", xlim=(0, 1), ylim=(-0.1, 4.2))
    axis.set(xticks=[0, 0.5, 0.7, 0.8, 1], xticklabels=["0", ".5", ".7", ".8", "1"], yticks=[0, 2, 3, 4])


def genseg(axis) -> None:
    """An L-shaped thing in its true box, and where a negative point is paid for."""
    n = 84
    mask = np.zeros((n, n), bool)
    mask[16:68, 16:38] = mask[46:68, 16:68] = True
    box = data.box_of(mask)
    target = rewards.Target(boxes=box[None], points=data.inscribed_points(mask, 2)[None], frame=(n, n), mask=mask)
    paid = np.zeros((n, n))
    for y in range(n):
        for x in range(n):
            one = rewards.Instance(box, target.points[0], [(x + 0.5, y + 0.5)] * 2)
            answer = rewards.parse_answer(rewards.write_answer([one], "genseg-g", digits=2), "genseg-g")
            paid[y, x] = rewards.valid_negatives(answer, target)
    picture = np.full((n, n, 3), 245, np.uint8)
    picture[mask] = (150, 150, 150)
    picture[paid > 0] = (247, 196, 140)
    axis.imshow(picture, extent=(0, n, n, 0))
    x1, y1, x2, y2 = box
    axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=COOL, linewidth=1.5))
    axis.plot(*target.points[0].T, "o", color="white", markeredgecolor=INK, markersize=6)
    axis.plot([56, 46], [26, 38], "X", color=WARM, markeredgecolor="white", markersize=9)
    axis.text(x1, y1 - 3, "true box", color=COOL)
    axis.text(x1 + 20, y2 - 5, "object", color="white")
    axis.set(xticks=[], yticks=[], xlabel="orange: where a\nnegative point is paid")


def lens(axis) -> None:
    """Who sees whom in one packed row: a prompt, two completions, and the context queries behind each."""
    P, lengths, K = 10, (12, 8), 6
    ids = [torch.zeros(t + K, dtype=torch.long) for t in lengths]
    _, _, visible = grpo.pack_group(torch.zeros(P, dtype=torch.long), ids)
    shade = visible.float().numpy() * 0.35
    at = P
    for t in lengths:
        shade[at + t : at + t + K] *= 2.6  # the rows of the queries
        at += t + K
    axis.imshow(shade, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    marks = {"prompt": P / 2, "answer 1": P + 6, "queries 1": P + 15, "answer 2": P + 22, "queries 2": P + 29}
    axis.set_yticks(list(marks.values()), list(marks), fontsize=11)
    axis.set(xticks=[], xlabel="dark: what queries read")


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    plt.rcParams.update({"font.size": 13, "lines.linewidth": 2})  # the README shows them 220 pixels wide
    for draw in (drseg, samr1, genseg, lens):
        figure, axis = plt.subplots(figsize=(3.2, 2.6), constrained_layout=True)
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(DOCS / f"{draw.__name__}.png", dpi=150)
        plt.close(figure)
    print(f"wrote {DOCS}")


if __name__ == "__main__":
    main()
