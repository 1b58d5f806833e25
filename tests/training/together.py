"""Trains stages after each other, in the processes that torchrun has started.

    torchrun --nproc-per-node 2 -m tests.training.together [--fsdp2] STAGE=CONFIG.yaml …

One start serves several stages: importing takes longer than training at toy size.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

CONFIGS = Path("training/accelerate")


def launch_arguments(file: Path) -> argparse.Namespace:
    """What `accelerate launch --config_file` makes of one of our files."""
    from accelerate.commands.launch import _validate_launch_command

    arguments = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    return _validate_launch_command(arguments)[0]


def shard_weights() -> None:
    """Lets accelerate shard on CPUs as it does on GPUs, by our own file.

    Its engine runs on gloo, but it chooses the engine on accelerators alone (AcceleratorState.__init__, the
    list that ends with MULTI_NEURON). So it is told here what it would find out there.
    """
    ours = prepare_multi_gpu_env(launch_arguments(CONFIGS / "fsdp2.yaml"))
    os.environ.update({name: value for name, value in ours.items() if name.startswith("FSDP_")})
    Accelerator(cpu=True)
    sharded = {
        "distributed_type": DistributedType.FSDP,
        "fsdp_plugin": FullyShardedDataParallelPlugin(),
    }
    AcceleratorState._shared_state.update(sharded)
    PartialState._shared_state.update(distributed_type=DistributedType.FSDP)


def main() -> None:
    arguments = sys.argv[1:]
    stages = [argument for argument in arguments if argument != "--fsdp2"]
    for argument in stages:
        if "--fsdp2" in arguments:
            shard_weights()  # anew: the plugin keeps the first model's blocks in mind
        stage, config = argument.split("=", 1)
        sys.argv = [stage, "--config", config]
        importlib.import_module(f"training.{stage}").main()


if __name__ == "__main__":
    main()
