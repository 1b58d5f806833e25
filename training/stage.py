"""How a stage's command behaves, whatever the stage: `--dry-run`, logging, one line for a user's mistake."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import yaml

from training import export
from training.config import as_tree


def run_stage(config: Any, train: Callable[[Any], None]) -> None:
    """Prints the resolved configuration and trains; with `dry_run` only prints."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    if config.run.dry_run:
        print(yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True), end="")
        return
    try:
        export.check(config)
        train(config)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
