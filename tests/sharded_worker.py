"""`python train.py ...` under Accelerate's FSDP2 on CPUs. Accelerate chooses FSDP on GPUs only, so it is told here that
it has; what then shards, gathers, clips and saves is its own code, over gloo."""

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

import train
from engine import run


def told(**named) -> Accelerator:
    accelerator = Accelerator(**named)
    plugin = FullyShardedDataParallelPlugin(  # as in configs/fsdp2.yaml
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def seen(accelerator, policy, *rest):
    assert accelerator.is_fsdp2 and all(isinstance(p, DTensor) for p in policy.parameters()), "not sharded"
    return update(accelerator, policy, *rest)


update, train.update, run.Accelerator = train.update, seen, told
train.main()
