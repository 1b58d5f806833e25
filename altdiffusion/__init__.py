"""Multilingual text to image and image search: AltDiffusion and AltCLIP on the stock libraries' classes.

    from altdiffusion import AltCLIP, AltDiffusionPipeline

    pipeline = AltDiffusionPipeline.from_pretrained()  # the bundled emoji model; or a folder, or a hub name
    pipeline("กุ้งมังกร").images[0].save("lobster.png")
    AltCLIP.from_pretrained().encode_text(["龙虾", "a lobster"])

Names are resolved when they are first used, since importing torch takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from altdiffusion.classification import Classification, ZeroShotClassifier
    from altdiffusion.compat import register
    from altdiffusion.generation import Picture, generate
    from altdiffusion.guided import (
        AltDiffusionControlNetImg2ImgPipeline,
        AltDiffusionControlNetInpaintPipeline,
        AltDiffusionControlNetPAGInpaintPipeline,
        AltDiffusionControlNetPAGPipeline,
        AltDiffusionControlNetPipeline,
        AltDiffusionInpaintPipeline,
        AltDiffusionPAGImg2ImgPipeline,
        AltDiffusionPAGInpaintPipeline,
        AltDiffusionPAGPipeline,
    )
    from altdiffusion.images import open_image, read_provenance, save_png
    from altdiffusion.languages import LANGUAGES, Language
    from altdiffusion.model import AltCLIP
    from altdiffusion.pipelines import AltDiffusionImg2ImgPipeline, AltDiffusionPipeline
    from altdiffusion.requests import GenerateRequest, Provenance
    from altdiffusion.retrieval import Hit, ImageIndex, Report, Where

_HOMES = {
    "AltCLIP": "model",
    "AltDiffusionControlNetImg2ImgPipeline": "guided",
    "AltDiffusionControlNetInpaintPipeline": "guided",
    "AltDiffusionControlNetPAGInpaintPipeline": "guided",
    "AltDiffusionControlNetPAGPipeline": "guided",
    "AltDiffusionControlNetPipeline": "guided",
    "AltDiffusionImg2ImgPipeline": "pipelines",
    "AltDiffusionInpaintPipeline": "guided",
    "AltDiffusionPAGImg2ImgPipeline": "guided",
    "AltDiffusionPAGInpaintPipeline": "guided",
    "AltDiffusionPAGPipeline": "guided",
    "AltDiffusionPipeline": "pipelines",
    "Classification": "classification",
    "GenerateRequest": "requests",
    "Hit": "retrieval",
    "ImageIndex": "retrieval",
    "LANGUAGES": "languages",
    "Language": "languages",
    "Picture": "generation",
    "Provenance": "requests",
    "Report": "retrieval",
    "Where": "retrieval",
    "generate": "generation",
    "open_image": "images",
    "read_provenance": "images",
    "ZeroShotClassifier": "classification",
    "register": "compat",
    "save_png": "images",
}

__all__ = [
    "LANGUAGES",
    "AltCLIP",
    "AltDiffusionControlNetImg2ImgPipeline",
    "AltDiffusionControlNetInpaintPipeline",
    "AltDiffusionControlNetPAGInpaintPipeline",
    "AltDiffusionControlNetPAGPipeline",
    "AltDiffusionControlNetPipeline",
    "AltDiffusionImg2ImgPipeline",
    "AltDiffusionInpaintPipeline",
    "AltDiffusionPAGImg2ImgPipeline",
    "AltDiffusionPAGInpaintPipeline",
    "AltDiffusionPAGPipeline",
    "AltDiffusionPipeline",
    "Classification",
    "GenerateRequest",
    "Hit",
    "ImageIndex",
    "Language",
    "Picture",
    "Provenance",
    "Report",
    "Where",
    "ZeroShotClassifier",
    "generate",
    "open_image",
    "read_provenance",
    "register",
    "save_png",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'altdiffusion' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"altdiffusion.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("altdiffusion")
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
