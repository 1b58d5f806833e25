"""Tiny random checkpoints in the published layouts A to E: their key names, files, and odd configurations.

The original Stable Diffusion names are spelt out in published_ldm.py and not taken from the code under test.
Everything follows from a seed, a form ("m9", which m2 shares, or "m18") and the options.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.fakes import tiny_tokenizer
from tests.published_parts import (
    SCHEDULER,
    altclip,
    altclip_config,
    ema_of,
    ldm_tensors,
    prefixed,
    preprocessor,
    safety_checker,
    stock_unet,
    stock_vae,
    text_encoder,
    text_tower,
)


def write(format: str, folder: Path, form: str = "m9", seed: int = 0, **options: Any) -> Path:
    """Writes the checkpoint and returns what is given to `from_pretrained`: the folder, or its file.

    Options: A, B, E: `safetensors`, `shards`, `dtype`; B: `variant`, `library`, `pipeline`; C: `safetensors`,
    `wrapped`, `dtype`, `ema`, `name`; D: `ema`; C and D: `tokenizer`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writers = {"A": _write_a, "B": _write_b, "C": _write_c, "D": _write_d, "E": _write_e}
    return writers[format](folder, form, seed, **options)


def _write_a(folder: Path, form: str, seed: int, **options: Any) -> Path:
    write_json(folder / "config.json", altclip_config(form))
    write_json(folder / "preprocessor_config.json", preprocessor(form))
    write_tokenizer(folder, 512)
    write_weights(folder, altclip(form, seed), **options)
    return folder


def _write_e(folder: Path, form: str, seed: int, **options: Any) -> Path:
    """FlagAI's classes: a CLIPConfig whose text model is an XLM-R."""
    config = altclip_config(form) | {"architectures": ["CLIPHF"], "model_type": "clip", "variant": "invert"}
    del config["direct_kd"]
    config["text_config"] |= {"model_type": "xlm-roberta"}
    config["vision_config"] |= {"model_type": "clip_vision_model"}
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor("m9"))
    write_tokenizer(folder, 512)
    write_weights(folder, altclip(form, seed), **options)
    return folder


def _write_b(
    folder: Path,
    form: str,
    seed: int,
    *,
    library: str = "alt_diffusion",
    pipeline: str = "AltDiffusionPipeline",
    safety: bool = True,
    **options: Any,
) -> Path:
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.11.0"}
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"] if safety else [None, None]
    index |= {
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"] if safety else [None, None],
        "requires_safety_checker": safety,
        "safety_checker": checker,
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": [library, "RobertaSeriesModelWithTransformation"],
        "tokenizer": ["transformers", "XLMRobertaTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    write_tokenizer(folder / "tokenizer", 77, fast=False)
    parts = {"text_encoder": text_encoder(form, seed), "unet": stock_unet(form, seed), "vae": stock_vae(seed)}
    if safety:
        parts["safety_checker"] = safety_checker(seed)
        write_json(folder / "feature_extractor/preprocessor_config.json", preprocessor("m9"))
    for name, (config, tensors) in parts.items():
        write_json(folder / name / "config.json", config)
        stem = "diffusion_pytorch_model" if name in ("unet", "vae") else "pytorch_model"
        write_weights(folder / name, tensors, stem=stem, **options)
    return folder


def _write_c(
    folder: Path,
    form: str,
    seed: int,
    *,
    safetensors: bool = False,
    wrapped: bool = True,
    dtype: torch.dtype | None = None,
    ema: bool = False,
    tokenizer: bool = True,
    name: str = "model",
) -> Path:
    tensors = ldm_tensors(form, seed) | prefixed("cond_stage_model.", text_tower(form, seed))
    tensors |= ema_of(tensors) if ema else {}
    tensors = _cast(tensors, dtype)
    if tokenizer:
        write_tokenizer(folder, 512)
    (folder / "config.yaml").write_text(_yaml(form), encoding="utf-8")
    file = folder / f"{name}.{'safetensors' if safetensors else 'ckpt'}"
    if safetensors:
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "global_step": 9} if wrapped else tensors, file)
    return file


def _write_d(folder: Path, form: str, seed: int, *, ema: bool = True, tokenizer: bool = True) -> Path:
    """The paper's `my_save_checkpoint`: the whole module twice, the text tower in each under two names."""
    whole = altclip(form, seed)
    raw = ldm_tensors(form, seed) | prefixed("cond_stage_model.ch_clip_model.", whole)
    start = "text_model."
    raw |= {
        f"cond_stage_model.text_encoder.{name[len(start) :]}": value
        for name, value in whole.items()
        if name.startswith(start)
    }
    content: dict[str, Any] = {"epoch": 1, "global_step": 20000, "state_dict": raw}
    if ema:
        raw |= ema_of(raw)
        start = "model."
        content["state_dict_ema"] = {
            name: raw[f"model_ema.{name[len(start) :].replace('.', '')}"] if name.startswith(start) else value
            for name, value in raw.items()
        }
    if tokenizer:
        write_tokenizer(folder / "tokenizer", 512)
    torch.save(content, folder / "step=000020000.ckpt")
    return folder / "step=000020000.ckpt"


def _yaml(form: str) -> str:
    heads = (
        "num_head_channels: 8\n        use_linear_in_transformer: True" if form == "m18" else "num_heads: 8"
    )
    return f"""model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    image_size: 8
    scale_factor: 0.18215
    unet_config:
      params:
        image_size: 32 # unused
        model_channels: 32
        {heads}
"""


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def write_tokenizer(folder: Path, limit: int, *, fast: bool = True) -> None:
    """With `fast` a tokenizer.json; without, the SentencePiece model alone, as the diffusers folders have."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(limit).save_pretrained(folder)
    specials = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    specials |= {"sep_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "XLMRobertaTokenizer"}
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": True, "rstrip": False}
    config = {**specials, "mask_token": mask | {"single_word": False}, "model_max_length": limit}
    write_json(folder / "tokenizer_config.json", config | {"name_or_path": "xlm-roberta-large"})
    if not fast:
        (folder / "sentencepiece.bpe.model").write_bytes(_sentencepiece(folder / "tokenizer.json"))
        (folder / "tokenizer.json").unlink()


def _sentencepiece(file: Path) -> bytes:
    """The same vocabulary as a SentencePiece model: its ids are XLM-R's less one, and it has no <pad>."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 1  # unigram
    vocab = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *[(*row, 1) for row in vocab[4:-1]]]
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    return model.SerializeToString()


def write_weights(
    folder: Path,
    tensors: dict[str, Tensor],
    *,
    stem: str = "pytorch_model",
    safetensors: bool = False,
    shards: bool = False,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _cast(tensors, dtype or (torch.float16 if variant == "fp16" else None))
    middle = f".{variant}" if variant else ""
    if safetensors:
        stem, suffix = ("model" if stem == "pytorch_model" else stem), "safetensors"
    else:
        suffix = "bin"
    if not shards:
        _save(tensors, folder / f"{stem}{middle}.{suffix}")
        return
    names = list(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [f"{stem}{middle}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    for half, file in zip(halves, files, strict=True):
        _save({name: tensors[name] for name in half}, folder / file)
    places = {name: file for half, file in zip(halves, files, strict=True) for name in half}
    write_json(
        folder / f"{stem}.{suffix}.index{middle}.json", {"metadata": {"total_size": 1}, "weight_map": places}
    )


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, {"format": "pt"}) if file.suffix == ".safetensors" else torch.save(tensors, file)


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    cast = {
        name: value.to(dtype) if dtype and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    return {name: value.contiguous() for name, value in cast.items()}
