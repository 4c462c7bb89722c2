"""COCO's figures for written boxes: AP at many IoUs, precision and recall at one. All matching is pycocotools'."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def coco_metrics(records: Sequence[dict], by_query: bool) -> dict:
    """AP, AP50, AP75; precision, recall and F1 at IoU 0.5. From records (evaluate.make_record), some with true boxes.

    A written box's score is its area over the picture's (VisionReasoner; Dr. Seg Table 7): text has no confidence.
    Precision, recall and F1 use it only as the order in which boxes are matched. by_query: detection. Each query is a
    category, one picture has several, and a box on a crowd (ignore_box) is neither right nor wrong. Otherwise each
    record is a picture of its own, with one class.
    """
    pictures, classes = {}, {}  # key -> id, from 1
    true, written = [], []  # COCO's annotations; ids from 1: pycocotools reads a match with id 0 as no match
    for r in records:
        image = pictures.setdefault(r["image_id"] if by_query else r["index"], len(pictures) + 1)
        category = classes.setdefault(r["query"] if by_query else "", len(classes) + 1)
        crowd = [r["ignore_box"]] if by_query and r["ignore_box"] else []
        kinds = (true, r["truth_boxes"], 0), (true, crowd, 1), (written, r["boxes"], 0)
        for side, (x1, y1, x2, y2), is_crowd in ((s, box, c) for s, boxes, c in kinds for box in boxes):
            area = max(x2 - x1, 0) * max(y2 - y1, 0)
            side.append({
                "id": len(side) + 1, "image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area, "score": area / (r["width"] * r["height"]), "iscrowd": is_crowd,
            })  # fmt: skip
    with contextlib.redirect_stdout(None):
        run = COCOeval(*(_coco(side, pictures, classes) for side in (true, written)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    # Row 0 of the matches is IoU 0.5: one-to-one, the largest box first. A box on a crowd is matched and ignored.
    matches = [e for e in run.evalImgs if e is not None and e["aRng"] == run.params.areaRng[0]]
    ignored = int(sum(e["dtIgnore"][0].sum() for e in matches))
    hits = int(sum((e["dtMatches"][0] > 0).sum() for e in matches)) - ignored
    n_written, n_true = len(written) - ignored, sum(not a["iscrowd"] for a in true)
    return {
        **{name: float(run.stats[i]) for i, name in enumerate(("ap", "ap50", "ap75"))},
        "precision": hits / max(n_written, 1), "recall": hits / n_true, "f1": 2 * hits / (n_written + n_true),
    }  # fmt: skip


def _coco(annotations: list[dict], pictures: dict, classes: dict) -> COCO:
    coco = COCO()
    ids = {"images": pictures, "categories": classes}
    coco.dataset = {"annotations": annotations} | {k: [{"id": i} for i in v.values()] for k, v in ids.items()}
    coco.createIndex()
    return coco
