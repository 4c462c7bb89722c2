"""The page of an evaluation: figures, how they are spread, and the pictures behind them, worst first.

    python -m benchmarks.report OUT     # OUT as evaluate.py wrote it -> OUT/report.html: one file, no network or script

Everything is recomputed from OUT/predictions.jsonl and OUT/run.json; photos are read again through data.load. What a
model wrote is text from a stranger: every string goes through html.escape.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import data
from benchmarks import pictures
from benchmarks.metrics import all_metrics, best_box_ious
from benchmarks.published import as_text, beside
from benchmarks.records import load_samples, read_records
from engine.files import write_atomically

NEAREST = Image.Resampling.NEAREST
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2530; background: #f4f5f7; }
body { margin: 0 auto; max-width: 1360px; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .2rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.note { color: #5b6673; font-size: .88rem; margin: .2rem 0; overflow-wrap: anywhere; }
.top { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1rem; }
.box, .card { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: .8rem; min-width: 0; }
.top { align-items: start; } .top + .box { margin-top: 1rem; }
.metrics { columns: 2 230px; column-gap: 2rem; font-variant-numeric: tabular-nums; }
.metrics div { display: flex; justify-content: space-between; gap: 1rem; break-inside: avoid; }
.metrics div { border-bottom: 1px solid #eef0f3; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
td, th { padding: .12rem .5rem .12rem 0; text-align: right; font-weight: normal; white-space: nowrap; }
th:first-child, td:first-child, .source { text-align: left; }
thead th { color: #5b6673; border-bottom: 1px solid #dfe3e8; }
.run td { font-weight: 600; border-top: 1px solid #dfe3e8; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 1rem; }
.card img { width: 100%; display: block; border-radius: 4px; }
.query { font-weight: 600; margin: .5rem 0 .2rem; overflow-wrap: anywhere; }
.tag { display: inline-block; border-radius: 4px; background: #e8ecf1; padding: 0 .4rem; font-size: .84rem; }
.tag { margin: 0 .3rem .2rem 0; } .bad { background: #fbdcd8; } .good { background: #d9f0df; }
.thought { margin: .3rem 0; overflow-wrap: anywhere; } summary { cursor: pointer; color: #5b6673; font-size: .88rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; margin: .3rem 0; }
pre { max-height: 16rem; overflow-y: auto; } svg { width: 100%; height: auto; }
"""


def picture_uri(record: dict, sample: data.Sample, side: int = 448) -> str:
    """The photo with what was predicted and what is true on it (pictures.overlay), as a small JPEG data URI."""
    w, h = record["width"], record["height"]
    size = (max(1, round(w * side / max(w, h))), max(1, round(h * side / max(w, h))))

    def mask(rle: dict | None) -> np.ndarray | None:
        return None if rle is None else np.asarray(Image.fromarray(data.decode_rle(rle)).resize(size, NEAREST))

    def moved(numbers: list) -> list[np.ndarray]:
        return [data.to_frame(xy, (w, h), size) for xy in numbers]

    truth = mask(record["truth_mask"])
    if truth is None and record["truth_boxes"]:  # data without masks: the outlines of the true boxes
        truth = np.zeros(size[::-1], dtype=bool)
        for x1, y1, x2, y2 in np.round(moved(record["truth_boxes"])).astype(int):
            truth[y1:y2, x1:x2] = True
    points, negative = ([xy for each in record[key] for xy in moved(each)] for key in ("points", "negative_points"))
    photo = sample.image.resize(size)
    boxes = moved(record["boxes"])
    ignore = mask(sample.ignore_mask)
    drawn = pictures.overlay(photo, mask(record["mask"]), truth, boxes, points, negative, ignore)
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def score_of(record: dict) -> float:
    """What the gallery is sorted by: the mask's IoU; without masks the boxes' mean IoU; for counts right or wrong."""
    if record["iou"] is not None:
        return record["iou"]
    if record["truth_boxes"]:
        return float(np.mean(best_box_ious(record)))
    return float(record["answer_ok"] and len(record["boxes"]) == (record["count"] or 0))


def card(record: dict, sample: data.Sample) -> str:
    """One sample: photo, request, verdict, reasoning, and the text as it was written."""
    score = score_of(record)
    tags = [f'<span class="tag {"good" if score >= 0.5 else "bad"}">IoU {score:.3f}</span>']
    tags += ['<span class="tag bad">answer cannot be read</span>'] * (not record["answer_ok"])
    tags += ['<span class="tag">says: nothing fits</span>'] * record["predicted_none"]
    tags += ['<span class="tag">true: nothing fits</span>'] * record["truth_none"]
    if record["count"] is not None:
        tags.append(f'<span class="tag">{len(record["boxes"])} of {record["count"]} counted</span>')
    query = escape(record["query"])
    return (
        f'<article class="card"><img loading="lazy" alt="{query}" src="{picture_uri(record, sample)}">'
        f'<p class="query">{query}</p>{"".join(tags)}<p class="thought">{escape(record["thought"])}</p>'
        f"<details><summary>answer, {record['length']} tokens; {escape(record['id'])}</summary>"
        f"<pre>{escape(record['text'])}</pre></details></article>"
    )


def histogram(scores: list[float], bins: int = 20) -> str:
    """Counts per IoU bin as an inline SVG; the last bin holds 1 too."""
    counts = np.histogram(scores, bins, (0, 1))[0]
    parts = []
    width = 380 / bins - 2
    for i, n in enumerate(counts):
        h = 130 * n / max(counts.max(), 1)
        x = 10 + i * 380 / bins
        parts.append(f'<rect x="{x:.1f}" y="{150 - h:.1f}" width="{width:.1f}" height="{h:.1f}" fill="#1e6eff"/>')
        parts += [f'<text x="{x + width / 2:.1f}" y="{146 - h:.1f}">{n}</text>'] * bool(n)
    parts += [f'<text x="{10 + 380 * v:.0f}" y="166">{v:g}</text>' for v in (0, 0.25, 0.5, 0.75, 1)]
    style = 'font-size="9" fill="#5b6673" text-anchor="middle" role="img" aria-label="IoU histogram"'
    return f'<svg viewBox="0 0 400 172" {style}>{"".join(parts)}</svg>'


def tables(metrics: dict, run: dict) -> tuple[str, str]:
    """The metrics, and the published rows for the benchmark with this run's below them (empty where there are none)."""
    cells = "".join(f"<div>{escape(k)}<span>{as_text(k, v)}</span></div>" for k, v in metrics.items())
    rows, columns = beside(run["dataset"], run["split"])
    lines = []
    for method, source, row in rows:
        values = "".join(f"<td>{row.get(c, '-')}</td>" for c in columns)
        lines.append(f'<tr><td>{escape(method)}</td><td class="source">{escape(source)}</td>{values}</tr>')
    mine = "".join(f"<td>{as_text(c, metrics.get(c))}</td>" for c in columns)
    head = "".join(f"<th>{escape(c)}</th>" for c in ("published", "", *columns))
    published = f"<thead><tr>{head}</tr></thead>{''.join(lines)}<tr class='run'><td>this run</td><td></td>{mine}</tr>"
    return f'<div class="metrics">{cells}</div>', f"<table>{published}</table>" if rows else ""


def build(folder: Path, limit: int = 24) -> str:
    """The page of an evaluation folder, at most `limit` pictures a section. Raises data.BadData, FileNotFoundError."""
    run = json.loads((folder / "run.json").read_text())
    records = sorted(read_records(folder / "predictions.jsonl"), key=score_of)
    samples = load_samples(run)
    parts = {"Could not be read": [], "Nothing fits: said or true": [], "All others, worst first": []}
    unread, empty, others = parts.values()
    for r in records:
        (unread if not r["answer_ok"] else empty if r["truth_none"] or r["predicted_none"] else others).append(r)
    gallery = []
    for title, found in parts.items():
        cards = [card(r, samples[r["index"]]) for r in tqdm(found[:limit], title)]
        shown = f"{len(cards)} of {len(found)}" if found else "none"
        gallery.append(f'<h2>{title} <span class="note">{shown}</span></h2><div class="grid">{"".join(cards)}</div>')
    metrics, published = tables(all_metrics(records, run["dataset"]), run)
    facts = " · ".join(f"{k} {v}" for k, v in run.items() if not isinstance(v, dict) and v not in (None, ""))
    versions = " · ".join(f"{k} {v}" for k, v in {"recipe": run["recipe"]["name"], **run["versions"]}.items())
    published = f'<div class="box scroll">{published}</div>' if published else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run['dataset'])} {escape(run['split'])}</title><style>{STYLE}</style>"
        f"<h1>{escape(run['model'])} on {escape(run['dataset'])} {escape(run['split'])}</h1>"
        f'<p class="note">{escape(facts)}</p><p class="note">{escape(versions)}</p>'
        f'<div class="top"><div class="box">{metrics}</div><div class="box"><b>IoU of {len(records)} samples</b>'
        f"{histogram([score_of(r) for r in records])}</div></div>{published}"
        '<p class="note">Magenta: predicted mask and boxes. Yellow: the true outline. '
        "Green dots, red crosses: points on and beside the object.</p>"
        f"{''.join(gallery)}</html>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where evaluate.py wrote predictions.jsonl and run.json")
    parser.add_argument("--limit", type=int, default=24, help="pictures per section at most (default 24)")
    args = parser.parse_args()
    try:
        page = build(args.folder, args.limit)
    except (data.BadData, OSError) as error:
        sys.exit(f"report.py: {error}")
    write_atomically(args.folder / "report.html", page)
    print(f"wrote {args.folder / 'report.html'} ({len(page) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
