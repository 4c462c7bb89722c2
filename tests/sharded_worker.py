"""Run by test_sharded.py in two processes: the policy sharded by torch's own fully_shard over gloo on the CPU.

(Accelerate with an FSDP plugin silently becomes plain data parallelism on a CPU, so the sharding is done here directly;
what is tested is all of ours that meets a sharded policy: forward, clipping, the refresh of the replica, checkpoints.)
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import checkpoint
import data
import grpo
import judge
import recipes
import train
from step import load_batch, make_micros, update

out = Path(sys.argv[1])
recipe = replace(
    recipes.miniature(recipes.DRSEG), prompts_per_step=2, num_samples=2, max_completion=40, max_grad_norm=1e9, beta=0.0
)
accelerator = Accelerator(cpu=True)
policy, segmenter = train.build(recipe, accelerator)
samples = data.load("toy", None, "train")
order, _ = judge.usable(samples, recipe)
batch = load_batch(recipe, policy, segmenter, samples, order[:2])
rollout = grpo.sample(
    policy.vlm, batch.prompts.inputs, train.noise(recipe, 0, range(2), 40), num_samples=2, max_new_tokens=40,
    eos_token_id=policy.eos_token_id, banned_ids=policy.banned_ids,
)  # fmt: skip
advantages = torch.tensor([[1.0, -1.0], [-0.5, 0.5]])
micros = make_micros(policy, batch.prompts, rollout, recipe)
optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
replica = checkpoint.full_copy(policy, torch.float32)
if dist.is_initialized() and dist.get_world_size() > 1:
    for layer in [*policy.vlm.model.language_model.layers, *policy.vlm.model.visual.blocks]:
        fully_shard(layer)
    fully_shard(policy)
    assert all(isinstance(p, DTensor) for p in policy.parameters()), "not sharded"
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
accelerator.clip_grad_norm_ = lambda params, norm: torch.nn.utils.clip_grad_norm_(params, norm).detach()
# every process works on the same two prompts here, so the mean over processes is the loss of one
values = update(accelerator, policy, optimizer, micros, batch, rollout, advantages, recipe)
norm = values["grad_norm"]
checkpoint.refresh(replica, policy)
state = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if not dist.is_initialized() or dist.get_rank() == 0:
    checkpoint.save(out / "checkpoint-1", {"step": 1}, policy, recipe, state if dist.is_initialized() else None)
    torch.save(dict(replica.named_parameters()), out / "replica.pt")
    (out / "values.json").write_text(json.dumps({"loss": values["loss"], "grad_norm": float(norm)}))
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
