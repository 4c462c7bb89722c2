# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""train.py under FSDP2 on two processes: the numbers of one, a checkpoint that loads and resumes, bf16 that agrees."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import model as models

ROOT = Path(__file__).parents[1]
QUICK = "--toy --prompts_per_step 4 --num_generations 4 --max_completion 40 --limit 40 --save_every 1 --keep 9".split()


def run(out, *options, processes=1):
    """Returns the rows of metrics.jsonl."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TQDM_DISABLE": "1"}
    port = str(20000 + (os.getpid() + 13) % 20000)
    sharded = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "tests/sharded_worker.py"]
    command = [
        sys.executable,
        *(sharded if processes == 2 else ["train.py"]),
        "--output_dir",
        str(out),
        *QUICK,
        *options,
    ]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steady(row):
    return {k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_second"))}


@pytest.mark.slow
def test_sharded_equals_whole(tmp_path):
    """max_row_tokens 150: groups take several rows, of which the processes have different numbers."""
    options = "--recipe drseg --max_steps 3 --eval_samples 4 --max_row_tokens 150 --rows_per_batch 1".split()
    one, two = run(tmp_path / "one", *options), run(tmp_path / "two", *options, processes=2)
    for a, b in zip(one, two, strict=True):
        assert b["reward"] == pytest.approx(a["reward"], abs=1e-4) and a["length"] == b["length"]
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3, abs=1e-6)
    scores = [json.loads((tmp_path / name / "heldout.json").read_text()) for name in ("one", "two")]
    assert scores[0] == scores[1]
    whole, sharded = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two"))
    start = load_file(ROOT / "toy" / "qwen2_5_vl" / "model.safetensors")
    assert whole.keys() <= sharded.keys()  # tied weights are there twice
    assert max((whole[k] - start[k]).abs().max() for k in start) > 1e-5
    for k in whole:
        torch.testing.assert_close(sharded[k], whole[k], rtol=1e-4, atol=1e-5, msg=k)
    assert models.load_policy(str(tmp_path / "two" / "final"), image_size=168)  # as any folder

    # killed after the second step: taken up by two, and by one, it ends where it would have
    for processes in (2, 1):
        cut = tmp_path / f"cut-{processes}"
        shutil.copytree(tmp_path / "two", cut, ignore=shutil.ignore_patterns("checkpoint-3", "final"))
        again = run(cut, *options, "--resume", processes=processes)
        assert steady(again[1]) == steady(two[1])
        assert again[2]["reward"] == pytest.approx(two[2]["reward"], abs=1e-4)
        resumed = load_file(cut / "final" / "model.safetensors")
        for k, w in resumed.items():
            torch.testing.assert_close(w, sharded[k], rtol=1e-4, atol=1e-5, msg=k)


@pytest.mark.slow
def test_sharded_policy_and_its_reference_agree_in_bf16(tmp_path):
    """At the first step they are the same model, and are computed alike to the last bit: the KL is 0, and not 1e-4."""
    (row,) = run(tmp_path / "two", "--recipe", "drseg", "--max_steps", "1", "--dtype", "bfloat16", processes=2)
    assert row["kl"] == 0 and row["grad_norm"] > 0 and row["gap"] < 0.05
