# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The miniature: its world, what its networks are taught, and what attention costs."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt, label

import data
import model as models
import rewards
from toy import make, world

FRAME = (168, 168)


@pytest.fixture(scope="module")
def policy():
    return models.load_policy("toy/qwen2_5_vl", image_size=168)


def first_of(kind: str, seed: int = 5) -> dict:
    return next(s for s in (world.toy_scene(seed, i) for i in range(99)) if s["kind"] == kind)


# ------------------------------------------------------------------------------------------------------------ the world


def test_what_lies_below_is_hidden_and_most_of_it_is_seen():
    hidden = 0
    for i in range(40):
        objects = world.toy_scene(6, i)["objects"]
        assert 2 <= len(objects) <= 5
        for k, o in enumerate(objects):
            above = np.any([np.zeros((112, 112), bool), *(x["full"] for x in objects[k + 1 :])], 0)
            assert (o["mask"] == (o["full"] & ~above)).all()
            assert o["mask"].sum() >= 0.6 * o["full"].sum() and label(o["mask"])[1] == 1
            hidden += (o["mask"] != o["full"]).any()
    assert hidden > 20


def test_who_wins_a_comparison_wins_clearly():
    """By hand: the smaller by a hair is no winner, and what is mostly hidden is not the largest."""

    def thing(x, y, radius, hide=0):
        full = world.draw_shape("circle", (x, y), radius)
        mask = full.copy()
        mask[:, : int(x - radius) + hide] = False
        return {"center": np.array([x, y]), "radius": radius, "full": full, "mask": mask}

    found = {q: w for _, q, w in world.comparisons([thing(30, 30, 20), thing(80, 34, 12), thing(40, 90, 13)])}
    assert found["the largest shape"] == 0 and found["the smallest shape"] is None
    assert found["the shape at the top"] is None and found["the shape at the bottom"] == 2
    assert found["the shape on the far left"] == 0 and found["the shape on the far right"] == 1
    found = {q: w for _, q, w in world.comparisons([thing(30, 30, 20, 20), thing(80, 34, 17)])}
    assert found["the largest shape"] is None
    assert all(w is None for _, _, w in world.comparisons([thing(30, 30, 20)]))


# ------------------------------------------------------------------------------------------------------------ lessons


def lesson_of(policy, question: str, answer: str, meant: list[dict]) -> make.Lesson:
    tokenizer = policy.processor.tokenizer
    asked = tokenizer(question + "<|im_end|>\n<|im_start|>assistant\n").input_ids
    return make.Lesson(asked, tokenizer(answer + "<|im_end|>").input_ids, meant)


@pytest.mark.parametrize("kind", ["one", "all", "implicit", "size"])
@pytest.mark.parametrize("schema", make.SCHEMA_MIX)
def test_lookups_stand_where_the_words_and_coordinates_are(policy, schema, kind):
    scene, tokenizer = first_of(kind), policy.processor.tokenizer
    meant = make.left_to_right(scene, scene["targets"])
    answer = make.answer_of(scene, schema, FRAME, 4, np.random.default_rng(0))
    if answer is None:
        assert kind == "all" and not rewards.SCHEMAS[schema].many
        return
    lesson = lesson_of(policy, data.build_prompt(scene["query"], schema, "pixels"), answer, meant)
    words = [tokenizer.decode([t]).strip() for t in lesson.asked + lesson.told]
    found = make.lookups(lesson, scene["objects"], tokenizer)
    for layer, head, name, key in ((0, 0, "color", world.COLORS), (0, 1, "shape", world.SHAPES)):
        for at, there in ((at, there) for l, h, at, there in found if (l, h) == (layer, head)):
            word = make.SINGULAR.get(words[at], words[at])
            assert word in key and there == [o for o in scene["objects"] if o[name] == word]
    asked = [(words[at], there) for l, h, at, there in found if (l, h) == (1, 0)]
    assert len(asked) == 1 and asked[0][1] == meant and scene["query"].endswith(asked[0][0])
    # each coordinate looks at its object, and back at the names that the thought has given it
    looks = [(at, there[0]) for l, h, at, there in found if (l, h) == (1, 1)]
    written = [words[at + 1] for at, _ in looks]
    assert written == [w for w in tokenizer.tokenize(answer[answer.find("<answer>") :]) if w.isdigit()]
    each = len(looks) // len(meant)
    assert [o is meant[n // each] for n, (_, o) in enumerate(looks)] == [True] * len(looks)
    back = {at: words[there] for l, h, at, there in found if (l, h) == (0, 2)}
    assert [back[at] for at, _ in looks] == [o["color"] for _, o in looks]
    back = {at: words[there] for l, h, at, there in found if (l, h) == (2, 0)}
    assert [back[at] for at, _ in looks] == [o["shape"] for _, o in looks]


def test_lookups_of_a_place_and_of_nothing(policy):
    scene, tokenizer = first_of("one"), policy.processor.tokenizer
    question, answer, meant = make.locate(scene, FRAME, 4)[0]
    found = make.lookups(lesson_of(policy, question, answer, meant), scene["objects"], tokenizer)
    assert sum((layer, head) == (1, 1) for layer, head, _, _ in found) == 4
    assert [there for layer, head, _, there in found if (layer, head) == (1, 0)] == [meant]
    scene = first_of("absent")
    answer = make.answer_of(scene, "genseg", FRAME, 4, np.random.default_rng(0))
    assert rewards.parse_answer(answer, "genseg").no_target
    lesson = lesson_of(policy, data.build_prompt(scene["query"], "genseg", "pixels"), answer, [])
    assert {(layer, head) for layer, head, _, _ in make.lookups(lesson, scene["objects"], tokenizer)} <= {
        (0, 0),
        (0, 1),
    }


@pytest.mark.parametrize("schema", make.SCHEMA_MIX)
def test_true_answers_are_true_and_biased_ones_are_not(schema):
    """True ones: within half a step of the boxes, points within two pixels of the mask. Biased ones: moved right and
    down, by at most half a side; things left out."""
    rng = np.random.default_rng(0)
    moved, left_out, wrong = [], 0, 0
    for i in range(60):
        scene = world.toy_scene(7, i)
        for biased in (False, True):
            text = make.answer_of(scene, schema, FRAME, 4, rng, biased)
            if text is None:
                continue
            answer = rewards.parse_answer(text, schema).rescaled(FRAME, (112, 112))
            assert answer.answer_ok
            objects = make.left_to_right(scene, scene["targets"])
            if not biased:
                assert len(answer.instances) == len(objects) and answer.no_target == (not objects)
                for o, its in zip(objects, answer.instances, strict=True):
                    assert np.abs(np.array(its.box) - data.box_of(o["mask"])).max() <= 4 / 3 + 1e-9
                    nearby = distance_transform_edt(~o["mask"])
                    assert all(nearby[int(min(y, 111)), int(min(x, 111))] <= 2 for x, y in its.points)
            elif len(objects) == len(answer.instances) == 1:
                box = data.box_of(objects[0]["mask"])
                center = np.array(answer.instances[0].box).reshape(2, 2).mean(0)
                moved.append((center - box.reshape(2, 2).mean(0)) / (box[2:] - box[:2]))
            else:
                left_out += len(answer.instances) < len(objects)
                wrong += bool(answer.instances) and not objects
    assert np.mean(moved) > 0.15 and np.min(moved) > -0.1 and np.max(moved) < 0.55
    spec = rewards.SCHEMAS[schema]
    assert (left_out > 0) == spec.many and (wrong > 0) == spec.no_target


def test_what_the_image_tokens_show_by_hand():
    """One square thing on four tokens of 36."""
    mask = np.zeros((112, 112), dtype=bool)
    mask[56:93, 19:56] = True
    thing = {"color": "blue", "shape": "cross", "center": np.array([37, 74]), "radius": 18, "mask": mask}
    truth = make.seen_truth({"objects": [thing], "image": Image.new("RGB", (112, 112))}, FRAME, 4)
    shown = torch.zeros(6, 6, dtype=torch.bool)
    shown[3:5, 1:3] = True
    assert torch.equal(truth["color"].view(6, 6), shown * 3) and torch.equal(truth["shape"].view(6, 6), shown * 4)
    assert truth["box"].view(6, 6, 4)[3, 1].tolist() == [7, 21, 21, 35]  # 19, 56, 56, 93 of 112, in steps of 4 of 168
    assert not truth["clear"].any() and not truth["wins"].any()


def test_coverage_by_hand():
    mask = np.zeros((112, 112), dtype=bool)
    mask[:28, 28:56] = True  # all of token 1
    mask[28:32, :28] = True  # a seventh of token 4
    assert make.coverage([{"mask": mask}], 16) == pytest.approx([0, 1, 0, 0, 3 / 7] + [0] * 11)


def test_corrective_clicks_by_hand():
    truth, found = np.zeros((2, 40, 40), dtype=bool), np.zeros((2, 40, 40), dtype=bool)
    truth[:, 10:21, 10:21] = True
    found[0, 10:21, 16:21] = True  # the left six columns are missing
    found[1, 10:21, 10:30] = True  # nine columns too much
    points, labels = make.corrective_clicks(found, truth)
    assert labels.tolist() == [[1], [0]]
    assert (
        12 <= points[0, 0, 0] <= 14
        and 24 <= points[1, 0, 0] <= 26
        and ((points[:, 0, 1] > 11) & (points[:, 0, 1] < 20)).all()
    )


def test_attention_loss_is_that_of_the_models_own_attention(policy):
    """Against transformers' eager attention, which returns its weights."""
    scene = first_of("one")
    prompts = policy.encode([scene["image"]], [make.DESCRIBE])
    told = torch.tensor(policy.processor.tokenizer(make.describe(scene, FRAME, 4)).input_ids)
    rows = policy.pack(prompts, [(0, [told, told[:7]])])
    L = rows.ids.shape[1]
    weight = torch.zeros(L)
    weight[3:9] = torch.linspace(0, 1, 6)
    wanted = [
        (0, layer, head, at, weight) for layer, head, at in ((0, 3, L - 1), (1, 1, L - 9), (2, 2, 12), (2, 0, 14))
    ]
    kept = make.watch_attention(policy)
    with torch.no_grad():
        policy(rows)
        got = make.attention_loss(kept, rows, wanted)
        policy.vlm.set_attn_implementation("eager")
        added = torch.zeros(rows.visible.shape).masked_fill(~rows.visible, float("-inf"))
        out = policy.vlm.model(
            input_ids=rows.ids,
            attention_mask=added,
            position_ids=rows.positions,
            pixel_values=rows.pixel_values,
            image_grid_thw=rows.image_grid_thw,
            output_attentions=True,
        )
    loss = {0: [], 1: [], 2: []}
    for _, layer, head, at, _ in wanted:
        loss[layer].append(-float(((out.attentions[layer][0, head, at] * weight).sum() + 1e-3).log()))
    assert float(got) == pytest.approx(sum(np.mean(v) for v in loss.values()), rel=1e-4)


def test_sam2_goes_on_learning(tmp_path):
    """A few steps: noisy boxes, points, clicks."""
    shutil.copytree("toy/sam2", tmp_path / "sam2")
    make.train_sam2(tmp_path / "sam2", 4, 8, 1e-4, 20, "cpu", resume=True)
    before, after = (models.load_segmenter(str(folder)) for folder in ("toy/sam2", tmp_path / "sam2"))
    assert not torch.equal(before.mask_decoder.mask_tokens.weight, after.mask_decoder.mask_tokens.weight)
    found = make.probe_sam2(after, 4)
    assert (
        found["true box"] > 0.8 and found["moved by 0.45"] < found["moved by 0.45, 2 points on it"] < found["true box"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_policy_learns_from_nothing(family, tmp_path, capsys):
    """Two steps of seeing and of answering, one of the bias; what is saved loads."""
    make.train_policy(family, tmp_path / "it", {"see": 2, "answer": 2, "bias": 1}, 1e-3, 6, resume=False)
    said = capsys.readouterr()
    assert said.out.count(f"{family} step") + said.err.count(f"{family} step") == 2
    assert models.load_policy(str(tmp_path / "it"), image_size=make.IMAGE_SIZE[family]).family == family
