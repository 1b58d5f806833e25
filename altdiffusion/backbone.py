"""One backbone for encoding and drawing: an AltCLIP's text tower seen as the tower that conditions a UNet.

With the parts of AltDiffusion that is the published model; with those of any other Stable Diffusion it is a
graft: a start for concept alignment, which draws what its prompts say only after training.
"""

import copy
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import Parameter
from transformers import AltCLIPModel, AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion import checkpoints, layouts, openvino_parts, single_files, text_adapter, towers
from altdiffusion.conditioning import MAX_LENGTH
from altdiffusion.layouts import Layout, Source
from altdiffusion.model import AltCLIP
from altdiffusion.reading import check_tensors, read_json, read_tensors, refusal
from altdiffusion.requests import shorten
from altdiffusion.sources import processor, read_models

_PREDICTION_TYPES = ("epsilon", "v_prediction")
_ALLOWED = "allowed: Stable Diffusion 1 or 2, or an AltDiffusion"


def shared_view(
    model: AltCLIPModel, form: str, transformation_pre: Mapping[str, Tensor] | None = None
) -> AltCLIPTextModel:
    """The generation tower of an AltCLIP, whose parameters are the AltCLIP's own.

    In form "m9" it adds the 1 and 0 of the last layer's closing LayerNorm, which the AltCLIP applies and the
    view has as its `pre_LN`; in form "m18" it adds `transformation_pre`, and has no last layer. The modules
    are the view's own: an adapter on one is not on the other, and moving or casting either moves both.
    """
    if form == "m18" and not transformation_pre:
        raise ValueError("clip: an m18 without its generation head; allowed: one that has transformation_pre")
    original: Any = model.text_model
    config = AltCLIPTextConfig(**towers.stock_config(original.config.to_dict(), form))
    with torch.device("meta"):
        view = AltCLIPTextModel(config)
    originals = dict(original.named_parameters())
    pairs = towers.shared_names(dict(view.named_parameters()), form)
    values = {name: originals[same] for name, same in pairs.items()}
    like = original.transformation.weight
    for name, parameter in view.named_parameters():
        if name not in values:
            value = _own_value(name, parameter, transformation_pre).to(like.device, like.dtype)
            values[name] = Parameter(value, requires_grad=like.requires_grad)
    check_tensors(dict(view.named_parameters()), values, "clip")
    for name, value in (values | dict(original.named_buffers())).items():
        _put(view, name, value)
    return view.eval()


def share(model: AltCLIPModel, tower: AltCLIPTextModel, form: str) -> bool:
    """Gives an AltCLIP the parameters of a generation tower with the same values; False if it has others."""
    with text_adapter.aside(tower):
        values = dict(tower.named_parameters())
    originals = dict(model.text_model.named_parameters())
    pairs = towers.shared_names(values, form)
    if not all(same in originals and _equal(values[name], originals[same]) for name, same in pairs.items()):
        return False
    for name, same in pairs.items():
        _put(model.text_model, same, values[name])
    return True


def pipeline_parts(
    clip: AltCLIP,
    stable_diffusion: DiffusionPipeline | str | PathLike,
    *,
    form: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    adapter: text_adapter.TextAdapter | str | PathLike | None = None,
) -> dict[str, Any]:
    """The parts of a pipeline that draws with `stable_diffusion`'s UNet and VAE what `clip` understands."""
    if clip.runtime == "openvino":
        raise openvino_parts.refuse("from_altclip")
    if prediction_type not in (None, *_PREDICTION_TYPES):
        raise ValueError(
            f"prediction_type: {prediction_type!r:.80} is none; allowed: {', '.join(_PREDICTION_TYPES)}"
        )
    if prediction_type is not None and isinstance(stable_diffusion, DiffusionPipeline):
        raise ValueError(
            f"prediction_type: {prediction_type!r} for a loaded pipeline; allowed: its scheduler's own, None"
        )
    view = shared_view(clip.model, form or clip.form, clip.generation_head)
    if isinstance(adapter, str | PathLike):
        adapter = text_adapter.load(adapter)
    if adapter is not None:
        text_adapter.attach(view, adapter)
    if isinstance(stable_diffusion, DiffusionPipeline):
        parts = _parts_of(stable_diffusion, clip)
        _check_unet(parts["unet"].config, view, type(stable_diffusion).__name__)
    else:
        path = checkpoints.locate(stable_diffusion, revision=revision, variant=variant)
        source = _plain(path, variant) or layouts.read(layouts.detect(path), variant=variant)
        if "unet" not in source.parts:
            raise refusal(path, f"is an AltCLIP model; {_ALLOWED}")
        _check_unet(source.parts["unet"].config, view, source.layout.path)
        if prediction_type is not None:
            source.scheduler["prediction_type"] = prediction_type
        if "prediction_type" not in source.scheduler and source.layout.path.is_file():
            found = "does not say what its UNet predicts"
            raise refusal(
                path, f"{found}; allowed: prediction_type='epsilon' (512 px) or 'v_prediction' (768 px)"
            )
        parts = _load(source, clip.dtype)
    tokenizer = copy.deepcopy(clip.tokenizer)  # textual inversion adds words to the pipeline's
    tokenizer.model_max_length = min(MAX_LENGTH, tokenizer.model_max_length)
    return {**parts, "text_encoder": view, "tokenizer": tokenizer}


def altclip_of(path: Path | None, tower: Any) -> AltCLIP:
    """The AltCLIP that lies at `path`, on the parameters of the pipeline's `tower` where the values agree."""
    if path is None or tower is None:
        raise ValueError("altclip: the pipeline was put together from parts; allowed: a model that holds one")
    if isinstance(tower, openvino_parts.Part):
        return AltCLIP.from_pretrained(path, dtype=tower.precision, runtime="openvino")
    clip = AltCLIP.from_pretrained(path, dtype=tower.dtype, device=tower.device)
    if share(clip.model, tower, clip.form) and clip.form == "m18":
        clip.generation_head = dict(tower.transformation.named_parameters())
    return clip


def _parts_of(pipeline: Any, clip: AltCLIP) -> dict[str, Any]:
    """What a loaded pipeline gives; its UNet and VAE are shared, so they cannot be moved or cast here."""
    names = ("unet", "vae", "scheduler", "safety_checker", "feature_extractor", "image_encoder")
    parts = {name: pipeline.components.get(name) for name in names}
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for name, kind in kinds.items():
        if not isinstance(parts[name], kind):
            found = f"the {name} of {type(pipeline).__name__} is {type(parts[name]).__name__}"
            raise ValueError(f"stable_diffusion: {found}; {_ALLOWED}")
    found, wanted = (pipeline.unet.dtype, pipeline.unet.device), (clip.dtype, clip.device)
    if found != wanted:
        raise ValueError(f"stable_diffusion: its UNet is {found}; allowed with this AltCLIP: {wanted}")
    return parts | {"requires_safety_checker": parts["safety_checker"] is not None}


def _check_unet(config: Mapping[str, Any], view: AltCLIPTextModel, where: str | PathLike) -> None:
    if config.get("addition_embed_type"):  # Stable Diffusion XL's
        raise ValueError(f"stable_diffusion: {shorten(str(where))} has a UNet of another kind; {_ALLOWED}")
    adapter = text_adapter.adapter_of(view)
    width = config.get("cross_attention_dim")
    ours = view.config.project_dim if adapter is None else adapter.config.out_dim
    if width != ours:
        raise ValueError(
            f"stable_diffusion: {shorten(str(where))} has a UNet that takes {width} values a token; "
            f"allowed with this AltCLIP: {ours}"
        )


def _plain(path: Path, variant: str | None) -> Source | None:
    """A Stable Diffusion with CLIP's text encoder, which is not read; None for what `layouts` tells apart."""
    if path.is_file():
        return _plain_file(path)
    if not (path / "model_index.json").is_file():
        return None
    index = read_json(path / "model_index.json")
    if "text_encoder_2" in index or "text_encoder_3" in index:
        raise refusal(path, f"is {index.get('_class_name')!r:.80}; {_ALLOWED}")
    if index.get("text_encoder", [None])[-1] != "CLIPTextModel":
        return None
    layout = Layout(path, "stock pipeline", "own", "its model_index.json names CLIPTextModel")
    parts = read_models(path, variant, {})
    for name in ("unet", "vae"):
        if name not in parts:
            raise refusal(path / name / "config.json", "is missing")
    scheduler = read_json(path / "scheduler/scheduler_config.json")
    processors = processor(path / "feature_extractor", "feature_extractor")
    return Source(layout, parts, scheduler=scheduler, processors=processors)


def _plain_file(file: Path) -> Source | None:
    content = read_tensors(file)
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    other = single_files.other_model(state)
    if other is None:
        return None
    if not other.startswith("plain "):
        raise refusal(file, f"is {other}; {_ALLOWED}")
    found = single_files.split(state)
    for name, prefix in (("unet", "model.diffusion_model."), ("vae", "first_stage_model.")):
        if name not in found:
            raise refusal(file, f"is incomplete: it holds no {prefix}…")
    params = single_files.parameters(file, found[""])
    unet = single_files.unet_part(found["unet"], params, file)
    vae = single_files.vae_part(found["vae"], params, file)
    scheduler = single_files.scheduler(found[""], params)
    if other.endswith("2") and not params["unet"]:  # without the YAML that it came with
        del scheduler["prediction_type"]  # models for 512 px predict the noise, those for 768 px do not
    layout = Layout(file, "C", "own", f"it is {other}")
    return Source(layout, {"unet": layouts.Part(*unet), "vae": layouts.Part(*vae)}, scheduler=scheduler)


def _load(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    classes, path = checkpoints.model_classes(), source.layout.path
    models = {
        name: checkpoints.build(classes[name], part, path / name if path.is_dir() else path, dtype=dtype)
        for name, part in source.parts.items()
        if name in classes and name != "text_encoder"
    }
    return checkpoints.surroundings(source) | models


def _own_value(name: str, parameter: Parameter, transformation_pre: Mapping[str, Tensor] | None) -> Tensor:
    module, _, kind = name.rpartition(".")
    if module == "transformation" and transformation_pre:
        return transformation_pre[kind].detach().clone()
    return torch.full(parameter.shape, float(kind == "weight"))  # a LayerNorm that only normalises


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.to(other.device), other)


def _put(module: torch.nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, value)
