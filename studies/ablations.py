# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The papers' claims (claims.py) asked of the miniature: paired runs, intervals, and a verdict on what a claim names.

    python -m studies.ablations                            # what there is
    python -m studies.ablations tiers --seeds 6            # run one study, and write its page again
    python -m studies.ablations all                        # everything: many hours; stop it when you like, it goes on
    python -m studies.ablations --page                     # docs/ablations.md from all that has been run

Runs are paired: a seed means the same data, in the same order, with the same random numbers in every arm, and what is
compared is the difference within each seed. Student's t says how likely such a difference is by chance; where a claim
names several, Holm's correction keeps the risk of taking nothing for something at 5 % per claim, not per difference. A
null result is a result, and the page says how many seeds would have seen one point.

Finished runs are kept in runs/ablations under a name made of their settings and of the code that made them, and never
run twice. As many run side by side as there are cores, each on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import json
import multiprocessing
import os
import subprocess
from pathlib import Path

import numpy as np
from scipy import stats

from engine import checkpoint, journal
from recipes import RECIPES, Recipe, miniature, usable
from studies import claims
from studies.claims import STUDIES, Study, points_in_box

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path("runs/ablations")
DOCS = ROOT / "docs"
NOT_FIELDS = ("start", "prompts_mode")  # of an arm: what is no field of a recipe
START_STEPS = 150  # of the stage before, where an arm has one
TOLD = {  # how the page calls a metric
    "answerable_giou": "gIoU, percent",
    "giou_true_text": "gIoU on true text, percent",
    "target_miou": "mean IoU with a target, percent",
    "spread of entropy": "spread of entropy, thousandths of a nat",
}

SCALE = {"spread of entropy": 1000}  # what the page prints of a metric, times this (others: percent)

HOW_TO_READ = """
Runs are paired by seed. An interval is Student's, over training seeds on these same requests: other requests would move
a figure further (one request of 93, which the one-object formats answer, is 1.1 points; of 172 it is 0.6). p is
two-sided; where a claim names several differences it is corrected for them (Holm). So an interval may leave out 0 while
p is above 0.05: take that as a hint. Each claim is given a risk of 5 %, so one verdict in twenty may still be chance.
Which differences a claim names was written down after three or four seeds of most studies had been seen, and before the
others.

Each study names the commit that ran it; the code has changed since in names, and in what such runs do not meet:
`ranked` and `raw`, seed 0, run again on commit e212dc0, came out the same to the last digit (same machine, one thread).
""".strip().split("\n")

# -------------------------------------------------------------------------------------------------------------- one run


def settings(study: Study, changes: dict) -> Recipe:
    """The miniature of a study's recipe with an arm's changes."""
    recipe = miniature(RECIPES[study.recipe])
    fields = {name: value for name, value in changes.items() if name not in NOT_FIELDS}
    if "weights" in fields:
        weights = recipe.weights | fields["weights"] if fields["weights"] else {}
        fields["weights"] = {name: value for name, value in weights.items() if value is not None}
    return dataclasses.replace(recipe, **fields)


def code_version() -> str:
    """Eight characters that change with any file that a run depends on (the concepts, engine, benchmarks, the toy), and
    with the rewards that only a study has."""
    digest = hashlib.sha256(inspect.getsource(claims.both_points_reward).encode())
    for pattern in ("*.py", "engine/*.py", "benchmarks/*.py", "toy/world.py", "toy/*/*"):
        for path in sorted(path for path in ROOT.glob(pattern) if path.parent.name != "__pycache__"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def folder_of(recipe: Recipe) -> Path:
    """Where the run of these settings lies: recipe, seed, steps for people, and a digest of everything."""
    told = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    key = hashlib.sha256((told + code_version()).encode()).hexdigest()[:10]
    return RUNS / f"{recipe.name}-seed{recipe.seed}-{recipe.max_steps}-{key}"


def chain(study: Study, changes: dict, seed: int) -> list[Recipe]:
    """The runs of one arm and seed in order: the stage before, if it has one, and itself."""
    plain = {"seed": seed, "save_every": 10**6, "keep": 1}
    recipe = dataclasses.replace(settings(study, changes), max_steps=study.steps, **plain)
    if start := changes.get("start"):
        before = dataclasses.replace(miniature(RECIPES[start]), max_steps=START_STEPS, **plain)
        return [before, dataclasses.replace(recipe, model=str(folder_of(before) / "final"))]
    return [recipe]


def train_one(recipe: Recipe) -> None:
    """Run it, in this process, unless it has been run."""
    folder = folder_of(recipe)
    if not (folder / "done").exists():
        from train import train  # torch and all that: not for listing the studies

        try:
            train(recipe, folder, resume=checkpoint.newest(folder) is not None)
        except SystemExit as end:  # a pool would wait for ever for a worker that is gone
            raise RuntimeError(str(end)) from end
        (folder / "done").touch()


def train_chain(recipes: list[Recipe]) -> None:
    """A worker's job: the runs of one arm and seed, one after the other, quietly, on one thread."""
    folder = folder_of(recipes[-1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        for recipe in recipes:
            train_one(recipe)


def train_all(jobs: list[list[Recipe]], workers: int) -> None:
    """All that is missing, several side by side. A stage that several start from is run first, once."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "ACCELERATE_USE_CPU": "true"}
    for depth in (1, 2):
        wanted = {folder_of(job[depth - 1]): job[:depth] for job in jobs if len(job) >= depth}
        missing = {folder: job for folder, job in wanted.items() if not (folder / "done").exists()}
        with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
            for n, _ in enumerate(pool.imap_unordered(train_chain, missing.values()), 1):
                print(f"  {n} of {len(missing)} runs", flush=True)


# ------------------------------------------------------------------------------------------------------------- measured


def value_of(study: Study, changes: dict, recipe: Recipe) -> dict:
    """What one finished run says: the study's metric before and after, and the curve of its training."""
    folder = folder_of(recipe)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held = json.loads((folder / "heldout.json").read_text(encoding="utf-8"))
    column = next(name for name in ("metric/mask_iou", "metric/box_iou") if name in rows[-1])
    result = {"seed": recipe.seed, "steps": len(rows), "curve": [round(row[column], 4) for row in rows]}
    result["curve_of"] = f"{column.removeprefix('metric/').removesuffix('_iou')} IoU"
    result["collapsed"] = round(min(row["parsed"] for row in rows[len(rows) // 2 :]), 3)
    if study.metric == "spread of entropy":
        entropy = np.array([row["entropy"] for row in rows])
        result |= {"before": None, "after": float(np.std(np.diff(entropy)) / np.sqrt(2))}
    elif mode := changes.get("prompts_mode"):
        start = recipe.model
        scores = [scored(model, recipe, mode)[study.metric] for model in (start, str(folder / "final"))]
        result |= dict(zip(("before", "after"), scores, strict=True))
    else:
        result |= {when: held[when][study.metric] for when in ("before", "after")}
    if study is STUDIES["negative-points"]:
        result["landed"] = where_negatives_land(str(folder / "final"), recipe)
    return result


def held_out(recipe: Recipe) -> tuple:
    """The held-out samples, and the indices of those that are scored."""
    import data

    samples = data.load(recipe.dataset, None, recipe.eval_split)
    return samples, usable(samples, recipe)[0][: recipe.eval_samples]


def scored(model: str, recipe: Recipe, prompts_mode: str) -> dict:
    """The held-out metrics of a policy, with SAM2 prompted by "box", "1" or "2" points as well."""
    import evaluate
    import model as models

    policy = models.load_policy(model, image_size=recipe.image_size)
    segmenter = models.load_segmenter(recipe.segmenter)
    samples, chosen = held_out(recipe)
    return evaluate.evaluate(policy, segmenter, samples, recipe, indices=chosen, prompts_mode=prompts_mode)


def where_negatives_land(model: str, recipe: Recipe) -> dict[str, float]:
    """Of the objects written: the share with negative points, of these the share whose points are all in their own box
    (SAM-R1 Figure 4: first far outside), and of the points the share that lies on the object (then on it)."""
    import evaluate
    import model as models

    policy = models.load_policy(model, image_size=recipe.image_size)
    samples, chosen = held_out(recipe)
    objects = []
    on_object = []
    for i in range(0, len(chosen), 16):
        part = chosen[i : i + 16]
        found = evaluate.predict(policy, None, [samples[j] for j in part], recipe, part)
        for j, prediction in zip(part, found, strict=True):
            mask = samples[j].mask
            objects += prediction.answer.instances
            for x, y in (xy for o in prediction.answer.instances for xy in o.negative_points):
                inside = 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0]
                on_object.append(bool(inside and mask[int(y), int(x)]))
    having = [o for o in objects if len(o.negative_points)]
    return {
        "have negative points": len(having) / max(len(objects), 1),
        "of these in their box": float(np.mean([points_in_box(o) for o in having])) if having else 0.0,
        "points on the object": float(np.mean(on_object)) if on_object else 0.0,
    }


# ------------------------------------------------------------------------------------------------------------- verdicts


@dataclasses.dataclass
class Difference:
    """Of two arms, paired by seed: the mean of (first - second), its 95 % interval, and how likely so large a one is
    where there is none (two-sided; corrected where a claim names several)."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def decided(self) -> str:
        """ "first" or "second", whichever is better beyond chance; else "open"."""
        return "open" if self.p >= 0.05 else "first" if self.mean > 0 else "second"


def interval(d: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of d."""
    half = float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return float(d.mean()) - half, float(d.mean()) + half


def difference(results: dict[str, list[dict]], first: str, second: str) -> Difference | None:
    """None with fewer than three seeds in common."""
    values = [{run["seed"]: run["after"] for run in results.get(label, [])} for label in (first, second)]
    seeds = sorted(values[0].keys() & values[1].keys())
    if len(seeds) < 3:
        return None
    d = np.array([values[0][seed] - values[1][seed] for seed in seeds])
    error = d.std(ddof=1) / np.sqrt(len(d))
    p = float(2 * stats.t.sf(abs(d.mean()) / error, len(d) - 1)) if error > 0 else float(d.mean() == 0)
    return Difference(first, second, float(d.mean()), *interval(d), p, len(d))


def holm(found: list[Difference]) -> list[Difference]:
    """The same with p corrected for their number (Holm 1979): the smallest times n, the next times n - 1, ..."""
    corrected = 0.0
    result = list(found)
    for rank, i in enumerate(sorted(range(len(found)), key=lambda i: found[i].p)):
        corrected = max(corrected, min(1.0, found[i].p * (len(found) - rank)))
        result[i] = dataclasses.replace(found[i], p=corrected)
    return result


def gains(runs: list[dict]) -> np.ndarray:
    """What training gained, held out, per seed."""
    return np.array([run["after"] - run["before"] for run in runs])


VERDICTS = {
    "Agrees": "every difference that the claim names is there beyond chance (p < 0.05)",
    "Agrees in part": "some are, the others are not told apart, none is reversed",
    "Undecided": "none is told apart, either way",
    "Disagrees": "one is reversed beyond chance",
    "Not seen here": "a collapse is claimed, and the arm that should collapse has gained beyond chance",
    "Nothing named": "the claim is no order of arms: what it describes is shown",
    "Too few seeds": "fewer than three",
}


def verdict(study: Study, results: dict[str, list[dict]]) -> tuple[str, list[Difference]]:
    """One of VERDICTS, and the differences that the claim names."""
    pairs = [difference(results, *pair) for pair in study.pairs]
    found = holm([pair for pair in pairs if pair is not None])
    if not study.pairs:
        return "Nothing named", found
    if len(found) < len(pairs):
        return "Too few seeds", found
    decided = {pair.decided for pair in found}
    if study.collapse and interval(gains(results[study.pairs[0][1]]))[0] > 0:
        return "Not seen here", found
    if "second" in decided:
        return "Disagrees", found
    if decided == {"first"}:
        return "Agrees", found
    return ("Agrees in part" if "first" in decided else "Undecided"), found


def seeds_needed(half: float, seeds: int, effect: float = 1.0, named: int = 1) -> int | None:
    """How many seeds find a difference of `effect`, one of so many that a claim names, four times in five, if their
    spread is that of an interval that reaches `half` to either side with `seeds` of them (same unit). None: more than
    a thousand."""
    spread = half * seeds**0.5 / stats.t.ppf(0.975, seeds - 1)

    def power(n: int) -> float:
        edge, shift = stats.t.ppf(1 - 0.025 / named, n - 1), effect * n**0.5 / spread
        return stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift)

    return next((n for n in range(2, 1001) if power(n) >= 0.8), None)


# ------------------------------------------------------------------------------------------------------------- the page


def plot(name: str, study: Study, results: dict[str, list[dict]]) -> None:
    """Left: the completions' IoU in training, mean over seeds, smoothed. Right: what a seed ends with in each arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = {label: results[label] for label in study.arms if label in results}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), constrained_layout=True, width_ratios=(3, 2))
    styles = ["-", "--", "-.", ":"]
    scale = SCALE.get(study.metric, 100)
    for i, (label, runs) in enumerate(results.items()):
        n = min(len(run["curve"]) for run in runs)
        curves = np.array([run["curve"][:n] for run in runs]).mean(0)
        left.plot(range(1, n + 1), journal.smooth(curves, max(n // 15, 1)), styles[i % 4], label=label, linewidth=1.8)
        right.plot([i - 0.25, i + 0.25], [scale * np.mean([run["after"] for run in runs])] * 2, color="black")
    for seed in sorted({run["seed"] for runs in results.values() for run in runs}):
        its = [[scale * run["after"] for run in runs if run["seed"] == seed] for runs in results.values()]
        at = [i for i, values in enumerate(its) if values]
        right.plot(at, [its[i][0] for i in at], "o-", markersize=4, linewidth=0.7, alpha=0.8)
    what = next(iter(results.values()))[0].get("curve_of", "IoU")
    left.set(xlabel="training step", ylabel=f"{what} in training, smoothed")
    left.legend(fontsize=8)
    right.set_xticks(range(len(results)), [label.replace(", ", ",\n") for label in results], fontsize=7)
    right.set_ylabel(f"{TOLD[study.metric]}:\na line per seed, black the mean", fontsize=8)
    figure.savefig(DOCS / "ablations" / f"{name}.png", dpi=90)
    plt.close(figure)


def section(name: str, study: Study, results: dict[str, list[dict]], ran: str) -> tuple[str, list[str]]:
    """(verdict, lines) of a study's part of the page. ran: which code ran it."""
    word, pairs = verdict(study, results)
    results = {label: results[label] for label in study.arms if label in results}  # in the claim's order
    seeds = max(len(runs) for runs in results.values())
    scale = SCALE.get(study.metric, 100)
    lines = [f"## {name}", "", f"{study.place}: {study.claim}", ""]
    command = f"`python -m studies.ablations {name} --seeds {seeds}`"
    lines.append(f"{command}: recipe `{study.recipe}`, {study.steps} steps, {ran}.")
    if starts := sorted({changes["start"] for changes in study.arms.values() if "start" in changes}):
        lines.append(f"Arms that go on from `{'`, `'.join(starts)}` do so after {START_STEPS} steps of it.")
    lines += [""]
    printed = "".join(f" | the paper's {column}" for column in study.columns)
    lines += [
        f"| {TOLD[study.metric]} | before | after, mean | each seed{printed} |",
        "|---" * (4 + len(study.columns)) + "|",
    ]
    for label, runs in results.items():
        before = "–" if runs[0]["before"] is None else f"{scale * np.mean([run['before'] for run in runs]):.1f}"
        values = [scale * run["after"] for run in runs]
        theirs = "".join(f" | {value}" for value in study.figures.get(label, ("–",) * len(study.columns)))
        each = ", ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {label} | {before} | {np.mean(values):.1f} | {each}{theirs} |")
    lines += [""]
    last = study.pairs[-1][1] if study.pairs else next(iter(results))
    named = {label for pair in study.pairs for label in pair} | {last}
    beside = [difference(results, last, label) for label in results if label not in named]
    for pair in [*pairs, *filter(None, beside)]:
        higher = ("more", "less") if study.metric == "spread of entropy" else ("better", "worse")
        words = {"first": higher[0], "second": higher[1], "open": "not told apart"}[pair.decided]
        mean, low, high = (f"{scale * value:+.1f}" for value in (pair.mean, pair.low, pair.high))
        several = f", corrected for {len(pairs)}" if len(pairs) > 1 and pair in pairs else ""
        aside = "" if pair in pairs else " (no part of the claim)"
        chance = f"p = {pair.p:.2g}" if pair.p >= 0.001 else "p < 0.001"
        told = f"{mean}, 95 % interval {low} to {high}, {chance}{several}"
        lines.append(f"- {pair.first} against {pair.second}: {told}: {words}{aside}")
    same = [
        f"{a} and {b}"
        for i, (a, one) in enumerate(results.items())
        for b, other in list(results.items())[i + 1 :]
        if [run["curve"] for run in one] == [run["curve"] for run in other]
    ]
    told = [f"**{word}.** {study.remark}".strip()]
    if same and not any("prompts_mode" in changes for changes in study.arms.values()):  # there, they are meant to be
        told.append(f"The runs of {'; '.join(same)} are the same to the last digit.")
    lowest = {label: min(run.get("collapsed", 1.0) for run in runs) for label, runs in results.items()}
    if fell := [f"{share:.0%} ({label})" for label, share in lowest.items() if share < 0.5]:
        told.append(f"In the second half of training a step's completions parsed as seldom as {', '.join(fell)}.")
    if study.collapse and word != "Too few seeds":
        label = study.pairs[0][1]
        low, high = (f"{scale * edge:.1f}" for edge in interval(gains(results[label])))
        gained = f"{scale * gains(results[label]).mean():.1f}"
        told.append(f"“{label}” gained {gained} in training, 95 % interval {low} to {high}.")
    if word == "Undecided":
        vaguest = max(pairs, key=lambda pair: pair.high - pair.low)
        widest = scale * (vaguest.high - vaguest.low) / 2
        told.append(f"The widest interval reaches {widest:.1f} to either side.")
        if scale == 100:  # what would tell
            needed = seeds_needed(widest, vaguest.seeds, named=len(pairs))
            many = f"About {needed}" if needed else "More than a thousand"
            told.append(f"{many} seeds would find a difference of 1.0 with a power of 80 %, if these are typical.")
    lines += ["", " ".join(told), ""]
    landed = {label: [run["landed"] for run in runs if "landed" in run] for label, runs in results.items()}
    if all(landed.values()) and landed:
        keys = list(next(iter(landed.values()))[0])
        lines += ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
        for label, found in landed.items():
            cells = " | ".join(f"{np.mean([one[key] for one in found]):.0%}" for key in keys)
            lines.append(f"| {label} | {cells} |")
        lines += [""]
        first, *rest = results
        shares = {k: [{"seed": r["seed"], "after": r["landed"][keys[-1]]} for r in runs] for k, runs in results.items()}
        for pair in filter(None, (difference(shares, label, first) for label in rest)):
            mean, low, high = (f"{100 * value:+.0f}" for value in (pair.mean, pair.low, pair.high))
            lines.append(f"- {keys[-1]}, percent, {pair.first} against {first}: {mean}, 95 % interval {low} to {high}")
        lines += [""]
    return word, [*lines, f"![{name}](ablations/{name}.png)", ""]


def shared(found: dict[str, dict[str, list[dict]]]) -> list[str]:
    """A list: which arms of different studies are the same runs (their first seed's curves are equal)."""
    same: dict[tuple, list[tuple[str, str]]] = {}
    for name, arms in found.items():
        for label, runs in arms.items():
            same.setdefault(tuple(runs[0]["curve"]), []).append((name, label))
    groups = [group for group in same.values() if len({name for name, _ in group}) > 1]
    lines = ["- " + " · ".join(f"{name}: {label}" for name, label in group) for group in groups]
    said = "Some arms of different studies are the same runs, so what is said of them is not independent:"
    return [said, "", *lines, ""] if lines else []


def page() -> str:
    """docs/ablations.md from docs/ablations/*.json."""
    table = ["| study | asks | verdict | what the claim names: difference, 95 % interval |", "|---|---|---|---|"]
    verdicts: list[tuple[bool, bool]] = []
    sections: list[str] = []
    missing = []
    ran_all = {}
    for name, study in STUDIES.items():
        path = DOCS / "ablations" / f"{name}.json"
        if not path.exists():
            missing.append(name)
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        word, lines = section(name, study, found["arms"], f"commit {found['commit']}")
        ran_all[name] = found["arms"]
        scale = SCALE.get(study.metric, 100)
        named = [
            f"{d.first} − {d.second}: {scale * d.mean:+.1f}, {scale * d.low:+.1f} to {scale * d.high:+.1f}"
            for d in verdict(study, found["arms"])[1]
        ]
        asks = "our own question" if study.ours else study.place
        mark = "**" if study.first else ""
        table.append(f"| {mark}[{name}](#{name}){mark} | {asks} | {word} | {'; '.join(named) or '–'} |")
        verdicts.append((study.first, word not in ("Undecided", "Nothing named", "Too few seeds")))
        sections += lines
    out = [
        "# The papers' claims, asked of the miniature",
        "",
        "Written by `python -m studies.ablations --page` from the runs' own figures. Tiny networks on drawn shapes:",
        "what agrees here shows that the mechanism works as described, not that its effect has the paper's size; what",
        "does not agree may need scale. Held-out figures: 200 requests, greedy; gIoU is the mean mask IoU over those",
        "that the recipe is trained for. Runs are shorter than those of [results.md](results.md), so the same recipe",
        "and seed ends elsewhere.",
        "",
        f"Of the {sum(first for first, _ in verdicts)} claims that the papers put first (bold), "
        f"{verdicts.count((True, True))} are decided, one way or the other; of the other "
        f"{sum(not first for first, _ in verdicts)} studies, {verdicts.count((False, True))}. So few seeds see only",
        "differences that are large or very regular.",
        "",
        *table,
    ]
    if missing:
        out += ["", f"Not run: {', '.join(missing)} (`python -m studies.ablations NAME`)."]
    out += ["", "What the words mean:", "", *(f"- *{word}*: {what}." for word, what in VERDICTS.items())]
    return "\n".join([*out, "", *HOW_TO_READ, "", *shared(ran_all), *sections])


def run(name: str, seeds: list[int], workers: int) -> None:
    """Run what is missing of a study, and write docs/ablations/NAME.json and its figure."""
    study = STUDIES[name]
    jobs = {(label, seed): chain(study, changes, seed) for label, changes in study.arms.items() for seed in seeds}
    print(f"{name}: {len(jobs)} runs of {study.steps} steps", flush=True)
    train_all(list(jobs.values()), workers)
    arms: dict[str, list[dict]] = {}
    for (label, _), job in jobs.items():
        arms.setdefault(label, []).append(value_of(study, study.arms[label], job[-1]))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    folder = DOCS / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"commit": commit, "code": code_version(), "arms": arms}
    (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    plot(name, study, arms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="studies, or: all")
    parser.add_argument("--seeds", type=int, default=0, help="how many, from 0 (default: 6 for first claims, else 4)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--page", action="store_true", help="write docs/ablations.md")
    args = parser.parse_args()
    if unknown := set(args.names) - {*STUDIES, "all"}:
        parser.error(f"no study is called {', '.join(sorted(unknown))}; there are: {', '.join(STUDIES)}")
    for name in STUDIES if "all" in args.names else args.names:
        run(name, list(range(args.seeds or (6 if STUDIES[name].first else 4))), args.workers)
        (DOCS / "ablations.md").write_text(page(), encoding="utf-8")
    if args.page:
        (DOCS / "ablations.md").write_text(page(), encoding="utf-8")
    if not args.names and not args.page:
        for name, study in STUDIES.items():
            print(f"{name:16} {study.place:40} {len(study.arms)} arms of {study.recipe}: {study.claim}")


if __name__ == "__main__":
    main()
