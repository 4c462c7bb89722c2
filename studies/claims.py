# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What the papers claim of their own parts, as studies: where each says it, with which figures, and which runs ask it.

A study names the paper's place and its figures (a test looks them up in the papers' texts), the arms that are run in
miniature, and the order that the paper gives them, best first. ablations.py runs them and judges the whole order. Where
a paper's columns order the arms differently, the one in distribution counts: the miniature is asked what it is trained
on.
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
    order: tuple[str, ...] = ()  # the paper's own, best first; empty where it claims none
    figures: dict[str, float] = dataclasses.field(default_factory=dict)  # what the paper prints for an arm
    of: str = ""  # what these figures are
    # of the held-out scores after training, or a column of metrics.jsonl (see ablations.value_of)
    metric: str = "answerable_giou"
    steps: int = 60
    first: bool = False  # a claim that its paper puts first: more seeds
    collapse: bool = False  # the claim is that the last arm loses all that training gains the first
    ours: bool = False  # the order is ours: a question that no paper asks
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
            "0.8 alone": {"tiers": (0.8,), "tier_rewards": (4.0,)},
            "0.5 alone": {"tiers": (0.5,), "tier_rewards": (4.0,)},
            "0.7 alone": {"tiers": (0.7,), "tier_rewards": (4.0,)},
        },
        order=("tiers", "0.8 alone", "0.5 alone", "0.7 alone"),
        figures={"tiers": 60.2, "0.8 alone": 58.6, "0.5 alone": 56.5, "0.7 alone": 56.2},
        of="gIoU, ReasonSeg test (cIoU 54.3, 50.8, 51.9, 51.6: another order)",
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
        order=("both", "clip-higher", "token average", "GRPO"),
        figures={"both": 60.2, "clip-higher": 59.1, "token average": 58.0, "GRPO": 57.8},
        of="gIoU, ReasonSeg test",
        first=True,
    ),
    "kl": Study(
        "samr1",
        "SAM-R1 section 4.6, removing the KL constraint",
        "Without the KL term training collapses after about 100 steps.",
        {"with KL": {}, "no KL": {"beta": 0.0}},
        order=("with KL", "no KL"),
        collapse=True,
        steps=220,
        remark="The miniature's rate falls to 0 over the run, as it does in both arms; the paper names no schedule.",
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
        remark="Where the negative points land is in the table below: the share in their own box, and of these on an object.",
    ),
    # --- Dr. Seg
    "look-rank": Study(
        "visionreasoner",
        "Dr. Seg Table 4",
        "Look-to-Confirm and distribution ranking together are more than either alone. In distribution ranking alone helps, "
        "the tag alone costs a little.",
        {
            "both": {"schema": "drseg", "reward": "drseg", "look": True, "weights": {"look": 1.0}},
            "look": {"schema": "drseg", "look": True, "weights": {"look": 1.0}},
            "rank": {"reward": "drseg"},
            "neither": {},
        },
        order=("both", "rank", "neither", "look"),
        figures={"both": 76.8, "rank": 76.6, "neither": 75.3, "look": 75.1},
        of="gIoU, RefCOCO+ (on ReasonSeg val 67.8, 65.5, 65.5, 66.1)",
        first=True,
    ),
    "raw": Study(
        "drseg",
        "Dr. Seg Table 5",
        "The ranked reward beats the raw one.",
        {"ranked": {}, "raw": {"rank": "raw"}},
        order=("ranked", "raw"),
        figures={"ranked": 67.8, "raw": 64.4},
        of="gIoU, ReasonSeg val",
    ),
    "continuous": Study(
        "visionreasoner",
        "Dr. Seg Table 1",
        "VisionReasoner with continuous criteria is better where requests are simple (RefCOCO +1.0), worse on ReasonSeg.",
        {"continuous": {"continuous": True}, "thresholds": {}},
        order=("continuous", "thresholds"),
        figures={"continuous": 80.0, "thresholds": 79.0},
        of="gIoU, RefCOCO testA (on ReasonSeg the order is reversed: 64.7, 65.5)",
        remark="The miniature's requests are of the simple kind.",
    ),
    "queue": Study(
        "drseg",
        "Dr. Seg Table 6",
        "In distribution a longer queue is better; out of distribution 2,048 vectors, 16 steps, are best.",
        {"2048": {}, "512": {"queue_size": 512}, "8192": {"queue_size": 8192}, "128": {"queue_size": 128}},
        order=("8192", "2048", "512", "128"),
        figures={"8192": 77.3, "2048": 76.8, "512": 76.3, "128": 76.0},
        of="gIoU, RefCOCO+ (on ReasonSeg val 65.2, 67.8, 66.3, 63.3)",
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
        order=("IoU, count, point", "IoU, count", "IoU", "none"),
        figures={"IoU, count, point": 67.8, "IoU, count": 58.3, "IoU": 57.8, "none": 24.1},
        of="gIoU, ReasonSeg val (on RefCOCO testA 80.2, 79.8, 72.9, 35.6)",
        first=True,
    ),
    "look-format": Study(
        "drseg",
        "Dr. Seg Table 9",
        "The tag has to be paid for: with the prompt alone it is not written stably.",
        {"rewarded": {}, "prompt alone": {"look": False, "weights": {"look": None}}},
        order=("rewarded", "prompt alone"),
        figures={"rewarded": 67.8, "prompt alone": 65.8},
        of="gIoU, ReasonSeg val",
    ),
    "entropy": Study(
        "visionreasoner",
        "Dr. Seg section 3.2, Figure 3",
        "In training for perception, entropy does not fall smoothly; with Look-to-Confirm it fluctuates even more.",
        {
            "look": {"schema": "drseg", "look": True, "weights": {"look": 1.0}},
            "without": {},
        },
        order=("look", "without"),
        metric="spread of entropy",
        remark="Measured: the standard deviation of entropy from step to step, its trend taken out.",
    ),
    # --- GenSeg-R1
    "points": Study(
        "genseg",
        "GenSeg-R1 Table 4",
        "SAM2 prompted with the box and two points beats one point, and the box alone.",
        {"2 points": {"prompts_mode": "2"}, "1 point": {"prompts_mode": "1"}, "box": {"prompts_mode": "box"}},
        order=("2 points", "1 point", "box"),
        figures={"2 points": 73.18, "1 point": 72.68, "box": 72.23},
        of="mIoU, RefCOCOg val (cIoU 70.62, 70.13, 69.29: the same order)",
        first=True,
        remark="One policy's answers are masked three times, so little chance is left.",
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
        order=("SAM2 in the loop", "distances"),
        figures={"SAM2 in the loop": 76.69, "distances": 75.58},
        of="target mIoU, gRefCOCO val",
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
        order=("true box", "written box"),
        first=True,
        ours=True,
    ),
    "negatives": Study(
        "genseg-g",
        "GenSeg-R1 section 3.6",
        "The negative-point part drives boundary refinement.",
        {"rewarded": {}, "not rewarded": {"weights": {"negative": 0.0}}},
        order=("rewarded", "not rewarded"),
    ),
    "two-stages": Study(
        "genseg-g",
        "GenSeg-R1 section 6 (future work there)",
        "The distance reward first, then SAM2 in the loop: suggested, not measured.",
        {
            "genseg, then genseg-g": {"start": "genseg"},
            "genseg-g, then again": {"start": "genseg-g"},
        },
        order=(),
    ),
    # --- LENS
    "lens-queries": Study(
        "lens-align",
        "LENS Table 3",
        "More context queries are better up to 64.",
        {"64": {"num_queries": 64}, "16": {}, "1": {"num_queries": 1}},
        order=("64", "16", "1"),
        figures={"64": 87.9, "16": 87.4, "1": 85.9},
        of="cIoU, split not named (32: 87.8, 128: 87.2)",
        metric="giou_true_text",
        steps=150,
        first=True,
    ),
    "lens-connector": Study(
        "lens-align",
        "LENS Table 4",
        "A transformer connector is much better than an MLP.",
        {"transformer": {}, "MLP": {"connector": "mlp"}},
        order=("transformer", "MLP"),
        figures={"transformer": 87.8, "MLP": 72.8},
        of="cIoU, split not named",
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
        order=("aligned, all rewards", "aligned, box and format", "not aligned, box and format"),
        figures={
            "aligned, all rewards": 82.7,
            "aligned, box and format": 81.9,
            "not aligned, box and format": 72.3,
        },
        of="cIoU, RefCOCO testA",
        first=True,
    ),
    "lens-decoder": Study(
        "lens",
        "LENS Table A3",
        "Tuning the mask decoder beats freezing it. The paper's own pair is SAM 1 without context module, alignment or "
        "rewards; here it is asked of the second stage.",
        {"tuned": {"start": "lens-align"}, "frozen": {"start": "lens-align", "tune_decoder": False}},
        order=("tuned", "frozen"),
        figures={"tuned": 79.1, "frozen": 78.5},
        of="cIoU, with SAM 1 and supervised alone",
        first=True,
    ),
}
