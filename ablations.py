"""The papers' ablations in miniature: each a handful of changed fields, run over seeds on the toy, with a table and a
figure.

    python ablations.py                       # what there is, and how long each takes
    python ablations.py tiers                 # run one (resumes; finished runs are kept in runs/ablations)
    python ablations.py tiers --seeds 0 1 2 --steps 100
    python ablations.py --page                # write docs/ablations.md from all that has been run

A study says what the paper claims before it is run. What the miniature shows, agreement or not, is computed: a
difference counts as one only if it has the same sign for every seed; else the page says "no difference seen". A null
result is a result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from recipes import RECIPES, Recipe, miniature

RUNS, DOCS = Path("runs/ablations"), Path("docs")


@dataclasses.dataclass(frozen=True)
class Study:
    """`variants` maps a label to the fields that it changes; the first one is what the others are compared with."""

    recipe: str
    claim: str  # what the paper says
    variants: dict[str, dict]
    better: tuple[str, str] | None = None  # (label, label): the paper says that the first beats the second
    metric: str = (
        "giou"  # of the held-out scores, or a column of metrics.jsonl (its mean over the last fifth of the run)
    )


DRSEG_OFF = {"look": 0.0}
STUDIES: dict[str, Study] = {
    "tiers": Study(
        "samr1", "SAM-R1, Table 5: tiers (0.5, 0.7, 0.8) beat any single threshold of the mask IoU.",
        {"tiers": {}, "0.5 alone": {"tiers": (0.5,), "tier_rewards": (4.0,)}, "0.7 alone": {"tiers": (0.7,), "tier_rewards": (4.0,)},
         "0.8 alone": {"tiers": (0.8,), "tier_rewards": (4.0,)}}, ("tiers", "0.8 alone"),
    ),
    "average": Study(
        "samr1", "SAM-R1, section 3.2.2: averaging over the group's tokens serves long reasoning better than averaging per sequence.",
        {"token": {}, "sequence": {"average": "sequence"}}, ("token", "sequence"),
    ),
    "clip": Study(
        "samr1", "SAM-R1, section 3.2.2: clip-higher (0.2 / 0.3) keeps exploring where the symmetric clip (0.2 / 0.2) does not: entropy stays up.",
        {"clip-higher": {}, "symmetric": {"clip_high": 0.2}}, ("clip-higher", "symmetric"), "entropy",
    ),
    "kl": Study(
        "samr1", "SAM-R1: without the KL term training collapses (after about 100 steps at full scale).",
        {"with KL": {}, "no KL": {"beta": 0.0}}, ("with KL", "no KL"),
    ),
    "rank": Study(
        "drseg", "Dr. Seg, Tables 1 and 5: the ranked reward beats the raw one, and the raw continuous one beats VisionReasoner's thresholds.",
        {"ranked": {}, "raw": {"rank": "raw"}}, ("ranked", "raw"),
    ),
    "queue": Study(
        "drseg", "Dr. Seg: a queue of 2,048 is long enough to be stable and short enough to follow the policy.",
        {"2048": {}, "256": {"queue_size": 256, "queue_zeros": 128}, "8192": {"queue_size": 8192}}, None,
    ),
    "components": Study(
        "drseg", "Dr. Seg, Table 10: all three of box IoU, count and point score are needed.",
        {"IoU, count, point": {}, "IoU": {"components": (0,)}, "IoU, count": {"components": (0, 1)}, "point": {"components": (2,)}},
        ("IoU, count, point", "point"),
    ),
    "look": Study(
        "drseg", "Dr. Seg, Tables 5 and 9: rewarding <look> helps, and keeps the policy's entropy up.",
        {"with its reward": {}, "without": {"weights": {**RECIPES["drseg"].weights, **DRSEG_OFF}}}, ("with its reward", "without"),
    ),
    "entropy": Study(
        "drseg", "Dr. Seg, section 3.2: entropy falls in training; it falls less with <look> rewarded.",
        {"with its reward": {}, "without": {"weights": {**RECIPES["drseg"].weights, **DRSEG_OFF}}}, ("with its reward", "without"), "entropy",
    ),
    "reward-in-loop": Study(
        "genseg-g", "GenSeg-R1, Tables 1 and 5: SAM2 and no-target in the reward (GenSeg-R1-G) beat the distance reward.",
        {"SAM2 in the loop": {}, "distances": {"reward": "genseg", "weights": RECIPES["genseg"].weights}}, ("SAM2 in the loop", "distances"),
    ),
    "negatives": Study(
        "genseg-g", "GenSeg-R1: negative points sharpen the mask.",
        {"rewarded": {}, "not rewarded": {"weights": {**RECIPES["genseg-g"].weights, "negative": 0.0}}}, ("rewarded", "not rewarded"),
    ),
    "lens-queries": Study(
        "lens-align", "LENS, Table 3: 64 queries are better than 1 (87.8 against 85.9), more add nothing.",
        {"16": {}, "1": {"num_queries": 1}, "64": {"num_queries": 64}}, ("64", "1"),
    ),
    "lens-connector": Study(
        "lens-align", "LENS, Table 4: a transformer connector is much better than an MLP (87.8 against 72.8).",
        {"transformer": {}, "mlp": {"connector": "mlp"}}, ("transformer", "mlp"),
    ),
    "lens-reward": Study(
        "lens", "LENS, Table 5: the mask reward adds to the box reward.",
        {"with": {}, "without": {"weights": {**RECIPES["lens"].weights, "mask_iou": 0.0}}}, ("with", "without"),
    ),
    "lens-alignment": Study(
        "lens", "LENS, Table 5: joint training needs the alignment stage first.",
        {"aligned": {}, "not aligned": {"model": "toy/qwen2_5_vl"}}, ("aligned", "not aligned"),
    ),
    "lens-decoder": Study(
        "lens", "LENS, Table A3: tuning SAM2's mask decoder beats freezing it.",
        {"tuned": {}, "frozen": {"tune_decoder": False}}, ("tuned", "frozen"),
    ),
}  # fmt: skip


def settings(study: Study, changes: dict, seed: int, steps: int) -> Recipe:
    """The toy recipe of one run: the study's, with its changed fields."""
    recipe = miniature(RECIPES[study.recipe])
    return dataclasses.replace(
        recipe, **{"max_steps": steps or recipe.max_steps, "seed": seed, "save_every": 10**6, "keep": 1, **changes}
    )


def run(name: str, seeds: list[int], steps: int) -> None:
    """Run what is missing of a study, and write docs/ablations/NAME.json."""
    from train import train  # imported late: listing the studies should not load torch

    study, results = STUDIES[name], {}
    for label, changes in study.variants.items():
        for seed in seeds:
            recipe = settings(study, changes, seed, steps)
            folder = RUNS / name / f"{label.replace(' ', '-').replace(',', '')}-seed{seed}-{recipe.max_steps}"
            if not (folder / "done").exists():
                print(f"== {name}: {label}, seed {seed}, {recipe.max_steps} steps", flush=True)
                train(recipe, folder)
                (folder / "done").touch()
            held = json.loads((folder / "heldout.json").read_text())
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            if study.metric in rows[-1]:
                value = float(np.mean([r[study.metric] for r in rows[-max(len(rows) // 5, 1) :]]))
            else:
                value = held["after"][study.metric]
            curve = [r.get("metric/mask_iou", r.get("metric/box_iou", r.get("seg_loss", 0.0))) for r in rows]
            results.setdefault(label, []).append(
                {
                    "seed": seed,
                    "value": value,
                    "before": held["before"].get(study.metric),
                    "steps": len(rows),
                    "curve": curve,
                }
            )
    folder = DOCS / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results))
    plot(name, results)


def plot(name: str, results: dict) -> None:
    """The study's training curves (mask IoU of the sampled completions where SAM2 is in the loop, box IoU elsewhere),
    mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.2), constrained_layout=True)
    for label, runs in results.items():
        n = min(len(r["curve"]) for r in runs)
        curves = np.array([r["curve"][:n] for r in runs])
        width = max(n // 20, 1)
        smooth = np.array([np.convolve(c, np.ones(width) / width, "valid") for c in curves])
        (line,) = axis.plot(smooth.mean(0), label=label)
        axis.fill_between(range(smooth.shape[1]), smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.15)
    axis.set(xlabel="step", title=name)
    axis.legend(fontsize=8)
    figure.savefig(DOCS / "ablations" / f"{name}.png", dpi=90)
    plt.close(figure)


def verdict(study: Study, results: dict) -> str:
    """Compare the two labels that the paper's claim names, seed by seed."""
    if study.better is None:
        return "The paper makes no claim of order; the table is the result."
    first, second = (results[label] for label in study.better)
    differences = [a["value"] - b["value"] for a, b in zip(first, second, strict=True)]
    shown = ", ".join(f"{d:+.3f}" for d in differences)
    if all(d > 0 for d in differences):
        return f"**Agrees**: {study.better[0]} against {study.better[1]}, seed by seed: {shown}."
    if all(d < 0 for d in differences):
        return f"**Disagrees**: {study.better[0]} against {study.better[1]}, seed by seed: {shown}."
    return f"**No difference seen**: {study.better[0]} against {study.better[1]}, seed by seed: {shown}."


def page() -> str:
    """docs/ablations.md: every study that has been run, and a list of those that have not."""
    out = [
        "# The papers' ablations, in miniature",
        "",
        "Written by `python ablations.py --page` from the runs' own figures. Tiny networks on drawn shapes: what agrees here shows that the",
        "mechanism works as described, not that its effect has the paper's size; what does not agree may need scale. A difference counts",
        "only if every seed has its sign. Held-out figures: 200 pictures, greedy. Spread: half the range over seeds.",
        "",
    ]
    missing = []
    for name, study in STUDIES.items():
        file = DOCS / "ablations" / f"{name}.json"
        if not file.exists():
            missing.append(f"`{name}`")
            continue
        results = json.loads(file.read_text())
        steps, seeds = next(iter(results.values()))[0]["steps"], len(next(iter(results.values())))
        out += [
            f"## {name}",
            "",
            f"{study.claim}",
            "",
            f"`python ablations.py {name} --steps {steps}`: recipe `{study.recipe}`, {seeds} seeds.",
        ]
        out += ["", f"| | {study.metric} before | after | spread | seeds |", "|---|---|---|---|---|"]
        for label, runs in results.items():
            values = [r["value"] for r in runs]
            before = runs[0]["before"]
            out.append(
                f"| {label} | {'' if before is None else f'{before:.3f}'} | {np.mean(values):.3f} | "
                f"{(max(values) - min(values)) / 2:.3f} | {', '.join(f'{v:.3f}' for v in values)} |"
            )
        out += ["", verdict(study, results), "", f"![{name}](ablations/{name}.png)", ""]
    if missing:
        out += ["## Not run yet", "", f"{', '.join(missing)}: `python ablations.py NAME` runs any of them.", ""]
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STUDIES, []])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--steps", type=int, default=0, help="steps per run (0: the miniature's own, about 4 minutes on 2 cores)"
    )
    parser.add_argument("--page", action="store_true", help="write docs/ablations.md")
    args = parser.parse_args()
    for name in args.names:
        run(name, args.seeds, args.steps)
    if args.names or args.page:
        DOCS.mkdir(exist_ok=True)
        (DOCS / "ablations.md").write_text(page())
    else:
        for name, study in STUDIES.items():
            print(f"{name:16} {len(study.variants)} variants of {study.recipe}: {study.claim}")


if __name__ == "__main__":
    main()
