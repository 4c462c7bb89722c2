# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Files: whole, or as they were; a console that can print anything."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """The file whole, or as it was: never half of it. UTF-8 (half a surrogate pair, which has none: an escape)."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # a link of that name, in a stranger's folder, would lead the text to any file
    try:
        with open(part, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def regular(path: str | Path) -> str | Path:
    """The path. OSError where a pipe or a device lies there: reading it may never end."""
    if not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path):
        raise OSError(f"{path} is no file, but a pipe or a device")
    return path


def lock(folder: Path) -> contextlib.ExitStack:
    """A folder for this process alone, until what comes back is closed or the process ends, however it ends. SystemExit
    where another has it. Where the system or the disk knows no locks (Windows, some network drives), nobody is held."""
    held = contextlib.ExitStack()
    try:
        import fcntl

        place = os.open(folder, os.O_RDONLY)
        held.callback(os.close, place)
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise SystemExit(f"another run is writing to {folder} right now: name another --output_dir") from None
    except (ImportError, OSError):
        pass
    return held


def link_or_copy(file: Path, name: Path) -> None:
    """A second name for a file, which takes no room; a copy, where the disk knows no second names."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def console() -> None:
    """Let nothing die of printing: what the console's encoding (ASCII, a code page) lacks is printed as \\u escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put its own in place
            stream.reconfigure(errors="backslashreplace")
