"""Tiny random parts of the published models: tensors under their published names, and configurations."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import AltCLIPConfig, AltCLIPModel, CLIPConfig

from tests.fakes import roughen, tiny_tokenizer
from tests.published_ldm import autoencoder, schedule, unet

HIDDEN, LAYERS, PROJECTION, PIXELS = 128, 3, 20, 32


#: The width of the conditioning: 768 and 1024 in the published models.
WIDTH = {"m9": 24, "m18": 32}


_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 16, "num_hidden_layers": 2}


_VISION |= {"image_size": PIXELS, "patch_size": 8}


_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


_KINDS = ("weight", "bias")


SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.11.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def seeded(seed: int, make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def roberta_config(form: str) -> RobertaSeriesConfig:
    return RobertaSeriesConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        max_position_embeddings=82,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        project_dim=WIDTH[form],
        **({"has_pre_transformation": True} if form == "m18" else {}),
    )


def text_tower(form: str, seed: int = 0, *, pooled: bool = True) -> dict[str, Tensor]:
    """The published tower without prefix. With `pooled` it has what pooling needs, which B of m9 lacks."""
    model = seeded(seed, lambda: roughen(RobertaSeriesModelWithTransformation(roberta_config(form))))
    tensors = {name: value for name, value in model.state_dict().items() if ".pooler." not in name}
    if form == "m9" and pooled:
        tensors |= seeded(seed + 1, lambda: {f"pre_LN.{kind}": torch.randn(HIDDEN) for kind in _KINDS})
    tensors["roberta.embeddings.position_ids"] = torch.arange(82)[None]
    return _plain(tensors)


def altclip(form: str, seed: int = 0) -> dict[str, Tensor]:
    """All of a published AltCLIP: text tower, vision tower, projections, scale."""
    config = AltCLIPConfig(
        text_config=text_fields(form) | {"num_hidden_layers": 1},
        vision_config=_VISION,
        projection_dim=PROJECTION,
    )
    model = seeded(seed + 2, lambda: roughen(AltCLIPModel(config)))
    tensors = {
        name: value for name, value in model.state_dict().items() if not name.startswith("text_model.")
    }
    tensors["vision_model.embeddings.position_ids"] = torch.arange((PIXELS // 8) ** 2 + 1)[None]
    return _plain(tensors) | prefixed("text_model.", text_tower(form, seed))


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def text_fields(form: str) -> dict[str, Any]:
    """`text_config` as published: of its seventy fields those that mean something, and some that mislead."""
    return {
        "_name_or_path": "xlm-roberta-large",
        "architectures": ["XLMRobertaForMaskedLM"],
        "attention_probs_dropout_prob": 0.1 if form == "m18" else 0.0,
        "bos_token_id": 0,
        "classifier_dropout": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1 if form == "m18" else 0.0,
        "hidden_size": HIDDEN,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "initializer_range": 0.02,
        "intermediate_size": 2 * HIDDEN,
        "layer_norm_eps": 1e-05,
        "learn_encoder": False,
        "max_length": 20,
        "max_position_embeddings": 82,
        "model_type": "altclip_text_model",
        "num_attention_heads": HIDDEN // 64,
        "num_beams": 1,
        "num_hidden_layers": LAYERS,
        "output_past": True,
        "pad_token_id": 1,
        "pooler_fn": "cls",
        "position_embedding_type": "absolute",
        "project_dim": WIDTH[form],
        "pruned_heads": {},
        "torch_dtype": None,
        "transformers_version": "4.21.1",
        "type_vocab_size": 1,
        "use_bfloat16": False,
        "use_cache": True,
        "vocab_size": len(tiny_tokenizer()),
    }


def altclip_config(form: str) -> dict[str, Any]:
    text = text_fields(form)
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    vision = {"dropout": 0.0, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "projection_dim": 512}
    vision |= {"model_type": "altclip_vision_model", "torch_dtype": None, "num_channels": 3}
    return {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["AltCLIPModel"],
        "direct_kd": False,
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "altclip",
        "num_layers": 3,
        "projection_dim": PROJECTION,
        "text_config": text,
        **({} if form == "m18" else {"text_config_dict": {key: text[key] for key in same}}),
        "text_model_name": None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": {**vision, **_VISION},
        "vision_config_dict": {key: _VISION[key] for key in same},
        "vision_model_name": None,
    }


def text_encoder(form: str, seed: int) -> tuple[dict, dict]:
    config = roberta_config(form).to_dict() | {"architectures": ["RobertaSeriesModelWithTransformation"]}
    tensors = text_tower(form, seed, pooled=False)
    if form == "m18":  # the repository's file holds more than the class takes
        tensors["logit_scale"] = torch.tensor(2.6592)
    return config, tensors


def stock_unet(form: str, seed: int) -> tuple[dict, dict]:
    """Conv projections and 8 heads as in Stable Diffusion 1; linear ones and heads by width as in 2."""
    linear = form == "m18"
    model = seeded(
        seed + 3,
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH[form],
            attention_head_dim=[4, 8] if linear else 8,
            use_linear_projection=linear,
        ),
    )
    return dict(model.config), _plain(model.state_dict())


def stock_vae(seed: int) -> tuple[dict, dict]:
    """With the names that an attention had before diffusers 0.17, as in every published folder."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = seeded(seed + 4, lambda: AutoencoderKL(block_out_channels=(32, 32), sample_size=32, **blocks))
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, value in _plain(model.state_dict()).items():
        for new, past in old.items():
            name = name.replace(new, past)
        tensors[name] = value
    return dict(model.config), tensors


def safety_checker(seed: int) -> tuple[dict, dict]:
    config = CLIPConfig(vision_config=_VISION, projection_dim=PROJECTION)
    model = seeded(seed + 5, lambda: StableDiffusionSafetyChecker(config))
    tensors = {
        name.replace("vision_model.", "vision_model.vision_model."): value
        for name, value in _plain(model.state_dict()).items()
    }
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange((PIXELS // 8) ** 2 + 1)[None]
    return config.to_dict() | {"architectures": ["StableDiffusionSafetyChecker"]}, tensors


def ldm_tensors(form: str, seed: int = 0) -> dict[str, Tensor]:
    """`model.…`, `first_stage_model.…` and the schedule's buffers, in a single file's order of names."""
    tensors = schedule()
    tensors |= prefixed("model.diffusion_model.", unet(WIDTH[form], linear=form == "m18", seed=seed))
    return tensors | prefixed("first_stage_model.", autoencoder(seed))


def ema_of(tensors: dict[str, Tensor], change: float = 0.5) -> dict[str, Tensor]:
    """LitEma's buffers for the UNet: its names without dots."""
    start = "model."
    weights = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
    averaged = {f"model_ema.{name.replace('.', '')}": value * change for name, value in weights.items()}
    return {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)} | averaged


def preprocessor(form: str) -> dict[str, Any]:
    """m9's is of the time when a size was a number."""
    old = form == "m9"
    return {
        "crop_size": PIXELS if old else {"height": PIXELS, "width": PIXELS},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": _MEAN,
        "image_std": _STD,
        "processor_class": "CHCLIPProcess" if old else "AltCLIPProcessor",
        "resample": 3,
        "size": PIXELS if old else {"shortest_edge": PIXELS},
    }
