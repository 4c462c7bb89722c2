"""Pictures: opened upright, whatever the file; drawn on, to look at what a model answered or what a dataset holds.

`python data.py --check` is the command at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import distance_transform_edt

import data


@contextlib.contextmanager
def _reading(name):
    """Whatever goes wrong with a picture inside this block becomes a data.BadData that names it."""
    try:
        yield
    except FileNotFoundError:
        advice = "Is --data_root the folder that the dataset's paths start from?"
        raise data.BadData(f"picture not found: {name}. {advice}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        advice = "Fetch the file again, or take its entry out."
        raise data.BadData(f"picture cannot be read: {name} ({error}). {advice}") from None


def open_image(path: str | Path | io.BytesIO, name: str = "") -> Image.Image:
    """A picture as upright RGB, whatever its mode (grey, palette, CMYK, RGBA) or EXIF rotation; or data.BadData."""
    with _reading(name or path), Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")  # over white: a plain convert() shows whatever colour hides underneath
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if picture.mode.startswith("I;16"):  # convert() would clip 16-bit grey to white
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return picture.convert("RGB")


def picture_size(path: str | Path | io.BytesIO, name: str = "") -> tuple[int, int]:
    """(width, height) of the upright picture, from its header alone."""
    with _reading(name or path), Image.open(path) as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return picture.size[::-1] if turned else picture.size


def overlay(
    image: Image.Image, mask=None, truth=None, boxes=(), points=(), negative_points=(), ignore=None
) -> Image.Image:
    """A copy of the picture with things drawn on it, all in its own pixels.

    mask: (H, W) bool, tinted magenta; truth: (H, W) bool, outlined yellow; ignore: (H, W) bool, darkened; boxes (N, 4):
    magenta; points (..., 2): green dots; negative_points (..., 2): red crosses. Absent ones may be None or empty.
    """
    pixels, width = np.asarray(image.convert("RGB")).astype(np.float64), max(1, round(max(image.size) / 250))
    if ignore is not None:
        pixels[ignore] *= 0.35
    if mask is not None:
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array((235, 40, 225))
    if truth is not None:
        edge = truth & (distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1] <= width)  # the border counts as outside
        pixels[edge] = (255, 220, 0)
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw, r = ImageDraw.Draw(picture), 2.5 * width
    for x1, y1, x2, y2 in np.reshape([] if boxes is None else boxes, (-1, 4)):
        draw.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], outline=(235, 40, 225), width=width)
    for x, y in np.reshape([] if points is None else points, (-1, 2)):
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(0, 190, 60), outline="white")
    for x, y in np.reshape([] if negative_points is None else negative_points, (-1, 2)):
        draw.line([x - r, y - r, x + r, y + r], fill=(230, 20, 20), width=width)
        draw.line([x - r, y + r, x + r, y - r], fill=(230, 20, 20), width=width)
    return picture


def contact_sheet(samples: Sequence[data.Sample], cell: int = 320) -> Image.Image:
    """Up to twelve samples, spread over the dataset, four to a row, the request under each."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, 12).astype(int))]
    sheet = Image.new("RGB", (4 * cell, -(-len(chosen) // 4) * (cell + 50)), "white")
    for i, s in enumerate(chosen):
        x, y = i % 4 * cell + 5, i // 4 * (cell + 50) + 5
        size = tuple(max(1, round(side * (cell - 10) / max(s.width, s.height))) for side in (s.width, s.height))
        given = s.positive_points(2) if s.object_masks or s.points.shape[1] else None
        away, both = s.negative_points(2), (s.mask, s.ignore)
        marks = [xy if xy is None else data.to_frame(xy, (s.width, s.height), size) for xy in (s.boxes, given, away)]
        mask, ignore = [m if m is None else np.asarray(Image.fromarray(m).resize(size, 0)) for m in both]
        sheet.paste(overlay(s.image.resize(size), mask, None, *marks, ignore), (x, y))
        said = s.query + (" [nothing]" if s.no_target else "") + (f" [{s.count}]" if s.count is not None else "")
        text = "\n".join(textwrap.wrap(said, 50)[:3])
        ImageDraw.Draw(sheet).multiline_text((x, y + size[1] + 2), text, "black", ImageFont.load_default(12), spacing=2)
    return sheet


def check(samples: data.Samples, out: Path, limit: int) -> list[str]:
    """Print what was read, open the first `limit` pictures, save a contact sheet; returns what was unreadable."""
    objects, pictures, empty, masked, bad = Counter(), {}, 0, 0, []
    for s in samples:
        objects[len(s.boxes)] += 1
        pictures.setdefault(s.image_id, s)
        empty, masked = empty + s.no_target, masked + bool(s.object_masks)
    for s in list(pictures.values())[:limit]:
        try:
            s.open()
        except data.BadData as error:
            bad.append(str(error))
    print(f"{len(samples)} samples on {len(pictures)} pictures; {masked} with masks; {empty} with nothing to find")
    print("objects per sample: " + ", ".join(f"{n}: {count}" for n, count in sorted(objects.items())))
    print(f"opened {min(limit, len(pictures))} pictures: {len(bad)} unreadable; {len(samples.skipped)} entries skipped")
    for line in [f"  unreadable: {line}" for line in bad] + [f"  skipped: {line}" for line in samples.skipped]:
        print(line)
    if not bad:
        contact_sheet(samples).save(out)
        print(f"look at {out}")
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what a dataset holds, try its pictures, draw a contact sheet.")
    parser.add_argument("--check", action="store_true", required=True)
    parser.add_argument(
        "--dataset", required=True, help=f"one of {', '.join(data.LOADERS)}, or several joined by commas"
    )
    parser.add_argument("--data_root")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, default=Path("contact_sheet.png"))
    parser.add_argument("--limit", type=int, default=200, help="how many pictures to open")
    args = parser.parse_args()
    try:
        sys.exit(1 if check(data.load(args.dataset, args.data_root, args.split), args.out, args.limit) else 0)
    except data.BadData as error:
        sys.exit(str(error))
