# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What the papers claim of their own parts, as studies: where each says it, with which figures, and which runs ask it.

A study names the paper's place and its figures (a test looks them up in the papers' texts), the arms that are run in
miniature, and the differences that the claim names, better arm first. ablations.py runs the arms and judges these. The
miniature is asked what it is trained on, so the paper's columns in distribution count: a difference is named where the
claim's words have it and all such columns bear it out.
"""

from __future__ import annotations

import dataclasses

import rewards


@dataclasses.dataclass(frozen=True)
class Study:
    """One claim. `arms` maps a label to the recipe's fields that it changes; beside fields, "weights" changes single
    parts (None takes one away), "start" names the recipe trained before, from whose end this arm starts, and
    "prompts_mode" says what SAM2 gets in the final evaluation."""

    recipe: str
    place: str  # paper, and table or section
    claim: str  # in words
    arms: dict[str, dict]
    pairs: tuple[tuple[str, str], ...] = ()  # the differences that the claim names: (better, worse); it may name none
    columns: tuple[str, ...] = ()  # what the paper prints for the arms, a column each, those in distribution first
    figures: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)  # of an arm, by column
    # of the held-out scores after training, or a column of metrics.jsonl (see ablations.value_of)
    metric: str = "answerable_giou"
    steps: int = 60
    first: bool = False  # a claim that its paper puts first: more seeds
    collapse: bool = False  # the claim is that the last arm loses what training gains the first
    ours: bool = False  # the question is ours: no paper asks it
    remark: str = ""


# ------------------------------------------------------------------ rewards that only a study has: SAM-R1's failed ones


def points_in_box(o: rewards.Instance) -> bool:
    """Do all points of an object, positive and negative, lie in its own box?"""
    x1, y1, x2, y2 = o.box
    return all(x1 <= x <= x2 and y1 <= y <= y2 for x, y in [*o.points, *o.negative_points])


def both_points_reward(inside: bool | None):
    """SAM-R1's reward, and +1 if every object has a positive and a negative point (`inside`: all in its box).

    Here on genseg-g's answers, which can write negative points; a right "nothing fits" earns the whole tier. None: no
    such part, to compare with.
    """

    def reward(answer: rewards.Answer, target: rewards.Target, mask_iou=None, *, weights=None) -> dict[str, float]:
        parts = rewards.samr1_reward(answer, target, mask_iou)
        if target.no_target:
            parts["tiered"] = 4.0 * answer.no_target
        if inside is None:
            return parts
        objects = answer.instances
        good = all(len(o.points) and len(o.negative_points) and (points_in_box(o) or not inside) for o in objects)
        return parts | {"both_points": float(bool(objects) and good and not target.no_target)}

    return reward


for _name, _inside in {"samr1-any": None, "samr1-negative": False, "samr1-negative-inside": True}.items():
    rewards.REWARDS[_name] = both_points_reward(_inside)
    _most = {"tiered": 4, "think": 1, "format": 1}
    rewards.MAXIMUM[_name] = (_most if _inside is None else _most | {"both_points": 1}, _most)


# ---------------------------------------------------------------------------------------------------------- the studies

STUDIES: dict[str, Study] = {
    # --- SAM-R1
    "tiers": Study(
        "samr1",
        "SAM-R1 Table 4",
        "Tiers of the mask IoU (0.5, 0.7, 0.8) beat any single threshold.",
        {
            "tiers": {},
            "0.5 alone": {"tiers": (0.5,), "tier_rewards": (4.0,)},
            "0.7 alone": {"tiers": (0.7,), "tier_rewards": (4.0,)},
            "0.8 alone": {"tiers": (0.8,), "tier_rewards": (4.0,)},
        },
        pairs=(("tiers", "0.5 alone"), ("tiers", "0.7 alone"), ("tiers", "0.8 alone")),
        columns=("gIoU, RefCOCOg", "ReasonSeg test"),
        figures={
            "tiers": (75.4, 60.2),
            "0.5 alone": (74.7, 56.5),
            "0.7 alone": (74.9, 56.2),
            "0.8 alone": (74.6, 58.6),
        },
        first=True,
    ),
    "objective": Study(
        "samr1",
        "SAM-R1 Table 5",
        "Clip-higher and the token average each help GRPO, and both together most.",
        {
            "both": {},
            "clip-higher": {"average": "sequence"},
            "token average": {"clip_high": 0.2},
            "GRPO": {"average": "sequence", "clip_high": 0.2},
        },
        pairs=(
            ("clip-higher", "GRPO"),
            ("token average", "GRPO"),
            ("both", "clip-higher"),
            ("both", "token average"),
        ),
        columns=("gIoU, RefCOCOg", "ReasonSeg test"),
        figures={
            "both": (75.4, 60.2),
            "clip-higher": (74.9, 59.1),
            "token average": (74.5, 58.0),
            "GRPO": (74.1, 57.8),
        },
        first=True,
    ),
    "kl": Study(
        "samr1",
        "SAM-R1 section 4.6, removing the KL constraint",
        "Without the KL term training collapses after about 100 steps.",
        {"with KL": {}, "no KL": {"beta": 0.0}},
        pairs=(("with KL", "no KL"),),
        collapse=True,
        steps=220,
        remark="In both arms the rate falls to 0 over the run, which may itself prevent a collapse; the paper names no "
        "schedule.",
        first=True,
    ),
    "negative-points": Study(
        "genseg-g",
        "SAM-R1 section 4.6, negative reference points",
        "Paying for a positive and a negative point, even inside the box, gives no useful negative points: first they lie "
        "far outside the box, then on the object; they bring noise.",
        {
            "tiers alone": {"weights": {}, "reward": "samr1-any"},
            "+1 for both": {"weights": {}, "reward": "samr1-negative"},
            "+1 for both inside": {"weights": {}, "reward": "samr1-negative-inside"},
        },
        remark="The table below says where the points land: how many objects have negative points; of these, how many have "
        "all their points, positive ones too, in their own box; and of all negative points the share that lies on what "
        "is asked for. The first half of the claim cannot show here: this policy was taught to put them into its box.",
    ),
    # --- Dr. Seg
    "look-rank": Study(
        "visionreasoner",
        "Dr. Seg Table 4",
        "Look-to-Confirm and distribution ranking together are more than either alone; in distribution, ranking alone helps.",
        {
            "both": {"schema": "drseg", "reward": "drseg", "look": True, "weights": {"look": 1.0}},
            "rank": {"reward": "drseg"},
            "look": {"schema": "drseg", "look": True, "weights": {"look": 1.0}},
            "neither": {},
        },
        pairs=(("both", "rank"), ("both", "look"), ("rank", "neither")),
        columns=("gIoU, RefCOCO+", "ReasonSeg val"),
        figures={"both": (76.8, 67.8), "rank": (76.6, 65.5), "look": (75.1, 66.1), "neither": (75.3, 65.5)},
        remark="Arms that are asked with the tag's prompt start two points lower, which 60 steps may not make up for.",
        first=True,
    ),
    "raw": Study(
        "drseg",
        "Dr. Seg Table 5",
        "The ranked reward beats the raw one.",
        {"ranked": {}, "raw": {"rank": "raw"}},
        pairs=(("ranked", "raw"),),
        columns=("gIoU, RefCOCO+", "ReasonSeg val"),
        figures={"ranked": (76.8, 67.8), "raw": (75.0, 64.4)},
    ),
    "continuous": Study(
        "visionreasoner",
        "Dr. Seg Table 1",
        "VisionReasoner with continuous criteria is better where requests are simple (RefCOCO +1.0), worse on ReasonSeg.",
        {"continuous": {"continuous": True}, "thresholds": {}},
        pairs=(("continuous", "thresholds"),),
        columns=("gIoU, RefCOCO testA", "ReasonSeg"),
        figures={"continuous": (80.0, 64.7), "thresholds": (79.0, 65.5)},
        remark="The miniature's requests are of the simple kind.",
    ),
    "queue": Study(
        "drseg",
        "Dr. Seg Table 6",
        "In distribution a longer queue is better (128 and 512 stand in no order over its three columns); out of distribution 2,048 vectors, 16 steps, are best.",
        {"8192": {"queue_size": 8192}, "2048": {}, "512": {"queue_size": 512}, "128": {"queue_size": 128}},
        pairs=(("8192", "2048"), ("2048", "512"), ("2048", "128")),
        columns=("gIoU, RefCOCO+", "ReasonSeg val"),
        figures={"8192": (77.3, 65.2), "2048": (76.8, 67.8), "512": (76.3, 66.3), "128": (76.0, 63.3)},
        first=True,
    ),
    "components": Study(
        "drseg",
        "Dr. Seg Table 10",
        "All three of box IoU, count and point score are needed.",
        {
            "IoU, count, point": {},
            "IoU, count": {"components": (0, 1)},
            "IoU": {"components": (0,)},
            "none": {"components": ()},
        },
        pairs=(("IoU, count, point", "IoU, count"), ("IoU, count", "IoU"), ("IoU", "none")),
        columns=("gIoU, RefCOCO testA", "ReasonSeg val"),
        figures={
            "IoU, count, point": (80.2, 67.8),
            "IoU, count": (79.8, 58.3),
            "IoU": (72.9, 57.8),
            "none": (35.6, 24.1),
        },
        first=True,
    ),
    "look-format": Study(
        "drseg",
        "Dr. Seg Table 9",
        "The tag has to be paid for: with the prompt alone it is not written stably.",
        {"rewarded": {}, "prompt alone": {"look": False, "weights": {"look": None}}},
        pairs=(("rewarded", "prompt alone"),),
        columns=("gIoU, ReasonSeg val",),
        figures={"rewarded": (67.8,), "prompt alone": (65.8,)},
    ),
    "entropy": Study(
        "visionreasoner",
        "Dr. Seg section 3.2, Figure 3",
        "In training for perception, entropy does not fall smoothly; with Look-to-Confirm it fluctuates even more.",
        {
            "look": {"schema": "drseg", "look": True, "weights": {"look": 1.0}},
            "without": {},
        },
        pairs=(("look", "without"),),
        metric="spread of entropy",
        remark="Measured: the standard deviation of entropy from step to step, its trend taken out; only the second half of "
        "the claim is.",
    ),
    # --- GenSeg-R1
    "points": Study(
        "genseg",
        "GenSeg-R1 Table 4",
        "SAM2 prompted with the box and two points beats one point, and the box alone.",
        {"2 points": {"prompts_mode": "2"}, "1 point": {"prompts_mode": "1"}, "box": {"prompts_mode": "box"}},
        pairs=(("2 points", "1 point"), ("2 points", "box")),
        columns=("mIoU, RefCOCOg val", "cIoU"),
        figures={"2 points": (73.18, 70.62), "1 point": (72.68, 70.13), "box": (72.23, 69.29)},
        first=True,
        remark="The same answers are given to SAM2 three times, with two points, one, or none: arms differ by the prompt alone.",
    ),
    "reward-in-loop": Study(
        "genseg-g",
        "GenSeg-R1 Table 5",
        "SAM2 and no-target in the reward, on gRefCOCO, beat the distance reward there; on ReasonSeg (Table 6: 65.93 against "
        "68.40) it is the other way.",
        {
            "SAM2 in the loop": {},
            "distances": {
                "reward": "genseg",
                "weights": {"mask_iou": None, "negative": None, "no_target": None},
            },
        },
        pairs=(("SAM2 in the loop", "distances"),),
        columns=("target mIoU, gRefCOCO val",),
        figures={"SAM2 in the loop": (76.69,), "distances": (75.58,)},
        metric="target_miou",
        first=True,
        remark="The paper's 75.58 was trained on other data, too (VisionReasoner's, without no-target requests); here the "
        "rewards alone differ.",
    ),
    "negative-box": Study(
        "genseg-g",
        "GenSeg-R1 section 3.6",
        "Two readings of one sentence: one can be gamed. A negative point lies “inside the bounding box”; in the written "
        "box a policy is paid for boxes beside the object, in the true one it is not.",
        {"true box": {}, "both": {"negative_box": "both"}, "written box": {"negative_box": "written"}},
        pairs=(("true box", "written box"),),
        first=True,
        ours=True,
    ),
    "negatives": Study(
        "genseg-g",
        "GenSeg-R1 section 3.6",
        "The negative-point part drives boundary refinement.",
        {"rewarded": {}, "not rewarded": {"weights": {"negative": 0.0}}},
        pairs=(("rewarded", "not rewarded"),),
    ),
    "two-stages": Study(
        "genseg-g",
        "GenSeg-R1 section 6 (future work there)",
        "The distance reward first, then SAM2 in the loop: suggested, not measured.",
        {
            "genseg, then genseg-g": {"start": "genseg"},
            "genseg-g, then again": {"start": "genseg-g"},
        },
    ),
    # --- LENS
    "lens-queries": Study(
        "lens-align",
        "LENS Table 3",
        "More context queries are better up to 64.",
        {"64": {"num_queries": 64}, "16": {}, "1": {"num_queries": 1}},
        pairs=(("64", "16"), ("16", "1")),
        columns=("cIoU, split not named (32: 87.8, 128: 87.2)",),
        figures={"64": (87.9,), "16": (87.4,), "1": (85.9,)},
        metric="giou_true_text",
        steps=150,
        first=True,
    ),
    "lens-connector": Study(
        "lens-align",
        "LENS Table 4",
        "A transformer connector is much better than an MLP.",
        {"transformer": {}, "MLP": {"connector": "mlp"}},
        pairs=(("transformer", "MLP"),),
        columns=("cIoU, split not named",),
        figures={"transformer": (87.8,), "MLP": (72.8,)},
        metric="giou_true_text",
        steps=150,
        first=True,
        remark="With 16 queries, as everywhere in the miniature (the paper: 64).",
    ),
    "lens-parts": Study(
        "lens",
        "LENS Table 5",
        "Alignment first, then box, format and mask rewards: each adds. Without alignment the box reward alone is unstable, "
        "and with the format reward it stays far behind.",
        {
            "aligned, all rewards": {"start": "lens-align"},
            "aligned, box and format": {"start": "lens-align", "weights": {"mask_iou": 0.0}},
            "not aligned, box and format": {"model": "toy/qwen2_5_vl", "weights": {"mask_iou": 0.0}},
            "not aligned, box only": {"model": "toy/qwen2_5_vl", "weights": {"mask_iou": 0.0, "format": 0.0}},
        },
        pairs=(
            ("aligned, all rewards", "aligned, box and format"),
            ("aligned, box and format", "not aligned, box and format"),
        ),
        columns=("cIoU, RefCOCO testA",),
        figures={
            "aligned, all rewards": (82.7,),
            "aligned, box and format": (81.9,),
            "not aligned, box and format": (72.3,),
        },
        first=True,
    ),
    "lens-decoder": Study(
        "lens",
        "LENS Table A3",
        "Tuning the mask decoder beats freezing it. The paper's own pair is SAM 1 without context module, alignment or "
        "rewards; here it is asked of the second stage.",
        {"tuned": {"start": "lens-align"}, "frozen": {"start": "lens-align", "tune_decoder": False}},
        pairs=(("tuned", "frozen"),),
        columns=("cIoU, with SAM 1 and supervised alone",),
        figures={"tuned": (79.1,), "frozen": (78.5,)},
        first=True,
    ),
}
