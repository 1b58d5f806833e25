"""Validation pictures: the same prompts and noise again and again while a UNet or an adapter is trained.

They leave no trace in the training: averaged weights stand in for the live ones and go again, and no random
number that training uses is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from altdiffusion import aside
from altdiffusion.checkpoints import quiet
from altdiffusion.grids import captioned_grid
from training import trackers
from training.loop import Run

#: Pictures drawn at a time.
BATCH = 4


@dataclass(frozen=True)
class ValidationConfig:
    """Pictures on the way, in one grid: `output_dir/validation/step-….png`."""

    prompts: tuple[str, ...] = ()
    """What they show, in any languages. Empty: no pictures."""
    every: int = 500
    """Steps from one grid to the next; the first one is drawn before training, the last one after it."""
    steps: int = 20
    """Denoising steps."""
    guidance_scale: float = 3.0
    seed: int = 0
    """Of the noise that every picture starts from: prompts of the same meaning can be compared."""

    def __post_init__(self) -> None:
        for name in ("every", "steps"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"validation.{name}: {value}; allowed: 1 and up")


class Validation:
    """Draws the grid of the step that the run is at, where one is due and there is none yet.

    `pipeline` gives the pipeline with the trained weights, `encode` the states of texts as training has them,
    and `shape` is that of the latents.
    """

    def __init__(
        self,
        config: ValidationConfig,
        run: Run,
        pipeline: Callable[[], Any],
        encode: Callable[[list[str]], Tensor],
        shape: torch.Size,
    ) -> None:
        self.config, self.run = config, run
        self.pipeline, self.encode, self.shape = pipeline, encode, shape

    def draw(self) -> None:
        step, total = self.run.progress.step, self.run.config.run.max_train_steps
        if not self.config.prompts or self.run.part or (step % self.config.every and step != total):
            return
        path = self.run.config.output_dir / "validation" / f"step-{step:08d}.png"
        if path.is_file():
            return
        # All processes draw: where they share the weights, none can alone.
        pictures = self.pictures()
        if self.run.accelerator.is_main_process:
            grid = captioned_grid(list(zip(self.config.prompts, pictures, strict=True)))
            path.parent.mkdir(exist_ok=True)
            with aside.file(path, durable=False) as place:
                grid.save(place, format="png")
            trackers.show(self.run.accelerator, "validation", grid, step)

    @torch.no_grad()
    def pictures(self) -> list[Image.Image]:
        model, pipeline = self.run.model, self.pipeline()
        training, decoder_at = model.training, pipeline.vae.device
        pipeline.set_progress_bar_config(disable=True)
        with torch.random.fork_rng(), self.run.averaged(), self.run.accelerator.autocast(), quiet():
            model.eval()
            pipeline.vae.to(self.run.accelerator.device)
            try:
                states = self.encode([*self.config.prompts, ""])
                parts = range(0, len(self.config.prompts), BATCH)
                return [picture for first in parts for picture in self.part(pipeline, states, first)]
            finally:
                pipeline.vae.to(decoder_at)
                model.train(training)

    def part(self, pipeline: Any, states: Tensor, first: int) -> list[Image.Image]:
        conditions = states[first : min(first + BATCH, len(states) - 1)]
        _, height, width = self.shape
        return pipeline(
            prompt_embeds=conditions,
            negative_prompt_embeds=states[-1:].expand_as(conditions),
            height=height * pipeline.vae_scale_factor,
            width=width * pipeline.vae_scale_factor,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            generator=[torch.Generator().manual_seed(self.config.seed) for _ in conditions],
        ).images
