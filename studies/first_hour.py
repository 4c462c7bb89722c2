# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Writes docs/first_hour.ipynb: the first hour with this project, as a notebook that has been run.

    pip install nbclient ipykernel && python -m studies.first_hour

The cells stand below, in order; the notebook holds what they printed and drew. A slow test runs them again.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "first_hour.ipynb"

CELLS: list[tuple[str, str]] = []


def text(words: str) -> None:
    """A cell of Markdown."""
    CELLS.append(("markdown", textwrap.dedent(words).strip()))


def code(lines: str) -> None:
    """A cell of Python."""
    CELLS.append(("code", textwrap.dedent(lines).strip()))


text("""
    # The first hour

    A Qwen-VL policy reads a picture and a sentence, reasons, and writes boxes and points. SAM2 turns them into a mask. GRPO improves the policy from
    rewards alone: no example of a good answer is ever shown to it. Here all of that happens before your eyes, on a laptop's CPU, with networks of a
    few million parameters in a world of drawn shapes. The code is the same that trains 7B models.

    To open it: activate the README's environment (`source ../venv/bin/activate`, on Windows `..\\venv\\Scripts\\activate`), then, in the repository's
    root, `pip install jupyterlab` and `jupyter lab docs/first_hour.ipynb`. In VS Code open the folder, then this file, and choose that environment as its kernel.

    Run the cells from top to bottom. Everything together takes less than five minutes.
""")
code("""
    import os
    import sys
    from pathlib import Path

    ROOT = Path.cwd() if (Path.cwd() / "grpo.py").exists() else Path.cwd().parent  # the repository
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ |= {"TQDM_DISABLE": "1", "ACCELERATE_USE_CPU": "true"}

    import dataclasses
    import logging
    import warnings

    warnings.filterwarnings("ignore")

    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    import data, evaluate, grpo, model, recipes, rewards, train
    from benchmarks.pictures import overlay

    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
""")

text("""
    ## 1. A picture and a request

    A `Sample` is a picture, a sentence, and the truth: boxes and masks, in the picture's own pixels.
""")
code("""
    recipe = recipes.miniature(recipes.RECIPES["samr1"])  # SAM-R1: the reward looks at SAM2's masks
    held_out = data.load("toy", split="val")
    usable, _ = recipes.usable(held_out, recipe)
    which = usable[5]  # another number, another request
    sample = held_out[which]
    print("request:", sample.query)
    print("true box:", sample.boxes[0].tolist())

    plt.figure(figsize=(3, 3))
    plt.imshow(overlay(sample.image, truth=sample.mask))
    plt.axis("off")
    plt.show()
""")

text("""
    ## 2. Eight answers

    The policy is asked once, and answers eight times. `grpo.sample` takes all its randomness as an argument, so the same numbers gives the same answers
    again. The prompt is computed once for all eight.
""")
code("""
    policy = model.load_policy(recipe.model, image_size=recipe.image_size)
    segmenter = model.load_segmenter(recipe.segmenter)

    prompt = data.build_prompt(sample.query, recipe.schema, data.FAMILIES[policy.family])
    prompts = policy.encode([sample.image], [prompt])
    uniforms = torch.rand(1, 8, recipe.max_completion, generator=torch.Generator().manual_seed(1))
    rollout = grpo.sample(
        policy.vlm, prompts.inputs, uniforms, num_generations=8, max_new_tokens=recipe.max_completion,
        eos_token_id=policy.end_ids, banned_ids=policy.banned_ids,
    )
    texts = policy.decode(rollout.ids[0], rollout.mask[0])
    print(prompt, end="\\n\\n")
    for text in texts[:3]:
        print(text)
""")

text("""
    ## 3. What SAM2 makes of them

    Each text is parsed (`rewards.parse_answer`, which never raises), taken from the model's units to pixels, and handed to SAM2. The picture is
    embedded once; all objects of all answers go through the mask decoder together. Magenta is SAM2's mask and the written box, yellow the true outline, green
    the written point.
""")
code("""
    frame = data.model_frame(policy.family, prompts.resized[0])
    size = (sample.width, sample.height)
    answers = [rewards.parse_answer(text, recipe.schema).rescaled(frame, size) for text in texts]
    masks = segmenter.union(segmenter.embed([sample.image]), [0] * 8, [answer.instances for answer in answers])
    ious = [model.mask_iou(mask, torch.tensor(sample.mask)) for mask in masks]

    figure, axes = plt.subplots(2, 4, figsize=(11, 6))
    for axis, answer, mask, iou in zip(axes.flat, answers, masks, ious):
        boxes = [o.box for o in answer.instances]
        points = [xy for o in answer.instances for xy in o.points]
        axis.imshow(overlay(sample.image, mask.numpy(), sample.mask, boxes, points))
        axis.set_title(f"mask IoU {iou:.2f}")
        axis.axis("off")
    plt.show()
""")

text("""
    ## 4. What an answer is worth

    A reward is a plain function from an answer and the truth to named parts. Try strings of your own.
""")
code("""
    target = recipes.to_target(sample, recipe)  # the truth in the recipe's own frame, 840 x 840
    x1, y1, x2, y2 = target.boxes[0].round().astype(int).tolist()
    middle = [(x1 + x2) // 2, (y1 + y2) // 2]
    strings = {
        "right": f'<think>There it is.</think><answer>[{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "point_2d": {middle}, "label": "it"}}]</answer>',
        "no thought": f'<answer>[{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "point_2d": {middle}, "label": "it"}}]</answer>',
        "not a list": f'<think>Hm.</think><answer>{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}</answer>',
        "babble": "I see a shape, a shape, a shape.",
    }
    for name, string in strings.items():
        answer = rewards.parse_answer(string, "samr1")
        parts = rewards.samr1_reward(answer, target, mask_iou=0.9 if answer.answer_ok else 0.0)
        print(f"{name:12} {parts}  total {sum(parts.values()):g}")

    print("\\nSAM-R1's tiers:", {iou: rewards.tiered(iou) for iou in (0.4, 0.6, 0.75, 0.9)})
""")

text("""
    ## 5. Better than one's siblings

    GRPO has no judge of absolute worth. Each answer is compared with the other seven: its reward less their mean, over their spread. Where all earn
    the same, nothing can be learned and every advantage is 0.
""")
code("""
    batch = train.load_batch(recipe, policy, segmenter, held_out, [which])
    reward, parts, _ = train.judge(recipe, policy, segmenter, batch, [texts], rewards.RankQueue(), None)
    advantages = grpo.group_advantages(reward)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.6))
    left.bar(range(1, 9), reward[0], color="#888888")
    left.set(xlabel="answer", ylabel="reward")
    right.bar(range(1, 9), advantages[0], color=["#2a7fff" if a > 0 else "#d05050" for a in advantages[0]])
    right.set(xlabel="answer", ylabel="advantage")
    right.axhline(0, color="black", linewidth=0.8)
    plt.show()
""")

text("""
    ## 6. One update

    All eight answers go through the network in one row behind one copy of the prompt (`grpo.pack_group`). The loss raises the probability of the
    tokens of good answers and lowers that of bad ones. One small step, to see it move. Answers share most of their words: a middling one can lose with
    what it has in common with a bad one, and in the end the differences are what is learned.
""")
code("""
    import copy

    learner = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.002)
    (micro,) = model.pack_rollout(learner, prompts, rollout, max_row_tokens=9999, rows_per_batch=1)
    weights = grpo.token_weights(rollout.mask, recipe.average)


    def likelihoods():
        logp, _, _ = learner(micro.rows)
        return logp, torch.stack([logp[micro.at // rollout.mask.shape[-1] == g].sum() for g in range(8)]).detach()


    logp, before = likelihoods()
    each = advantages.flatten()[micro.at // rollout.mask.shape[-1]]  # every token has its answer's advantage
    loss, metrics = grpo.grpo_loss(logp, logp.detach(), None, each, weights.flatten()[micro.at])
    loss.backward()
    optimizer.step()
    _, after = likelihoods()

    for g in range(8):
        print(f"answer {g + 1}: advantage {advantages[0, g]:+.2f}, its log-probability moved by {after[g] - before[g]:+.3f}")
""")

text("""
    ## 7. Fifty steps

    The same, over and over, on other pictures: `train.training_step` is one step from pictures to changed weights. The curve is drawn as it goes. Eight pictures a step
    are few, so it jumps; section 8 asks all requests again.
""")
code("""
    import shutil

    from engine.run import start
    from IPython.display import clear_output

    short = dataclasses.replace(recipe, max_steps=50, eval_samples=0, prompts_per_step=8, seed=0)
    folder = Path("runs/first-hour")
    shutil.rmtree(folder, ignore_errors=True)
    run = start(short, folder)
    rows = []
    for step in range(50):
        row, shown = train.training_step(run, step)
        rows.append(row)
        if step % 10 == 9:
            clear_output(wait=True)
            plt.figure(figsize=(8, 2.6))
            for name, style in {"metric/mask_iou": "-", "metric/box_iou": "--"}.items():
                smooth = np.convolve([r[name] for r in rows], np.ones(5) / 5, "valid")
                plt.plot(range(5, len(rows) + 1), smooth, style, label=name.split("/")[1])
            plt.xlabel("step (mean over five)")
            plt.ylabel("IoU of the sampled answers")
            plt.xlim(0, 50)
            plt.legend()
            plt.show()
    print("the last request:", shown.query)
    print(shown.text)
""")

text("""
    ## 8. The same requests again

    Held-out pictures, answered greedily by the policy as it was and as it is now.
""")
code("""
    chosen = usable[:6]
    samples = [held_out[i] for i in chosen]
    trained = run.unwrapped.eval()
    figure, axes = plt.subplots(2, 6, figsize=(13, 5))
    for row, (when, who) in enumerate({"before": policy.eval(), "after": trained}.items()):
        found = evaluate.predict(who, segmenter, samples, recipe, chosen)
        for axis, sample, one in zip(axes[row], samples, found):
            boxes = [o.box for o in one.answer.instances]
            axis.imshow(overlay(sample.image, one.mask, sample.mask, boxes))
            iou = model.mask_iou(torch.tensor(one.mask), torch.tensor(sample.mask))
            axis.set_title(f"{when}: {iou:.2f}", fontsize=10)
            axis.axis("off")
            if row == 1:
                axis.text(0.5, -0.08, sample.query, transform=axis.transAxes, ha="center", va="top", fontsize=8, wrap=True)
    plt.show()

    for when, who in (("before", policy), ("after", trained)):
        scores = evaluate.evaluate(who, segmenter, held_out, recipe, indices=usable[:100])
        print(f"{when}: gIoU {scores['giou']:.3f} over {scores['n']} requests, {scores['parse_failures']} answers could not be read")
""")

text("""
    ## 9. A picture of your own

    The miniature knows shapes and colours and nothing else, so draw some. It was trained for fifty steps: what it says before its answer may be wrong where
    the box is right. With a real checkpoint (`model.load_policy("runs/mine/final")`, and `Image.open("photo.jpg").convert("RGB")`) the same lines take a photograph.
""")
code("""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (112, 112), (200, 200, 200))
    draw = ImageDraw.Draw(picture)
    draw.ellipse([15, 20, 55, 60], fill=(214, 50, 44))
    draw.polygon([(80, 45), (62, 90), (100, 90)], fill=(48, 96, 210))
    request = "the blue triangle"

    nothing = np.zeros((0, 4)), np.zeros((0, 0, 2))  # no truth: nobody has annotated it
    mine = data.Sample(request, *nothing, "mine", "mine", *picture.size, lambda: picture)
    (one,) = evaluate.predict(trained, segmenter, [mine], recipe, [0])
    print(one.text)
    plt.figure(figsize=(3, 3))
    plt.imshow(overlay(picture, one.mask, None, [o.box for o in one.answer.instances]))
    plt.title(request)
    plt.axis("off")
    plt.show()
""")

text("""
    ## Where to go on

    - [One training step, with its numbers](one-step.md), and then `train.py`, from top to bottom.
    - `python train.py --recipe drseg --toy`: another paper's recipe, scored before and after.
    - [Your own photographs](own-photographs.md), and [what a GPU needs](memory.md).
""")


def notebook() -> dict:
    """The cells as a notebook that has not been run."""
    cells = []
    for i, (kind, source) in enumerate(CELLS):
        cell = {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": source}
        cells.append(cell | ({"outputs": [], "execution_count": None} if kind == "code" else {}))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def execute(where: Path) -> dict:
    """The notebook, run in `where`'s folder, with what its cells gave. Raises what a cell raises."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.from_dict(notebook())
    NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(where)}}).execute()
    for cell in book.cells:  # what differs from run to run for no reason
        cell.metadata.pop("execution", None)
    return book


if __name__ == "__main__":
    found = execute(NOTEBOOK.parent)
    NOTEBOOK.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {NOTEBOOK} ({NOTEBOOK.stat().st_size / 1e6:.1f} MB)")
