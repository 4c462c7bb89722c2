# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Writes docs/one-step.md and its picture: one real training step on the miniature, with its real numbers.

python -m studies.one_step
"""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import Accelerator
from matplotlib import patheffects

import data
import grpo
import model as models
import rewards
import train
from engine.run import build, build_reference
from evaluate import to_answer
from recipes import RECIPES, miniature, usable

DOCS = Path(__file__).resolve().parents[1] / "docs"


def drawn(sample: data.Sample, boxes: dict[int, np.ndarray], rewards_of: dict[int, float]) -> None:
    """docs/one-step.png: the picture, pale, the true outline dotted, and each box with its number, from red to green by
    what its completion earned."""
    figure, axis = plt.subplots(figsize=(6, 6), constrained_layout=True)
    w, h = sample.width, sample.height
    axis.imshow(0.5 + 0.5 * np.asarray(sample.image) / 255, extent=(0, w, h, 0))
    axis.contour(np.arange(w) + 0.5, np.arange(h) + 0.5, sample.mask, [0.5], colors="black", linestyles=":")
    color_of = plt.get_cmap("RdYlGn")
    most = max(rewards_of.values())
    for number, (x1, y1, x2, y2) in boxes.items():
        color = color_of(0.1 + 0.85 * rewards_of[number] / most)
        dark = [patheffects.withStroke(linewidth=3.5, foreground="black")]
        axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linewidth=2, path_effects=dark)
        axis.text(x2, y1, str(number), ha="right", va="bottom", fontweight="bold")
    axis.set(xlim=(-2, w + 2), ylim=(h + 2, -4), xticks=[], yticks=[])
    figure.savefig(DOCS / "one-step.png", dpi=90)
    plt.close(figure)


def main() -> None:
    recipe = dataclasses.replace(miniature(RECIPES["samr1"]), prompts_per_step=1)
    accelerator = Accelerator(cpu=True)
    policy, segmenter = build(recipe, accelerator)
    samples = data.load("toy", None, "train")
    order, _ = usable(samples, recipe)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=recipe.learning_rate)
    # the first request whose completions earn at least four different rewards, in answers of different lengths
    for index in order:
        batch = train.load_batch(recipe, policy, segmenter, samples, [index])
        rollout = train.complete(
            recipe, policy, batch.prompts, train.draw_uniforms(recipe, 0, [0], recipe.max_completion)
        )
        texts = policy.decode(rollout.ids[0], rollout.mask[0])
        reward, parts, measured = train.judge(recipe, policy, segmenter, batch, [texts], rewards.RankQueue(), None)
        if len(set(reward[0].tolist())) >= 4 and len(set(rollout.mask[0].sum(-1).tolist())) > 1:
            break
    sample, (S,) = batch.samples[0], batch.prompts.inputs["attention_mask"].sum(-1).tolist()
    A = grpo.group_advantages(reward)
    lengths = rollout.mask[0].sum(-1).tolist()
    weights = grpo.token_weights(rollout.mask, recipe.average)
    micros = models.pack_rollout(policy, batch.prompts, rollout, recipe.max_row_tokens, recipe.rows_per_batch)
    train.add_reference(build_reference(recipe, policy.device), micros, recipe.temperature)
    first = train.update(accelerator, policy, optimizer, micros, batch, rollout, A, recipe)
    second = train.update(accelerator, policy, optimizer, micros, batch, rollout, A, recipe)

    answers = [
        to_answer(t, recipe, data.model_frame(policy.family, batch.prompts.resized[0]), (sample.width, sample.height))
        for t in texts
    ]
    boxes = {g: o.box for g, a in enumerate(answers, 1) for o in a.instances}
    drawn(sample, boxes, {g: reward[0, g - 1].item() for g in boxes})
    L = S + sum(lengths)
    out = [
        "# One training step, with its numbers",
        "",
        "Written by `python -m studies.one_step` from a real step of `--recipe samr1 --toy`, seed "
        f"{recipe.seed}: one prompt instead of {miniature(RECIPES['samr1']).prompts_per_step}, so that it fits a page. The functions named are where to read on.",
        "",
        "## 1. A picture and a request (`data.py`, `model.Policy.encode`)",
        "",
        f"“{sample.query}”. The picture is {sample.width} × {sample.height}; the policy sees it, and writes, at {recipe.image_size} × {recipe.image_size}, where the true box is {[round(v * recipe.image_size / sample.width) for v in sample.boxes[0].tolist()]}. The prompt "
        f"has {S} tokens, of which {int((batch.prompts.inputs['mm_token_type_ids'] > 0).sum())} are the picture's. The picture shows the {len(boxes)} boxes that can be read in the completions below, each with its completion's number and greener the more it earned; dotted is the true outline:",
        "",
        "![the picture, with the boxes](one-step.png)",
        "",
        "## 2. Eight completions (`grpo.sample`), read and judged (`train.judge`)",
        "",
        "Each is drawn by inverse CDF from seeded random numbers of its own, parsed (`rewards.parse_answer`), taken to original pixels, and turned into a mask by SAM2",
        f"(`model.Segmenter.union`): one picture embedding, one batch of {len(boxes)} objects. `tiered` pays the mask's IoU (SAM-R1 §3.3): above 0.5, 0.7, 0.8 it is 2, 3, 4.",
        "The miniature's SAM2 forgives a loose box, as the real one does; one that is moved by a third of its sides costs much of the mask ([a picture](miniature.md#sam2)).",
        "",
        "| | completion | mask IoU | " + " | ".join(parts[0][0]) + " | reward | advantage |",
        "|---|---|---|" + "---|" * (len(parts[0][0]) + 2),
    ]
    for g in range(8):
        iou = measured["mask_iou"][g]
        cells = " | ".join(f"{v:g}" for v in parts[0][g].values())
        out.append(f"| {g + 1} | `{texts[g]}` | {iou:.3f} | {cells} | {reward[0, g]:g} | {A[0, g]:+.3f} |")
    for g, answer in enumerate(answers):
        if not answer.answer_ok:
            out += [
                "",
                f"Completion {g + 1} does not parse: it has no objects, so SAM2 is not asked and its mask is empty; its tokens are trained all the same.",
            ]
    mean, std = reward.mean().item(), reward.std().item()
    out += [
        "",
        "## 3. Compared with each other (`grpo.group_advantages`)",
        "",
        f"mean {mean:.4f}, standard deviation {std:.4f} (unbiased). So completion 1 gets ({reward[0, 0]:g} − {mean:.4f}) / ({std:.4f} + 0.0001) = {A[0, 0]:+.3f}. "
        f"The advantages sum to {abs(A.sum()):.6f}: what is good is good only next to its siblings.",
        "",
        "## 4. How much each token weighs (`grpo.token_weights`)",
        "",
        f"The lengths are {lengths}, {sum(lengths)} tokens in all. SAM-R1 averages over tokens, so each weighs 1/{sum(lengths)} = "
        f"{weights.max():.6f}. Averaged per sequence, a token of completion 1 would weigh 1/(8 · {lengths[0]}) = {1 / 8 / lengths[0]:.6f}.",
        "",
        "## 5. One packed row (`grpo.pack_group`, `model.Policy.forward`)",
        "",
        f"[prompt | o₁ | … | o₈] has {S} + {sum(lengths)} = {L} tokens; eight separate rows would have {8 * S + sum(lengths)}.",
        "",
        "## 6. Two updates (`train.update`, `grpo.grpo_loss`)",
        "",
        f"AdamW at a learning rate of {recipe.learning_rate:g}; the KL weighs β = {recipe.beta:g}.",
        "",
        "| | loss | mean ratio | clipped low | clipped high | KL to the reference | gradient norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, m in (("first", first), ("second", second)):
        out.append(
            f"| {name} | {m['loss']:+.6f} | {m['ratio']:.6f} | {m['clipped_low']:.4f} | {m['clipped_high']:.4f} | {m['kl']:.2e} | {m['grad_norm']:.4f} |"
        )
    out += [
        "",
        "In the first update the policy is the one that sampled: every ratio is 1, nothing can be clipped, and the KL to the reference (here: itself) is 0. Only",
        "in the second update has the policy moved away from the one that sampled, and only then does clip-higher (0.2 below, 0.3 above) have anything to clip.",
        "",
        "A ratio of 1 still has a gradient: it is π over its own detached value, so its slope is that of log π, times the advantage. And the loss is no measure of error. Advantages",
        "sum to 0 within a group, weighted by tokens to a little more or less, before the update as after; what rises, if all goes well, is the reward.",
        "",
        f"The log-probabilities of sampling and of the packed update differ by {first['gap']:.1e} on average: that is float rounding. (`gap` in `metrics.jsonl` is taken at a step's last update; where a step has two, as here, it also holds how far the first one moved the policy.)",
        "",
    ]
    (DOCS / "one-step.md").write_text("\n".join(out), encoding="utf-8")


if __name__ == "__main__":
    main()
