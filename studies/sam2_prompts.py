# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""What the miniature's SAM2 makes of boxes that are true, loose or moved, and of points with them.

    python -m studies.sam2_prompts    # docs/sam2-prompts.jpg, and the mean IoU over 100 held-out pictures' objects

One row per kind of points, one column per box; the object is the first of the test split's of which more than 60 pixels
are hidden.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import model as models
from studies.before_after import draw
from toy import make, world

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    net = models.load_segmenter("toy/sam2")
    measured = make.probe_sam2(net)
    for name, iou in measured.items():
        print(f"{name:42} {iou:.3f}")
    scenes = (world.scene_of(world.TOY_SPLITS["test"][0], i) for i in range(99))
    scene, o = next((s, o) for s in scenes for o in s["objects"] if (o["mask"] != o["full"]).sum() > 60)
    mask = o["mask"]
    given = make.prompts_for(mask)
    columns = len(given) // 3
    figure, axes = plt.subplots(3, columns, figsize=(1.75 * columns, 6.6), constrained_layout=True)
    found = net.union(net.embed([scene["image"]]), [0] * len(given), [[one] for one in given.values()])
    for axis, (name, one), got in zip(axes.T.flat, given.items(), found, strict=True):
        iou = draw(axis, scene["image"], mask, got.numpy(), [one])
        axis.set_xlabel(f"IoU {iou:.2f}; on average {measured[name]:.2f}", fontsize=8)
        if axis in axes[0]:
            axis.set_title(name, fontsize=10)
    for axis, name in zip(axes[:, 0], ("box alone", "+ two points on it", "+ two beside it"), strict=True):
        axis.set_ylabel(name, fontsize=10)
    figure.savefig(DOCS / "sam2-prompts.jpg", dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
