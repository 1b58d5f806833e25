"""A training of which one process ends badly, started by hand: `python -m … FOLDER RANK STEP HOW`."""

import os
import signal
import sys

import torch

from tests.training import toy
from training.stage import run_stage


def main(folder: str, rank: int, step: int, how: str) -> None:
    def each(run, loss):
        if run.accelerator.process_index != rank or run.progress.step != step:
            return loss
        match how:
            case "raises":
                raise RuntimeError("the first cause")
            case "refuses":
                raise ValueError("data: the first cause")
            case "has no memory":
                raise torch.OutOfMemoryError("the first cause")
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
        return loss

    config = toy.config(folder, 100_000, "--run.checkpointing-steps 1000 --run.threads 1")
    run_stage(config, lambda config: toy.train(config, each))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
