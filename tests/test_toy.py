# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""How the miniature's policy is taught: where a lesson's words are, and what attention to them costs."""

import shutil

import numpy as np
import pytest
import torch

import data
import model as models
from toy import make, world


@pytest.fixture(scope="module")
def policy():
    return models.load_policy("toy/qwen2_5_vl", image_size=112)


def scene_of_two() -> dict:
    """Two objects of different colours and shapes."""
    scenes = (world.toy_scene(5, i) for i in range(99))
    different = lambda a, b: a["color"] != b["color"] and a["shape"] != b["shape"]  # noqa: E731
    return next(s for s in scenes if len(s["objects"]) == 2 and different(*s["objects"]))


def lesson_of(policy, question: str, answer: str, meant: dict | None) -> make.Lesson:
    tokenizer = policy.processor.tokenizer
    asked = tokenizer(question + "<|im_end|>\n<|im_start|>assistant\n").input_ids
    return make.Lesson(asked, tokenizer(answer + "<|im_end|>").input_ids, meant)


@pytest.mark.parametrize("schema", [None, *make.SCHEMA_MIX])
def test_lookups_stand_where_the_words_and_coordinates_are(policy, schema):
    scene, tokenizer = scene_of_two(), policy.processor.tokenizer
    o = scene["objects"][1]
    if schema is None:
        question, answer, meant = make.locate(scene, (112, 112))[1]
        assert meant is o
    else:
        asked = scene | {"query": f"the {o['color']} {o['shape']}", "targets": [1]}
        question = data.build_prompt(asked["query"], schema, "pixels")
        answer = make.imprecise_answer(asked, schema, (112, 112), np.random.default_rng(0))
    lesson = lesson_of(policy, question, answer, o)
    words = [tokenizer.decode([t]).strip() for t in lesson.asked + lesson.told]
    found = make.lookups(lesson, scene["objects"], tokenizer)
    color, shape = words.index(o["color"]), words.index(o["shape"])
    assert (0, 0, color, [x for x in scene["objects"] if x["color"] == o["color"]]) in found
    assert (0, 1, shape, [x for x in scene["objects"] if x["shape"] == o["shape"]]) in found
    assert (0, 2, shape, color) in found and (1, 0, shape, [o]) in found
    coordinates = [words[at + 1] for layer, head, at, _ in found if (layer, head) == (1, 1)]
    written = answer[answer.find("<answer>") + 1 :]
    assert coordinates == [w for w in tokenizer.tokenize(written) if w.isdigit()] and len(coordinates) >= 4
    nothing = make.lookups(lesson._replace(meant=None), scene["objects"], tokenizer)
    assert nothing == []


def test_coverage_by_hand():
    mask = np.zeros((112, 112), dtype=bool)
    mask[:28, 28:56] = True  # all of token 1
    mask[28:32, :28] = True  # a seventh of token 4
    assert make.coverage([{"mask": mask}], 16) == pytest.approx([0, 1, 0, 0, 3 / 7] + [0] * 11)


def test_attention_loss_is_that_of_the_models_own_attention(policy):
    """Against transformers' eager attention, which returns its weights."""
    scene = scene_of_two()
    prompts = policy.encode([scene["image"]], [make.DESCRIBE])
    told = torch.tensor(policy.processor.tokenizer(make.describe(scene, (112, 112))).input_ids)
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
    """A few steps of the late lessons: loose boxes, points on and beside."""
    shutil.copytree("toy/sam2", tmp_path / "sam2")
    make.train_sam2(tmp_path / "sam2", 6, 8, 1e-4, 20, "cpu", resume=True)
    before, after = (models.load_segmenter(str(folder)) for folder in ("toy/sam2", tmp_path / "sam2"))
    assert not torch.equal(before.mask_decoder.mask_tokens.weight, after.mask_decoder.mask_tokens.weight)
    said = make.probe_sam2(after, 4)
    assert said.startswith("true box 0.9") or said.startswith("true box 0.8"), said
