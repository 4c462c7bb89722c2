# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Pictures: opened upright, whatever the file; drawn on, to look at what a model answered or what a dataset holds."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageOps
from scipy.ndimage import distance_transform_edt

import data
from engine.files import regular

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow would hand an EPS to Ghostscript


@contextlib.contextmanager
def _opened(path: str | Path | io.BytesIO, name):
    """The file as Pillow's lazy picture. Whatever goes wrong with it becomes a data.BadData that names it."""
    try:
        with (
            data.reading(f"picture cannot be read: {name}. Fetch it again, or take its entry out"),
            Image.open(path if isinstance(path, io.BytesIO) else regular(path), formats=FORMATS) as file,
        ):
            if file.width * file.height > data.MAX_PIXELS:
                raise data.BadData(f"it has {file.width} x {file.height} pixels; {data.MAX_PIXELS:,} is the most")
            yield file
    except data.BadData as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        advice = "Is --data_root the folder that the dataset's paths start from?"
        raise data.BadData(f"picture not found: {name}. {advice}") from None


def _eight_bits(values: np.ndarray) -> Image.Image:
    """Grey of more than eight bits as eight. Its full scale is 1 for floats up to 1, else the next of 255, 4095 (a
    camera's 12 bits) and 65535; BadData beyond, where nothing says what is white."""
    most = values.max()
    scales = [scale for scale in (1, 255, 4095, 65535) if most <= scale and (scale > 1 or values.dtype.kind == "f")]
    if not np.isfinite(most) or values.min() < 0 or not scales:
        raise data.BadData(f"its grey goes from {values.min():g} to {most:g}: save it as an 8-bit picture")
    return Image.fromarray((values * (255 / scales[0])).round().astype(np.uint8))


def open_image(path: str | Path | io.BytesIO, name: str = "") -> Image.Image:
    """A picture as upright RGB, whatever its mode (grey, palette, CMYK, RGBA) or EXIF rotation; or data.BadData."""
    with _opened(path, name or path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode[0] in "IF":  # convert() would clip them to white, or leave them black
            picture = _eight_bits(np.asarray(picture))
        elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")  # over white: a plain convert() shows whatever colour hides underneath
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def open_mask(path: Path) -> np.ndarray:
    """(H, W) bool from a mask's file: what is not 0 (of a palette: not its first colour). data.BadData if that cannot
    be, for a JPEG too: it blurs 0; and where 0 is not what the eye takes for nothing."""
    with _opened(path, path) as file:
        if file.format == "JPEG" or file.mode not in ("1", "L", "P", "I", "RGB") and not file.mode.startswith("I;16"):
            raise data.BadData(f"a mask is a PNG in black and white, and not {file.format} of mode {file.mode}")
        values = np.asarray(file)
        colours = np.reshape(file.getpalette("RGB") or [], (-1, 3))
    values = values.max(-1) if values.ndim == 3 else values
    if fault := _mask_fault(values, colours):
        raise data.BadData(f"{path}: {fault} Save it as black, which is nothing, and white, the object")
    return values != 0


def _mask_fault(values: np.ndarray, colours: np.ndarray) -> str | None:
    """What makes a mask's values (H, W) ambiguous, or None. colours: its palette (n, 3), or (0, 3)."""
    found, counts = np.unique(values, return_counts=True)
    if len(found) > 1 and found[0] > 0:
        return f"it has {len(found)} values, and none is 0: which of them is the background?"
    if (used := colours[found[found < len(colours)]]).any() and used[0].any() and not used.any(1).all():
        return f"its palette shows nothing (0) as {tuple(used[0].tolist())} and an object in black."
    top = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 0  # int32 may be of any scale
    if len(colours) or len(found) <= 16 or found[-1] < 0.75 * top or not top:  # few values: numbers of objects
        return None
    bright = values > top // 2
    reach = np.abs(data.box_of(values > 0) - data.box_of(bright)).max()
    if reach > 3 or counts[1:].sum() > 2 * bright.sum() + 100:  # a smoothed edge is a pixel wide
        return f"it has {len(found)} greys: where does the object end?"
    return None


def picture_size(path: str | Path | io.BytesIO, name: str = "") -> tuple[int, int]:
    """(width, height) of the upright picture, from its header alone."""
    with _opened(path, name or path) as file:  # a TIFF's size is the upright one already
        turned = file.format != "TIFF" and file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return file.size[::-1] if turned else file.size


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
