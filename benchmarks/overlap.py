# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""How much of a test was in the training set: pictures shared, and expressions that are there word for word.

evaluate.py --overlap_with counts it, and gives the metrics on both parts; with --model oracle --segmenter none no model
is needed. (GenSeg section 4.8 counts 634 of 1,300 pictures and 10 of 2,573 expressions.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from tqdm import tqdm

import data


def seen(training: Sequence[data.Sample]) -> tuple[set[str], set[str]]:
    """The picture ids and the expressions of a training set; what cannot be read of it counts as not there."""
    pictures: set[str] = set()
    queries: set[str] = set()
    for i in tqdm(range(len(training)), "reading the training set"):
        with suppress(data.BadData):
            sample = training[i]
            pictures.add(sample.image_id)
            queries.add(sample.query.strip())
    return pictures, queries


def overlap(tested: Iterable[tuple[str, str]], pictures: set[str], queries: set[str]) -> dict[str, int]:
    """Counts for the (picture id, expression) pairs of a test. An expression counts once for every pair that has it,
    if it is anywhere in the training set, to the letter, outer spaces aside."""
    tested = list(tested)
    ids = {picture for picture, _ in tested}
    return {
        "pictures": len(ids),
        "pictures_shared": len(ids & pictures),
        "expressions": len(tested),
        "expressions_on_shared_pictures": sum(picture in pictures for picture, _ in tested),
        "expressions_verbatim": sum(query.strip() in queries for _, query in tested),
    }
