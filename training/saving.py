"""One checkpoint of a run, by all its processes together.

Where it cannot be written that is said, and training goes on: the older ones are untouched, and the next one
may find room.
"""

import logging
import shutil
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from safetensors import SafetensorError

from altdiffusion import aside
from altdiffusion.reading import one_line
from training import space
from training.checkpoints import save_checkpoint
from training.processes import agreed

logger = logging.getLogger(__name__)
#: What a disk that takes no more makes of writing: of files, of safetensors, of torch.save.
NOT_WRITTEN = (OSError, SafetensorError, RuntimeError)


class Saved(Protocol):
    """What of a run its checkpoint takes."""

    config: Any
    accelerator: Accelerator
    progress: Any
    size: int
    saved: int | None

    def about(self) -> dict[str, Any]: ...


def save_run(run: Saved) -> bool:
    """Whether the checkpoint of this step is there now."""
    folder, step = run.config.output_dir, run.progress.step
    problem = space.shortage(folder, run.size) if run.accelerator.is_main_process else None
    if not agreed(run.accelerator, problem is not None):
        problem = write(run, folder, step)
    if problem is not None:
        newest = "there is none" if run.saved is None else f"the newest is of step {run.saved}"
        logger.warning("no checkpoint of step %d: %s; %s", step, problem, newest)
    return not agreed(run.accelerator, problem is not None)


def write(run: Saved, folder: Path, step: int) -> str | None:
    """What went wrong, or None. The first of several processes seals what all have written."""
    shared, problem = folder / f"{aside.START}ranks-{step:08d}", None

    def take(stage: Path) -> None:
        stage.rmdir()
        shared.rename(stage)

    try:
        run.accelerator.save_state(str(shared))
    except NOT_WRITTEN as error:
        problem = one_line(error)
    failed = agreed(run.accelerator, problem is not None)
    if run.accelerator.is_main_process:
        try:
            if not failed:
                save_checkpoint(folder, step, take, run.config.run.checkpoints_total_limit, run.about())
        except NOT_WRITTEN as error:
            problem = one_line(error)
        shutil.rmtree(shared, ignore_errors=True)
    return problem and f"{problem} ({space.needed_and_free(folder, run.size)})"
