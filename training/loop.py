"""What every training stage shares: the accelerator, seeds, order of samples, optimizer, EMA, checkpoints,
metrics.

A stage keeps its loop in its own file and asks a `Run` for these. Samples are counted, not remembered: batch
`n` is a function of (seed, n) alone and the noise of step `n` too, so a run that was cut goes on exactly as
if it had not been.
"""

import json
import logging
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

from training import config as configuration
from training import output_folder, processes, space, trackers
from training.checkpoints import latest_checkpoint
from training.config import OptimConfig, RunConfig
from training.optimizers import build_optimizer
from training.progress_bar import advance, memory, progress_bar
from training.saving import save_run
from training.sharded import ShardedEMA, Twin, fill_deepspeed, twin_of, whole
from training.step_sampler import StepSampler
from training.stopping import StopSignal
from training.workers import batches_of

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
    twin: Twin | None = None
    """Where the processes share the weights out."""
    progress: Progress = field(default_factory=Progress)
    part: int = 0
    nans_in_a_row: int = 0
    stop: StopSignal = field(default_factory=StopSignal)
    saved: int | None = None
    """The step that the newest checkpoint holds."""
    records: dict[str, list[Tensor | float]] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)
    written: int = 0
    """The step of the last line of metrics."""

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
        size = space.checkpoint_size(model, averaged=bool(settings.ema_decay))
        optimizer = build_optimizer(model, config.optim)
        scheduler = get_scheduler(
            {"constant": "constant_with_warmup", "cosine": "cosine"}[config.optim.schedule],
            optimizer,
            num_warmup_steps=config.optim.warmup_steps,
            num_training_steps=settings.max_train_steps,
        )
        if (plugin := accelerator.state.deepspeed_plugin) is not None:
            fill_deepspeed(plugin, settings, config.optim, accelerator.num_processes)
        twin = twin_of(accelerator, model)
        model, optimizer = accelerator.prepare(model, optimizer)
        parameters = [p for p in model.parameters() if p.requires_grad]
        ema = None
        if settings.ema_decay:
            average = EMAModel if twin is None else ShardedEMA
            ema = average(
                parameters,
                decay=settings.ema_decay,
                use_ema_warmup=True,
                power=0.75,
                foreach=accelerator.device.type == "cuda",  # one kernel for all, where each call costs
            )
            ema.to(accelerator.device)
        run = cls(config, accelerator, model, optimizer, scheduler, parameters, ema, size, twin)
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
            "run.mixed_precision": self.config.run.mixed_precision,
            "optim.name": self.config.optim.name,
        }

    def resume(self) -> None:
        output_folder.check(self.config.output_dir, self.about())
        found = latest_checkpoint(self.config.output_dir)
        if found is not None:
            self.accelerator.load_state(str(found[0]))
            if self.ema is not None:
                self.ema.to(self.accelerator.device)  # it is read onto the CPU
            self.saved = self.written = found[1]
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
        settings = self.config.run
        bar = progress_bar(settings, self.progress.step, self.accelerator.is_main_process)
        self.model.train()
        try:
            for batch in batches_of(dataset, sampler, settings.workers):
                self.seed_pass()
                yield batch
                advance(bar, settings, self.progress.step)
                if number := processes.agreed(self.accelerator, self.stop.number):
                    self.save()
                    raise SystemExit(128 + number)
            if self.part == 0:
                self.save()
            if self.twin is not None:
                if self.ema is not None:
                    self.ema.copy_to(self.parameters)
                self.twin.take(self.model)
        finally:
            bar.close()
            trackers.finish(self.accelerator)
            self.stop.restore()

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
        norm = whole(torch.as_tensor(norm))
        finite, scaler = torch.isfinite(norm), self.accelerator.scaler
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
        """Collects figures. Their means are written every `log_steps`; a device is waited for only then."""
        for name, value in values.items():
            self.records.setdefault(name, []).append(value)

    def write_metrics(self) -> None:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        steps, self.written = self.progress.step - self.written, self.progress.step
        self.progress.seconds += seconds
        records = {name: [float(value) for value in values] for name, values in self.records.items()}
        means = processes.averaged(self.accelerator, records)
        self.records.clear()
        if self.accelerator.is_main_process:
            settings = self.config.run
            line = {
                "step": self.progress.step,
                "samples": self.progress.step * settings.batch_size,
                "seconds": round(self.progress.seconds, 1),
                "samples_per_second": round(steps * settings.batch_size / seconds, 1),
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
        if self.twin is not None and self.twin.module is not None:
            return self.twin.module.eval()
        if self.ema is not None:
            self.ema.copy_to(self.parameters)
        return self.accelerator.unwrap_model(self.model).eval()
