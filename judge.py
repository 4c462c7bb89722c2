"""Where data, rewards and masks meet: which samples a recipe can use, and what the completions of a step earn.

    text --parse--> Answer (the model's frame) --rescaled--> the recipe's frame --reward--> parts, by name
                        |                                                           ^
                        +--rescaled--> the picture's pixels --SAM2--> mask, its IoU +   (recipes with a mask reward)

Shape letters: P prompts of this process, G completions per prompt.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
import model as models
import rewards
from oracle import maximum, oracle_answer
from recipes import Recipe


def usable(samples: data.Samples, recipe: Recipe, progress: bool = False) -> tuple[list[int], dict[str, int]]:
    """Indices of the samples that the recipe's schema can answer, and how many were left out for which reason."""
    spec, kept, left = rewards.SCHEMAS[recipe.schema], [], {}
    for i in tqdm(range(len(samples)), desc="reading the data", disable=not progress, mininterval=1):
        sample, why = samples[i], None
        if sample.no_target and not spec.no_target:
            why = "nothing fits, which the schema cannot say"
        elif len(sample.boxes) > 1 and not spec.many:
            why = "several objects, where the schema has one"
        elif spec.negatives and not sample.no_target and sample.negative_points(len(spec.negatives)) is None:
            why = "no room for background points in a box"
        if why is None:
            kept.append(i)
        else:
            left[why] = left.get(why, 0) + 1
    return kept, left


def reward_frame(recipe: Recipe, sample: data.Sample) -> tuple[float, float]:
    """The (width, height) in which this sample is judged: the recipe's, or the picture's own (LENS)."""
    return recipe.reward_frame if recipe.reward_frame[0] else (sample.width, sample.height)


def to_target(sample: data.Sample, recipe: Recipe) -> rewards.Target:
    """A sample's ground truth in the recipe's reward frame. Its mask is decoded only where the recipe looks at it.

    data.BadData where the recipe needs points or a mask that the data do not have.
    """
    frame, size = reward_frame(recipe, sample), (sample.width, sample.height)
    # As many points per object as the answer has, or the one that the data annotate: the distance rules take both.
    k = len(rewards.SCHEMAS[recipe.schema].points)
    points = sample.positive_points(min(k, sample.points.shape[1] or k)) if k else np.zeros((len(sample.boxes), 0, 2))
    mask = sample.mask if recipe.segmenter_use != "evaluation" else None
    if mask is None and recipe.segmenter_use != "evaluation":
        raise data.BadData(f"sample {sample.id} has no mask, which {recipe.name} needs")
    return rewards.Target(
        data.to_frame(sample.boxes, size, frame), data.to_frame(points, size, frame), mask, sample.no_target, frame
    )


def reward_parts(
    recipe: Recipe,
    answer: rewards.Answer,
    target: rewards.Target,
    mask_iou: float | None,
    queue: rewards.RankQueue | None,
) -> dict[str, float]:
    """The recipe's reward, by part. answer and target in the recipe's frame.

    rewards.py's functions share (answer, target, mask_iou, weights); what only some have is handed over here.
    """
    options: dict = {"weights": recipe.weights}
    if recipe.reward == "drseg":
        options |= {"queue": queue if recipe.rank == "queue" else None, "components": recipe.components}
    if recipe.reward == "samr1":
        options |= {"tiers": recipe.tiers, "tier_rewards": recipe.tier_rewards}
    if recipe.reward in ("drseg", "visionreasoner", "segzero"):
        options |= {"released": recipe.released}
    return rewards.REWARDS[recipe.reward](answer, target, mask_iou, **options)


def check_rewards(
    samples: data.Samples, indices: list[int], recipe: Recipe, progress: bool = False
) -> tuple[list[int], list[str]]:
    """Before step 0: does the data's own ground truth, written in the recipe's format, earn the maximum?

    It is written and parsed as a model's text would be; where a mask is judged, its IoU is put in as 1. Returns the
    indices that pass, and a line for each that does not. A point outside its own box, or points and boxes in different
    units, show here, and not as a reward that stays flat for a day. (How the model's own frame is left is not checked
    here: tests do.)
    """
    # The maximum follows the recipe's settings: oracle.MAXIMUM knows the papers' only.
    weights = dict(recipe.weights)
    if recipe.reward == "samr1":  # tiers may have been changed
        weights["tiered"] = weights.get("tiered", 1.0) * max(recipe.tier_rewards) / 4
    if recipe.reward == "drseg" and recipe.released:
        most = {"answer": 2, "accuracy": len(recipe.components)}
        weights |= {name: value * weights.get(name, 1.0) for name, value in most.items()}
    good, bad = [], []
    for i in tqdm(indices, desc="reward check", disable=not progress, mininterval=1):
        sample = samples[i]
        try:
            frame, target = reward_frame(recipe, sample), to_target(sample, recipe)
            answer = rewards.parse_answer(oracle_answer(sample, recipe.schema, frame), recipe.schema)
            # Repetition is judged on whole numbers, as a model writes them: "." ends a sentence, and decimals coincide.
            answer.text = oracle_answer(sample, recipe.schema, frame, digits=0)
            parts = reward_parts(recipe, answer, target, 1.0, None)  # raw: in a young queue any answer ranks 1
        except data.BadData as error:
            bad.append(f"{sample.id}: {error}")
            continue
        most = maximum(recipe.reward, sample.no_target, weights)
        if not rewards.points_inside(target.points, target.boxes).all():  # not every reward looks at that
            bad.append(
                f"{sample.id}: a point lies outside its own box, {target.points.tolist()}, {target.boxes.tolist()}"
            )
        elif sum(parts.values()) < most - 1e-6:
            bad.append(f"{sample.id}: earns {sum(parts.values()):.3f} of {most:g}, {parts}")
        else:
            good.append(i)
    return good, bad


def examine(samples: data.Samples, segmenter, recipe: Recipe, main: bool) -> list[int]:
    """The indices to train on; says what was left out and why; SystemExit if the data do not fit the recipe."""
    order, left = usable(samples, recipe, main)
    if recipe.limit and recipe.limit < len(order):
        order = sorted(np.random.default_rng(recipe.seed).choice(order, recipe.limit, replace=False).tolist())
    order, bad = check_rewards(samples, order, recipe, main)
    if main:
        print(
            f"{recipe.name}: {len(order)} of {len(samples)} samples; left out: {left or 'none'}; "
            f"failed the reward check: {len(bad)}"
        )
        for line in [*samples.skipped[:5], *bad[:10]]:
            print(f"  skipped: {line}")
    if len(bad) > 0.01 * (len(order) + len(bad)):  # one in a hundred may be a slip of the annotators'
        raise SystemExit(
            f"{len(bad)} of {len(order) + len(bad)} samples do not earn the maximum "
            "with their own ground truth (see above): "
            "a frame, a point or a mask is wrong in the data. Look at them with: python data.py --check"
        )
    if not order:
        raise SystemExit(
            f"no sample of {recipe.dataset!r} ({recipe.split}) can be used by recipe "
            f"{recipe.name!r}: see the reasons above"
        )
    if main and recipe.segmenter_use == "reward":  # the ceiling of a mask reward
        ious, earned = [], []
        for sample in [samples[i] for i in order if not samples[i].no_target][:32]:
            size, target = (sample.width, sample.height), to_target(sample, recipe)
            answer = rewards.parse_answer(oracle_answer(sample, recipe.schema, size), recipe.schema)
            mask = segmenter.union(segmenter.embed([sample.image]), [0], [answer.instances])[0]
            ious.append(models.mask_iou(mask.cpu(), torch.as_tensor(sample.mask)))
            parts = reward_parts(recipe, answer.rescaled(size, target.frame), target, ious[-1], None)
            earned.append(sum(parts.values()))
        print(
            f"  with SAM2's own masks from true boxes and points: IoU {np.mean(ious):.3f}, "
            f"reward {np.mean(earned):.2f} ({len(ious)} samples)"
        )
    return order


def judge(
    recipe: Recipe, policy: models.Policy, segmenter, batch, texts: list[list[str]], queue, painted: dict | None
) -> tuple[Tensor, list[list[dict[str, float]]], dict[str, list[float]]]:
    """Texts (P, G) -> rewards (P, G), their parts, and what is measured, not rewarded. Pushes into the rank queue.

    painted: (p, g) -> (H, W) bool, LENS's masks from the context queries; None for every other recipe.
    """
    G = len(texts[0])
    # Read once, in the units that the model wrote; then looked at in two frames, the picture's pixels for SAM2 and the
    # recipe's for the reward.
    answers = [[rewards.parse_answer(text, recipe.schema) for text in group] for group in texts]
    frames = [data.model_frame(policy.family, size) for size in batch.prompts.resized]
    sizes = [(s.width, s.height) for s in batch.samples]
    masks: dict | None = painted
    if recipe.segmenter_use == "reward":  # SAM2 in the reward: boxes and points of all completions in one batched call
        pairs = [(p, g) for p in range(len(texts)) for g in range(G)]
        # What does not parse has no objects: its mask is empty, and SAM2 is not asked.
        objects = [
            answers[p][g].rescaled(frames[p], sizes[p]).instances if answers[p][g].answer_ok else [] for p, g in pairs
        ]
        masks = dict(zip(pairs, segmenter.union(batch.embeddings, [p for p, _ in pairs], objects), strict=True))
    parts, logged = [], {"parsed": [], "box_iou": []}
    for p, target in enumerate(batch.targets):
        truth = None if masks is None else torch.as_tensor(target.mask, device=segmenter.device)
        parts.append([])
        for g in range(G):
            answer = answers[p][g].rescaled(frames[p], target.frame)
            iou = None
            if masks is not None:
                # Without a target: 1 if the answer says that nothing fits, else 0, whatever the mask.
                iou = float(answer.no_target) if target.no_target else models.mask_iou(masks[p, g], truth)
                logged.setdefault("mask_iou", []).append(iou)
            parts[-1].append(reward_parts(recipe, answer, target, iou, queue))
            logged["parsed"].append(float(answer.answer_ok))
            if recipe.reward == "drseg":
                # Its metrics, malformed ones' zeros included, join the queue when the step is over (train.py flushes):
                # within a step all are ranked against the same history.
                x = rewards.drseg_metrics(answer, target, recipe.released)
                queue.push(x)
                for name, value in zip(("box_iou", "count", "point"), x, strict=True):
                    logged.setdefault(name, []).append(value)
            elif len(target.boxes):  # to watch, for recipes that do not log it: the best box for each true one
                boxes = np.array([o.box for o in answer.instances[: rewards.MAX_OBJECTS]]).reshape(-1, 4)
                best = rewards.box_ious(boxes, target.boxes).max(0) if len(boxes) else np.zeros(len(target.boxes))
                logged["box_iou"].append(float(best.mean()))
    return torch.tensor([[sum(b.values()) for b in group] for group in parts]), parts, logged
