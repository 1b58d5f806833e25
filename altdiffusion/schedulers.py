"""Stock schedulers by the names that people know them by."""

from typing import Any

import diffusers
from torch import Tensor

from altdiffusion.requests import SCHEDULERS

#: What a scheduler needs besides its class to be what its name says.
_OPTIONS: dict[str, dict[str, Any]] = {
    "dpm++": {"algorithm_type": "dpmsolver++"},
    "dpm++-sde": {"algorithm_type": "sde-dpmsolver++"},
    "pndm": {"skip_prk_steps": True},  # as Stable Diffusion does; the Runge-Kutta steps need a dozen more
}


def scheduler_like(current: Any, name: str | None = None) -> Any:
    """A fresh one of this name, or else of `current`'s own kind, for the model that `current` is for."""
    kind = getattr(diffusers, SCHEDULERS[name]) if name else type(current)
    return kind.from_config(current.config, **_OPTIONS.get(name or "", {}))


def scheduler_name(scheduler: Any) -> str:
    """As people know it (`requests.SCHEDULERS`), if that name would make it again; else its class."""
    kind = type(scheduler).__name__
    options = {name: _OPTIONS.get(name, {}).items() for name, known in SCHEDULERS.items() if known == kind}
    return next((name for name, needed in options.items() if needed <= scheduler.config.items()), kind)


def expected_picture(scheduler: Any, latents: Tensor, output: Tensor, timestep: Any) -> Tensor:
    """The picture that the model's output for these latents means, by the three ways to write it down.

    Schedulers of Karras's kind keep latents that grow with the noise, recognisable by where they begin.
    """
    kept = scheduler.alphas_cumprod[round(float(timestep))].to(latents)
    if float(scheduler.init_noise_sigma) > 1:
        latents = latents * kept.sqrt()
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return kept.sqrt() * latents - (1 - kept).sqrt() * output
    return (latents - (1 - kept).sqrt() * output) / kept.sqrt()
