"""The papers' ablations in miniature: each a handful of changed fields, over seeds, with a table and a figure.

    python -m studies.ablations                       # what there is
    python -m studies.ablations tiers                 # run one (finished runs are kept in runs/ablations)
    python -m studies.ablations tiers --seeds 0 1 2 --steps 100
    python -m studies.ablations --words runs/lens-toy/final
    python -m studies.ablations --page                # write docs/ablations.md from all that has been run

A study says what the paper claims before it is run. What the miniature shows, agreement or not, is computed: a
difference counts as one only if the seeds' ranges do not overlap; else the page says "no difference seen". A null
result is a result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path

import numpy as np

import rewards
from recipes import RECIPES, Recipe, miniature, usable

RUNS = Path("runs/ablations")
DOCS = Path("docs")


@dataclasses.dataclass(frozen=True)
class Study:
    """`variants` maps a label to the fields that it changes. Beside fields: "weights" changes single parts (None takes
    one away), "start" names the recipe trained before, from whose end this run starts, "prompts_mode" what SAM2 gets in
    the final evaluation."""

    recipe: str
    claim: str  # what the paper says
    variants: dict[str, dict]
    better: tuple[str, str] | None = None  # (label, label): the paper says that the first beats the second
    metric: str = "giou"  # of the held-out scores, or a column of metrics.jsonl (mean over the run's last fifth)
    remark: str = ""  # why, where the runs themselves show it


def negative_points(inside: bool | None):
    """SAM-R1's rewards that failed: +1 if every object has a positive and a negative point (`inside`: in its box).

    Here on genseg-g's answers, which can write negative points; a right "nothing fits" earns the whole tier. None: no
    such part, to compare with.
    """

    def reward(answer: rewards.Answer, target: rewards.Target, mask_iou=None, *, weights=None) -> dict[str, float]:
        parts = rewards.samr1_reward(answer, target, mask_iou)
        if target.no_target:
            parts["tiered"] = 4.0 * answer.no_target
        if inside is None:
            return parts
        good = [len(o.points) > 0 and len(o.negative_points) > 0 for o in answer.instances]
        if inside:
            for i, o in enumerate(answer.instances):
                x1, y1, x2, y2 = o.box
                good[i] &= all(x1 <= x <= x2 and y1 <= y <= y2 for x, y in [*o.points, *o.negative_points])
        return parts | {"both_points": float(bool(good) and all(good) and not target.no_target)}

    return reward


for _name, _inside in {"samr1-any": None, "samr1-negative": False, "samr1-negative-inside": True}.items():
    rewards.REWARDS[_name] = negative_points(_inside)
    _most = {"tiered": 4, "think": 1, "format": 1}
    rewards.MAXIMUM[_name] = (_most if _inside is None else _most | {"both_points": 1}, _most)

STUDIES: dict[str, Study] = {
    "tiers": Study(
        "samr1",
        "SAM-R1, Table 5: tiers (0.5, 0.7, 0.8) beat any single threshold of the mask IoU.",
        {
            "tiers": {},
            "0.5 alone": {"tiers": (0.5,), "tier_rewards": (4.0,)},
            "0.7 alone": {"tiers": (0.7,), "tier_rewards": (4.0,)},
            "0.8 alone": {"tiers": (0.8,), "tier_rewards": (4.0,)},
        },
        ("tiers", "0.8 alone"),
    ),
    "average": Study(
        "samr1",
        "SAM-R1, section 3.2.2: averaging over the group's tokens serves long reasoning better than averaging per sequence.",
        {"token": {}, "sequence": {"average": "sequence"}},
        ("token", "sequence"),
    ),
    "clip": Study(
        "samr1",
        "SAM-R1, section 3.2.2: clip-higher (0.2 / 0.3) keeps exploring where the symmetric clip (0.2 / 0.2) does not: entropy stays up.",
        {"clip-higher": {}, "symmetric": {"clip_high": 0.2}},
        ("clip-higher", "symmetric"),
        "entropy",
    ),
    "kl": Study(
        "samr1",
        "SAM-R1: without the KL term training collapses (after about 100 steps at full scale).",
        {"with KL": {}, "no KL": {"beta": 0.0}},
        ("with KL", "no KL"),
    ),
    "rank": Study(
        "drseg",
        "Dr. Seg, Tables 1 and 5: the ranked reward beats the raw one.",
        {"ranked": {}, "raw": {"rank": "raw"}},
        ("ranked", "raw"),
    ),
    "queue": Study(
        "drseg",
        "Dr. Seg: a queue of 2,048 is long enough to be stable and short enough to follow the policy.",
        {"2048": {}, "256": {"queue_size": 256}, "8192": {"queue_size": 8192}},
        None,
    ),
    "components": Study(
        "drseg",
        "Dr. Seg, Table 10: all three of box IoU, count and point score are needed.",
        {
            "IoU, count, point": {},
            "IoU": {"components": (0,)},
            "IoU, count": {"components": (0, 1)},
            "point": {"components": (2,)},
        },
        ("IoU, count, point", "point"),
    ),
    "look": Study(
        "drseg",
        "Dr. Seg, Tables 5 and 9: rewarding <look> helps.",
        {"rewarded": {}, "not rewarded": {"weights": {"look": 0.0}}},
        ("rewarded", "not rewarded"),
        remark="With another word in its place (Table 9) there is no run: the miniature's policy can write this one only.",
    ),
    "entropy": Study(
        "drseg",
        "Dr. Seg, section 3.2: entropy falls in training; it falls less with <look> rewarded.",
        {"rewarded": {}, "not rewarded": {"weights": {"look": 0.0}}},
        ("rewarded", "not rewarded"),
        "entropy",
    ),
    "points": Study(
        "genseg",
        "GenSeg-R1, Table 4: SAM2 prompted with the box and two points beats the box and one point, and the box alone.",
        {"2 points": {"prompts_mode": "2"}, "1 point": {"prompts_mode": "1"}, "box": {"prompts_mode": "box"}},
        ("2 points", "box"),
    ),
    "reward-in-loop": Study(
        "genseg-g",
        "GenSeg-R1, Tables 1 and 5: SAM2 and no-target in the reward (GenSeg-R1-G) beat the distance reward.",
        {
            "SAM2 in the loop": {},
            "distances": {"reward": "genseg", "weights": {"mask_iou": None, "negative": None, "no_target": None}},
        },
        ("SAM2 in the loop", "distances"),
    ),
    "negatives": Study(
        "genseg-g",
        "GenSeg-R1: negative points sharpen the mask.",
        {"rewarded": {}, "not rewarded": {"weights": {"negative": 0.0}}},
        ("rewarded", "not rewarded"),
        remark='A negative point counts as valid in its own written box: a weak policy earns more by boxes beside the object than by good ones. Without it seed 1 ends by saying "nothing fits" to everything.',
    ),
    "two-stages": Study(
        "genseg-g",
        "GenSeg-R1, section 5: genseg first, then genseg-g, is the recipe of its best model.",
        {
            "genseg, then genseg-g": {"start": "genseg"},
            "genseg-g, then again": {"start": "genseg-g"},
            "genseg-g once": {},
        },
        ("genseg, then genseg-g", "genseg-g, then again"),
    ),
    "negative-points": Study(
        "genseg-g",
        "SAM-R1, left out by its authors: paying for a positive and a negative point, even inside the box, does not help the mask.",
        {
            "tiers alone": {"weights": {}, "reward": "samr1-any"},
            "+1 for both": {"weights": {}, "reward": "samr1-negative"},
            "+1 for both inside": {"weights": {}, "reward": "samr1-negative-inside"},
        },
        ("tiers alone", "+1 for both"),
    ),
    "lens-queries": Study(
        "lens-align",
        "LENS, Table 3: 64 queries are better than 1 (87.8 against 85.9), more add nothing.",
        {"16": {}, "1": {"num_queries": 1}, "64": {"num_queries": 64}},
        ("64", "1"),
        "giou_true_text",
    ),
    "lens-connector": Study(
        "lens-align",
        "LENS, Table 4: a transformer connector is much better than an MLP (87.8 against 72.8).",
        {"transformer": {}, "mlp": {"connector": "mlp"}},
        ("transformer", "mlp"),
        "giou_true_text",
    ),
    "lens-reward": Study(
        "lens",
        "LENS, Table 5: the mask reward adds to the box reward.",
        {"with": {"start": "lens-align"}, "without": {"start": "lens-align", "weights": {"mask_iou": 0.0}}},
        ("with", "without"),
    ),
    "lens-alignment": Study(
        "lens",
        "LENS, Table 5: joint training needs the alignment stage first.",
        {"aligned": {"start": "lens-align"}, "not aligned": {"model": "toy/qwen2_5_vl"}},
        ("aligned", "not aligned"),
    ),
    "lens-decoder": Study(
        "lens",
        "LENS, Table A3: tuning SAM2's mask decoder beats freezing it.",
        {"tuned": {"start": "lens-align"}, "frozen": {"start": "lens-align", "tune_decoder": False}},
        ("tuned", "frozen"),
    ),
}


def settings(recipe_name: str, changes: dict) -> Recipe:
    """The miniature of a recipe with a variant's changes."""
    recipe = miniature(RECIPES[recipe_name])
    fields = {k: v for k, v in changes.items() if k not in ("start", "prompts_mode")}
    if "weights" in fields:
        weights = recipe.weights | fields["weights"] if fields["weights"] else {}
        fields["weights"] = {k: v for k, v in weights.items() if v is not None}
    return dataclasses.replace(recipe, **fields)


def one_run(recipe_name: str, changes: dict, seed: int, steps: int, start_steps: int) -> Path:
    """The folder of one run, trained now if it is not there: its name says what was changed, so that studies share."""
    from train import train  # imported late: listing the studies should not load torch

    recipe = settings(recipe_name, changes)
    start = changes.get("start")
    told = [recipe_name] + [f"{k}={v}" for k, v in changes.items() if k not in ("start", "prompts_mode")]
    before = start_steps or steps
    told += [f"after={start}{before or miniature(RECIPES[start]).max_steps}"] if start else []
    recipe = dataclasses.replace(recipe, max_steps=steps or recipe.max_steps, seed=seed, save_every=10**6, keep=1)
    slug = re.sub(r"[^a-z0-9.=_]+", "-", "-".join(told).lower()).strip("-")
    folder = RUNS / f"{slug}-seed{seed}-{recipe.max_steps}"
    if not (folder / "done").exists():
        if start:
            model = one_run(start, {}, seed, before, 0) / "final"
            recipe = dataclasses.replace(recipe, model=str(model))
        print(f"== {folder.name}", flush=True)
        train(recipe, folder, resume=True)
        (folder / "done").touch()
    return folder


def score(model: str, recipe: Recipe, prompts_mode: str) -> dict:
    """The held-out metrics of a policy once more, with SAM2 prompted by "box", "1" or "2" points as well."""
    import data
    import evaluate
    import model as models

    policy = models.load_policy(model, image_size=recipe.image_size)
    segmenter = models.load_segmenter(recipe.segmenter)
    held = data.load(recipe.dataset, None, recipe.eval_split)
    chosen = usable(held, recipe)[0][: recipe.eval_samples]
    return evaluate.evaluate(policy, segmenter, held, recipe, indices=chosen, prompts_mode=prompts_mode)


def words(folder: Path) -> str:
    """Do the masks follow the words? Two objects of one picture, each asked for by its own sentence.

    Held-out pictures with two objects of different colour or shape. A pair counts as moved if the mask for "the A" has
    more IoU with A than with B, and the mask for "the B" more with B.
    """
    import torch

    import model as models
    from engine.checkpoint import load_recipe
    from evaluate import predict
    from toy import world

    trained = (folder / "recipe.json").exists()
    recipe = load_recipe(folder) if trained else miniature(RECIPES["drseg"])
    policy = models.load_policy(str(folder), image_size=recipe.image_size)
    segmenter = policy.segmenter or models.load_segmenter(recipe.segmenter)
    pairs = []
    seed, count = world.TOY_SPLITS["test"]
    for i in range(count):
        scene = world.toy_scene(seed, i)
        kinds = [(o["color"], o["shape"]) for o in scene["objects"]]
        alone = [k for k, kind in enumerate(kinds) if kinds.count(kind) == 1]
        if len(alone) >= 2:
            asked = [scene | {"query": "the {} {}".format(*kinds[k]), "targets": [k]} for k in alone[:2]]
            pairs.append([world.scene_sample(s, f"words-{i}") for s in asked])
    moved = []
    ious = []
    for i in range(0, len(pairs), 16):
        samples = [s for pair in pairs[i : i + 16] for s in pair]
        found = predict(policy, segmenter, samples, recipe, range(len(samples)))
        masks = [torch.as_tensor(p.mask) for p in found]
        true = [torch.as_tensor(s.mask) for s in samples]
        for a in range(0, len(samples), 2):
            own = [models.mask_iou(masks[a + j], true[a + j]) for j in (0, 1)]
            other = [models.mask_iou(masks[a + j], true[a + 1 - j]) for j in (0, 1)]
            moved.append([mine > others for mine, others in zip(own, other, strict=True)])
            ious += own
    both = np.all(moved, 1).sum()
    each = np.sum(moved)
    return (
        f"{both} of {len(moved)} pairs moved with their words ({each} of {2 * len(moved)} masks are nearer to what was "
        f"asked for); IoU with what was asked for {np.mean(ious):.3f}"
    )


def run(name: str, seeds: list[int], steps: int, start_steps: int) -> None:
    """Run what is missing of a study, and write docs/ablations/NAME.json."""
    study = STUDIES[name]
    results = {}
    for label, changes in study.variants.items():
        for seed in seeds:
            folder = one_run(study.recipe, changes, seed, steps, start_steps)
            held = json.loads((folder / "heldout.json").read_text())
            if mode := changes.get("prompts_mode"):
                recipe = settings(study.recipe, changes)
                models = {"before": recipe.model, "after": str(folder / "final")}
                held = {when: score(model, recipe, mode) for when, model in models.items()}
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            if study.metric in rows[-1]:
                before = rows[0][study.metric]
                fifth = rows[-max(len(rows) // 5, 1) :]
                value = float(np.mean([r[study.metric] for r in fifth]))
            else:
                before, value = (held[when][study.metric] for when in ("before", "after"))
            column = next(k for k in ("metric/mask_iou", "metric/box_iou") if k in rows[-1])
            curve = [round(r[column], 4) for r in rows]
            one = {"seed": seed, "value": value, "before": before, "steps": len(rows), "start_steps": start_steps}
            one["curve"] = curve
            results.setdefault(label, []).append(one)
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
    """Compare the two labels that the paper's claim names: only ranges that do not overlap count as a difference."""
    if study.better is None:
        return "No order claimed: the table is the result."
    first, second = ([run["value"] for run in results[label]] for label in study.better)
    pair = f"{study.better[0]} against {study.better[1]}: {np.mean(first) - np.mean(second):+.3f} on average"
    if len(first) < 2:
        return f"No verdict: one seed only; {pair}."
    if min(first) > max(second):
        return f"**Agrees**: {pair}, every seed of the one above every seed of the other."
    if max(first) < min(second):
        return f"**Disagrees**: {pair}, every seed of the one below every seed of the other."
    return f"**No difference seen**: {pair}, and the seeds overlap."


def page() -> str:
    """docs/ablations.md: every study that has been run, and a list of those that have not."""
    out = [
        "# The papers' ablations, in miniature",
        "",
        "Written by `python -m studies.ablations --page` from the runs' own figures. Tiny networks on drawn shapes: what agrees here shows that the",
        "mechanism works as described, not that its effect has the paper's size; what does not agree may need scale. A difference counts",
        "only if the seeds' ranges do not overlap; with two seeds each, chance alone does that one time in three, so read it as a hint.",
        "Held-out figures: 200 pictures (those that the recipe can answer), greedy. Spread: half the range over seeds.",
        "",
    ]
    missing = []
    verdicts = {}
    for name, study in STUDIES.items():
        file = DOCS / "ablations" / f"{name}.json"
        if not file.exists():
            missing.append(f"`{name}`")
            continue
        results = json.loads(file.read_text())
        runs = next(iter(results.values()))
        told = f"{name} --seeds {' '.join(str(r['seed']) for r in runs)} --steps {runs[0]['steps']}"
        told += f" --start_steps {n}" if (n := runs[0].get("start_steps")) else ""
        out += [
            f"## {name}",
            "",
            f"{study.claim}",
            "",
            f"`python -m studies.ablations {told}`: recipe `{study.recipe}`, {len(runs)} seeds.",
        ]
        out += ["", f"| | {study.metric} before | after | spread | seeds |", "|---|---|---|---|---|"]
        for label, runs in results.items():
            values = [r["value"] for r in runs]
            before = runs[0]["before"]
            out.append(
                f"| {label} | {'' if before is None else f'{before:.3f}'} | {np.mean(values):.3f} | "
                f"{(max(values) - min(values)) / 2:.3f} | {', '.join(f'{v:.3f}' for v in values)} |"
            )
        found = verdict(study, results)
        verdicts.setdefault(found.split(":")[0].strip("*"), []).append(f"[{name}](#{name})")
        out += ["", f"{found} {study.remark}".strip(), "", f"![{name}](ablations/{name}.png)", ""]
    if missing:
        out += ["## Not run yet", "", f"{', '.join(missing)}: `python -m studies.ablations NAME` runs any of them.", ""]
    summary = [f"- {kind}: {', '.join(names)}" for kind, names in sorted(verdicts.items())]
    at = out.index(next((line for line in out if line.startswith("## ")), out[-1]))
    return "\n".join([*out[:at], *summary, "", *out[at:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STUDIES, []])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--steps", type=int, default=0, help="steps per run (0: the miniature's own, about 4 minutes on 2 cores)"
    )
    parser.add_argument("--start_steps", type=int, default=0, help="steps of the stage before (0: as --steps)")
    parser.add_argument("--page", action="store_true", help="write docs/ablations.md")
    parser.add_argument("--words", type=Path, help="a checkpoint: do its masks follow the words?")
    args = parser.parse_args()
    if args.words:
        print(words(args.words))
    for name in args.names:
        run(name, args.seeds, args.steps, args.start_steps)
    if args.names or args.page:
        DOCS.mkdir(exist_ok=True)
        (DOCS / "ablations.md").write_text(page())
    elif not args.words:
        for name, study in STUDIES.items():
            print(f"{name:16} {len(study.variants)} variants of {study.recipe}: {study.claim}")


if __name__ == "__main__":
    main()
