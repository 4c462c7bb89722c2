# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""How long processes wait for one another: an hour, so that a deadlock shows; days, where all wait for one alone."""

from __future__ import annotations

import datetime
import functools

import torch.distributed as dist

AN_HOUR = datetime.timedelta(hours=1)


@functools.cache
def patient() -> dist.ProcessGroup | None:
    """All processes, in a group that waits for two days; None for a process alone. All call it at the start."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=datetime.timedelta(days=2))


def wait_for_the_slowest() -> None:
    """A barrier where the others may wait for long: while the first process scores or saves, or the last one answers
    its part of a benchmark."""
    if group := patient():
        dist.barrier(group)
