"""Sharded over two processes: the numbers of one, a replica with the gathered weights, a checkpoint that loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import model as models

ROOT = Path(__file__).parents[1]


def test_sharded_equals_whole(tmp_path):
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29612"]
    for name, launch in (("one", []), ("two", two)):
        (tmp_path / name).mkdir()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TQDM_DISABLE": "1"}
        command = [sys.executable, *launch, str(ROOT / "tests" / "sharded_worker.py"), str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "values.json").read_text()) for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5, abs=1e-7)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    whole, sharded = (load_file(tmp_path / name / "checkpoint-1" / "model.safetensors") for name in ("one", "two"))
    start = load_file(ROOT / "toy" / "qwen2_5_vl" / "model.safetensors")
    assert whole.keys() <= sharded.keys()
    for k in whole:
        torch.testing.assert_close(sharded[k], whole[k], rtol=1e-4, atol=1e-6, msg=k)
    assert max((whole[k] - start[k]).abs().max() for k in start) > 1e-4
    replica = torch.load(tmp_path / "two" / "replica.pt")
    policy = models.load_policy(str(tmp_path / "two" / "checkpoint-1"), image_size=112)  # loads unsharded
    for k, p in policy.named_parameters():
        torch.testing.assert_close(replica[k], p, rtol=0, atol=0, msg=k)
