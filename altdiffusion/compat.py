"""Opt-in help for diffusers itself: its `DiffusionPipeline.from_pretrained` opens published AltDiffusions.

Their `model_index.json` names a text encoder class, in one of three libraries, that no library has any more.
diffusers looks it up as an attribute of a module that is already imported; `register` puts it there.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import ModelMixin
from transformers import AltCLIPTextModel, PreTrainedModel, ProcessorMixin

from altdiffusion import checkpoints, towers
from altdiffusion.layouts import Part
from altdiffusion.reading import read_folder, read_json

#: Importing it replaces the module `transformers` by a fresh one, without what was added to it before.
_ = ProcessorMixin


def register() -> None:
    """Lets plain diffusers open published AltDiffusion folders and Hub names, for the rest of this process.

        altdiffusion.register()
        DiffusionPipeline.from_pretrained("BAAI/AltDiffusion-m9")

    The text encoder is then the stock `AltCLIPTextModel`, read strictly. Only missing names are added.
    """
    modules = [sys.modules.setdefault("alt_diffusion", ModuleType("alt_diffusion", __doc__))]
    modules += [importlib.import_module(name) for name in ("diffusers", "transformers")]
    # diffusers finds the loading method through base classes that it looks up in the same module
    for module, kind in [
        (modules[0], PreTrainedModel),
        *((m, RobertaSeriesModelWithTransformation) for m in modules),
    ]:
        if not hasattr(module, kind.__name__):
            setattr(module, kind.__name__, kind)


class RobertaSeriesModelWithTransformation(PreTrainedModel, ModelMixin):
    """Stands for the published class, as a loader only; with a base class that each library looks for."""

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        folder: str | os.PathLike,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        device_map: Any = None,
        **instructions: Any,
    ) -> AltCLIPTextModel:
        """The stock tower, read strictly; diffusers' `instructions` on how to read are not needed."""
        folder = Path(folder)
        published, tensors = read_json(folder / "config.json"), read_folder(folder, variant)
        form = towers.form_of(tensors, published)
        part = Part(towers.stock_config(published, form), towers.to_stock(tensors, form))
        tower = checkpoints.build(AltCLIPTextModel, part, folder, dtype=dtype or torch_dtype)
        return tower.to(device_map) if isinstance(device_map, str) else tower
