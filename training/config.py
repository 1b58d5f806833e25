"""Configuration shared by the stages: frozen dataclasses, YAML recipes, one parser.

A recipe is a list of flags: YAML is flattened into arguments that stand before the command line's, so tyro
checks both in the same way and the later one wins. `--config runs/x/config.yaml` therefore repeats a run
exactly.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from altdiffusion.reading import one_line
from training.mistakes import in_one_line
from training.samples import shorten

#: Bytes of a recipe; ours have some hundred.
_LARGEST = 1_000_000
Config = TypeVar("Config")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its states in 8 bits (bitsandbytes): a quarter of their memory."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: stay, or follow a cosine down to zero at max_train_steps."""
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate: {self.learning_rate} is outside (0, 1)")
        for name in ("weight_decay", "beta1", "beta2"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("warmup_steps", self.warmup_steps, 0)
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: {self.max_grad_norm}; allowed: above 0, inf for no limit")


@dataclass(frozen=True)
class RunConfig:
    """What every run has: length, batch, seed, precision, checkpoints."""

    max_train_steps: int = 1000
    batch_size: int = 32
    """Samples per optimizer step, over all processes and accumulated passes."""
    gradient_accumulation_steps: int = 1
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """What linear layers and convolutions compute in. What is not trained of them is also stored in it, which
    changes no result."""
    ema_decay: float = 0.0
    """0 keeps no moving average; otherwise the ceiling of its decay (it warms up from 0)."""
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    log_steps: int = 20
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Tracker that the figures go to as well; metrics.jsonl is written in any case."""
    workers: int = 0
    """Processes beside each training process that make its batches ahead of time; they change no bit."""
    threads: int = 0
    """CPU threads of each process; 0 leaves PyTorch's choice."""
    push_to_hub: str | None = None
    """Hub repository, owner/name, that `model/` is uploaded to at the end; a new one is made private."""
    licence: str | None = None
    """Licence of the result, for its card, as the Hub spells it. None: that of what it was made from."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def __post_init__(self) -> None:
        if self.checkpoints_total_limit < 2:
            raise ValueError(
                f"checkpoints_total_limit: {self.checkpoints_total_limit} is below 2; "
                "the newest one may be the one that a crash cut short"
            )
        for name in ("batch_size", "gradient_accumulation_steps", "checkpointing_steps", "log_steps"):
            check_number(name, getattr(self, name), 1)
        for name in ("max_train_steps", "seed", "workers", "threads"):
            check_number(name, getattr(self, name), 0)
        check_number("ema_decay", self.ema_decay, 0, 1)
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size: {self.batch_size} is not a multiple of "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )


def check_number(name: str, value: float | int, low: int, high: float = math.inf) -> None:
    """Refuses nan as well."""
    if not low <= value <= high:
        allowed = f"{low} and up" if high == math.inf else f"{low} to {high}"
        raise ValueError(f"{name}: {value}; allowed: {allowed}")


def parse(cls: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Reads `--config FILE`, then the flags. Exits with 2 and one line on a mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        while "--config" in argv:
            at = argv.index("--config")
            if at + 1 == len(argv):
                raise ValueError("config: --config needs a file")
            argv = [*recipe_flags(Path(argv[at + 1])), *argv[:at], *argv[at + 2 :]]
        with in_one_line(argv):
            return tyro.cli(cls, args=argv, config=(tyro.conf.FlagConversionOff,))
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


class _PlainLoader(yaml.SafeLoader):
    """Of a file without aliases: eight lines of them stand for a thousand million values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which no recipe needs")
        return super().compose_node(parent, index)


def recipe_flags(path: Path) -> list[str]:
    """The flags that a YAML recipe stands for."""
    if not path.is_file():
        raise ValueError(f"config: {path} is not a file")
    name = shorten(str(path))
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"config: {name} has {path.stat().st_size:,} bytes; allowed: up to {_LARGEST:,}")
    try:
        tree = _PlainLoader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"config: {name} is no YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"config: {name} holds no mapping of names to values")
    try:
        return list(as_flags(tree))
    except ValueError as error:
        raise ValueError(f"config: {name} {error}") from None


def as_flags(tree: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    for name, value in tree.items():
        if not isinstance(name, str):
            raise ValueError(f"has {shorten(repr(name))} in the place of a name; allowed: names of options")
        match value:
            case dict():
                yield from as_flags(value, f"{prefix}{name}.")
            case list():
                yield f"{prefix}{name}"
                yield from map(str, value)
            case _:
                yield f"{prefix}{name}={value}"


def as_tree(config: Any) -> Any:
    """The configuration as plain YAML values; `as_flags` of it parses back to an equal one."""
    if is_dataclass(config):
        return {field.name: as_tree(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, tuple | list):
        return [as_tree(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def save(config: Any, path: Path) -> None:
    path.write_text(yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
