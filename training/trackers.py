"""Where a run reports to beside its own metrics.jsonl: TensorBoard, trackio or wandb, through accelerate."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from training.config import RunConfig, as_tree

#: Name of the project under which all runs stand.
PROJECT = "altdiffusion"


def check(config: RunConfig) -> None:
    """Refuses a tracker that is not installed, before a model is read."""
    name = config.report_to
    if name != "none" and find_spec(name) is None:
        raise ValueError(
            f"run.report_to: {name} is not installed; allowed: none, or {name} after `pip install {name}`"
        )


def for_accelerator(config: RunConfig) -> str | None:
    check(config)
    return None if config.report_to == "none" else config.report_to


def start(accelerator: Accelerator, config: Any) -> None:
    """Opens the tracker under the name of the output folder; a run taken up again goes on under it."""
    folder: Path = config.output_dir
    if not accelerator.log_with:
        return
    about = flat(as_tree(config))
    match config.run.report_to:
        case "tensorboard":  # the folder tells runs apart, and its config.yaml says how they were made
            accelerator.init_trackers(".")
        case "trackio":
            named = {"name": folder.name, "resume": "allow"}
            accelerator.init_trackers(PROJECT, about, init_kwargs={"trackio": named})
        case "wandb":
            named = {"name": folder.name, "id": folder.name, "resume": "allow", "dir": str(folder)}
            accelerator.init_trackers(PROJECT, about, init_kwargs={"wandb": named})


def finish(accelerator: Accelerator) -> None:
    """Closes the trackers alone: accelerate's `end_training` would take the process group along."""
    for tracker in accelerator.trackers:
        tracker.finish()


def show(accelerator: Accelerator, name: str, picture: Image.Image, step: int) -> None:
    """A picture, for TensorBoard; the others show what lies in the output folder."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings under dotted names."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, int | float | bool) else str(value)
    return found
