"""How a stage's command behaves, whatever the stage: `--dry-run`, logging, one line for a user's mistake."""

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import yaml

from altdiffusion.reading import one_line
from altdiffusion.room import is_exhausted, is_full
from training import export, optimizers, output_folder, trackers
from training.config import as_tree
from training.loop import Diverged
from training.output_folder import claimed
from training.samples import shorten


def run_stage(config: Any, train: Callable[[Any], None]) -> None:
    """Prints the resolved configuration and trains; with `dry_run` only prints."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    if config.run.dry_run:
        print(yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True), end="")
        return
    owner = claimed(config.output_dir) if export.first_process() else nullcontext()
    try:
        with owner:
            output_folder.check(config.output_dir, {"stage": output_folder.stage_name(config)})
            optimizers.check(config.optim)
            trackers.check(config.run)
            export.check(config)
            train(config)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if (said := told(error, config)) is None:
            raise
        print(said, file=sys.stderr)
        raise SystemExit(1) from None


def told(error: Exception, config: Any) -> str | None:
    """What ends a run without being a mistake of ours, in one line."""
    if isinstance(error, Diverged):
        return str(error)
    if is_exhausted(error):
        size, passes = config.run.batch_size, config.run.gradient_accumulation_steps
        return (
            f"run.batch_size: {size} in {passes} passes does not fit into the memory; lower it, or raise "
            "run.gradient_accumulation_steps. The last checkpoint is untouched."
        )
    if is_full(error):
        return f"output_dir: {shorten(str(config.output_dir))} is full: {one_line(error)}"
    return None
