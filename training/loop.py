"""What every training stage shares: the accelerator, seeds, order of samples, optimizer, EMA, checkpoints,
metrics.

A stage keeps its loop in its own file and asks a `Run` for these. Samples are counted, not remembered: batch
`n` is a function of (seed, n) alone and the noise of step `n` too, so a run that was cut goes on exactly as
if it had not been.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from training import config as configuration
from training import output_folder, space, trackers
from training.checkpoints import latest_checkpoint
from training.config import OptimConfig, RunConfig
from training.optimizers import build_optimizer
from training.progress_bar import advance, memory, progress_bar
from training.saving import save_run
from training.stopping import StopSignal

logger = logging.getLogger(__name__)
#: So many steps in a row without a finite loss and gradient end a run: by then it does not come back.
PATIENCE_FOR_NANS = 5


class Diverged(RuntimeError):
    """Too many steps in a row were not finite."""


class StageConfig(Protocol):
    """The fields that `Run` reads; every stage's configuration has them."""

    @property
    def output_dir(self) -> Path: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def run(self) -> RunConfig: ...


class StepSampler(Sampler[list[int]]):
    """Index lists of this process, one per pass, from `start` on.

    Data without an end (`items` is None) is read straight on; finite data in an order that (seed, epoch)
    fixes.
    """

    def __init__(self, config: RunConfig, start: int, rank: int, processes: int, items: int | None) -> None:
        self.config, self.start, self.items = config, start, items
        self.shuffled: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.passes = config.gradient_accumulation_steps
        if config.batch_size % (self.passes * processes):
            raise ValueError(
                f"batch_size: {config.batch_size} cannot be shared by {processes} processes "
                f"x {self.passes} accumulated passes"
            )
        self.size = config.batch_size // (self.passes * processes)
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return (self.config.max_train_steps - self.start) * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.config.max_train_steps):
            for part in range(self.passes):
                first = step * self.config.batch_size + (part * self.processes + self.rank) * self.size
                yield [self.item(n) for n in range(first, first + self.size)]

    def item(self, number: int) -> int:
        if self.items is None:
            return number
        epoch, place = divmod(number, self.items)
        if self.shuffled[0] != epoch:
            self.shuffled = epoch, np.random.default_rng((self.config.seed, epoch)).permutation(self.items)
        return int(self.shuffled[1][place])


@dataclass
class Progress:
    """Counters that a checkpoint carries beside the weights."""

    step: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Run:
    """One training run. `model` is the prepared module: call it, not the one that was handed in."""

    config: StageConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    parameters: list[nn.Parameter]
    ema: EMAModel | None
    size: int
    """Bytes of a checkpoint."""
    progress: Progress = field(default_factory=Progress)
    part: int = 0
    nans_in_a_row: int = 0
    stop: StopSignal = field(default_factory=StopSignal)
    saved: int | None = None
    """The step that the newest checkpoint holds."""
    records: dict[str, list[float]] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    @classmethod
    def start(cls, config: StageConfig, model: nn.Module) -> "Run":
        """Prepares the run, or takes it up where its newest whole checkpoint in `output_dir` left it."""
        settings = config.run
        if settings.threads:
            torch.set_num_threads(settings.threads)
        accelerator = Accelerator(
            # Without an accelerator it has to be told, or it takes each process of torchrun for the only one.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=settings.mixed_precision,
            log_with=trackers.for_accelerator(settings),
            project_config=ProjectConfiguration(
                str(config.output_dir), str(config.output_dir / "logs"), automatic_checkpoint_naming=False
            ),
        )
        config.output_dir.mkdir(parents=True, exist_ok=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        size = space.checkpoint_size(model, averaged=bool(settings.ema_decay))
        optimizer = build_optimizer(model, config.optim)
        scheduler = get_scheduler(
            {"constant": "constant_with_warmup", "cosine": "cosine"}[config.optim.schedule],
            optimizer,
            num_warmup_steps=config.optim.warmup_steps,
            num_training_steps=settings.max_train_steps,
        )
        model, optimizer = accelerator.prepare(model, optimizer)
        ema = None
        if settings.ema_decay:
            ema = EMAModel(parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75)
            ema.to(accelerator.device)
        run = cls(config, accelerator, model, optimizer, scheduler, parameters, ema, size)
        accelerator.register_for_checkpointing(run.progress, scheduler, *([ema] if ema else []))
        run.resume()
        run.note()
        return run

    def about(self) -> dict[str, Any]:
        """What a checkpoint has to have in common with the run that goes on from it."""
        return {
            "stage": output_folder.stage_name(self.config),
            "trained tensors": len(self.parameters),
            "trained numbers": sum(parameter.numel() for parameter in self.parameters),
            "run.ema_decay": self.config.run.ema_decay,
            "optim.name": self.config.optim.name,
        }

    def resume(self) -> None:
        output_folder.check(self.config.output_dir, self.about())
        found = latest_checkpoint(self.config.output_dir)
        if found is not None:
            self.accelerator.load_state(str(found[0]))
            self.saved = found[1]
            logger.info("resumed from %s", found[0])

    def note(self) -> None:
        """Writes what would repeat this run beside its results."""
        if self.accelerator.is_main_process:
            keep = self.config.run.checkpoints_total_limit
            model = space.size_of(self.model.state_dict().values())
            space.check(self.config.output_dir, self.size, keep, model)
            configuration.save(self.config, self.config.output_dir / "config.yaml")
            packages = ("torch", "diffusers", "transformers", "accelerate")
            versions = {name: version(name) for name in packages}
            (self.config.output_dir / "versions.json").write_text(json.dumps(versions, indent=1))
        self.stop.listen()
        trackers.start(self.accelerator, self.config)

    def batches(self, dataset: Any) -> Iterator[Any]:
        """The batches that are left. `dataset.items` is its length, or None where it has no end."""
        sampler = StepSampler(
            self.config.run,
            self.progress.step,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            dataset.items,
        )
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)
        settings = self.config.run
        bar = progress_bar(settings, self.progress.step, self.accelerator.is_main_process)
        self.model.train()
        try:
            for batch in loader:
                self.seed_pass()
                yield batch
                advance(bar, settings, self.progress.step)
                if self.part == 0 and (number := self.most(self.stop.number)):
                    self.save()
                    raise SystemExit(128 + number)
            if self.part == 0:
                self.save()
        finally:
            bar.close()
            trackers.finish(self.accelerator)
            self.stop.restore()

    def most(self, number: int) -> int:
        """The largest of all processes' numbers: where one stops or fails, all do."""
        if self.accelerator.num_processes == 1:
            return number
        mine = torch.tensor([int(number)], device=self.accelerator.device)
        every: Any = self.accelerator.gather(mine)
        return int(every.max())

    def seed_pass(self) -> None:
        """Dropout draws from a stream that step and process fix, noise from one that the step fixes."""
        key = (self.config.run.seed, self.progress.step)
        if self.part == 0:
            torch.manual_seed(
                int(np.random.default_rng((*key, 1 + self.accelerator.process_index)).integers(2**62))
            )
        self.noise_generator = torch.Generator().manual_seed(
            int(np.random.default_rng((*key, 0)).integers(2**62))
        )

    def noise(self, *shape: int) -> Tensor:
        """Normal noise for this pass's samples: their rows of the whole batch's noise."""
        return self.rows(
            lambda whole: torch.randn(whole, *shape[1:], generator=self.noise_generator), shape[0]
        )

    def uniform(self, items: int) -> Tensor:
        """One number in [0, 1) for each of this pass's samples, by the same rule."""
        return self.rows(lambda whole: torch.rand(whole, generator=self.noise_generator), items)

    def rows(self, draw: Any, items: int) -> Tensor:
        processes = self.accelerator.num_processes
        whole = draw(items * processes * self.config.run.gradient_accumulation_steps)
        first = items * (self.part * processes + self.accelerator.process_index)
        return whole[first : first + items].to(self.accelerator.device)

    def step(self, loss: Tensor) -> None:
        """Backward; after the last accumulated pass also clip, update, average, log and save when due."""
        settings = self.config.run
        self.accelerator.backward(loss / settings.gradient_accumulation_steps)
        self.log(loss=loss.detach())
        self.part = (self.part + 1) % settings.gradient_accumulation_steps
        if self.part:
            return
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.optim.max_grad_norm)
        finite, scaler = torch.isfinite(torch.as_tensor(norm)), self.accelerator.scaler
        if finite or scaler is not None:  # fp16's scaler leaves a step out by itself, to take a smaller scale
            self.optimizer.step()
        if finite:
            self.nans_in_a_row = 0
        else:
            self.skip()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.progress.step += 1
        if self.progress.step % settings.log_steps == 0 or self.progress.step == settings.max_train_steps:
            self.write_metrics()
        if self.progress.step % settings.checkpointing_steps == 0:
            self.save()

    def skip(self) -> None:
        self.progress.skipped += 1
        self.nans_in_a_row += 1
        logger.warning("step %d skipped: its loss or gradient is not finite", self.progress.step)
        if self.nans_in_a_row == PATIENCE_FOR_NANS:
            raise Diverged(
                f"{PATIENCE_FOR_NANS} steps in a row were not finite, up to step {self.progress.step}; lower "
                f"optim.learning_rate ({self.config.optim.learning_rate}). The last checkpoint is untouched."
            )

    def log(self, **values: Tensor | float) -> None:
        """Collects figures; their means are written every `log_steps`."""
        for name, value in values.items():
            self.records.setdefault(name, []).append(float(value))

    def write_metrics(self) -> None:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.progress.seconds += seconds
        means = {name: mean_of_finite(values) for name, values in self.records.items()}
        self.records.clear()
        if self.accelerator.is_main_process:
            settings = self.config.run
            line = {
                "step": self.progress.step,
                "samples": self.progress.step * settings.batch_size,
                "seconds": round(self.progress.seconds, 1),
                "samples_per_second": round(settings.log_steps * settings.batch_size / seconds, 1),
                "learning_rate": self.scheduler.get_last_lr()[0],
                "skipped": self.progress.skipped,
                "memory_gb": round(memory(), 3),
                **means,
            }
            with (self.config.output_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            known = {name: value for name, value in line.items() if value is not None}
            self.accelerator.log(known, step=known.pop("step"))

    def save(self) -> None:
        """One checkpoint, whole or not at all."""
        if self.saved != self.progress.step and save_run(self):
            self.saved = self.progress.step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the live ones, which come back bit for bit."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def trained(self) -> nn.Module:
        """The plain module, holding the averaged weights where there is an average."""
        if self.ema is not None:
            self.ema.copy_to(self.parameters)
        return self.accelerator.unwrap_model(self.model).eval()


def mean_of_finite(values: list[float]) -> float | None:
    """None where all were skipped: JSON has no NaN."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None
