"""Stock schedulers by the names that people know them by."""

from typing import Any

import diffusers

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
