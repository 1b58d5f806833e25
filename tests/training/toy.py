"""The smallest stage: a line is fitted, through the real `Run`. Also run from outside, by `python -m`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from training.config import OptimConfig, RunConfig, parse
from training.loop import Run
from training.stage import run_stage


@dataclass(frozen=True)
class ToyConfig:
    """A toy."""

    output_dir: Path
    width: int = 8
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


class Points(Dataset):
    items = None

    def __init__(self, width: int) -> None:
        self.width = width

    def __getitem__(self, index: int) -> Tensor:
        return torch.sin(torch.arange(self.width) * 0.7 + index)

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)


class Net(nn.Module):
    """A frozen layer, dropout, a trained layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.drop = nn.Dropout(0.1)
        self.trained = nn.Linear(width, width)

    def forward(self, points: Tensor) -> Tensor:
        return self.trained(self.drop(self.frozen(points)))


def config(folder: Path, steps: int, more: str = "") -> ToyConfig:
    run = "--run.batch-size 4 --run.log-steps 1 --optim.warmup-steps 0"
    return parse(
        ToyConfig,
        ["--output-dir", str(folder), "--run.max-train-steps", str(steps), *run.split(), *more.split()],
    )


def train(config: ToyConfig, each: Callable[[Run, Tensor], Tensor] = lambda run, loss: loss) -> Run:
    """`each` sees the run and its loss before every step, and gives the loss to take."""
    run = Run.start(config, Net(config.width))
    for points in run.batches(Points(config.width)):
        noisy = points + 0.1 * run.noise(*points.shape)
        run.step(each(run, (run.model(noisy) - points).pow(2).mean()))
    return run


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    run_stage(parse(ToyConfig), train)
