# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""How much of a test was in the training set: pictures shared, and expressions that are there word for word.

    python -m benchmarks.overlap --dataset refcocog --split val --one_expression True --training grefcoco

needs annotations and pictures, no model. (GenSeg section 4.8 counts 634 of 1,300 pictures and 10 of 2,573 expressions.)
evaluate.py --overlap_with prints these counts too, and the metrics on both parts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

import tyro
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


def main(
    dataset: str,
    training: str,
    split: str = "val",
    training_split: str = "train",
    data_root: str = "data",
    one_expression: bool = False,
    seed: int = 0,
) -> None:
    """Count what a test set shares with a training set.

    Args:
        dataset: the test's layout (data.load)
        training: the training set's layout; several are joined by commas
        split: the test's split
        training_split: the training set's split
        data_root: where both lie
        one_expression: one sentence per object of the test, drawn by seed
        seed: of that draw
    """
    try:
        there = seen(data.load(training, data_root, training_split))
        tested = data.load(dataset, data_root, split, one_expression=one_expression, seed=seed)
    except (data.BadData, OSError) as error:
        sys.exit(f"benchmarks.overlap: {error}")
    asked = []
    for i in range(len(tested)):
        with suppress(data.BadData):  # it is not scored either
            sample = tested[i]
            asked.append((sample.image_id, sample.query))
    for name, value in overlap(asked, *there).items():
        print(f"{name.replace('_', ' '):34}{value:>8}")


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.FlagConversionOff,), use_underscores=True)
