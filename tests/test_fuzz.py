# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""A fuzzer over what strangers write: texts of a model, datasets, records, checkpoints, and what is drawn of them.

    pytest tests/test_fuzz.py                  # a few dozen inputs each, the same every time
    FUZZ=3600 pytest -s tests/test_fuzz.py     # an hour, new inputs; prints how many there were

An input may be refused, in data.BadData or CannotLoad, or read; nothing else may come out, and by hand none may take
ten seconds. docs/safety.md says what was tried and what held.
"""

import dataclasses
import functools
import inspect
import io
import json
import math
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import data  # noqa: E402
import evaluate  # noqa: E402
import recipes  # noqa: E402
import rewards  # noqa: E402
from benchmarks import layouts, pictures, records, report  # noqa: E402
from benchmarks.metrics import all_metrics  # noqa: E402
from benchmarks.published import show  # noqa: E402
from engine.checkpoint import load_recipe  # noqa: E402

SECONDS = int(os.environ.get("FUZZ", "0"))
TARGETS = 7


def fuzzed(examples: int, **strategies):
    """Run a test on drawn inputs: `examples` of them, always the same; or with FUZZ=n for its share of n seconds."""

    def around(test):
        count = [0]

        def one(*args, **given):
            count[0] += 1
            if SECONDS:
                signal.alarm(10)
            try:
                test(*args, **given)
            finally:
                if SECONDS:
                    signal.alarm(0)

        one.__signature__ = inspect.signature(test)
        off = list(HealthCheck)
        many = settings(
            max_examples=300 if SECONDS else examples,
            deadline=None,
            database=None,
            derandomize=not SECONDS,
            suppress_health_check=off,
        )
        drawn = many(hypothesis.given(**strategies)(functools.wraps(test)(one)))

        @functools.wraps(drawn)
        def whole(*args, **kwargs):
            end = time.monotonic() + SECONDS / TARGETS
            drawn(*args, **kwargs)
            while time.monotonic() < end:
                drawn(*args, **kwargs)
            if SECONDS:
                print(f"\n{test.__name__}: {count[0]:,} inputs")

        return whole

    return around


@pytest.fixture(autouse=True)
def _hangs(monkeypatch):
    """Ten seconds for one input are a hang."""

    def stop(*_):
        raise TimeoutError("ten seconds for one input")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.signal(signal.SIGALRM, before)


# What hostile numbers and values look like.
NUMBERS = st.one_of(
    st.integers(-10, 1000),
    st.floats(),
    st.sampled_from([0, -1, 1e8, 1e300, -1e300, 1e308, 10**30, 2**31, 2**63, math.nan, math.inf, 0.5, 1e-300]),
)
TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(["\ud800", "\x00", "<script>", "a\n", "é" * 9, "../..", ""]))
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    PLAIN, lambda x: st.one_of(st.lists(x, max_size=5), st.dictionaries(TEXTS, x, max_size=3)), max_leaves=12
)


# ---------------------------------------------------------------------------------------------- what a model may write

PIECES = """<think> </think> <answer> </answer> <look> </look> [ ] { } , : " bbox_2d bbox point_1 point_2 point_2d
    points_1 points_2 negative_1 negative_2 label no_target true null NaN Infinity -1e308 1e7 1e999 [1,2,3,4]
    {"bbox_2d":[1,2,30,40],"point_2d":[3,4]} {"bbox_2d":[1,2,30,40],"point_1":[3,4],"point_2":[5,6]} {"no_target":true}
    {"bbox":[1,2,30,40],"points_1":[3,4],"points_2":[5,6]} </think><answer> goes here 0.0.0 \\ud800""".split()
OBJECTS = st.dictionaries(
    st.sampled_from("bbox_2d bbox point_1 point_2 point_2d points_1 points_2 negative_1 negative_2 label".split()),
    st.one_of(VALUES, st.lists(NUMBERS, min_size=2, max_size=4)),
    max_size=6,
)
ANSWERS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.tuples(st.sampled_from(PIECES), st.integers(1, 2000)).map(lambda x: x[0] * x[1]),
    st.one_of(OBJECTS, st.lists(OBJECTS, max_size=5)).map(
        lambda o: f"<think>a <look>b</look></think><answer>{json.dumps(o)}</answer>"
    ),
)


@fuzzed(80, text=ANSWERS, schema=st.sampled_from(list(rewards.SCHEMAS)), lenient=st.booleans())
def test_parser(text, schema, lenient):
    answer = rewards.parse_answer(text, schema, lenient)
    spec = rewards.SCHEMAS[schema]
    assert not (answer.no_target and answer.instances) and (
        answer.answer_ok or spec.keeps_boxes or lenient or not answer.instances
    )
    for frame in ((1, 1), (840, 840), (28, 16384)):
        moved = answer.rescaled(frame, (16384, 28))
        assert np.isfinite(
            [v for o in moved.instances for xy in (o.box, *o.points, *o.negative_points) for v in xy]
        ).all()
    evaluate.to_answer(text, dataclasses.replace(recipes.RECIPES["drseg"], schema=schema), (112, 112), (640, 480))


@fuzzed(
    100,
    text=ANSWERS,
    name=st.sampled_from(list(recipes.RECIPES)),
    corners=st.lists(st.tuples(*[st.floats(0, 400)] * 4), max_size=4),
    iou=st.one_of(st.none(), st.floats(0, 1)),
    released=st.booleans(),
)
def test_rewards(text, name, corners, iou, released):
    recipe = dataclasses.replace(recipes.RECIPES[name], released=released)
    spec = rewards.SCHEMAS[recipe.schema]
    boxes = np.array([(x, y, x + w + 1, y + h + 1) for x, y, w, h in corners], dtype=float).reshape(-1, 4)
    boxes = boxes if spec.many and (spec.no_target or len(boxes)) else np.array([[10.0, 10, 90, 90]])
    points = np.repeat((boxes[:, None, :2] + boxes[:, None, 2:]) / 2, max(len(spec.points), 1), axis=1)
    target = rewards.Target(boxes, points, np.eye(64, dtype=bool), no_target=not len(boxes))
    answer = rewards.parse_answer(text, recipe.schema)
    queue = rewards.RankQueue(64, 3, 8)
    parts = recipes.reward_parts(recipe, answer, target, iou, queue)
    assert all(type(v) is float and math.isfinite(v) for v in parts.values()), parts
    most = rewards.maximum(recipe.reward, target.no_target, **recipes.reward_options(recipe))
    assert sum(parts.values()) <= most + 1e-6, (parts, most)


@fuzzed(
    60,
    boxes=st.lists(st.lists(NUMBERS, min_size=4, max_size=4), max_size=20),
    points=st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=20),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_drawing(boxes, points, size):
    picture = Image.new("RGB", size)
    mask = np.zeros(size[::-1], dtype=bool)
    found = [np.array([[float(v) for v in xy] for xy in part]) for part in (boxes, points)]
    assert pictures.overlay(picture, mask, ~mask, *found, found[1], mask).size == size


# ------------------------------------------------------------------------------------------------------ what files hold

COUNTS = st.one_of(
    st.text(max_size=12), st.lists(NUMBERS, max_size=6), st.sampled_from(["0" * 9, "`", "o" * 30, "PP\x00"])
)
SIZES = st.one_of(VALUES, st.lists(st.sampled_from([30, 40, 0, -1, 10**6, 2**31, 1.5]), min_size=2, max_size=2))
RLES = st.fixed_dictionaries({"size": st.one_of(st.just([30, 40]), SIZES), "counts": COUNTS})
POLYGONS = st.lists(st.one_of(VALUES, st.lists(st.one_of(st.none(), NUMBERS), max_size=10)), max_size=3)
BOXES = st.lists(st.one_of(st.just([1, 2, 20, 25]), st.lists(NUMBERS, min_size=4, max_size=4), VALUES), max_size=3)
LINES = st.fixed_dictionaries(
    {},
    optional={
        "image": st.one_of(st.just("a.png"), TEXTS),
        "query": st.one_of(st.just("the cup"), VALUES),
        "boxes": st.one_of(BOXES, VALUES),
        "points": VALUES,
        "polygons": st.one_of(st.lists(POLYGONS, max_size=3), VALUES),
        "rle": st.one_of(st.lists(RLES, max_size=3), VALUES),
        "count": VALUES,
        "no_target": VALUES,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place with a picture, a.png, of 40 x 30."""
    path = tmp_path_factory.mktemp("fuzz")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path / "a.png")
    return path


def looked_at(samples) -> None:
    """All that a run would ask of a dataset's samples."""
    for sample in samples:
        sample.image, sample.mask, sample.negative_points(1)
        if len(sample.boxes) and (sample.points.shape[1] or sample.object_masks):
            sample.positive_points(2)
        assert isinstance(sample.query, str) and np.isfinite(sample.boxes).all()
        recipes.usable([sample], recipes.RECIPES["genseg-g"])


@fuzzed(60, line=LINES)
def test_json_lines(folder, line):
    (folder / "train.jsonl").write_text(json.dumps({"image": "a.png", "query": "x"} | line) + "\n", encoding="utf-8")
    try:
        looked_at(data.load("jsonl", folder, "train"))
    except data.BadData:
        pass


@st.composite
def mutated(draw, original: bytes):
    """A file with some of its bytes changed, cut out, doubled or cut off."""
    found = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        how = draw(st.integers(0, 3))
        if how == 0:
            found[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == 1:
            del found[at : at + draw(st.integers(1, 20))]
        elif how == 2:
            found[at:at] = draw(st.binary(max_size=8))
        else:
            found = found[: at + 1]
    return bytes(found)


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


@fuzzed(60, raw=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]).flatmap(lambda k: mutated(saved(k))))
def test_pictures(raw):
    try:
        pictures.picture_size(io.BytesIO(raw), "it")
        assert pictures.open_image(io.BytesIO(raw), "it").mode == "RGB"
    except data.BadData:
        pass


def a_record() -> dict:
    sample = data.load("toy", None, "val")[0]
    answer = rewards.Answer("text", instances=[rewards.Instance([1, 2, 30, 40])], answer_ok=True)
    return evaluate.make_record(0, sample, evaluate.Prediction("text", answer, sample.mask, 5))


RECORD = a_record()
RUN = {"dataset": "toy", "split": "val", "data_root": "", "model": "m", "one_expression": False, "seed": 0}
RUN |= {"recipe": {"name": "drseg", "schema": "drseg"}, "versions": {}}


@fuzzed(
    40,
    change=st.dictionaries(st.sampled_from(list(RECORD)), st.one_of(VALUES, RLES, BOXES, PLAIN), max_size=2),
    drop=st.lists(st.sampled_from(list(RECORD)), max_size=1),
    run=st.dictionaries(st.sampled_from(list(RUN)), VALUES, max_size=1),
)
def test_records(folder, change, drop, run):
    record = {k: v for k, v in (RECORD | change).items() if k not in drop}
    (folder / "predictions.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(RUN | run), encoding="utf-8")
    try:
        found = records.read_records(folder / "predictions.jsonl")
        run = records.read_run(folder)
        show(all_metrics(found, run["dataset"]), run)
        report.build(folder)
    except data.BadData:
        pass


RECIPE = dataclasses.asdict(recipes.RECIPES["drseg"]) | {"family": "qwen2_5_vl", "space": "pixels"}


@fuzzed(60, change=st.dictionaries(st.one_of(TEXTS, st.sampled_from(list(RECIPE))), VALUES, max_size=3), raw=st.data())
def test_checkpoints_and_annotations(folder, change, raw):
    text = json.dumps(RECIPE | change).encode()
    (folder / "recipe.json").write_bytes(raw.draw(st.one_of(st.just(text), mutated(text))))
    try:
        recipes.check(load_recipe(folder))
    except data.BadData:
        pass
    pickled = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00]\x94}\x94(\x8c\x06ref_id\x94K\x01\x8c\x05split\x94h\x02ua."
    (folder / "refs.p").write_bytes(raw.draw(mutated(pickled)))
    try:
        layouts._read(folder / "refs.p")
    except data.BadData:
        pass
