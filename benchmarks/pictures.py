"""Pictures: opened upright, whatever the file; drawn on, to look at what a model answered or what a dataset holds."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageOps
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
    pixels = np.asarray(image.convert("RGB")).astype(np.float64)
    width = max(1, round(max(image.size) / 250))  # of lines
    if ignore is not None:
        pixels[ignore] *= 0.35
    if mask is not None:
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array((235, 40, 225))
    if truth is not None:
        edge = truth & (distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1] <= width)  # the border counts as outside
        pixels[edge] = (255, 220, 0)
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    r = 2.5 * width
    # What lies outside is drawn just outside: lines from 1e300 to 1e300 would take minutes, and 1e308 overflow.
    low, high = -2 * r, 2 * r + np.array(image.size)

    def near(xy, n: int) -> np.ndarray:
        xy = np.reshape([] if xy is None else xy, (-1, 2))
        return np.clip(np.nan_to_num(xy, nan=-2 * r, posinf=1e9, neginf=-1e9), low, high).reshape(-1, n)

    for x1, y1, x2, y2 in near(boxes, 4):
        draw.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], outline=(235, 40, 225), width=width)
    for x, y in near(points, 2):
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(0, 190, 60), outline="white")
    for x, y in near(negative_points, 2):
        draw.line([x - r, y - r, x + r, y + r], fill=(230, 20, 20), width=width)
        draw.line([x - r, y + r, x + r, y - r], fill=(230, 20, 20), width=width)
    return picture
