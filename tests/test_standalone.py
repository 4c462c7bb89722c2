# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Each concept is one file: copied into an empty folder, alone or with what it names, it imports and does its work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORK = {
    "rewards": """
import numpy as np
answer = rewards.parse_answer('<think></think><answer>{"bbox_2d": [0, 0, 9, 9]}</answer>', "lens")
target = rewards.Target(np.array([[0, 0, 9, 9.0]]), np.zeros((1, 0, 2)))
assert sum(rewards.lens_reward(answer, target, 1.0).values()) == 3
""",
    "data": """
import numpy as np
from PIL import Image
mask = np.zeros((20, 30), dtype=bool)
mask[5:9, 10:16] = True
numbers, masks = (data.box_of(mask)[None], np.zeros((1, 0, 2))), [data.encode_rle(mask)]
sample = data.Sample("it", *numbers, "", "", 30, 20, lambda: Image.new("RGB", (30, 20)), masks)
assert mask[tuple(sample.positive_points(1)[0, 0, ::-1].astype(int))] and np.array_equal(sample.mask, mask)
assert "it" in data.build_prompt("it", "lens", "pixels")
""",
    "grpo": """
import doctest, torch
example = doctest.DocTestParser().get_doctest(grpo.__doc__, {"torch": torch, **vars(grpo)}, "a step", None, 0)
runner = doctest.DocTestRunner()
runner.run(example, clear_globs=False)  # samples, packs, and makes an update
assert runner.summarize(False).failed == 0 and len(example.examples) >= 15
before = [p.detach().clone() for p in example.globs["model"].parameters()]
example.globs["optimizer"].step()
assert all((p - b).abs().max() > 0 for p, b in zip(example.globs["model"].parameters(), before))  # they had gradients
""",
    "model": """
import torch
assert model.dice_loss(torch.full((1, 4, 4), 50.0), torch.ones(1, 4, 4)).abs().item() < 1e-6
assert model.ContextModule(32, 16, num_queries=4)(torch.zeros(2, 4, 32)).shape == (2, 4, 16)
""",
}


@pytest.mark.parametrize("name", WORK)
def test_one_file_alone(name, tmp_path):
    for file in (name, *{"model": ("grpo",)}.get(name, ())):  # model.py packs and scores with grpo.py
        shutil.copy(ROOT / f"{file}.py", tmp_path)
    code = f"import {name}{WORK[name]}"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
