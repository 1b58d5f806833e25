"""What every training stage shares: the accelerator, seeds, order of samples, optimizer, EMA, checkpoints,
metrics.

A stage keeps its loop in its own file and asks a `Run` for these. Samples are counted, not remembered: batch
`n` is a function of (seed, n) alone and the noise of step `n` too, so a run that was cut goes on exactly as
if it had not been.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
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
from torch.utils.data import Sampler
from tqdm import tqdm

from training import config as configuration
from training.checkpoints import latest_checkpoint, save_checkpoint
from training.config import OptimConfig, RunConfig
from training.processes import agreed, averaged
from training.sharded import ShardedEMA, Twin, fill_deepspeed, twin_of, whole
from training.workers import batches_of

logger = logging.getLogger(__name__)
#: So many steps in a row without a finite loss and gradient end a run: by then it does not come back.
PATIENCE_FOR_NANS = 5


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
    twin: Twin | None = None
    """Where the processes share the weights out."""
    progress: Progress = field(default_factory=Progress)
    part: int = 0
    nans_in_a_row: int = 0
    stop_signal: int = 0
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
            project_config=ProjectConfiguration(automatic_checkpoint_naming=False),
        )
        config.output_dir.mkdir(parents=True, exist_ok=True)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.optim.weight_decay),
            lr=config.optim.learning_rate,
            betas=(config.optim.beta1, config.optim.beta2),
            fused=True,  # 6x the speed of PyTorch's default on a CPU
        )
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
            ema = average(parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75)
            ema.to(accelerator.device)
        run = cls(config, accelerator, model, optimizer, scheduler, parameters, ema, twin)
        accelerator.register_for_checkpointing(run.progress, scheduler, *([ema] if ema else []))
        run.resume()
        run.note()
        return run

    def resume(self) -> None:
        found = latest_checkpoint(self.config.output_dir)
        if found is not None:
            self.accelerator.load_state(str(found[0]))
            self.saved = found[1]
            logger.info("resumed from %s", found[0])

    def note(self) -> None:
        """Writes what would repeat this run beside its results."""
        if self.accelerator.is_main_process:
            configuration.save(self.config, self.config.output_dir / "config.yaml")
            packages = ("torch", "diffusers", "transformers", "accelerate")
            versions = {name: version(name) for name in packages}
            (self.config.output_dir / "versions.json").write_text(json.dumps(versions, indent=1))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.remember_signal)

    def remember_signal(self, number: int, _frame: object) -> None:
        if self.stop_signal:  # the second one does not wait for the step to end
            raise SystemExit(128 + number)
        self.stop_signal = number

    def batches(self, dataset: Any) -> Iterator[Any]:
        """The batches that are left. `dataset.items` is its length, or None where it has no end."""
        sampler = StepSampler(
            self.config.run,
            self.progress.step,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            dataset.items,
        )
        total = self.config.run.max_train_steps
        bar = tqdm(total=total, initial=self.progress.step, unit="step", disable=None, dynamic_ncols=True)
        self.model.train()
        for batch in batches_of(dataset, sampler, self.config.run.workers):
            self.seed_pass()
            before = self.progress.step
            yield batch
            bar.update(self.progress.step - before)
            if stop := agreed(self.accelerator, self.stop_signal):
                self.save()
                raise SystemExit(128 + stop)
        bar.close()
        if self.part == 0:
            self.save()
        if self.twin is not None:
            if self.ema is not None:
                self.ema.copy_to(self.parameters)
            self.twin.take(self.model)

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
        if torch.isfinite(whole(torch.as_tensor(norm))):
            self.optimizer.step()
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
            raise RuntimeError(
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
        means = {name: math.fsum(values) / len(values) for name, values in self.records.items()}
        means = averaged(self.accelerator, means)
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
                **means,
            }
            with (self.config.output_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """One checkpoint, whole or not at all. The first of several processes seals what all have written."""
        if self.saved == self.progress.step:
            return
        self.saved = self.progress.step
        settings = self.config.run
        if self.accelerator.num_processes == 1:

            def write(stage: Path) -> None:
                self.accelerator.save_state(str(stage))

            save_checkpoint(
                self.config.output_dir, self.progress.step, write, settings.checkpoints_total_limit
            )
            return
        shared = self.config.output_dir / f".tmp-ranks-{self.progress.step:08d}"
        self.accelerator.save_state(str(shared))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:

            def take(stage: Path) -> None:
                stage.rmdir()
                shared.rename(stage)

            save_checkpoint(
                self.config.output_dir, self.progress.step, take, settings.checkpoints_total_limit
            )
        self.accelerator.wait_for_everyone()

    def trained(self) -> nn.Module:
        """The plain module, holding the averaged weights where there is an average."""
        if self.twin is not None and self.twin.module is not None:
            return self.twin.module.eval()
        if self.ema is not None:
            self.ema.copy_to(self.parameters)
        return self.accelerator.unwrap_model(self.model).eval()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    trained: Iterable[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
