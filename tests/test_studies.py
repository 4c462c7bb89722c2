# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The studies: every arm can be trained, every claim stands where it is said to, a verdict follows from its figures."""

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import data
import recipes
import rewards
import train
from engine.check import check_rewards
from studies import ablations, best_of, claims
from studies.claims import STUDIES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_recipe_whose_truth_earns_the_maximum(name):
    study = STUDIES[name]
    samples = data.load("toy", None, "val")[:60]
    assert {label for pair in study.pairs for label in pair} <= set(study.arms)
    assert set(study.figures) <= set(study.arms) and {len(f) for f in study.figures.values()} <= {len(study.columns)}
    seen = []
    for changes in study.arms.values():
        recipe = ablations.settings(study, changes)
        good, bad = check_rewards(samples, recipes.usable(samples, recipe)[0][:12], recipe)
        assert len(good) >= 11, bad
        seen.append((recipe, changes.get("start"), changes.get("prompts_mode")))
    assert all(one not in seen[:i] for i, one in enumerate(seen))  # no arm twice


PLACES = {  # what a place is called in the paper's text, where that is not "Table N"
    "SAM-R1 section 4.6, removing the KL constraint": "Removing the KL Constraint",
    "SAM-R1 section 4.6, negative reference points": "Encouraging Negative Reference Points",
    "Dr. Seg section 3.2, Figure 3": "Exploration Path and Entropy",
    "GenSeg-R1 section 3.6": "Negative-point validity",
    "GenSeg-R1 section 6 (future work there)": "two-stage reward recipe",
    "LENS Table A3": "Table A3",
}


@pytest.mark.parametrize("name", STUDIES)
def test_claims_stand_where_they_are_said_to(name):
    """The place is in the paper, and its figures are printed there."""
    folder = ROOT.parent / "shared" / "papers"
    if not folder.exists():
        pytest.skip("the papers' texts are not here")
    study = STUDIES[name]
    paper, rest = re.match(r"(LENS|SAM-R1|Dr\. Seg|GenSeg-R1) (.*)", study.place).groups()
    text = (folder / f"{paper.lower().replace('. ', '-')}.txt").read_text(encoding="utf-8")
    assert PLACES.get(study.place, rest) in text, study.place
    numbers = {f"{float(n) * (100 if float(n) < 1 else 1):.2f}" for n in re.findall(r"\d+\.\d+", text)}
    printed = [figure for figures in study.figures.values() for figure in figures]
    for figure in [*printed, *map(float, re.findall(r"\d\d\.\d+", "".join(study.columns) + study.claim))]:
        assert f"{figure:.2f}" in numbers, (name, figure)
    for better, worse in study.pairs:  # the paper's own figures bear out what the claim names
        if better in study.figures and worse in study.figures:
            assert study.figures[better][0] > study.figures[worse][0], (better, worse)


def runs(*values, curve=(0.1, 0.2)):
    return [{"seed": i, "after": v, "before": 0.3, "steps": 2, "curve": [*curve, v]} for i, v in enumerate(values)]


def test_a_difference_is_paired_and_its_interval_is_students():
    results = {"a": runs(0.5, 0.7, 0.6, 0.9), "b": runs(0.45, 0.68, 0.52, 0.86)}
    found = ablations.difference(results, "a", "b")
    d = [0.05, 0.02, 0.08, 0.04]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(d), scale=stats.sem(d))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(d), low, high))
    assert found.p == pytest.approx(stats.ttest_rel([0.5, 0.7, 0.6, 0.9], [0.45, 0.68, 0.52, 0.86]).pvalue)
    assert found.decided == "first"  # though the seeds' ranges overlap widely
    assert ablations.difference(results | {"b": runs(0.5, 0.6)}, "a", "b") is None


def test_several_differences_of_one_claim_are_corrected_as_holm_says():
    several = [ablations.Difference("a", "b", 1.0, 0.5, 1.5, p, 4) for p in (0.04, 0.01, 0.03, 0.5)]
    assert [d.p for d in ablations.holm(several)] == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert [d.decided for d in ablations.holm(several)] == ["open", "first", "open", "open"]
    # and a verdict is of the corrected ones: p = 0.03 decides alone, and not as one of three
    results = {"a": runs(0.6, 0.62, 0.67), **{label: runs(0.5, 0.5, 0.5) for label in "bcd"}}
    assert 0.02 < ablations.difference(results, "a", "b").p < 0.05
    study = dataclasses.replace(STUDIES["tiers"], pairs=(("a", "b"),))
    assert ablations.verdict(study, results)[0] == "Agrees"
    three = dataclasses.replace(study, pairs=(("a", "b"), ("a", "c"), ("a", "d")))
    assert ablations.verdict(three, results)[0] == "Undecided"


def test_so_many_seeds_find_a_difference_four_times_in_five():
    rng = np.random.default_rng(0)
    half = stats.t.ppf(0.975, 3) * 0.8 / 2  # an interval from four seeds whose differences spread by 0.8
    n = ablations.seeds_needed(half, 4)
    found = lambda n: (stats.ttest_1samp(rng.normal(1.0, 0.8, (4000, n)), 0, axis=1).pvalue < 0.05).mean()  # noqa: E731
    assert found(n - 1) < 0.8 < found(n) + 0.02
    assert ablations.seeds_needed(half, 4, named=3) > n and ablations.seeds_needed(60.0, 4) is None


def test_arms_of_several_studies_that_are_one_run_are_named():
    one, other = runs(0.5, 0.6), runs(0.4, 0.3, curve=(0.3, 0.1))
    found = {"raw": {"ranked": one, "raw": other}, "queue": {"2048": one}, "points": {"1": runs(0.1), "2": runs(0.1)}}
    assert ablations.shared(found)[2:] == ["- raw: ranked · queue: 2048", ""]
    assert ablations.shared({"raw": {"ranked": one}}) == []


def test_a_verdict_looks_at_all_that_a_claim_names():
    pairs = (("a", "b"), ("b", "c"))
    study = dataclasses.replace(STUDIES["tiers"], arms={k: {} for k in "abc"}, pairs=pairs, figures={}, columns=())
    up, level, down = runs(0.9, 0.91, 0.92), runs(0.5, 0.53, 0.55), runs(0.1, 0.11, 0.12)
    wild = runs(0.7, 0.5, 0.6)
    word = lambda a, b, c: ablations.verdict(study, {"a": a, "b": b, "c": c})[0]  # noqa: E731
    assert word(up, level, down) == "Agrees"
    assert word(up, down, level) == "Disagrees"  # the first is best, but not the second
    assert word(up, level, wild) == "Agrees in part"
    assert word(level, wild, runs(0.6, 0.7, 0.5)) == "Undecided"
    assert word(up, level, runs(0.1, 0.2)) == "Too few seeds"
    nothing = dataclasses.replace(study, arms={k: {} for k in "ab"}, pairs=())
    assert ablations.verdict(nothing, {})[0] == "Nothing named"
    _, lines = ablations.section("tiers", nothing, {"b": down, "a": up}, "commit 1")
    assert any(line.startswith("- a against b: +80.0, ") for line in lines)  # compared all the same
    rows = [line for line in lines if line.startswith(("| a ", "| b "))]
    assert rows[0].startswith("| a ")  # in the claim's order, whatever the file's


def test_where_negative_points_land_is_compared_by_seed():
    study = STUDIES["negative-points"]
    results = {label: [r | {"landed": {"on it": r["after"]}} for r in runs(*v)] for label, v in zip(study.arms, VALUES)}
    _, lines = ablations.section("negative-points", study, results, "commit 1")
    assert any(line.startswith("- on it, percent, +1 for both inside against tiers alone: +30, ") for line in lines)
    alone = {label: found[:2] for label, found in results.items()}  # two seeds: no interval, and no error
    assert not any("on it, percent" in line for line in ablations.section("negative-points", study, alone, "")[1])


VALUES = (0.3, 0.32, 0.34), (0.3, 0.35, 0.4), (0.6, 0.62, 0.64)


def test_a_collapse_is_refuted_by_an_interval_that_leaves_it_out():
    kl = STUDIES["kl"]
    kept, fell, scattered = runs(0.5, 0.51, 0.52), runs(0.2, 0.22, 0.21), runs(0.2, 0.7, 0.5)  # all from 0.3
    word = lambda without: ablations.verdict(kl, {"with KL": kept, "no KL": without})[0]  # noqa: E731
    assert word(fell) == "Agrees" and word(scattered) == "Undecided" and word(runs(0.51, 0.5, 0.51)) == "Not seen here"
    _, lines = ablations.section("kl", kl, {"with KL": kept, "no KL": runs(0.51, 0.5, 0.51)}, "commit 1")
    assert ablations.section("kl", kl, {"with KL": kept[:1], "no KL": fell[:1]}, "")[0] == "Too few seeds"
    assert "“no KL” gained 20.7 in training, 95 % interval 19.2 to 22.1." in "\n".join(lines)


def test_runs_are_named_by_settings_and_code(monkeypatch):
    study = STUDIES["lens-parts"]
    before, after = ablations.chain(study, study.arms["aligned, all rewards"], 0)
    assert before.name == "lens-align" and before.max_steps == ablations.START_STEPS
    assert after.model == str(ablations.folder_of(before) / "final")
    assert ablations.chain(study, study.arms["aligned, box and format"], 0)[0] == before  # shared between arms
    (alone,) = ablations.chain(study, study.arms["not aligned, box only"], 1)
    assert alone.seed == 1 and ablations.folder_of(alone) != ablations.folder_of(dataclasses.replace(alone, seed=0))
    name = ablations.folder_of(alone)
    monkeypatch.setattr(ablations, "code_version", lambda: "other")
    assert ablations.folder_of(alone) != name


def test_a_runs_name_is_of_its_code_alone(tmp_path, monkeypatch):
    """Not of the byte code that Python keeps beside it, which would rename every run."""
    shutil.copytree(ROOT / "toy", tmp_path / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    before = ablations.code_version()
    (tmp_path / "toy" / "__pycache__").mkdir()
    (tmp_path / "toy" / "__pycache__" / "world.cpython-311.pyc").write_bytes(b"compiled")
    assert ablations.code_version() == before
    with open(tmp_path / "toy" / "world.py", "a") as file:
        file.write("#")
    assert ablations.code_version() != before


def test_a_run_that_ends_by_itself_does_not_hang_the_others(tmp_path, monkeypatch):
    """SystemExit takes a pool's worker with it, and the pool waits."""

    def ends(*_, **__):
        raise SystemExit("step 3: the loss is not finite")

    monkeypatch.setattr(ablations, "RUNS", tmp_path)
    monkeypatch.setattr(train, "train", ends)
    recipe = ablations.settings(STUDIES["raw"], {})
    with pytest.raises(RuntimeError, match="the loss is not finite"):
        ablations.train_one(recipe)
    assert not (ablations.folder_of(recipe) / "done").exists()


def test_the_page_says_what_the_runs_say(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "DOCS", tmp_path)
    (tmp_path / "ablations").mkdir()
    arms = {"ranked": runs(0.4, 0.6, 0.5), "raw": runs(0.3, 0.5, 0.4)}
    found = {"commit": "0", "code": "0", "arms": arms}
    (tmp_path / "ablations" / "raw.json").write_text(json.dumps(found), encoding="utf-8")
    page = ablations.page()
    assert "| ranked | 30.0 | 50.0 | 40.0, 60.0, 50.0 | 76.8 | 67.8 |" in page
    assert (
        "+10.0, 95 % interval +10.0 to +10.0, p < 0.001: better" in page
        and "| [raw](#raw) | Dr. Seg Table 5 | Agrees | ranked − raw: +10.0, +10.0 to +10.0 |" in page
    )
    assert "`python -m studies.ablations NAME`" in page and "tiers" in page.split("Not run")[1].split("\n")[0]
    ablations.plot("raw", STUDIES["raw"], arms)
    assert (tmp_path / "ablations" / "raw.png").stat().st_size > 5000


def test_a_point_inside_and_one_outside():
    target = rewards.Target(np.array([[0.0, 0, 10, 10]]), np.zeros((1, 2, 2)), frame=(100, 100))
    answer = rewards.Answer("", answer_ok=True, think_ok=True)
    earned = lambda o, inside: rewards.REWARDS[inside](  # noqa: E731
        dataclasses.replace(answer, instances=[o]), target, 0.6
    )["both_points"]
    near = rewards.Instance([0, 0, 10, 10], [[5, 5]], [[1, 1]])
    far = rewards.Instance([0, 0, 10, 10], [[5, 5]], [[50, 50]])
    assert earned(near, "samr1-negative") == earned(far, "samr1-negative") == 1
    assert earned(near, "samr1-negative-inside") == 1 and earned(far, "samr1-negative-inside") == 0
    assert claims.points_in_box(near) and not claims.points_in_box(far)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_best_of_k_is_the_mean_over_all_sets_of_k(k):
    ious = np.random.default_rng(k).random((4, 5)).round(1)
    slow = [max(row[list(some)]) for row in ious for some in itertools.combinations(range(5), k)]
    assert best_of.best_of(ious, k) == pytest.approx(np.mean(slow))


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_at_tiny_sizes():
    done = subprocess.run(
        [sys.executable, "-m", "studies.at_real_sizes", "--mini"], cwd=ROOT, capture_output=True, text=True
    )
    rows = [line.split("  ")[0] for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0 and "lens, saved and resumed" in rows and "not done" not in done.stdout, done.stdout
    assert {"drseg", "samr1", "lens-align", "lens", "lora", "decode, 8 rows"} <= set(rows)


NOTEBOOK = ROOT / "docs" / "first_hour.ipynb"


def test_the_notebook_was_run_to_its_end():
    cells = [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    assert NOTEBOOK.stat().st_size < 3e6


@pytest.mark.slow
def test_the_notebook_runs():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(book, timeout=1800, resources=where).execute()  # raises what a cell raises
