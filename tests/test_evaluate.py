# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""evaluate.py: metrics against tables worked by hand and slow twins; files, processes, checkpoints by running it."""

import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import grpo
import model as models
import recipes
import rewards
import train
from benchmarks import metrics, overlap, published, records, report
from engine.checkpoint import load_recipe, save_recipe, weights_digest
from toy import make

ROOT = Path(__file__).parents[1]
HELD_OUT = data.load("toy", None, "val")
DRSEG = recipes.miniature(recipes.RECIPES["drseg"])
LENS = recipes.miniature(recipes.RECIPES["lens"])


def record(intersection=None, union=None, area=0, *, none=False, ok=True, said_none=False, **more) -> dict:
    """A record with only what metrics read. none: nothing fits in truth; said_none: the answer says so."""
    iou = None if intersection is None else metrics.iou_of(intersection, union, said_none)
    base = dict(
        index=0,
        image_id="0",
        query="q",
        width=100,
        height=100,
        truth_boxes=[],
        boxes=[],
        count=None,
        crowds=[],
        iou=iou,
        intersection=intersection,
        union=union,
        area=area,
        truth_none=none,
        answer_ok=ok,
        answerable=True,
        is_sentence=None,
        predicted_none=said_none,
        think_ok=True,
        length=5,
        text="a b c",
        looks=[],
    )
    return base | more


# ---------------------------------------------------------------------------------------------------------- metrics


def test_segmentation_rules_by_hand():
    table = [
        record(50, 100, 60),  # a mask, half right
        record(20, 20, 20),  # all right
        record(0, 40, 0, ok=False),  # target, unparsable
        record(0, 30, 0, said_none=True),  # target, "nothing fits"
        record(0, 0, 0, none=True, said_none=True),  # none, and said so: 1 in gIoU, nothing in cIoU
        record(0, 25, 25, none=True),  # none, and a mask: its area enters the union
        record(0, 0, 0, none=True, ok=False),  # none, unparsable: wrong, though its mask is empty
        record(0, 0, 0, none=True),  # none, and a box whose mask came out empty: wrong too
        record(),  # boxes only: asked, and no part in the figures
    ]
    m = metrics.segmentation_metrics(table)
    expected = dict(
        n=9,
        n_target=5,
        n_no_target=4,
        parse_failures=2,
        read_leniently=0,
        explicit_empty=2,
        false_negatives=1,
        mask_n=8,
        giou=2.5 / 8,
        ciou=70 / 215,
        miou=1.5 / 4,
        target_miou=1.5 / 4,
        target_ciou=70 / 190,
        p50=3 / 8,
        p70=2 / 8,
        p90=2 / 8,
        n_acc=1 / 4,
        t_acc=2 / 4,
        answerable_n=8,
        answerable_giou=2.5 / 8,
    )
    assert m == expected
    table[2]["answerable"] = table[6]["answerable"] = False  # what the format has no words for: wrong in giou
    m = metrics.segmentation_metrics(table)
    assert (m["giou"], m["answerable_n"], m["answerable_giou"]) == (2.5 / 8, 6, 2.5 / 6)
    assert metrics.segmentation_metrics([])["giou"] is None


def test_refusals_alone_make_no_giou():
    """Boxes alone, and lines on which nothing fits: their masks are known (empty). gIoU was the share of refusals, and
    the best checkpoint the one that refused everything."""
    box = [0, 0, 9, 9]
    seen = record(truth_boxes=[box], boxes=[box])
    right = [seen] * 9 + [record(0, 25, 25, none=True, boxes=[box])]
    refusing = [record(truth_boxes=[box], boxes=[], said_none=True)] * 9 + [record(0, 0, 0, none=True, said_none=True)]
    scores = {}
    for when, table, n_acc, iou in (("1", refusing, 1, 0), ("2", right, 0, 1)):
        m = metrics.segmentation_metrics(table) | {"box_miou": metrics.box_miou(table)}
        assert (m["mask_n"], m["giou"], m["p50"], m["answerable_giou"], m["miou"]) == (0, *[None] * 4)
        assert (m["n_acc"], m["box_miou"]) == (n_acc, iou)
        assert "masks: over" not in published.show(m, {"dataset": "jsonl", "split": "val"})
        scores[when] = m
    assert train.best_of({"before": scores["2"]} | scores) == "2"
    assert "100.00 2" in train.told(scores) and "no mask that a gIoU" in train.told(scores)


def test_order_changes_no_digit():
    rng = np.random.default_rng(0)
    table = [record(int(i), int(i + j), int(i)) for i, j in rng.integers(1, 999, (500, 2))]
    shuffled = [table[i] for i in rng.permutation(500)]
    assert metrics.segmentation_metrics(table) == metrics.segmentation_metrics(shuffled)
    assert metrics.mean([1e16, 1.0, -1e16]) == 1 / 3


def test_false_negatives_are_explicit():
    """GenSeg's 3 of 642: "nothing fits" said of what is there; what could not be read is none, nor is a right one."""
    table = [record(0, 9, 0, said_none=True)] * 3 + [
        record(0, 9, 0, ok=False),
        record(0, 0, 0, none=True, said_none=True),
    ]
    m = metrics.segmentation_metrics(table)
    assert (m["false_negatives"], m["explicit_empty"], m["parse_failures"], m["n_target"]) == (3, 4, 1, 4)


def test_short_and_long_queries_apart():
    table = [
        record(1, 2, 1, is_sentence=False),
        record(9, 10, 9, is_sentence=True),
        record(0, 10, 0, is_sentence=True),
        record(5, 5, 5),  # a set that does not say
    ]
    m = metrics.segmentation_metrics(table)
    assert (m["short_n"], m["short_giou"], m["short_ciou"]) == (1, 1 / 2, 1 / 2)
    assert (m["long_n"], m["long_giou"], m["long_ciou"]) == (2, 0.9 / 2, 9 / 20)
    assert "short_n" not in metrics.segmentation_metrics(table[3:])


def sample_of(mask: np.ndarray, **more) -> data.Sample:
    h, w = mask.shape
    masks, boxes = ([data.encode_rle(mask)], [data.box_of(mask)]) if mask.any() else ([], [])
    photo = Image.new("RGB", (w, h))
    boxes = np.array(boxes).reshape(-1, 4)
    return data.Sample(
        "q",
        boxes,
        np.zeros((len(boxes), 0, 2)),
        "id",
        "7",
        w,
        h,
        lambda: photo,
        masks,
        no_target=not mask.any(),
        **more,
    )


def test_ignored_pixels_are_in_neither_count():
    rng = np.random.default_rng(1)
    truth, found, ignore = rng.random((3, 9, 11)) < 0.4
    r = evaluate.make_record(
        0,
        sample_of(truth, ignore_mask=data.encode_rle(ignore)),
        evaluate.Prediction("", rewards.Answer("", answer_ok=True), found, 3),
    )
    both = either = area = 0
    for t, f, skip in zip(truth.ravel(), found.ravel(), ignore.ravel(), strict=True):  # the slow twin
        if not skip:
            both, either, area = both + (t and f), either + (t or f), area + f
    assert (r["intersection"], r["union"], r["area"], r["iou"]) == (both, either, area, both / either)
    json.dumps(r)


def random_boxes(rng, n: int, size: int = 100) -> list[list[float]]:
    corner, side = rng.uniform(0, size / 2, (n, 2)), rng.uniform(5, size / 2, (n, 2))
    return np.hstack([corner, corner + side]).round(1).tolist()


def detections(seed: int = 0) -> list[dict]:
    rng, table = np.random.default_rng(seed), []
    for i in range(40):
        truth = random_boxes(rng, int(rng.integers(1, 4)))
        near = [(np.array(b) + rng.normal(0, 4, 4)).tolist() for b in truth if rng.random() < 0.8]
        boxes = near + random_boxes(rng, int(rng.integers(0, 3)))
        crowd = random_boxes(rng, 1)[0] if i % 5 == 0 else None
        boxes += [crowd] if crowd else []
        table.append(
            record(
                index=i,
                image_id=str(i // 3),
                query=("cat", "dog", "mug")[i % 3],
                truth_boxes=truth,
                boxes=boxes,
                crowds=[crowd] if crowd else [],
            )
        )
    return table


def test_detection_against_pycocotools_on_its_own_format(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    table, names = detections(), {"cat": 1, "dog": 2, "mug": 3}
    xywh = lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]  # noqa: E731
    truth = {
        "images": [{"id": i} for i in range(14)],
        "categories": [{"id": i, "name": n} for n, i in names.items()],
        "annotations": [],
    }
    found = []
    for r in table:
        where = {"image_id": int(r["image_id"]), "category_id": names[r["query"]]}
        for box, crowd in [*[(b, 0) for b in r["truth_boxes"]], *[(b, 1) for b in r["crowds"]]]:
            x, y, w, h = xywh(box)
            truth["annotations"].append(
                {**where, "id": len(truth["annotations"]) + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd}
            )
        found += [{**where, "bbox": xywh(b), "score": xywh(b)[2] * xywh(b)[3] / 1e4} for b in r["boxes"]]
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "f.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "t.json"))
        run = COCOeval(coco, coco.loadRes(str(tmp_path / "f.json")), "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    m = metrics.box_metrics(table, by_query=True)
    assert 0.1 < m["ap"] < 0.9
    assert [m["ap"], m["ap50"], m["ap75"]] == pytest.approx(run.stats[:3], abs=1e-12)


@pytest.mark.parametrize("by_query", [True, False])
def test_ap_does_not_depend_on_the_order_of_records(by_query):
    """Boxes of one size tie in score, and pycocotools breaks ties by what it was given first."""
    table = [
        r | {"boxes": [[x, y, x + 20, y + 20] for x, y, *_ in r["boxes"] + r["truth_boxes"]]} for r in detections()
    ]
    shuffled = [
        metrics.coco_metrics([table[i] for i in np.random.default_rng(s).permutation(40)], by_query) for s in (1, 2)
    ]
    assert metrics.coco_metrics(table, by_query) == shuffled[0] == shuffled[1]


def test_a_huge_box_is_wrong_and_not_ignored():
    r = record(0, boxes=[[0, 0, 10, 10], [0, 0, 1e6, 1e6]], truth_boxes=[[0, 0, 10, 10]])
    m = metrics.coco_metrics([r], by_query=False)
    assert (m["precision"], m["recall"], m["f1"]) == (0.5, 1.0, 2 / 3)


def test_precision_and_recall_against_loops():
    table = [r | {"crowds": []} for r in detections(1)]
    hits = 0
    for r in table:  # one-to-one, the largest box first, each takes the free true box that it overlaps most
        free = list(r["truth_boxes"])
        for box in sorted(r["boxes"], key=lambda b: -(b[2] - b[0]) * (b[3] - b[1])):
            ious = [rewards.box_iou(box, t) for t in free]
            if ious and max(ious) >= 0.5:
                hits += 1
                free.pop(int(np.argmax(ious)))
    written, true = sum(len(r["boxes"]) for r in table), sum(len(r["truth_boxes"]) for r in table)
    m = metrics.box_metrics(table, by_query=True)
    assert (m["precision"], m["recall"], m["f1"]) == (hits / written, hits / true, 2 * hits / (written + true))


def test_boxes_joint_table_and_counts_by_hand():
    truth = [[0, 0, 10, 10]]
    table = [
        record(
            9, 10, 9, index=0, truth_boxes=truth, boxes=[[50, 50, 60, 60], [0, 0, 10, 8]]
        ),  # IoU 0.8: some box is right
        record(1, 10, 9, index=1, truth_boxes=truth, boxes=[[0, 0, 10, 5]]),  # IoU 0.5 exactly: wrong
        record(5, 10, 9, index=2, truth_boxes=truth, boxes=[]),  # LENS: a mask without a right box
        record(0, 0, 0, index=3, none=True, said_none=True),
    ]
    m = metrics.all_metrics(table, "refcoco")
    assert (m["box_n"], m["box_acc"], m["box_miou"], m["n"]) == (3, 1 / 3, pytest.approx(1.3 / 3), 4)
    joint = [m[f"box_{b}_mask_{k}"] for b in ("right", "wrong") for k in ("right", "wrong")]
    assert joint == [1 / 3, 0, 1 / 3, 1 / 3]
    counted = [
        record(count=2, boxes=[[0, 0, 1, 1]] * 2),
        record(count=2, boxes=[[0, 0, 1, 1]]),
        record(count=0, ok=False),
    ]
    assert metrics.all_metrics(counted, "counting")["count_acc"] == 1 / 3


def test_lengths_and_looks():
    m = metrics.answer_metrics([record(text="one two", length=4, looks=["x", "y"]), record(text="three", length=2)])
    assert (m["length_tokens"], m["length_words"], m["look_share"], m["looks"]) == (3, 1.5, 0.5, 1)


# -------------------------------------------------------------------------------------------------- from text to mask


def test_answers_come_back_in_original_pixels():
    text = '<think></think><answer>[{"bbox_2d": [100, 100, 500, 1000], "point_2d": [250, 500]}]</answer>'
    answer = evaluate.to_answer(text, DRSEG, (1000, 1000), (640, 480))
    assert answer.instances[0].box == [64, 48, 320, 480] and answer.instances[0].points == [[160, 240]]
    huge = evaluate.to_answer(text.replace("1000", "1e308"), DRSEG, (10, 10), (640, 480))
    assert not huge.answer_ok and not huge.instances
    # Training reads it alike: it was paid for a format there that here did not count.
    assert not rewards.parse_answer(text.replace("1000", "1e308"), DRSEG.schema).answer_ok
    assert rewards.parse_answer(text.replace("1000", "1e7"), DRSEG.schema).answer_ok


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_oracle_is_perfect_where_the_schema_has_words(name):
    recipe, held = recipes.RECIPES[name], HELD_OUT
    spec = rewards.SCHEMAS[recipe.schema]
    sayable = [i for i in range(60) if len(held[i].boxes) in [1] + [0, 2, 3, 4] * spec.many]
    m = evaluate.evaluate("oracle", "truth", held, recipe, indices=sayable)
    assert (m["giou"], m["parse_failures"], m["n"]) == (1, 0, len(sayable))
    rest = [i for i in range(60) if i not in sayable]
    if rest:  # what it cannot say is unparsable, and scores 0
        m = evaluate.evaluate("oracle", "truth", held, recipe, indices=rest)
        assert (m["giou"], m["parse_failures"]) == (0, len(rest))


def test_data_of_boxes_alone_have_no_true_mask_to_paint():
    sample = next(s for s in map(HELD_OUT.__getitem__, range(60)) if len(s.boxes))
    sample = dataclasses.replace(sample, object_masks=[])
    (r,) = evaluate.answer_samples("oracle", "truth", [sample], DRSEG)
    assert len(r["boxes"]) and r["truth_mask"] is r["iou"] is None


def test_malformed_segzero_predicts_nothing_though_the_parser_keeps_its_box(monkeypatch):
    monkeypatch.setattr(
        evaluate, "oracle_answer", lambda *_: '<think></think><answer>{"bbox": [0, 0, 112, 112]}</answer>'
    )
    r = next(evaluate.answer_samples("oracle", "truth", HELD_OUT, recipes.RECIPES["segzero"], indices=[1]))
    assert (r["boxes"], r["area"], r["iou"], r["answer_ok"]) == ([], 0, 0.0, False)


def test_a_box_read_leniently_is_scored_and_its_answer_a_parse_failure(monkeypatch):
    """LENS's released evaluation takes any four numbers in brackets; how many answers needed that has to be seen."""
    said = iter(["<think></think><answer>[0, 0, 112, 112]</answer>", "<think></think><answer>none</answer>"])
    monkeypatch.setattr(evaluate, "oracle_answer", lambda *_: next(said))
    table = list(evaluate.answer_samples("oracle", "truth", HELD_OUT, LENS, indices=[0, 1]))
    assert [(r["boxes"], r["answer_ok"]) for r in table] == [([[0, 0, 112, 112]], False), ([], False)]
    m = metrics.all_metrics(table, "toy")
    assert (m["parse_failures"], m["read_leniently"], m["n"]) == (2, 1, 2)


@pytest.mark.parametrize(("mode", "kept"), [("box", (0, 0)), ("1", (1, 2)), ("2", (2, 2))])
def test_prompts_mode_cuts_what_sam2_sees(mode, kept):
    class Spy:
        def embed(self, images, chunk=16):
            return None

        def union(self, embeddings, index, answers):
            self.seen = {(len(o.points), len(o.negative_points)) for answer in answers for o in answer}
            return [torch.zeros(112, 112, dtype=torch.bool) for _ in index]

    spy, held = Spy(), HELD_OUT
    one = next(i for i in range(50) if len(held[i].boxes) == 1 and held[i].negative_points(2) is not None)
    list(evaluate.answer_samples("oracle", spy, held, recipes.RECIPES["genseg-g"], indices=[one], prompts_mode=mode))
    assert spy.seen == {kept}


# ---------------------------------------------------------------------------------------------- tiny random networks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """q25/ (a policy with recipe.json, bare/ without), sam2/: random weights, loaded from disk like any checkpoint."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    policy = make.build_policy("qwen2_5_vl")
    for name in ("q25", "bare"):
        policy.save(folder / name)
    save_recipe(dataclasses.replace(DRSEG, max_completion=12), policy, folder / "q25")
    make.save_segmenter(models.build_segmenter(make.SAM2_CONFIG), folder / "sam2")
    policy.context = models.ContextModule(128, 64, num_queries=4, layers=1)
    policy.segmenter = models.load_segmenter(str(folder / "sam2"))
    policy.save(folder / "lens")
    return folder


def tiny_models(tiny: Path, name: str = "q25"):
    policy = models.load_policy(str(tiny / name), image_size=112, segmenter=str(tiny / "sam2")).eval()
    return policy, policy.segmenter or models.load_segmenter(str(tiny / "sam2"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_size_does_not_change_answers(tiny, temperature):
    policy, segmenter = tiny_models(tiny)
    texts = []
    for batch_size in (1, 3):
        records = evaluate.answer_samples(
            policy,
            segmenter,
            HELD_OUT,
            DRSEG,
            indices=[4, 0, 9, 7],
            batch_size=batch_size,
            temperature=temperature,
            max_new_tokens=10,
        )
        texts.append([(r["index"], r["text"], r["length"], r["mask"]) for r in records])
    assert texts[0] == texts[1]
    assert [t[0] for t in texts[0]] == [4, 0, 9, 7]
    assert temperature == 0 or len({t[1] for t in texts[0]}) == 4  # each sample has random numbers of its own


def test_lens_masks_packed_as_alone(tiny):
    """Four completions of two prompts in two rows, and each in a row of its own: the same masks' logits."""
    policy, segmenter = tiny_models(tiny, "lens")
    held = HELD_OUT
    images = [held[0].image, held[1].image]
    prompts = policy.encode(images, [data.build_prompt("the red cross", "lens", "pixels"), "hi"])
    embeddings = segmenter.embed(images)
    ids = torch.tensor([[[300, 301, 302], [400, 0, 0]], [[310, 311, 312], [310, 305, 304]]])
    rollout = grpo.Rollout(ids, torch.ones(2, 2, 3, dtype=torch.bool), torch.zeros(2, 2, 3))
    rollout.mask[0, 1, 1:] = False  # a shorter one
    found = []
    for longest in (10_000, 1):  # tokens of a row
        for micro in models.pack_rollout(policy, prompts, rollout, max_row_tokens=longest, rows_per_batch=1):
            index = torch.tensor([p for p, _ in micro.completions])
            logits = policy(micro.rows, embeddings=embeddings, index=index)[2]
            found.append(dict(zip(micro.completions, logits, strict=True)))
    together, alone = {}, {}
    for part in found:
        (together if len(together) < 4 else alone).update(part)
    assert together.keys() == alone.keys() == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for at, logits in together.items():
        assert torch.allclose(logits, alone[at], atol=1e-4)
    assert not torch.allclose(together[0, 0], together[0, 1])  # the completion matters
    query_masks = models.masks_from_queries(
        policy, models.pack_rollout(policy, prompts, rollout, max_row_tokens=9999, rows_per_batch=1), embeddings
    )
    for at, mask in query_masks.items():
        assert mask.shape == (112, 112) and torch.equal(mask, segmenter.resize(together[at], (112, 112)) > 0)
    together[0, 0].sum().backward()
    assert policy.context.queries.grad.abs().sum() > 0


def test_lens_mask_does_not_need_a_readable_text(tiny):
    policy, segmenter = tiny_models(tiny, "lens")
    r = next(evaluate.answer_samples(policy, segmenter, HELD_OUT, LENS, indices=[1], max_new_tokens=4))
    assert not r["answer_ok"] and r["boxes"] == []
    assert r["area"] > 0 and r["iou"] == r["intersection"] / r["union"]


# -------------------------------------------------------------------------------------------------------- the command


def run(capsys=None, **options) -> str:
    evaluate.main(evaluate.Options(**options))
    return capsys.readouterr().out if capsys else ""


def test_score_equals_run_to_the_last_digit(tmp_path, capsys):
    asked = dict(model="oracle", recipe="genseg", toy=True, segmenter="truth", limit=40, output_dir=str(tmp_path))
    table = run(capsys, **asked)
    again = run(capsys, score=str(tmp_path / "predictions.jsonl"))
    assert table.startswith(again.rstrip("\n")) and "giou" in again
    found = records.read_records(tmp_path / "predictions.jsonl")
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics.all_metrics(found, "toy")
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["recipe"]["schema"] == "genseg" and {"torch", "transformers", "sam2"} <= set(kept["versions"])
    assert kept["limit"] == len(found) == 40


def test_every_metric_is_printed_with_a_word_and_counts_apart_from_percents(tmp_path, capsys):
    asked = dict(model="oracle", recipe="genseg", toy=True, segmenter="truth", limit=12, output_dir=str(tmp_path))
    run(**asked)
    found = records.read_records(tmp_path / "predictions.jsonl")
    found = [r | {"count": 1, "is_sentence": i % 2 == 0} for i, r in enumerate(found)]
    all_of_them = metrics.all_metrics(found, "toy")
    printed = published.show(all_of_them, {"dataset": "toy", "split": "val"}).splitlines()
    assert {name for words in published.WORDS.values() for name in words} == set(all_of_them)
    assert max(map(len, printed)) <= 80 and len(printed) == len(all_of_them) + 4
    under = {how: printed.index(f" {how}") for how in published.WORDS}
    at = {line.split()[0]: i for i, line in enumerate(printed)}
    assert under["percent"] < at["giou"] < at["f1"] < under["on average"] < under["counted"] < at["parse_failures"]
    assert "  parse_failures               0  answers that could not be read" in printed


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    asked = dict(
        model="oracle", recipe="genseg", toy=True, segmenter="truth", limit=30, batch_size=4, output_dir=str(tmp_path)
    )
    run(**asked)
    path = tmp_path / "predictions.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]) + lines[7][:50])  # killed while writing the eighth
    (tmp_path / "predictions.1.jsonl").write_bytes(lines[3] + lines[20])  # and once stopped while merging two files
    answered, make = [], evaluate.make_record
    monkeypatch.setattr(evaluate, "make_record", lambda i, *a: (answered.append(i), make(i, *a))[1])
    run(**asked)
    assert path.read_bytes() == whole and len(answered) == 22
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "predictions.jsonl", "run.json"]
    with pytest.raises(data.BadData, match="temperature: 0.0 there, 1.0 here"):
        run(**asked | {"temperature": 1.0})


@pytest.mark.slow
def test_two_processes_agree_with_one(tiny, tmp_path):
    common = [
        "evaluate.py",
        "--model",
        str(tiny / "q25"),
        "--segmenter",
        str(tiny / "sam2"),
        "--limit",
        "5",
        "--batch_size",
        "2",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    subprocess.run(
        [*launch, *common, "--output_dir", str(tmp_path / "two")], cwd=ROOT, env=env, check=True, capture_output=True
    )
    run(model=str(tiny / "q25"), segmenter=str(tiny / "sam2"), limit=5, batch_size=2, output_dir=str(tmp_path / "one"))
    one, two = ((tmp_path / n / "predictions.jsonl").read_bytes() for n in ("one", "two"))
    assert one == two and one.count(b"\n") == 5


def test_one_photo(tiny, tmp_path, capsys):
    """Two requests, twice: a folder each time, nothing beside the photo, and what cannot be read is said."""
    (tmp_path / "mine").mkdir()
    HELD_OUT[3].image.resize((90, 60)).convert("L").save(tmp_path / "mine" / "p.jpg")
    asked = dict(model=str(tiny / "q25"), segmenter=str(tiny / "sam2"), image=str(tmp_path / "mine" / "p.jpg"))
    asked |= {"query": ("the red one", "<b>it</b>"), "output_dir": str(tmp_path / "seen")}
    out = run(capsys, **asked)
    assert out.count("the answer could not be read") == 2 and str(tmp_path / "seen" / "index.html") in out
    seen = {p.name: p.read_bytes() for p in (tmp_path / "seen").iterdir()}
    run(capsys, **asked | {"query": ("another",)})
    assert seen == {p.name: p.read_bytes() for p in (tmp_path / "seen").iterdir()}
    assert (tmp_path / "seen-2" / "1.mask.png").exists() and [*(tmp_path / "mine").iterdir()] == [
        tmp_path / "mine" / "p.jpg"
    ]
    assert Image.open(tmp_path / "seen" / "2.overlay.png").size == (90, 60)
    assert Image.open(tmp_path / "seen" / "2.mask.png").size == (90, 60)
    page = seen["index.html"].decode()
    assert page.count("<article") == 2 and page.count("the answer could not be read") == 2
    assert "&lt;b&gt;it&lt;/b&gt;" in page and "<b>it</b>" not in page
    assert [r["query"] for r in records.read_records(tmp_path / "seen" / "answers.jsonl")] == list(asked["query"])


def test_an_option_given_twice_is_refused():
    """The second --query took the place of the first, and nobody was told."""
    evaluate.once(["--image", "a.jpg", "--query", "the mug", "all spoons", "--model", "m"])
    for twice in (["--query", "a", "--query", "b"], ["--query=a", "--query", "b"], ["--image", "a", "--image", "b"]):
        with pytest.raises(data.BadData, match=re.escape('one --query "the mug" "all spoons"')):
            evaluate.once(twice)


def test_one_photo_shows_lens_mask_beside_the_boxs(tiny, tmp_path, monkeypatch, capsys):
    policy, segmenter = tiny_models(tiny, "lens")
    text = '<think>There.</think><answer>{"bbox_2d": [10, 10, 60, 60]}</answer>'
    monkeypatch.setattr(policy, "decode", lambda ids, mask: [text] * len(ids))
    HELD_OUT[3].image.save(tmp_path / "p.png")
    options = evaluate.Options(image=str(tmp_path / "p.png"), query=("it",))
    evaluate.photo(policy, segmenter, LENS, tmp_path / "seen", options, {"max_new_tokens": 4})
    mask, box_mask = (np.asarray(Image.open(tmp_path / "seen" / f"1.{n}.png")) > 0 for n in ("mask", "box-mask"))
    picture = Image.open(tmp_path / "p.png")
    expected = segmenter.union(segmenter.embed([picture]), [0], [[rewards.Instance([10, 10, 60, 60])]])[0].numpy()
    assert (box_mask == expected).all() and (mask != box_mask).any()
    page = (tmp_path / "seen" / "index.html").read_text(encoding="utf-8")
    assert "1 object found" in page and page.count("<img") == 2
    assert "the queries&#39; mask" in page and "the box&#39;s mask" in page
    monkeypatch.setattr(policy, "decode", lambda ids, mask: ["no"] * len(ids))
    evaluate.photo(policy, segmenter, LENS, tmp_path / "seen", options, {"max_new_tokens": 4})
    assert "the mask is the context queries', whatever the text" in capsys.readouterr().out


def test_a_runs_folder_is_no_checkpoint(tmp_path):
    asked = evaluate.Options(model=str(tmp_path), dataset="toy")
    with pytest.raises(data.BadData, match="neither recipe.json nor config.json"):
        evaluate.asked_for(asked)
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "trainer.pt").touch()
    with pytest.raises(data.BadData, match="did you mean .*checkpoint-7"):
        evaluate.asked_for(asked)
    (tmp_path / "final").mkdir()
    with pytest.raises(data.BadData, match="did you mean .*final"):
        evaluate.asked_for(asked)
    with pytest.raises(data.BadData, match="no-photo.jpg: there is no such file"):
        evaluate.asked_for(dataclasses.replace(asked, image="no-photo.jpg", query=("it",)))


def test_a_recipe_that_does_not_match_is_refused(tiny):
    assert load_recipe(tiny / "q25") == dataclasses.replace(DRSEG, max_completion=12)
    assert load_recipe(tiny / "q25", DRSEG).max_completion == 12  # the checkpoint's own
    for override, why in [
        (dataclasses.replace(DRSEG, schema="segzero"), "schema 'drseg', and --recipe says 'segzero'"),
        (recipes.RECIPES["drseg"], "image_size 168, and --recipe says 840"),
        (dataclasses.replace(DRSEG, model=recipes.QWEN3_4B), "family 'qwen2_5_vl', and --recipe says 'qwen3_vl'"),
    ]:
        with pytest.raises(data.BadData, match=re.escape(why)):
            load_recipe(tiny / "q25", override)
    with pytest.raises(data.BadData, match="--recipe"):
        load_recipe(tiny / "bare")


def test_the_digest_follows_the_weights(tiny, tmp_path):
    before = weights_digest(tiny / "sam2")
    state = models.load_segmenter(str(tiny / "sam2"))
    state.no_mem_embed.data += 1
    make.save_segmenter(state, tmp_path)
    assert before and before != weights_digest(tmp_path)


def test_choose_and_overlap(tmp_path, capsys):
    world = data.load("toy", None, "test")
    chosen = records.choose(world, (12, 5), 0, 0)
    assert chosen == sorted(set(chosen)) and [world[i].no_target for i in chosen].count(True) == 5 and len(chosen) == 17
    alone = data.Samples([partial(world.__getitem__, i) for i in range(9) if not world[i].no_target], [])
    drawn = records.choose(alone, (3, 0), 0, 0)  # with no sample of the other kind at all
    assert len(drawn) == 3 and all(type(i) is int for i in drawn)
    assert len(records.choose(world, (0, 0), 9, 0)) == 9 and records.choose(world, (0, 0), 9, 0) != records.choose(
        world, (0, 0), 9, 1
    )
    with pytest.raises(data.BadData, match="more than there are"):
        records.choose(world, (9999, 0), 0, 0)

    def broken():
        raise data.BadData("no picture")

    mended = data.Samples([broken, *(partial(world.__getitem__, i) for i in range(40))], [])
    assert 0 not in records.choose(mended, (20, 2), 0, 0)  # of neither kind
    asked = dict(model="oracle", recipe="genseg", toy=True, segmenter="none", limit=8, output_dir=str(tmp_path))
    out = run(capsys, **asked, overlap_with="toy", overlap_split="val")
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert (kept["overlap"]["n"], kept["clean"]["n"]) == (8, 0) and "not in toy val" in out
    assert kept["shared"]["expressions_verbatim"] == kept["shared"]["expressions_on_shared_pictures"] == 8


def test_a_picture_that_breaks_while_answering_is_not_scored(tmp_path, capsys, monkeypatch):
    """Of thousands of pictures a thousand are opened before; one of the others ended the evaluation, every time."""
    world = HELD_OUT
    makers = [partial(world.__getitem__, i) for i in range(12)]

    def broken():
        raise data.BadData("half a picture")

    makers[4] = lambda: dataclasses.replace(world[4], open=broken)
    monkeypatch.setattr(evaluate, "load_samples", lambda run: data.Samples(makers, []))
    monkeypatch.setattr(evaluate, "readable", lambda samples, chosen: (chosen, []))
    asked = dict(model="oracle", recipe="genseg", toy=True, segmenter="truth", output_dir=str(tmp_path))
    assert "not scored: half a picture" in run(capsys, **asked)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept["n"] == 11 and kept["not_scored"] == {"wrong": 1, "skipped": 0, "why": ["half a picture"]}
    again = run(capsys, score=str(tmp_path / "predictions.jsonl"))
    assert again.startswith("toy val without 1 sample that could not be read")
    partly = records.read_run(tmp_path) | {"dataset": "refcocog"}
    assert "Without 1 sample of the set that could not be read." in report.build(tmp_path)
    assert "(not comparable: 1 sample could not be read; the answers are the truth" in published.show(
        kept | {"not_scored": 1}, partly
    )
    makers[:] = [makers[4]]
    with pytest.raises(data.BadData, match="nothing to score"):
        evaluate.main(evaluate.Options(**asked | {"output_dir": str(tmp_path / "none")}))


def test_an_answer_is_asked_again_where_the_pixels_that_do_not_count_have_changed():
    sample = dataclasses.replace(HELD_OUT[1], ignore_mask=None)
    found = next(evaluate.answer_samples("oracle", "truth", [sample], recipes.RECIPES["genseg"]))
    assert records.is_of(found, sample)
    beside = np.zeros((sample.height, sample.width), dtype=bool)
    beside[:3, :5] = True
    assert not records.is_of(found, dataclasses.replace(sample, ignore_mask=data.encode_rle(beside)))
    assert not records.is_of(found, dataclasses.replace(sample, is_sentence=True))


def test_overlap_by_hand():
    tested = [("1", "the red cup"), ("1", "a dog "), ("2", "a dog"), ("3", "A dog")]
    sample = sample_of(np.eye(3, dtype=bool))
    made = [partial(dataclasses.replace, sample, image_id=i, query=q) for i, q in [("1", "a dog"), ("9", "x")]]

    def broken():
        raise data.BadData("no picture")

    there = overlap.seen(data.Samples([made[0], broken, made[1]], []))
    counted = dict(
        pictures=3, pictures_shared=1, expressions=4, expressions_on_shared_pictures=2, expressions_verbatim=2
    )
    assert overlap.overlap(tested, *there) == counted


def test_released_sets_stand_beside_their_rows():
    tested = "visionreasoner-test"
    rows, columns = published.beside(tested, "test", "Ricky06662/ReasonSeg_test")
    assert (rows, columns) == published.beside("reasonseg", "test") and len(rows) > 10
    assert (
        published.beside(tested, "test", "data/ReasonSeg_test/")[0] == rows
        and published.beside(tested, "test", "x")[0] == []
    )
    assert published.beside(tested, "train", "hao05/coconut")[0] == published.PUBLISHED["coconut/val"]
    sources = {row[1] for row in published.beside("counting", "test", "Ricky06662/counting_pixmo_test")[0]}
    assert (
        sources == {"Dr. Seg Table 3 Pixmo"} and len({row[1] for row in published.beside("counting", "test")[0]}) == 2
    )
    assert all(benchmark in published.PUBLISHED for benchmark, _ in published.RELEASED.values())


def test_what_is_not_comparable_says_so():
    run = {"dataset": "coconut", "split": "val", "data_root": "data", "limit": 0}
    m = metrics.segmentation_metrics([record(1, 2, 1)])
    assert "(not comparable: the pictures are drawn" in published.show(m, run)
    released = run | {"dataset": "visionreasoner-test", "data_root": "hao05/coconut"}
    assert "79.6" in published.show(m, released) and "not comparable" not in published.show(m, released)
    assert published.not_comparable(released) == "" != published.not_comparable(run | {"dataset": "grefcoco"})
    assert "a draw of 9" in published.show(m, released | {"limit": 9})
    assert "a draw of 3 + 2" in published.show(m, released | {"make_up": [3, 2]})
    assert "a draw" not in published.not_comparable(
        run | {"dataset": "grefcoco", "make_up": [642, 358]}
    )  # GenSeg's own
    assert "the masks are true ones" in published.show(m, released | {"segmenter": "truth"})
    refcoco = run | {"dataset": "refcocog", "one_expression": True}
    assert "(this run asked one sentence of each reference)" in published.show(m, refcoco)


def test_published_figures_are_in_the_papers():
    texts = {p.stem: p.read_text().splitlines() for p in (ROOT.parent / "shared" / "papers").glob("*.txt")}
    if not texts:
        pytest.skip("the papers' texts are not here")
    tables = [line for line in published.TABLES.strip().splitlines()]
    for line in tables:
        if line[0] != " ":
            paper = next(stem for stem in texts if stem == line.split(" Table")[0].lower().replace(". ", "-"))
            continue
        method = re.split(r" [\d-]", line.strip())[0]
        same = lambda text: [f"{float(v) * (100 if float(v) < 1 else 1):.2f}" for v in re.findall(r"\d+\.\d+", text)]  # noqa: E731
        rows = [set(same(row)) for row in texts[paper] if "".join(method.split()) in "".join(row.split())]
        assert any(set(same(line.replace(method, ""))) <= row | {"0.00"} for row in rows), line
