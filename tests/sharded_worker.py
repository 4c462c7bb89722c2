# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""`python train.py ...` under Accelerate's FSDP2 on CPUs. Accelerate chooses FSDP on GPUs only, so it is told here that
it has; what then shards, gathers, clips and saves is its own code, over gloo."""

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

import train
from engine import run


def told(**named) -> Accelerator:
    plugin = named.pop("fsdp_plugin")  # the run's own choice (run.sharding), as on two GPUs
    assert plugin is not None
    accelerator = Accelerator(**named)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def seen(accelerator, policy, *rest):
    assert accelerator.is_fsdp2 and all(isinstance(p, DTensor) for p in policy.parameters()), "not sharded"
    return update(accelerator, policy, *rest)


update, train.update, run.Accelerator, run.on_gpus = train.update, seen, told, lambda: True
train.main()
