"""report.py: what the page holds, and that nothing a model wrote can act on it."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import data
import evaluate
from benchmarks import records, report
from engine.oracle import oracle_answer

HOSTILE = '<think><script>alert(1)</script> & "quotes" <img src=x onerror=y></think><answer>[{"bbox_2d": [1</answer>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve toy samples: the oracle's answers, but one hostile and unreadable, and one that misses its target."""
    out, true = tmp_path_factory.mktemp("out"), oracle_answer
    calls = iter(range(100))
    say = {0: HOSTILE, 1: '<think>Missed.</think><answer>{"no_target": true}</answer>'}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "oracle_answer", lambda *a: say.get(next(calls)) or true(*a))
        evaluate.main(
            evaluate.Options(
                model="oracle", recipe="genseg", toy=True, segmenter="truth", limit=12, output_dir=str(out)
            )
        )
    return out


class Reader(HTMLParser):
    """Collects tags (name, attributes) and checks that they close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_complete_and_self_contained(folder):
    page = report.build(folder)
    tags = Reader(page).tags
    assert not [t for t, _ in tags if t in ("script", "link", "iframe")] and not re.search(
        r"""(src|href)=["']?http""", page
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"<div>giou<span>{100 * metrics['giou']:.2f}</span></div>" in page
    assert "<div>n<span>12</span></div>" in page and "<div>parse_failures<span>1</span></div>" in page
    pictures = [attrs["src"] for t, attrs in tags if t == "img"]
    assert len(pictures) == 12
    picture = Image.open(io.BytesIO(base64.b64decode(pictures[0].removeprefix("data:image/jpeg;base64,"))))
    assert picture.format == "JPEG" and max(picture.size) == 448
    found = records.read_records(folder / "predictions.jsonl")
    assert all(r["id"] in page for r in found)
    bars = [int(n) for n in re.findall(r'">(\d+)</text>', page.split("<svg")[1].split('y="166"')[0])]
    assert sum(bars) == 12


def test_text_of_the_model_is_escaped(folder):
    page = report.build(folder)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quotes&quot;" in page and "<script>alert" not in page
    assert not [attrs for _, attrs in Reader(page).tags if any(name.startswith("on") for name in attrs)]


def test_sections_and_worst_first(folder):
    page = report.build(folder, limit=3)
    unread, none, others = page.split("<h2>")[1:]
    assert unread.startswith("Could not be read") and "1 of 1" in unread and "IoU 0.000" in unread
    assert "says: nothing fits" in none and re.findall(r"IoU (\d\.\d+)", none) == sorted(
        re.findall(r"IoU (\d\.\d+)", none)
    )
    assert others.count("<article") == 3 and "3 of " in others


def test_boxes_only_and_counts(tmp_path):
    evaluate.main(
        evaluate.Options(model="oracle", recipe="genseg", toy=True, segmenter="none", limit=4, output_dir=str(tmp_path))
    )
    path = tmp_path / "predictions.jsonl"
    counted = [r | {"count": 5} for r in records.read_records(path)]
    path.write_text("".join(json.dumps(r) + "\n" for r in counted))
    assert " of 5 counted" in report.build(tmp_path)


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="run.json"):
        report.main()
    (tmp_path / "p.jsonl").write_text("no json\n")
    with pytest.raises(data.BadData, match="p.jsonl"):
        records.read_records(tmp_path / "p.jsonl")


HOSTILE_FIELDS = [
    ("count", "<script>alert(1)</script>"),  # this one ran in the page once
    ("count", True),
    ("count", -1),
    ("length", "<b>"),
    ("text", None),
    ("iou", float("nan")),
    ("iou", 7),
    ("boxes", [[1, 2, 3]]),
    ("boxes", [[1, 2, 3, float("inf")]]),
    ("boxes", [[1, 2, 3, 10**400]]),
    ("points", [[1, 2]]),
    ("truth_boxes", "none"),
    ("width", 0),
    ("height", 10**6),  # a mask of another size than the picture
    ("mask", {"size": [1, 1], "counts": 5}),
    ("looks", [1]),
    ("intersection", None),  # without its siblings
    ("union", -1),
]


@pytest.mark.parametrize("field, value", HOSTILE_FIELDS)
def test_a_record_of_the_wrong_kind_is_refused_by_line_and_field(folder, tmp_path, field, value):
    first = records.read_records(folder / "predictions.jsonl")[:3]
    first[1] |= {field: value}
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in first))
    with pytest.raises(data.BadData, match="line 2: "):
        records.read_records(path)
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(data.BadData, match="line 1: "):
        records.read_records(path)


def test_a_run_of_the_wrong_kind_is_refused(tmp_path):
    for text in ("[]", "{", '{"dataset": 5}', "[" * 100_000):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(data.BadData, match="run.json"):
            records.read_run(tmp_path)


def test_merging_leaves_the_files_of_others_alone(folder, tmp_path):
    lines = (folder / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    others = ["predictions.old.jsonl", "predictions_bak.jsonl", "predictions.1.jsonl.bak", "predictions.-1.jsonl"]
    for name in others:
        (tmp_path / name).write_bytes(lines[0])
    (tmp_path / "predictions.jsonl").write_bytes(lines[1])
    (tmp_path / "predictions.12.jsonl").write_bytes(lines[2])
    assert [r["index"] for r in records.merge_records(tmp_path)] == [json.loads(x)["index"] for x in lines[1:3]]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "predictions.jsonl"])


def test_the_shipped_checkpoint_goes_all_the_way(tmp_path):
    """Benchmark, score, report and demo with the miniature's own weights, as a user types them."""
    root = Path(__file__).parents[1]

    def call(*command):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    model = ["--model", "toy/qwen2_5_vl", "--recipe", "drseg", "--toy"]
    out = tmp_path / "out"
    table = call("evaluate.py", *model, "--limit", "12", "--output_dir", str(out))
    assert "giou" in table and len((out / "predictions.jsonl").read_text().splitlines()) == 12
    again = call("evaluate.py", "--score", str(out / "predictions.jsonl"))
    figures = [line for line in table.splitlines() if line.startswith("  giou") or line.startswith("  ciou")]
    assert figures and all(line in again for line in figures)
    call("-m", "benchmarks.report", str(out))
    assert "<html" in (out / "report.html").read_text()
    data.load("toy", None, "val")[1].image.save(tmp_path / "photo.png")
    said = call("evaluate.py", *model, "--image", str(tmp_path / "photo.png"), "--query", "the largest shape")
    assert "shapes" in said  # its reasoning
    assert (tmp_path / "photo.overlay.png").exists() and (tmp_path / "photo.mask.png").exists()
