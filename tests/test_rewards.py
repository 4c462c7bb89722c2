# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Rewards by hand: every formula at its edges, the parser on hostile text, and tricks that must not pay."""

import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

import data
import rewards
from rewards import Answer, Instance, RankQueue, Target, parse_answer, write_answer

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the worked examples lie beside the project, not in it")
NAMES = [name for name in rewards.REWARDS if name in rewards.SCHEMAS]  # ablations.py adds some of its own
MALFORMED = "<think>so</think><answer>the left one</answer>"
NOTHING = '<think>none</think><answer>{"no_target": true}</answer>'


def said(value, thought="so"):
    return f"<think>{thought}</think><answer>{value if isinstance(value, str) else json.dumps(value)}</answer>"


def answer_of(boxes, points, negatives=None):
    """A valid answer without the detour over text: boxes (N, 4), points (N, k, 2)."""
    negatives = negatives or [[]] * len(boxes)
    return Answer(
        "x", instances=[Instance(*o) for o in zip(boxes, points, negatives)], think_ok=True, answer_ok=True, key_score=2
    )


def target_of(boxes, points, **more):
    points = np.array(points, float).reshape(len(boxes), -1, 2) if len(boxes) else np.zeros((0, 1, 2))
    return Target(np.array(boxes, float).reshape(-1, 4), points, **{"no_target": not len(boxes)} | more)


# -------------------------------------------------------------------------------------------- the released rewards'
# values


def lines(name):
    return [json.loads(line) for line in (GOLDEN / name).read_text().splitlines()]


@golden
def test_many_objects_equal_the_released_rewards():
    rows = lines("multi_object.jsonl")
    for row in rows:
        truth = row["solution"]
        target = target_of([o["bbox_2d"] for o in truth], [[o["point_2d"]] for o in truth])
        answer = parse_answer(row["completion"], "drseg")
        assert rewards.visionreasoner_reward(answer, target) == pytest.approx(row["visionreasoner"], abs=1e-9)
        parts, x = rewards.drseg_reward(answer, target), rewards.drseg_metrics(answer, target)
        got = {name: parts[name] for name in ("think", "look", "non_repeat")} | dict(zip(("iou", "count", "point"), x))
        assert got == pytest.approx(row["dr_seg"], abs=1e-9), row["completion"]
    assert len(rows) > 100


@golden
def test_two_points_equal_the_released_reward():
    rows, names = lines("two_points.jsonl"), {"iou": "box_iou", "point_l1": "point"}
    for row in rows:
        truth = row["solution"]
        target = target_of([truth["bbox"]], [[truth["points_1"], truth["points_2"]]])
        expected = {names.get(name, name): value for name, value in row["seg_zero"].items()}
        assert rewards.segzero_reward(parse_answer(row["completion"], "segzero"), target) == pytest.approx(
            expected, abs=1e-9
        )
    assert len(rows) > 50


@golden
def test_the_queue_equals_the_worked_one():
    worked = json.loads((GOLDEN / "rank_queue.json").read_text())
    queue = RankQueue(worked["size"], 3, worked["initial_zeros"])
    for step in worked["steps"]:
        assert [queue.rank(x) for x in step["x"]] == pytest.approx(step["reward"], abs=1e-9)
        for x in step["x"]:
            queue.push(x)
        queue.flush()


# ------------------------------------------------------------------------------------------------------- formulas, by
# hand


def test_box_iou():
    assert rewards.box_iou([0, 0, 10, 10], [0, 0, 10, 20]) == 0.5
    assert rewards.box_iou([0, 0, 10, 10], [5, 5, 15, 15]) == pytest.approx(25 / 175)
    assert rewards.box_iou([0, 0, 10, 10], [10, 0, 20, 10]) == 0  # they touch
    for swapped in ([10, 10, 0, 0], [10, 0, 0, 10], [0, 10, 10, 0]):  # corners as written: no intersection, so nothing
        assert rewards.box_iou(swapped, [0, 0, 10, 10]) == rewards.box_iou(swapped, swapped) == 0
    assert rewards.box_iou([3, 3, 3, 9], [3, 3, 3, 9]) == 0  # no area


@pytest.mark.parametrize(
    ("iou", "value"),
    [(0, 0), (0.5, 0), (0.5001, 2), (0.7, 2), (0.7001, 3), (0.8, 3), (0.8001, 4), (1, 4), (math.nan, 0)],
)
def test_tiers_begin_above_their_threshold(iou, value):
    assert rewards.tiered(iou) == value
    assert rewards.tiered(iou, (0.7,), (1.0,)) == (iou > 0.7)  # the ablation's fixed threshold is one tier


def test_samr1_by_hand():
    target, right = (
        target_of([[0, 0, 9, 9]], [[[5, 5]]]),
        [{"bbox_2d": [0, 0, 9, 9], "point_2d": [5, 5], "label": "cup"}],
    )
    score = lambda text, iou, **kw: rewards.samr1_reward(parse_answer(text, "samr1"), target, iou, **kw)  # noqa: E731
    assert score(said(right), 0.75) == {"tiered": 3, "think": 1, "format": 1}
    assert score("so " + said(right), 0.75) == {"tiered": 3, "think": -1, "format": 1}
    assert score(MALFORMED, 1.0) == {"tiered": 0, "think": 1, "format": -1}  # a malformed answer predicts nothing
    assert score(said([]), 1.0)["tiered"] == 0
    del right[0]["label"]
    assert score(said(right), 1.0) == {"tiered": 0, "think": 1, "format": -1}  # the textual flag is part of the format
    assert score("", None) == {"tiered": 0, "think": -1, "format": -1}


@pytest.mark.parametrize(
    ("dx", "dy", "g"),
    [(0, 0, 1), (30, 0, 1), (18, 24, 1), (115, 0, 0.5), (81, 0, 0.7), (200, 0, 0), (120, 160, 0), (500, 0, 0)],
)
def test_drseg_point_score(dx, dy, g):
    target = target_of([[100, 100, 300, 300]], [[[150, 150]]])
    assert rewards.drseg_metrics(answer_of([[100, 100, 300, 300]], [[[150 + dx, 150 + dy]]]), target) == pytest.approx(
        (1, 1, g)
    )


def test_drseg_counts():
    box, point = [100, 100, 300, 300], [[150, 150]]
    far = [500, 500, 600, 600]
    one, two, none = target_of([box], [point]), target_of([box, far], [point, [[550, 550]]]), target_of([], [])
    x = rewards.drseg_metrics
    assert x(answer_of([box], [point]), two) == (1, 0.5, 1)  # one too few: the mean is over matched pairs alone
    assert x(answer_of([far, box], [[[0, 0]], point]), one) == (1, 0.5, 1)  # one too many; the right one is matched
    assert x(answer_of([box] * 3, [point] * 3), one) == (1, pytest.approx(1 / 3), 1)
    assert x(answer_of([], []), none) == (0, 1, 0)  # nothing, rightly
    assert x(answer_of([], []), one) == x(answer_of([box], [point]), none) == (0, 0, 0)
    assert x(parse_answer(MALFORMED, "drseg"), one) == (0, 0, 0)
    # N_pred = 0, by the letter of SPEC; it loses `answer`
    assert x(parse_answer(MALFORMED, "drseg"), none) == (
        0,
        1,
        0,
    )


def test_drseg_parts():
    target = target_of([[100, 100, 300, 300]], [[[150, 150]]])
    right = [{"bbox_2d": [100, 100, 300, 300], "point_2d": [265, 150]}]  # x = (1, 1, 0.5)
    score = lambda text, **kw: rewards.drseg_reward(parse_answer(text, "drseg"), target, **kw)  # noqa: E731
    ones = {"look": 1, "think": 1, "answer": 1, "non_repeat": 1}
    assert score(said(right, "hm <look>rim</look>")) == pytest.approx(ones | {"accuracy": 2.5 / 3})
    assert score(said(right, "hm <look> \n</look>"))["look"] == score(said(right, "<look>rim"))["look"] == 0
    assert score(said(right), components=(0, 2))["accuracy"] == 0.75
    assert score(said([{"bbox_2d": [1, 2, 3, 4]}])) == ones | {"look": 0, "answer": 0, "accuracy": 0}
    assert score(said(right), weights={"accuracy": 3, "think": 0, "look": 5}) == pytest.approx(
        {"look": 0, "think": 0, "answer": 1, "non_repeat": 1, "accuracy": 2.5}
    )
    queue = RankQueue(initial_zeros=0)
    queue.flush([(0.2, 1.0, 0.5), (1.0, 0.5, 0.9), (0.0, 0.0, 0.6), (0.1, 0.1, 0.5)])
    # equal counts as beaten: s <= x
    assert score(said(right), queue=queue)["accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert score(said(right), queue=queue, components=(2,))["accuracy"] == 0.5
    right[0]["point_2d"] = [264, 150]  # g = 0.506
    assert score(said(right), released=True) == pytest.approx(ones | {"look": 0, "answer": 2, "accuracy": 1 + 1 + 0.5})
    assert score(said([{"bbox_2d": [1, 2, 3, 4]}]), released=True)["answer"] == 1


def hits(reward, box, points, true_box=(100, 100, 300, 300), true_points=((150, 150),), part=None, **more):
    parts = rewards.REWARDS[reward](answer_of([list(box)], [points]), target_of([true_box], [true_points]), **more)
    return parts[part] if part else parts


def test_visionreasoner_thresholds():
    at = lambda *a, **kw: hits("visionreasoner", *a, part="accuracy", **kw)  # noqa: E731
    box, p = (100, 100, 300, 300), [[150, 150]]
    assert at(box, p) == 3
    assert at((110, 110, 310, 310), p) == 2  # mean L1 of exactly 10 is not below it; IoU 0.82, the point is right
    assert at((110, 110, 310, 309.9), p) == 3
    assert at(box, [[180, 150]]) == 2  # a distance of exactly 30
    assert at(box, [[179.9, 150]]) == 3
    assert at((160, 100, 300, 300), p) == 1  # IoU 0.7 alone: L1 is 15, and the point is outside the written box
    assert at((150, 100, 300, 300), p) == 2  # ... but its edge counts as inside
    assert at((0, 0, 10, 10), [[5, 5]], (0, 0, 10, 20), ((5, 5),)) == 2  # IoU of exactly 0.5; L1 2.5
    assert at((0, 0, 9, 9), [[5, 5]], (0, 0, 9, 18.9), ((5, 5),)) == 2
    # 100 / 199 with 1 added to each side
    assert at((0, 0, 9, 9), [[5, 5]], (0, 0, 9, 18.9), ((5, 5),), released=True) == 3


def test_visionreasoner_counts():
    boxes = [[0, 0, 100, 100], [200, 200, 300, 300], [400, 0, 500, 100]]
    points = [[[50, 50]], [[250, 250]], [[450, 50]]]

    def score(order, n=3):
        answer = answer_of([boxes[i] for i in order], [points[i] for i in order])
        return rewards.visionreasoner_reward(answer, target_of(boxes[:n], points[:n]))["accuracy"]

    assert score([2, 0, 1]) == 3  # order means nothing
    assert score([1, 2]) == 2 and score([0, 1, 2], n=2) == 2  # one too few costs what one too many does
    assert score([0, 0, 0]) == 1 and score([]) == 0
    crowd = rewards.match(answer_of(boxes[:1] * 500, points[:1] * 500), target_of(boxes, points), **rewards.NEAR_840)
    assert crowd.larger == 120 and crowd.hits.sum() == 3  # at most 120 a side
    half = said([{"bbox_2d": [0, 0, 100, 100], "point_2d": [50, 50]}, {"bbox_2d": [200, 200, 300], "point_2d": [1, 2]}])
    parts = rewards.visionreasoner_reward(parse_answer(half, "visionreasoner"), target_of(boxes, points))
    # one malformed object spoils accuracy, not `answer`
    assert parts == {
        "think": 1,
        "answer": 1.5,
        "accuracy": 0,
        "non_repeat": 1,
    }


def test_matching_is_the_best_one():
    rng = np.random.default_rng(0)
    for _ in range(30):
        truth = np.sort(rng.uniform(0, 60, (4, 2, 2)), axis=1).reshape(4, 4)
        written = truth + rng.uniform(-12, 12, (4, 4))
        points = rng.uniform(0, 60, (4, 1, 2))
        pairs = rewards.match(answer_of(written.tolist(), points.tolist()), target_of(truth, points), 10, 30)

        def value(i, j, w=written, t=truth, p=points):
            inside = w[i][0] <= p[i, 0, 0] <= w[i][2] and w[i][1] <= p[i, 0, 1] <= w[i][3]
            near = math.dist(p[i, 0], p[j, 0]) < 30 and inside
            l1 = sum(abs(a - b) for a, b in zip(w[i], t[j])) / 4
            return int(rewards.box_iou(w[i], t[j]) > 0.5) + int(l1 < 10) + int(near)

        best = max(sum(value(i, j) for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
        assert pairs.hits.sum() == best


def test_segzero_by_hand():
    two = ((150, 150), (250, 150))
    at = lambda *a, **kw: hits("segzero", *a, true_points=two, **kw)  # noqa: E731
    box = (100, 100, 300, 300)
    assert sum(at(box, [[150, 150], [250, 150]]).values()) == 5
    assert at(box, [[250, 150], [150, 150]])["point"] == 1  # the other order is the better pairing
    assert at(box, [[150, 250], [250, 250]])["point"] == 0  # a mean of exactly 100
    assert at(box, [[150, 250], [250, 249.9]])["point"] == 1  # it is the mean that counts
    assert at(box, [[150, 150], [301, 150]])["point"] == 0  # one outside the written box
    assert at((110, 110, 310, 310), [list(p) for p in two]) == {
        "think": 1,
        "format": 1,
        "box_iou": 1,
        "box_l1": 0,
        "point": 1,
    }
    half = '<think></think><answer>{"bbox": [100, 100, 300, 300], "points_1": [150, 150]}</answer>'
    parts = rewards.segzero_reward(parse_answer(half, "segzero"), target_of([box], [two]))
    assert parts == {"think": 1, "format": 0, "box_iou": 1, "box_l1": 1, "point": 0}
    extra = {"bbox": [100, 100, 300, 300], "points_1": [150, 150], "points_2": [250, 150], "why": "because"}
    assert sum(rewards.segzero_reward(parse_answer(said(extra), "segzero"), target_of([box], [two])).values()) == 5
    wide = dict(true_box=(0, 0, 9, 18.9), part="box_iou")
    assert hits("segzero", (0, 0, 9, 9), [[5, 5]] * 2, **wide) == 0
    assert hits("segzero", (0, 0, 9, 9), [[5, 5]] * 2, released=True, **wide) == 1


def test_genseg_thresholds():
    at = lambda *a, part, **kw: hits("genseg", *a, part=part, **kw)  # noqa: E731
    box, right = (0, 0, 400, 400), [[150, 150], [150, 150]]
    kw = {"true_box": box}
    assert at((47.6, 0, 400, 400), right, part="box_l1", **kw) == 0  # a mean of exactly 11.9
    assert at((47.5, 0, 400, 400), right, part="box_l1", **kw) == 1
    assert at((0, 0, 400, 200), right, part="box_iou", **kw) == 0  # exactly 0.5
    assert at((0, 0, 400, 201), right, part="box_iou", **kw) == 1
    # one annotated point: the nearer of the two written ones counts
    assert at(box, [[399, 399], [269, 150]], part="point", **kw) == 0  # exactly 119
    assert at(box, [[399, 399], [268.9, 150]], part="point", **kw) == 1
    assert at(box, [[401, 399], [150, 150]], part="point", **kw) == 0  # but both must lie in the written box
    # two annotated points: the mean under the better pairing
    kw["true_points"] = ((100, 100), (300, 100))
    assert at(box, [[300, 100], [100, 100]], part="point", **kw) == 1
    assert at(box, [[100, 219], [300, 219]], part="point", **kw) == 0
    assert at(box, [[100, 219], [300, 218.9]], part="point", **kw) == 1


def test_genseg_without_target():
    nothing = target_of([], [], no_target=True, mask=np.zeros((84, 84), bool), frame=(1000, 1000))
    something = target_of([[0, 0, 400, 400]], [[[150, 150]]], mask=np.ones((84, 84), bool), frame=(1000, 1000))
    box = said([{"bbox_2d": [0, 0, 400, 400], "point_1": [150, 150], "point_2": [150, 150]}])
    fmt = {"think": 1, "format": 1, "non_repeat": 1}
    zero, one = ({name: v for name in ("box_iou", "box_l1", "point")} for v in (0, 1))
    more = lambda v: {"mask_iou": 0, "negative": 0, "no_target": v}  # noqa: E731
    for schema, extra in (("genseg", lambda v: {}), ("genseg-g", more)):
        score = lambda text, target, s=schema: rewards.REWARDS[s](parse_answer(text, s), target, 0.0)  # noqa: E731
        assert score(NOTHING, nothing) == fmt | one | extra(10)
        assert score(box, nothing) == fmt | zero | extra(-10)
        assert score(MALFORMED, nothing) == fmt | zero | {"format": 0} | extra(0)  # no box, and not "nothing" either
        assert score(NOTHING, something) == fmt | zero | extra(0)
        assert score("", nothing) == {"think": 0, "format": 0, "non_repeat": 1} | zero | extra(0)
        for pretended in (
            "[]",
            '[{"no_target": true}]',
            '{"no_target": 1}',
            '{"no_target": "true"}',
            '{"no_target": true, "n": 1}',
        ):
            assert score(said(pretended), nothing) == score(MALFORMED, nothing), pretended
    assert (
        rewards.genseg_g_reward(parse_answer(NOTHING, "genseg-g"), nothing, weights={"no_target": 2})["no_target"] == 2
    )


def test_a_box_in_a_malformed_answer_costs_the_no_target_penalty():
    nothing = target_of([], [], mask=np.zeros((84, 84), bool), frame=(1000, 1000))
    score = lambda text: rewards.genseg_g_reward(parse_answer(text, "genseg-g"), nothing, 0.0)["no_target"]  # noqa: E731
    box = {"bbox_2d": [0, 0, 400, 400]}
    assert score(said([box])) == -10  # its points are missing
    assert score(said([box | {"point_1": "here"}])) == -10
    assert score(said(str([box])[:-2])) == -10  # no JSON at all, but there it stands
    for wrapped in (box, [box, 1], {"objects": [box]}, {"no_target": True} | box, [box["bbox_2d"]]):
        assert score(said(json.dumps(wrapped))) == -10, wrapped  # JSON, and no list of objects
    # Cut off, without tags, behind a first empty answer, in numbers of another kind: boxes all the same.
    there = json.dumps([box])
    assert score(said(there).removesuffix("</answer>")) == score(f"<think>a</think>{there}") == score(there) == -10
    assert score(f"<think>a</think><answer></answer><answer>{there}</answer>") == -10
    for numbers in ("[1e2, 100, 300, 300]", "[10.12345678901, 100, 300, 300]"):
        assert score(said('[{"bbox_2d": ' + numbers)) == -10, numbers
    for thought in (
        f"<think>At {there}?",
        f"\n<think>At {there}?",
        f"<think>An <answer> at {there}?</think>",
        f"<think>At {there}?</think>",
        f"<think>{there}</think><answer>no</answer>",
    ):
        assert score(thought) == 0, thought  # what is only considered is not charged
    assert score(said("what?")) == 0 and score(NOTHING) == 10
    worst = parse_answer(f"A. A. A. <answer>{json.dumps([box])}</answer>", "genseg-g")  # nothing else is paid either
    assert sum(rewards.genseg_g_reward(worst, nothing, 0.0).values()) == -10


@pytest.mark.parametrize("reading,values", [("truth", (0, 5, 10)), ("written", (5, 5, 10)), ("both", (0, 5, 10))])
def test_genseg_g_weighs_mask_and_negatives(reading, values):
    mask = np.zeros((500, 500), bool)
    mask[100:200, 120:200] = True  # 240-400 by 200-400 in the frame
    target = target_of([[200, 200, 400, 400]], [[[300, 300]] * 2], mask=mask, frame=(1000, 1000))
    written = {"bbox_2d": [150, 200, 400, 400], "point_1": [300, 300], "point_2": [300, 300]}

    def score(*objects, iou=0.6):
        answer = parse_answer(said(list(objects)), "genseg-g")
        return rewards.genseg_g_reward(answer, target, iou, negative_box=reading)

    assert score(written)["mask_iou"] == 3 and score(written)["negative"] == 0  # left out: valid, worth nothing
    beside = written | {"negative_1": [160, 300], "negative_2": [300, 300]}  # beside the true box, and on the mask
    within = written | {"negative_1": [210, 300], "negative_2": [300, 300]}
    both = written | {"negative_1": [210, 300], "negative_2": [220, 250]}
    assert tuple(score(o)["negative"] for o in (beside, within, both)) == values
    half = score(written | {"negative_1": [210, 300]})  # half-written ones are malformed
    assert half["format"] == half["mask_iou"] == half["negative"] == 0
    # averaged over all objects written: neither an object without negatives nor an extra one carries the others'
    extra = {"bbox_2d": [0, 0, 2, 2], "point_1": [1, 1], "point_2": [1, 1], "negative_1": [1, 1], "negative_2": [1, 1]}
    assert score(written, extra)["negative"] == 0  # once, the extra one's points counted for all: 10
    assert score(both, extra)["negative"] == 5
    if reading == "truth":
        outside = both | {"bbox_2d": [600, 600, 900, 900]}  # the written box plays no part
        assert score(outside)["negative"] == 10
    with pytest.raises(ValueError, match="negative_box must be"):
        rewards.valid_negatives(answer_of([[0, 0, 1, 1]], [[[0, 0]]]), target, "some")


@pytest.mark.parametrize("scale", [0.1, 0.2, 1, 2])  # the mask's resolution is not the frame's
@pytest.mark.parametrize(
    ("point", "valid"),
    [
        ((295, 400), 1),
        ((295.5, 400), 0),
        ((505, 400), 1),
        ((504.5, 400), 0),
        ((400, 295), 1),
        ((400, 504), 0),
        ((300, 400), 0),
        ((500, 500), 0),
        ((400, 400), 0),
        ((301, 301), 0),  # on the boundary, and inside
        ((297, 296), 1),
        ((297, 296.5), 0),  # 3-4-5 from the corner
        ((260, 400), 1),
        ((249, 400), 0),
        ((250, 400), 1),  # outside its own box; on the box's edge
        ((-5, 400), 0),
        ((400, 840), 0),
        ((1e308, 400), 0),
        ((-1e308, 1e308), 0),  # outside the picture
    ],
)
def test_negative_points_keep_clear_of_the_mask(point, valid, scale):
    # On a coarse mask, distances to pixel centres once let points through that almost touched the boundary.
    size, edge = int(840 * scale), (round(300 * scale), round(500 * scale))
    mask = np.zeros((size, size), bool)
    mask[edge[0] : edge[1], edge[0] : edge[1]] = True
    box = [-10, -10, 850, 850] if abs(point[0]) > 840 or min(point) < 0 or max(point) >= 840 else [250, 250, 550, 550]
    answer = answer_of([box], [[[400, 400]] * 2], [[point]])
    for reading in ("truth", "written", "both"):
        assert rewards.valid_negatives(answer, target_of([box], [[[400, 400]] * 2], mask=mask), reading) == valid


def test_a_point_on_the_object_is_no_negative_one_at_any_clearance():
    mask = np.zeros((84, 84), bool)
    mask[30:50, 30:50] = True
    target = target_of([[250, 250, 550, 550]], [[[400, 400]] * 2], mask=mask)
    answer = answer_of([[250, 250, 550, 550]], [[[400, 400]] * 2], [[[400, 400], [280, 280]]])
    assert rewards.valid_negatives(answer, target, clearance=0.0) == 0.5


def test_negative_points_equal_a_slow_twin():
    rng = np.random.default_rng(1)
    for frame, (H, W) in (((1000, 1000), (60, 90)), ((840, 840), (90, 90)), ((90, 60), (60, 90))):
        mask = rng.random((H, W)) > 0.98
        r, pixels = 5 / 840 * max(H, W), np.argwhere(mask)
        target = target_of([[0, 0, *frame]], [[[0, 0]] * 2], mask=mask, frame=frame)
        valid = []
        for x, y in rng.uniform(0, frame, (200, 2)):
            px, py = x * W / frame[0], y * H / frame[1]
            nearest = min(math.hypot(px - np.clip(px, i, i + 1), py - np.clip(py, j, j + 1)) for j, i in pixels)
            valid.append(nearest >= r)
            answer = answer_of([[0, 0, *frame]], [[[0, 0]] * 2], [[[x, y]]])
            assert rewards.valid_negatives(answer, target) == valid[-1]
        assert 0.02 < np.mean(valid) < 0.99  # both kinds were tried


def test_lens_squares():
    target = target_of([[0, 0, 10, 20]], [[]])
    score = lambda text, iou: rewards.lens_reward(parse_answer(text, "lens"), target, iou)  # noqa: E731
    assert score(said({"bbox_2d": [0, 0, 10, 10]}), 0.6) == pytest.approx(
        {"format": 1, "box_iou": 0.25, "mask_iou": 0.36}
    )
    # the mask needs no box
    assert score(MALFORMED, 0.6) == pytest.approx({"format": 0, "box_iou": 0, "mask_iou": 0.36})
    assert score("so " + said({"bbox_2d": [0, 0, 10, 20]}), None) == {"format": 0, "box_iou": 1, "mask_iou": 0}


# --------------------------------------------------------------------------------------------------------------
# repetition


@pytest.mark.parametrize(
    ("text", "plain", "folded"),
    [
        ("", 0, 0),
        ("a. b. c.", 0, 0),
        ("a. a.", 1, 1),
        ("a. a. a. a", 3, 3),
        ("...", 0, 0),
        ("a! a? a…", 0, 2),
        ("It is red. it is red. IT IS RED.", 0, 2),
        ("yes, . (yes). “yes”.", 0, 2),
        ("是。是！是？", 0, 2),
        ("<think>a. a. a", 1, 1),  # tags are part of the text
    ],
)
def test_repeats(text, plain, folded):
    assert rewards.count_repeats(text) == plain
    assert rewards.count_repeats(text, rewards.DRSEG_STOPS, fold=True) == folded


def test_the_second_repeat_costs():
    target = target_of([], [])
    for name in ("visionreasoner", "drseg", "genseg", "genseg-g"):
        score = lambda thought, n=name: rewards.REWARDS[n](parse_answer(said("[]", thought), n), target)["non_repeat"]  # noqa: E731
        assert score(". a. a. ") == 1 and score(". a. a. a. ") == 0, name
        assert score(". a. A. a. ") == (name == "visionreasoner")  # the others fold case


@pytest.mark.parametrize(
    "text",
    [
        "your reasoning text",
        "[YOUR  Reasoning_text]",
        "your-visual…FOCUS",
        "More\nreasoning\t12 text!",
        "<think>reasoning goes here</think>",
        "«region» goes 'here'",
        "YOUR REASONING TEXT",
    ],
)
def test_placeholders_are_recognised(text):
    assert rewards.echoes_placeholder(text) and rewards.echoes_placeholder(f"so: {text}.")


@pytest.mark.parametrize(
    "text",
    [
        "your reasonings text",
        "the region is goes here",
        "reasoning é goes here",
        "unreasoning goes here",
        "visual focus",
        "reasoning 是 goes here",
    ],
)
def test_other_text_is_not(text):
    assert not rewards.echoes_placeholder(text)


def test_every_placeholder_of_our_prompts_is_known():
    for schema, prompt in data.PROMPTS.items():
        thought = prompt.split("<think>")[1].split("</think>")[0].replace("</look>", "<look>")
        pieces = [piece for piece in thought.split("<look>") if piece.strip()]
        assert pieces and all(rewards.echoes_placeholder(piece) for piece in pieces), schema
        # the instruction itself may be quoted
        assert not rewards.echoes_placeholder(prompt.split("<think>")[0]), schema


# -------------------------------------------------------------------------------------------------------------- the
# parser


def random_instances(rng, schema):
    spec = rewards.SCHEMAS[schema]
    draw = lambda *shape: rng.uniform(-5, 1200, shape).round(rng.integers(0, 4)).tolist()  # noqa: E731
    n = int(rng.integers(1, 6)) if spec.many else 1
    return [
        Instance(draw(4), draw(len(spec.points), 2), draw(len(spec.negatives), 2) if rng.random() < 0.7 else [])
        for _ in range(n)
    ]


@pytest.mark.parametrize("schema", NAMES)
def test_what_is_written_is_read(schema):
    rng = np.random.default_rng(7)
    for _ in range(40):
        instances = random_instances(rng, schema)
        answer = parse_answer(write_answer(instances, schema, "a <look>b</look> c", digits=None), schema)
        assert answer.instances == instances and answer.thought == "a <look>b</look> c" and answer.looks == ["b"]
        assert answer.think_ok and answer.answer_ok and not answer.no_target
        whole = parse_answer(write_answer(instances, schema), schema).instances  # rounded to whole numbers
        assert all(abs(a - b) <= 0.5 for o, w in zip(instances, whole) for a, b in zip(o.box, w.box))
        back = answer.rescaled((840, 420), (1000, 1000)).rescaled((1000, 1000), (840, 420))
        assert all(
            o.box == pytest.approx(b.box) and np.allclose(o.points, b.points) for o, b in zip(instances, back.instances)
        )
    half = Instance([0, 0, 84, 42], [[84, 42]] * len(rewards.SCHEMAS[schema].points))
    moved = parse_answer(write_answer([half], schema), schema).rescaled((840, 420), (1000, 1000)).instances[0]
    assert moved.box == [0, 0, 100, 100] and all(p == [100, 100] for p in moved.points)


def test_the_decimal_point_of_a_whole_number_is_not_a_sentence_end():
    # In "0.0, 0.0, 840.0, 840.0" the repeats rule, which splits at every ".", saw sentences said twice, and the truth
    # lost its point.
    box, points = [0.0, 0.0, 840.0, 840.0], [[420.0, 420.0]]
    text = write_answer([Instance(box, points)] * 3, "visionreasoner", digits=None)
    assert "." not in text and rewards.count_repeats(text) == 0
    target = target_of([box] * 3, [points] * 3)
    assert sum(rewards.visionreasoner_reward(parse_answer(text, "visionreasoner"), target).values()) == 7


def test_what_cannot_be_said_is_refused():
    one = Instance([0, 0, 9, 9], [[1, 1], [2, 2]])
    for schema in ("lens", "segzero"):
        with pytest.raises(ValueError, match="nothing fits"):
            write_answer([], schema)
    with pytest.raises(ValueError, match="2 objects"):
        write_answer([one, one], "segzero")
    for wrong in (Instance([0, 0, 9, 9], [[1, 1]]), Instance([0, 0, 9, 9], one.points, [[3, 3]])):
        with pytest.raises(ValueError):
            write_answer([wrong], "genseg-g")
    for schema in ("genseg", "genseg-g", "drseg"):
        empty = parse_answer(write_answer([], schema), schema)
        assert empty.no_target and empty.answer_ok and empty.think_ok and not empty.instances


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("<think></think><answer></answer>", 1),
        ("<think>a</think> \n\t<answer>b</answer>", 1),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 1),  # what stands inside is not looked at
        ("<think>a</think>b</think><answer>c</answer>", 1),
        ("<think><think></think><answer></answer></answer>", 1),
        ("<think>a</think>,<answer>b</answer>", 0),
        (" <think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer>\n", 0),
        ("<think>a</think><answer>b</answer> done", 0),
        ("so <think>a</think><answer>b</answer>", 0),
        ("<answer>b</answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a<answer>b</answer>", 0),
        ("<think>a</think><answer>b", 0),
        ("", 0),
        ("</think><answer></answer>", 0),
        ("<think></think><answer>", 0),
        ("<THINK></THINK><ANSWER></ANSWER>", 0),
    ],
)
def test_think_then_answer(text, ok):
    assert parse_answer(text, "drseg").think_ok == bool(ok)


def test_the_first_answer_is_read():
    one, two = ([{"bbox_2d": [i, i, 9, 9], "point_2d": [5, 5]}] for i in (1, 2))
    for text in (
        said(one) + said(two),
        f"<answer>{json.dumps(one)}</answer>" + said(two),
        said(one) + "</answer><answer>",
    ):
        assert parse_answer(text, "drseg").instances[0].box == [1, 1, 9, 9]
    assert not parse_answer("<answer><answer>" + json.dumps(one) + "</answer>", "drseg").answer_ok  # nested: not JSON
    answer = parse_answer("<think><look>a</look><look></look><look>b <look>c</look></look></think>", "drseg")
    assert answer.looks == ["a", "", "b <look>c"] and not answer.answer_ok and not answer.instances


GOOD = '{"bbox_2d": [1, 2, 3, 4], "point_2d": [5, 6]}'
HOSTILE = {
    "empty": "",
    "no tags": "a cup",
    "half JSON": said("[" + GOOD[:-1]),
    "number": said("7"),
    "null": said("null"),
    "string": said('"x"'),
    "list of lists": said(f"[[{GOOD}]]"),
    "list of numbers": said("[1, 2, 3, 4]"),
    "bare object": said(GOOD),
    "python": said(GOOD.replace('"', "'")),
    "NaN": said(f"[{GOOD}]".replace("4", "NaN")),
    "Infinity": said(f"[{GOOD}]".replace("4", "-Infinity")),
    "1e999": said(f"[{GOOD}]".replace("4", "1e999")),
    "bool": said(f"[{GOOD}]".replace("4", "true")),
    "text": said(f"[{GOOD}]".replace("4", '"4"')),
    "null in box": said(f"[{GOOD}]".replace("4", "null")),
    "long number": said(f"[{GOOD}]".replace("4", "4" * 5000)),
    "5 numbers": said(f"[{GOOD}]".replace("4", "4, 5")),
    "box is an object": said('[{"bbox_2d": {}}]'),
    "one bad": said(f'[{GOOD}, {{"bbox_2d": [1, 2, 3, 4]}}]'),
    "deep": said("[" * 100_000 + "]" * 100_000),
    "deep objects": said('{"a":' * 50_000),
    "surrogate": said(f"[{GOOD}]".replace("bbox", "\ud800")),
    "prose after": said(f"[{GOOD}] is it"),
    "fence": said(f"```json\n[{GOOD}]\n```"),
    "comment": said(f"[{GOOD}] // left"),
    "bom": said(f"\ufeff[{GOOD}]"),
    "null byte": said(f"[{GOOD}\0]"),
    "a megabyte": "x" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_malformed_answers_predict_nothing(name):
    for schema in NAMES:
        answer = parse_answer(HOSTILE[name], schema)
        assert (answer.instances, answer.no_target, answer.answer_ok) == ([], False, False) or (name, schema) == (
            "bare object",
            "lens",
        )
        assert parse_answer(HOSTILE[name], "lens", lenient=True).text == HOSTILE[name]


def test_odd_but_valid_answers_are_read():
    surrogates = parse_answer(said(f"[{GOOD}]", "\udfff\ud800"), "drseg")
    assert surrogates.answer_ok and surrogates.thought == "\udfff\ud800"
    assert parse_answer(said(f"[{GOOD}]".replace("4", "0." + "4" * 5000)), "drseg").instances[0].box[
        3
    ] == pytest.approx(4 / 9)
    assert len(parse_answer(said("[" + ",".join([GOOD] * 10_000) + "]"), "drseg").instances) == 10_000
    assert parse_answer(said(f"\n [{GOOD}]\n"), "drseg").answer_ok
    lenient = parse_answer("the box is [1, 2.5, 30, 40] here, not [5, 6, 7, 8]", "lens", lenient=True)
    assert lenient.instances[0].box == [1, 2.5, 30, 40]
    assert not lenient.answer_ok and not lenient.think_ok  # read all the same, and malformed all the same


def test_parsing_takes_linear_time():
    # Three seconds went on a megabyte of "</think>", each of which copied the rest of the text.
    # Letters repeated until 100,000 or 1,000,000 of them, behind an opening that sends them into every part of the
    # parser.
    units = [
        "<think>",
        "</think>",
        "</think> ",
        "</think><answer>",
        "<look>",
        "</look>",
        "<look></look>",
        "<answer>",
        "</answer>",
        "[",
        "[1 ,",
        '{"a":',
        "7",
        '"',
        "\\",
        "\ud800",
        " ",
    ]
    for unit in units:
        for opening in ("", "<think></think><answer>", '<think></think><answer>[{"bbox_2d": [', "<think>"):
            closing = "</answer>" if opening != "<think>" else "</think><answer>[]</answer>"

            def seconds(n, unit=unit, opening=opening, closing=closing):
                text, times = opening + unit * (n // len(unit)) + closing, []
                for _ in range(2):
                    start = time.perf_counter()
                    parse_answer(text, "drseg")
                    parse_answer(text, "lens", lenient=True)
                    times.append(time.perf_counter() - start)
                return min(times)

            assert seconds(1_000_000) < 60 * max(seconds(100_000), 1e-3), (unit, opening)


# ----------------------------------------------------------------------------------------------------------------
# tricks

LOWEST = {"samr1": -2, "genseg-g": -10}  # the others pay nothing or something
SINGLE = [name for name in NAMES if not rewards.SCHEMAS[name].many]


def world(name, no_target=False):
    """A request with one or three round objects: the target, and the honest right answer. The mask has its own
    resolution."""
    spec, side = rewards.SCHEMAS[name], 1000 if name.startswith("genseg") else 840
    centers = np.array([[200, 200], [500, 250], [320, 600]])[: 0 if no_target else 3 if spec.many else 1]
    ys, xs = (np.mgrid[:420, :420] + 0.5) * side / 420
    mask = np.zeros((420, 420), bool)
    instances = []
    for x, y in centers:
        mask |= np.hypot(xs - x, ys - y) < 100
        positive = [[float(x - 20 * i), float(y)] for i in range(len(spec.points))]
        negative = [[float(x + s * 92), float(y + 92)] for s in (-1, 1)][: len(spec.negatives)]
        instances.append(Instance([float(v) for v in (x - 100, y - 100, x + 100, y + 100)], positive, negative))
    boxes, points = [o.box for o in instances], [o.points for o in instances]
    return target_of(boxes, points, mask=mask, no_target=no_target, frame=(side, side)), instances


def as_json(name, instances):
    return write_answer(instances, name, digits=None).split("<answer>")[1].removesuffix("</answer>")


def listing(name, objects):
    """Objects as JSON, also where the schema has one object and write_answer would refuse."""
    pieces = [as_json(name, [o]).removeprefix("[").removesuffix("]") for o in objects]
    return "[" + ", ".join(pieces) + "]" if rewards.SCHEMAS[name].listed or len(pieces) > 1 else pieces[0]


def tricks(name, target, right):
    """(what, text, the mask IoU that it could have at best)."""
    spec, side = rewards.SCHEMAS[name], target.frame[0]
    rng = np.random.default_rng(3)
    look = "I see <look>it</look>"

    def made(box, near=None):
        x, y = near or ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        return Instance(box, [[x, y]] * len(spec.points), [[box[0] + 1, box[1] + 1]] * len(spec.negatives))

    whole = made([0, 0, side, side])
    crowd = [made(np.sort(rng.uniform(0, side, (2, 2)), 0).ravel().tolist()) for _ in range(100)]
    yield "whole image", said(listing(name, [whole]), look), 0.2
    yield "whole image too", said(listing(name, [*right, whole]), look), 0.2
    yield "100 boxes", said(listing(name, crowd), look), 0.3
    yield "right and 100 boxes", said(listing(name, [*right, *crowd]), look), 0.3
    yield "10,000 boxes", said("[" + ", ".join([listing(name, [whole]).strip("[]")] * 10_000) + "]", look), 0.2
    yield "other sample", said(listing(name, [made([600, 700, 800, 800])]), look), 0.0
    yield "prose after", said(as_json(name, right), look) + " That is it.", 1.0
    yield "prose inside", said(as_json(name, right) + " That is it.", look), 0.0
    yield "right answer twice", said(listing(name, right * 2), look), 1.0
    yield "two blocks", said(as_json(name, right), look) + f"<answer>{as_json(name, right)}</answer>", 1.0
    yield "no reasoning", f"<answer>{as_json(name, right)}</answer>", 1.0
    yield "said often", said(as_json(name, right), look + " I am sure." * 50), 1.0
    yield "said for a megabyte", said(as_json(name, right), look + " I am sure." * 90_000), 1.0
    yield "rambling", said(as_json(name, right), look + " " + " ".join(map(str, range(150_000)))), 1.0
    yield "prompt", data.build_prompt("the cup", name, "thousand"), 0.0
    yield "prompt's example", "<think>" + data.build_prompt("the cup", name, "pixels").split("<think>")[1], 0.0
    yield "prompt's words", said(as_json(name, right), "reasoning goes here <look>region goes here</look>"), 1.0
    yield "tags alone", "<think><look>a</look></think><answer></answer>", 0.0
    yield "nothing", NOTHING, 0.0
    yield "nothing, and boxes", said(as_json(name, right)[:-1] + ', {"no_target": true}]', look), 0.0
    yield "empty list", said("[]", look), 0.0
    yield "no text", "", 0.0
    yield "a megabyte", "<think>" * 150_000, 0.0
    for what, change in {
        "swapped": lambda b: [*b[2:], *b[:2]],
        "mirrored": lambda b: [b[2], b[1], b[0], b[3]],
        "no area": lambda b: [*b[:2], *b[:2]],
        "huge": lambda b: [-1e308, -1e308, 1e308, 1e308],
        "NaN": lambda b: [math.nan] * 4,
        "infinite": lambda b: [-math.inf, 0, 0, math.inf],
    }.items():
        yield (
            what,
            said(
                listing(
                    name,
                    [Instance(change(o.box), o.points, o.negative_points) for o in right]
                    or [made(change([1.0, 2, 3, 4]))],
                ),
                look,
            ),
            0.2,
        )
    far = [
        Instance(o.box, [[1e308, -1e308]] * len(o.points), [[1e308, -1e308]] * len(o.negative_points)) for o in right
    ]
    yield "points far away", said(listing(name, far or [whole]), look), 0.5
    if spec.negatives:
        yield "no negatives", said(listing(name, [Instance(o.box, o.points) for o in right] or [whole]), look), 1.0
        same = [Instance(o.box, o.points, o.negative_points[:1] * 2) for o in right]
        yield "one negative twice", said(listing(name, same or [whole]), look), 1.0
        on = [Instance(o.box, o.points, o.points) for o in right]
        yield "negatives on the object", said(listing(name, on or [whole]), look), 1.0
        yield (
            "negatives for one",
            said(listing(name, [*right[:1], *[Instance(o.box, o.points) for o in right[1:]]] or [whole]), look),
            1.0,
        )


CASES = [(name, False) for name in NAMES] + [("genseg", True), ("genseg-g", True)]


@pytest.mark.parametrize(("name", "no_target"), CASES)
def test_no_trick_beats_the_right_answer(name, no_target):
    target, right = world(name, no_target)
    text = write_answer(right, name, "I see <look>it</look>", digits=None)
    queue = RankQueue()
    for x in np.random.default_rng(0).random((200, 3)):
        queue.push(x)
    queue.flush()
    for options in [{}, {"queue": queue}] if name == "drseg" else [{}]:
        score = lambda text, iou, o=options: rewards.REWARDS[name](  # noqa: E731
            parse_answer(text, name).rescaled(target.frame, target.frame), target, iou, **o
        )
        best = score(text, 1.0)
        assert sum(best.values()) == rewards.maximum(name, no_target), best
        if not no_target:
            most = rewards.maximum_parts(name, no_target)
            weights = rewards.DEFAULT_WEIGHTS.get(name, {})
            assert {k: v for k, v in best.items() if v} == {k: v * weights.get(k, 1) for k, v in most.items() if v}
        seen = 0
        for what, trick, iou in tricks(name, target, right):
            if no_target and trick in (text, NOTHING):
                continue
            with np.errstate(all="raise"):  # 1e308 must not overflow on the way
                parts = score(trick, iou)
            assert all(type(v) is float and math.isfinite(v) for v in parts.values()), what
            assert LOWEST.get(name, 0) <= sum(parts.values()) <= sum(best.values()), (what, parts)
            seen += 1
            # Whatever costs quality costs reward; these alone break no rule of their recipe.
            harmless = {
                "two blocks",
                "said often",
                "said for a megabyte",
                "rambling",
                "prompt's words",
                "prose after",
                "no reasoning",
                "right answer twice",
                "one negative twice",
                "negatives for one",
            }
            assert sum(parts.values()) < sum(best.values()) or what in harmless, (what, parts)
        assert seen > 25


@pytest.mark.parametrize(("name", "no_target"), CASES)
def test_tricks_that_each_reward_names(name, no_target):
    if no_target:
        return
    target, right = world(name)
    score = {
        what: rewards.REWARDS[name](parse_answer(t, name), target, iou) for what, t, iou in tricks(name, target, right)
    }
    total, best = {what: sum(parts.values()) for what, parts in score.items()}, rewards.maximum(name)
    assert total["no reasoning"] < best and total["prose after"] < best  # think-then-answer and nothing else
    if name in ("visionreasoner", "drseg", "genseg", "genseg-g"):
        assert total["right answer twice"] < best and total["said often"] < best and total["said for a megabyte"] < best
    if name in ("drseg", "genseg", "genseg-g"):
        assert score["prompt's words"]["non_repeat"] == 0
    assert total["prompt's example"] < best / 2 + 1  # the example of the prompt is not an answer


def test_an_honest_answer_off_by_a_little_beats_every_trick_off_by_a_lot():
    for name in NAMES:
        target, right = world(name)
        near = [Instance([v + 3 for v in o.box], o.points, o.negative_points) for o in right]
        near_total = sum(
            rewards.REWARDS[name](
                parse_answer(said(listing(name, near), "<look>it</look>"), name), target, 0.9
            ).values()
        )
        for what, trick, iou in tricks(name, target, right):
            if iou <= 0.3:
                assert sum(rewards.REWARDS[name](parse_answer(trick, name), target, iou).values()) < near_total, (
                    name,
                    what,
                )


def test_maximum_refuses_what_cannot_be_answered():
    for name in NAMES:
        if not rewards.SCHEMAS[name].no_target:
            with pytest.raises(ValueError, match="without target"):
                rewards.maximum(name, no_target=True)
    assert rewards.maximum("genseg-g") == 21 and rewards.maximum("genseg-g", True) == 16
    assert rewards.maximum("genseg-g", weights={"negative": 0, "think": 3}) == 13


# ------------------------------------------------------------------------------------------------------- Dr. Seg's
# queue


def slow_rank(rows, x):
    """Eq. 10-12 as they stand."""
    q = [sum(s[j] <= x[j] for s in rows) / len(rows) for j in range(len(x))]
    return sum(q) / len(q)


def test_the_queue_equals_the_equations():
    rng = np.random.default_rng(5)
    queue, rows = RankQueue(size=50, dims=3, initial_zeros=12), [(0.0, 0.0, 0.0)] * 12
    for _ in range(12):
        step = [tuple(x) for x in rng.random((12, 3)).round(1).tolist()]  # rounded: ties
        for x in step:
            # every completion against the same history
            assert queue.rank(x) == pytest.approx(slow_rank(rows, x), abs=1e-12)
            queue.push(x)
        queue.flush()
        rows = (rows + step)[-50:]  # first in, first out
        assert list(queue.rows) == rows and queue.pending == []


def test_the_paper_s_start():
    queue = RankQueue()
    assert len(queue.rows) == 128 and queue.rows.maxlen == 2048
    assert queue.rank((0, 0, 0)) == 1.0  # everything equals the zeros it is ranked against
    queue.flush([(0.5, 0.5, 0.5)] * 128)
    assert queue.rank((0.4, 0.5, 0.6)) == pytest.approx((0.5 + 1 + 1) / 3)
    assert RankQueue(initial_zeros=0).rank((0.1, 0.2, 0.3)) == 1.0


def test_the_queue_survives_a_checkpoint_in_the_middle_of_a_step():
    rng = np.random.default_rng(8)
    queue = RankQueue(20, 3, 5)
    for x in rng.random((17, 3)):
        queue.push(x)
    queue.flush()
    queue.push((0.1, 0.2, 0.3))
    resumed = RankQueue()
    resumed.load_state_dict(json.loads(json.dumps(queue.state_dict())))
    for _ in range(3):
        x = rng.random(3)
        assert queue.rank(x) == resumed.rank(x)
        queue.push(x)
        resumed.push(x)
    queue.flush()
    resumed.flush()
    assert queue.state_dict() == resumed.state_dict() and len(resumed.rows) == 20  # full: the zeros have gone
    assert (0.1, 0.2, 0.3) in resumed.rows


def test_a_truth_without_points_is_far_from_every_point():
    bare = Target(np.array([[10.0, 10, 50, 50]]), np.zeros((1, 0, 2)))
    answer = parse_answer(
        '<think></think><answer>[{"bbox_2d": [10, 10, 50, 50], "point_2d": [30, 30]}]</answer>', "drseg"
    )
    assert rewards.drseg_metrics(answer, bare) == (1.0, 1.0, 0.0)
    assert rewards.visionreasoner_reward(answer, bare)["accuracy"] == 2


def test_queue_refuses_vectors_of_another_length():
    queue = RankQueue(size=4, dims=3)
    with pytest.raises(ValueError, match="1 components for a queue of 3"):
        queue.push([1.0])
    other = RankQueue(size=4, dims=1)  # what is loaded says how many there are
    other.push([0.5])
    queue.load_state_dict(other.state_dict())
    queue.push([0.5])
    queue.flush()
    assert queue.rank([0.4]) == 0.5  # two of the four rows are zeros


# --------------------------------------------------------------------------------------------- edges, each with a story


def test_look_counts_in_the_reasoning_only_and_needs_something_visible():
    box = '[{"bbox_2d": [0, 0, 9, 9], "point_2d": [4, 4]}]'
    target = target_of([[0, 0, 9, 9]], [[[4, 4]]])
    for thought, answer, looks in (
        ("<look>the mug</look>", box, True),
        ("<look>杯</look>", box, True),
        ("<look></look>", box, False),
        ("<look> … ‌</look>", box, False),  # a zero-width character is no look
        ("no", box + "<look>the mug</look>", False),
        ("<look>open", box, False),
    ):
        read = parse_answer(f"<think>{thought}</think><answer>{answer}</answer>", "drseg")
        assert rewards.drseg_reward(read, target)["look"] == looks, thought
    elsewhere = parse_answer(f"<look>a mug</look><think>no</think><answer>{box}</answer>", "drseg")
    assert rewards.drseg_reward(elsewhere, target)["look"] == 0
    # The released code: with anything in it, in the thought or in the answer.
    assert rewards.drseg_reward(elsewhere, target, released=True)["look"] == 0
    for thought, answer, looks in (
        ("<look>...</look>", box, True),
        ("<look> </look>", box, False),
        ("no", box + "<look>the mug</look>", True),
    ):
        read = parse_answer(f"<think>{thought}</think><answer>{answer}</answer>", "drseg")
        assert rewards.drseg_reward(read, target, released=True)["look"] == looks, thought


def test_look_to_confirm_and_ranking_are_switched_one_by_one():
    """Dr. Seg Table 4, its 2 x 2: neither, look alone, ranking alone, both."""
    target = target_of([[0, 0, 400, 400]], [[[150, 150]]])
    text = '<think><look>it</look></think><answer>[{"bbox_2d": [0, 0, 400, 400], "point_2d": [150, 150]}]</answer>'
    answer = parse_answer(text, "drseg")
    plain = rewards.visionreasoner_reward(answer, target)
    assert rewards.visionreasoner_reward(answer, target, look=True) == plain | {"look": 1}
    both = rewards.drseg_reward(answer, target)
    assert rewards.drseg_reward(answer, target, look=False) == {k: v for k, v in both.items() if k != "look"}
    for name, look in (("visionreasoner", False), ("visionreasoner", True), ("drseg", False), ("drseg", True)):
        earned = rewards.REWARDS[name](answer, target, look=look)
        assert sum(earned.values()) == rewards.maximum(name, look=look)


def test_visionreasoner_by_degrees_equals_the_definition():
    """Dr. Seg Table 1, appendix A: IoU, g of the box's L1, g of the points' distance; matched by their sum."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        n, m = rng.integers(1, 4, 2)
        boxes, true = (np.sort(rng.uniform(0, 400, (k, 2, 2)), 1).reshape(k, 4) for k in (n, m))
        points, true_points = (rng.uniform(0, 400, (k, 1, 2)) for k in (n, m))
        answer, target = answer_of(boxes.tolist(), points.tolist()), target_of(true, true_points)
        degrees = np.zeros((n, m))
        for i in range(n):
            for j in range(m):
                iou = rewards.box_iou(boxes[i], true[j])
                l1 = np.abs(boxes[i] - true[j]).mean()
                far = math.dist(points[i, 0], true_points[j, 0])
                x, y = points[i, 0]
                inside = boxes[i][0] <= x <= boxes[i][2] and boxes[i][1] <= y <= boxes[i][3]
                g = lambda d: min(max((200 - d) / 170, 0), 1)  # noqa: E731
                degrees[i, j] = iou + g(l1) + g(far) * inside
        import itertools

        small, large = sorted((n, m))
        grid = degrees if n <= m else degrees.T
        orders = itertools.permutations(range(int(large)), int(small))
        best = max(sum(grid[i, j] for i, j in enumerate(c)) for c in orders)
        parts = rewards.visionreasoner_reward(answer, target, continuous=True)
        assert parts["accuracy"] == pytest.approx(best / large, abs=1e-9)


def test_components_may_be_none():
    """Dr. Seg Table 10, first row: format alone. Once a division by zero."""
    target = target_of([[0, 0, 9, 9]], [[[4, 4]]])
    answer = parse_answer(said([{"bbox_2d": [0, 0, 9, 9], "point_2d": [4, 4]}]), "drseg")
    for released in (False, True):
        assert rewards.drseg_reward(answer, target, components=(), released=released)["accuracy"] == 0
    assert rewards.maximum("drseg", components=()) == 4


def test_one_object_means_one():
    """[], and fifty copies, are malformed where a request has one target: both once earned SAM-R1's format part."""
    one = {"bbox_2d": [0, 0, 9, 9], "point_2d": [4, 4], "label": "it"}
    target = target_of([[0, 0, 9, 9]], [[[4, 4]]], mask=np.ones((9, 9), bool))
    for objects, ok in (([one], True), ([], False), ([one] * 2, False), ([one] * 50, False)):
        answer = parse_answer(said(objects), "samr1")
        assert answer.answer_ok == ok and len(answer.instances) == ok
        assert rewards.samr1_reward(answer, target, 1.0)["format"] == (1 if ok else -1)
    assert parse_answer(said([]), "drseg").no_target and not parse_answer(said([]), "samr1").no_target
    with pytest.raises(rewards.CannotSay):
        write_answer([], "samr1")


def test_a_queue_is_not_broken_by_a_row_of_another_length():
    queue = RankQueue(size=4, dims=3)
    before = queue.state_dict()
    with pytest.raises(ValueError, match="2 components for a queue of 3"):
        queue.flush([[1, 2, 3], [1, 2]])
    assert queue.state_dict() == before
    queue.flush([[0.5, 0.5, 0.5]])
    assert queue.rank([0.6, 0.6, 0.4]) == pytest.approx((1 + 1 + 0.75) / 3)


@pytest.mark.parametrize(
    "given,words",
    [
        (dict(boxes=np.zeros(4), points=np.zeros((1, 1, 2))), "boxes of shape"),
        (dict(boxes=np.zeros((1, 5)), points=np.zeros((1, 1, 2))), "boxes of shape"),
        (dict(boxes=np.zeros((2, 4)), points=np.zeros((1, 1, 2))), "points of shape"),
        (dict(boxes=np.zeros((1, 4)), points=np.zeros((1, 2))), "points of shape"),
        (dict(boxes=np.zeros((1, 4)), points=np.zeros((1, 1, 2)), mask=np.zeros((1, 4, 4))), "a mask of shape"),
        (dict(boxes=np.zeros((0, 4)), points=np.zeros((0, 1, 2))), "no_target is False with 0 boxes"),
        (dict(boxes=np.zeros((1, 4)), points=np.zeros((1, 1, 2)), no_target=True), "no_target is True with 1 boxes"),
    ],
)
def test_a_target_of_wrong_shape_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Target(**given)


def test_a_reward_without_a_maximum_is_said_in_a_sentence():
    with pytest.raises(ValueError, match="'mine' has no maximum: put what a right answer earns into rewards.MAXIMUM"):
        rewards.maximum("mine")


def test_what_is_no_number_is_not_ranked():
    """A NaN once ranked best of all, and one in the queue broke its order."""
    queue = RankQueue(size=4, dims=2)
    for bad in ((math.nan, 0), (math.inf, 0)):
        for call in (queue.push, queue.rank, lambda x: queue.flush([x])):
            with pytest.raises(ValueError, match="not of finite numbers"):
                call(bad)
    with pytest.raises(ValueError, match="1 components for a queue of 2"):
        RankQueue(dims=2, initial_zeros=0).rank([0.5])


def test_misspelt_names_and_impossible_masks_are_said():
    target = target_of([[0, 0, 9, 9]], [[[4, 4]]])
    answer = parse_answer(said([{"bbox_2d": [0, 0, 9, 9], "point_2d": [4, 4], "label": "it"}]), "samr1")
    with pytest.raises(ValueError, match="weights for lok, which is no part: look, think"):
        rewards.drseg_reward(answer, target, weights={"lok": 0.0})
    for iou in (math.nan, 80, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            rewards.samr1_reward(answer, target, iou)
    with pytest.raises(ValueError, match="no schema 'dr-seg'; there are: lens"):
        parse_answer("", "dr-seg")
    with pytest.raises(ValueError, match="not a finite number"):
        target_of([[0, 0, math.nan, 9]], [[[4, 4]]])
    with pytest.raises(ValueError, match="second corner lies before its first"):
        target_of([[50, 50, 20, 20]], [[[4, 4]]])  # x, y, width, height


def test_the_box_iou_that_is_measured_takes_the_best_box_for_each_true_one():
    boxes = [[0.0, 0, 10, 10], [50.0, 50, 70, 60]]
    truth = target_of(np.array(boxes), np.zeros((2, 1, 2)))
    none = np.zeros((0, 4)), np.zeros((0, 1, 2))
    cases = {1.0: boxes[::-1], 0.5: [boxes[0], boxes[0]], 0.25: [[0.0, 0, 10, 5], [0.0, 0, 10, 2]], 0.0: []}
    for expected, written in cases.items():
        answer = answer_of(written, [[[5.0, 2.0]]] * len(written))
        assert rewards.best_box_iou(answer, truth) == pytest.approx(expected)
    assert np.isnan(rewards.best_box_iou(answer_of(boxes, [[[5.0, 2.0]]] * 2), target_of(*none)))
