"""The studies: every variant can be trained, and the page says no more than its figures."""

import json

import pytest

import data
import recipes
from engine.check import check_rewards
from studies import ablations


@pytest.mark.parametrize("name", ablations.STUDIES)
def test_every_variant_is_a_recipe_whose_truth_earns_the_maximum(name):
    study, samples = ablations.STUDIES[name], data.load("toy", None, "val")
    assert study.better is None or set(study.better) <= set(study.variants)
    for changes in study.variants.values():
        recipe = ablations.settings(study.recipe, changes)
        good, bad = check_rewards(samples, recipes.usable(samples, recipe)[0][:20], recipe)
        assert len(good) >= 19, bad


def test_runs_are_shared_and_named_by_what_they_change(tmp_path, monkeypatch):
    import train

    started = []

    def fake(recipe, folder, resume):
        folder.mkdir(parents=True)
        started.append((recipe.model, folder.name))

    monkeypatch.setattr(train, "train", fake)
    monkeypatch.setattr(ablations, "RUNS", tmp_path)
    base = ablations.one_run("samr1", {}, 0, 5, 0)
    assert ablations.one_run("samr1", {}, 0, 5, 0) == base and len(started) == 1  # once for all studies
    assert ablations.one_run("samr1", {"beta": 0.0}, 0, 5, 0) != base
    assert ablations.one_run("samr1", {}, 1, 5, 0) != base
    ablations.one_run("genseg-g", {"start": "genseg"}, 0, 5, 3)
    assert started[-2][1] == "genseg-seed0-3" and started[-1][0] == str(tmp_path / "genseg-seed0-3" / "final")
    one = ablations.one_run("lens", {"start": "lens-align"}, 0, 5, 0)
    assert ablations.one_run("lens", {"start": "lens-align"}, 0, 5, 7) != one  # after a longer alignment


def test_overlapping_seeds_are_no_difference(tmp_path, monkeypatch):
    study = ablations.STUDIES["rank"]
    runs = lambda *values: [{"seed": i, "value": v, "before": 0.3, "steps": 5} for i, v in enumerate(values)]  # noqa: E731
    assert "Agrees" in ablations.verdict(study, {"ranked": runs(0.5, 0.6), "raw": runs(0.4, 0.49)})
    assert "Disagrees" in ablations.verdict(study, {"ranked": runs(0.4, 0.49), "raw": runs(0.5, 0.6)})
    assert "No difference" in ablations.verdict(study, {"ranked": runs(0.4, 0.6), "raw": runs(0.3, 0.5)})
    assert "No verdict" in ablations.verdict(study, {"ranked": runs(0.5), "raw": runs(0.4)})
    monkeypatch.setattr(ablations, "DOCS", tmp_path)
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "rank.json").write_text(json.dumps({"ranked": runs(0.4, 0.6), "raw": runs(0.3, 0.5)}))
    page = ablations.page()
    assert "| ranked | 0.300 | 0.500 | 0.100 | 0.400, 0.600 |" in page and "`tiers`" in page.split("Not run yet")[1]


def test_a_point_inside_and_one_outside():
    import numpy as np

    import rewards

    target = rewards.Target(np.array([[0, 0, 10, 10]]), np.zeros((1, 0, 2)), np.ones((10, 10), bool), False, (10, 10))
    o = rewards.Instance([0, 0, 10, 10], [[5, 5]], [[12, 5]])
    answer = rewards.Answer("", "", [], [o], False, True, True, 0.0)
    for inside, expected in ((None, None), (False, 1.0), (True, 0.0)):
        parts = ablations.negative_points(inside)(answer, target, 1.0)
        assert parts.get("both_points") == expected and parts["tiered"] == 4.0
