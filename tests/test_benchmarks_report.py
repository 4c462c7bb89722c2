# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""report.py: what the page holds, and that nothing a model wrote can act on it."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import data
import evaluate
from benchmarks import published, records, report
from benchmarks.metrics import all_metrics
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


@pytest.fixture(scope="module")
def page(folder):
    return report.build(folder)


class Reader(HTMLParser):
    """Collects tags (name, attributes) and checks that they close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def cards_of(page: str) -> list[dict]:
    """For each card its classes, its rank in every order, and its text."""
    found = []
    for part in page.split('<article class="card ')[1:]:
        kinds, ranks = re.match(r'([^"]*)" style="([^"]*)"', part).groups()
        ranks = {key: int(value) for key, value in re.findall(r"--(\w+): (\d+);", ranks)}
        found.append({"kinds": kinds.split(), "ranks": ranks, "text": part.split("</article>")[0]})
    return found


def test_page_is_complete_and_self_contained(folder, page):
    tags = Reader(page).tags
    assert not [t for t, _ in tags if t in ("script", "link", "iframe")]
    assert not [a for _, a in tags for k in ("src", "href", "action") if not a.get(k, "data:").startswith("data:")]
    assert any(a.get("content", "").startswith("default-src 'none'; img-src data:;") for _, a in tags)
    metrics = json.loads((folder / "metrics.json").read_text())
    plain = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert f"{100 * metrics['giou']:.1f} % Mean overlap" in plain and "1 of 12 answers could not be read" in plain
    assert f"giou {100 * metrics['giou']:.2f} mean IoU" in plain and "n 12 requests" in plain  # folded
    pictures = [attrs["src"] for t, attrs in tags if t == "img"]
    assert len(pictures) == 12
    picture = Image.open(io.BytesIO(base64.b64decode(pictures[0].removeprefix("data:image/jpeg;base64,"))))
    assert picture.format == "JPEG" and max(picture.size) == 640
    found = records.read_records(folder / "predictions.jsonl")
    assert all(r["id"] in page for r in found)
    bars = [int(n) for n in re.findall(r'">(\d+)</text>', page.split("<svg")[1].split('y="164"')[0])]
    assert sum(bars) == 12


def test_text_of_the_model_is_escaped(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;quotes&#34;" in page and "<script>alert" not in page
    assert not [attrs for _, attrs in Reader(page).tags if any(name.startswith("on") for name in attrs)]


def test_filters_and_orders(folder, page):
    found = records.read_records(folder / "predictions.jsonl")
    cards = cards_of(page)
    by_id = {r["id"]: r for r in found}
    mine = [by_id[next(i for i in by_id if f"; {i}<" in card["text"])] for card in cards]
    assert [card["kinds"] for card in cards] == [[report.kind_of(r)] for r in mine]
    assert {k for card in cards for k in card["kinds"]} == {"unread", "nothing", "right"}
    scores = [report.score_of(r) for r in mine]
    order = lambda key: [scores[i] for i in sorted(range(12), key=lambda i: cards[i]["ranks"][key])]  # noqa: E731
    assert order("worst") == sorted(scores) and order("best") == sorted(scores, reverse=True)
    assert cards[0]["ranks"]["worst"] == 0  # without any choice the worst stands first
    few = cards_of(report.build(folder, limit=2))
    assert 2 <= len(few) < 12 and sum("right" in card["kinds"] for card in few) >= 2


def test_kinds_by_hand():
    def kind(boxes, truth=((0, 0, 10, 10),), iou=1.0, **more):
        base = {"answer_ok": True, "truth_none": False, "predicted_none": False, "count": None}
        return report.kind_of(base | {"boxes": list(boxes), "truth_boxes": list(truth), "iou": iou} | more)

    assert kind([], answer_ok=False) == "unread" and kind([], predicted_none=True) == "nothing"
    assert kind([(0, 0, 10, 10)]) == "right" and kind([(0, 0, 10, 10)], iou=0.4) == "mask"
    assert kind([(0, 0, 10, 6)]) == "loose" and kind([(20, 20, 30, 30)]) == "object"
    assert kind([(0, 0, 10, 10), (20, 20, 30, 30)]) == "object"  # one too many
    assert kind([(0, 0, 10, 10)], truth=[(0, 0, 10, 10), (20, 20, 30, 30)]) == "object"  # one is missed
    assert kind([(0, 0, 1, 1)], (), None, count=2) == "number" and kind([(0, 0, 1, 1)], (), None, count=1) == "right"


def test_the_histogram_leaves_out_what_the_format_does_not_answer(folder):
    found = records.read_records(folder / "predictions.jsonl")
    assert all(r["answerable"] for r in found)  # genseg has words for all
    for r in found[:5]:
        r["answerable"] = False
    words = report._words(records.read_run(folder), found, None, {})
    assert words["bars"]["title"] == "IoU of 7 requests"
    assert words["bars"]["notes"] == ["Left out: 5 requests that the recipe's format does not answer."]


def test_requests_without_a_mask_are_counted_wherever_masks_are(folder):
    """Boxes alone have no part in gIoU; 12 of 20 were scored, and the page said "over all requests"."""
    gone = dict.fromkeys(("truth_mask", "intersection", "union", "area", "iou"))
    found = records.read_records(folder / "predictions.jsonl")
    first = next(r["index"] for r in found if r["truth_boxes"])  # one keeps its mask: gIoU is not of refusals alone
    found = [r | gone if r["truth_boxes"] and r["index"] != first else r for r in found]
    masks = sum(r["iou"] is not None for r in found)
    words = report._words(records.read_run(folder), found, None, {})
    said = f"over the {masks} of 12 requests with a mask"
    assert 0 < masks < 12 and said in words["figures"][0][2] and f"percent (masks: {said})" in words["metrics"]
    assert words["bars"]["notes"] == [f"{12 - masks} of them without a true mask: their IoU is that of the boxes."]
    assert f"percent (masks: {said})" in published.show(all_metrics(found, "toy"), records.read_run(folder))


def test_two_runs_are_compared_by_what_was_asked_not_by_its_place(folder, tmp_path):
    """A picture was gone from one of the two: all behind it had moved, and 20 requests in common were none."""
    found = records.read_records(folder / "predictions.jsonl")
    moved = [r | {"index": r["index"] - 1} for r in found[1:]]
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in moved), encoding="utf-8")
    page = re.sub(r"<[^>]+>", " ", report.build(folder, tmp_path))
    assert "11 requests, asked as" in page and "0 gained" in page.replace(" requests", "")
    assert "Left out: 1 that only this run was asked, 0 that only the other was." in page


def test_two_runs_side_by_side(folder, tmp_path):
    """What the oracle answers now, after a run that could read two thirds: the same requests, gained and lost."""
    found = records.read_records(folder / "predictions.jsonl")
    wrong = {"text": "", "answer_ok": False, "boxes": [], "points": [], "negative_points": [], "predicted_none": False}
    wrong |= {"mask": None, "intersection": 0, "area": 0, "iou": 0.0}
    right = [i for i, r in enumerate(found) if report.score_of(r) >= 0.5 and r["truth_boxes"]]
    old = [r | wrong if i in right[:3] else r for i, r in enumerate(found)]
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in old))
    page = report.build(folder, before=tmp_path)
    plain = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "3 requests gained (an IoU that rose over 0.5), 0 lost." in plain and "before: 4" in plain
    cards = cards_of(page)
    assert all(card["text"].count("<img") == 2 for card in cards)
    assert {c["ranks"]["gain"] for c in cards if "gained" in c["kinds"]} == {0, 1, 2}
    back = report.build(tmp_path, before=folder, limit=1)
    assert "0 requests gained (an IoU that rose over 0.5), 3 lost." in back
    (tmp_path / "predictions.jsonl").write_text(json.dumps(old[0] | {"query": "another"}) + "\n")
    with pytest.raises(data.BadData, match="no request in common"):
        report.build(folder, before=tmp_path)


POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
OWNED = "document.documentElement.setAttribute('data-owned', 1)"


def in_a_browser(page: str, folder: Path) -> str:
    """The document's first tag, after headless Chromium has opened the page and run what it runs."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run([browser, *flags, path.as_uri()], capture_output=True, timeout=120)
    tag = re.search(r"<html[^>]*>", done.stdout.decode())
    if tag is None:
        pytest.skip(f"Chromium does not start here: {done.stderr.decode()[-200:]}")
    return tag[0]


def test_no_script_of_a_strangers_runs_in_a_real_browser(folder, tmp_path, monkeypatch):
    """Every string that a file or a model may choose is an attack. Escaping and policy each hold alone."""
    attacks = [
        f"<script>{OWNED}</script>",
        f'"><img src=x onerror="{OWNED}">',
        f'\'><svg onload="{OWNED}">',
        f"</pre></title></style></summary><script>{OWNED}</script>",
        "{{ 7 * 7 }}{% for x in () %}\ud800\x00",
    ]
    attack = "".join(attacks)
    found = records.read_records(folder / "predictions.jsonl")[:3]
    strings = {"query": attack, "text": attack, "thought": attack, "looks": [attack]}
    hidden = [[-1e308, -1e308, 1e308, 1e308], [1e300, -1e300, 1e300, 1e300]]  # boxes far outside, drawn in no time
    (tmp_path / "predictions.jsonl").write_text(
        "".join(json.dumps(r | strings | {"boxes": hidden}) + "\n" for r in found)
    )
    run = records.read_run(folder)
    run |= {"model": attack, "segmenter": attack, "recipe": run["recipe"] | {"name": attack, "schema": attack}}
    (tmp_path / "run.json").write_text(json.dumps(run | {"versions": {attack: attack}, attack: attack}))
    page = report.build(tmp_path)
    assert page.count("{{ 7 * 7 }}") > 9 and page.count("&lt;script&gt;") > 9 and "<svg onload" not in page
    open_door = POLICY.sub("", page)
    mark = OWNED.replace("owned", "control")
    control = f"<script>{mark}</script></body>"  # scripts do run here, and this is the only one that did
    seen = in_a_browser(open_door.replace("</body>", control), tmp_path)
    assert "data-control" in seen and "data-owned" not in seen
    seen = in_a_browser(page.replace("</body>", control), tmp_path)  # past all escaping there is still the policy
    assert "data-control" not in seen and "data-owned" not in seen


def test_filters_orders_and_enlarging_work_in_a_real_browser(page, tmp_path):
    """The page has no script, so one is put in, which clicks as a reader would and writes what is seen then."""
    clicks = """<script>
    const cards = [...document.querySelectorAll('.card')], seen = {};
    const shown = () => cards.filter(c => getComputedStyle(c).display != 'none');
    const place = c => [Math.round(c.getBoundingClientRect().top), Math.round(c.getBoundingClientRect().left)];
    const first = () => shown().sort((a, b) => place(a)[0] - place(b)[0] || place(a)[1] - place(b)[1])[0];
    seen.all = shown().length;
    document.getElementById('only-nothing').click(); seen.nothing = shown().length;
    document.getElementById('only-all').click();
    document.getElementById('by-best').click(); seen.best = first().style.getPropertyValue('--best').trim();
    document.getElementById('by-small').click(); seen.small = first().style.getPropertyValue('--small').trim();
    const image = cards[3].querySelector('img'), before = image.getBoundingClientRect().width;
    image.click(); seen.larger = image.getBoundingClientRect().width > 1.5 * before;
    seen.wide = document.documentElement.scrollWidth <= innerWidth;
    for (const key in seen) document.documentElement.setAttribute('data-' + key, seen[key]);
    </script></body>"""
    nothing = sum("nothing" in card["kinds"] for card in cards_of(page))
    seen = in_a_browser(POLICY.sub("", page).replace("</body>", clicks), tmp_path)
    expected = {"all": 12, "nothing": nothing, "best": 0, "small": 0, "larger": "true", "wide": "true"}
    assert nothing and all(f'data-{key}="{value}"' in seen for key, value in expected.items()), seen


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
    ("boxes", [[0, 0, 10**300, 10**300]]),  # its area would be no float
    ("length", 10**400),
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
    photo = ["--image", str(tmp_path / "photo.png"), "--query", "the largest shape", "all circles"]
    said = call("evaluate.py", *model, *photo, "--output_dir", str(tmp_path / "seen"))
    assert "the largest shape" in said and "all circles" in said
    there = sorted(p.name for p in (tmp_path / "seen").iterdir())
    pictures = [f"{n}.{kind}.png" for n in (1, 2) for kind in ("mask", "overlay")]
    assert there == [*pictures, "answers.jsonl", "index.html"]
