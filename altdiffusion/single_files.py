"""Single files in the original Stable Diffusion layout: their parts, and the configurations that shapes tell.

diffusers renames the UNet's and the VAE's tensors. What it needs a configuration for is read off the shapes,
so that a narrow model opens as a full one does; what shapes do not tell (heads, picture size) comes from the
YAML file beside, as FlagAI's folders have it, or is Stable Diffusion's own.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altdiffusion.reading import refusal, tensor_shape
from altdiffusion.shapes import names_missing

#: Start of a name in a single file → the part that it belongs to; the first that fits.
PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.ch_clip_model.": "altclip",  # the paper's code keeps the whole AltCLIP,
    "cond_stage_model.text_encoder.": "text_encoder",  # and names its text tower again
    "cond_stage_model.": "text_encoder",
    "model_ema.": "ema",
}
#: LatentDiffusion's buffers.
SCHEDULE = re.compile(
    r"(log_one_minus_|sqrt_|sqrt_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?"
    r"|betas|logvar|lvlb_weights|scale_factor|posterior_(variance|log_variance_clipped|mean_coef[12])"
)
#: What other models' files are known by.
_OTHERS = {
    r"conditioner\.embedders\.": "Stable Diffusion XL",
    r"cond_stage_model\.(text_model|transformer)\.": "plain Stable Diffusion 1",
    r"cond_stage_model\.model\.": "plain Stable Diffusion 2",
    r"text_model\.encoder\.layers\.|visual\.transformer\.": "a CLIP",
    r"model\.diffusion_model\.joint_blocks\.|.*double_blocks\.": "another diffusion transformer",
    r"lora_|.*\.lora_": "a LoRA",
}
#: Of Stable Diffusion 1 and 2: SD 1 has 8 heads at every width, SD 2 has heads of 64 channels.
_HEADS, _HEAD_CHANNELS = 8, 64
_LATENTS, _SCALE = 64, 0.18215
#: How far a number moves in bfloat16.
_ROUNDING = 2**-8


def split(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Part → name without prefix → tensor; what has no prefix lies under the empty name."""
    parts: dict[str, dict[str, Any]] = {"": {}}
    for name, value in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        parts.setdefault(PREFIXES.get(prefix, ""), {})[name[len(prefix) :]] = value
    return parts


def other_model(names: Mapping[str, Any]) -> str | None:
    """What a file holds that is none of ours, where that can be told."""
    for pattern, model in _OTHERS.items():
        if any(re.match(pattern, name) for name in names):
            return model
    return None


def averaged(unet: Mapping[str, Any], ema: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The UNet's averaged weights, under the raw ones' names: LitEma's names have no dots."""
    flat = {name: f"diffusion_model{name.replace('.', '')}" for name in unet}
    missing = sorted(name for name in flat.values() if name not in ema)
    if missing:
        raise refusal(file, f"has averaged weights without tensor {f'model_ema.{missing[0]}'!r}")
    return {name: ema[flat[name]] for name in unet}


def parameters(file: Path, buffers: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not tell: the YAML's `model.params`, and the latents' scale from the file itself."""
    params = {"scale_factor": _SCALE, **_beside(file)}
    if "scale_factor" in buffers:
        params["scale_factor"] = _near(_SCALE, buffers["scale_factor"])
    return params


def _beside(file: Path) -> dict[str, Any]:
    """`model.params` of the YAML file that lies beside a single file; empty if there is none."""
    import yaml

    for path in (file.with_suffix(".yaml"), file.with_name("config.yaml")):
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
                params = content["model"]["params"]
                return {**params, "unet": params["unet_config"]["params"]}
            except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
                raise refusal(
                    path, "is no Stable Diffusion configuration (model.params.unet_config)"
                ) from None
    return {"unet": {}}


def unet_part(tensors: dict[str, Any], params: dict[str, Any], file: Path) -> tuple[dict, dict]:
    """Stock configuration and stock tensors of a UNet named without prefix."""
    from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint

    if "label_emb.0.0.weight" in tensors or "label_emb.weight" in tensors:
        raise refusal(
            file, "has the UNet of another model: it takes class labels; allowed: Stable Diffusion 1 or 2"
        )
    with names_missing(file, LDM_UNET_KEY):
        config = _unet_config(tensors, params)
    prefixed = {LDM_UNET_KEY + name: value for name, value in tensors.items()}
    return config, _complete(convert_ldm_unet_checkpoint(prefixed, config), prefixed, file)


def vae_part(tensors: dict[str, Any], params: dict[str, Any], file: Path) -> tuple[dict, dict]:
    """Stock configuration and stock tensors of a VAE named without prefix."""
    from diffusers.loaders.single_file_utils import LDM_VAE_KEYS, convert_ldm_vae_checkpoint

    with names_missing(file, LDM_VAE_KEYS[0]):
        config = _vae_config(tensors, params)
    prefixed = {LDM_VAE_KEYS[0] + name: value for name, value in tensors.items()}
    return config, _complete(convert_ldm_vae_checkpoint(prefixed, config), prefixed, file)


def scheduler(buffers: Mapping[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """DDIM, FlagAI's default, over the file's own betas; all published models predict the noise."""
    betas = buffers["betas"].double() if "betas" in buffers else None
    start, end, steps = 0.00085, 0.012, 1000
    config: dict[str, Any] = {}
    if betas is not None:
        import torch

        start, end, steps = _near(start, betas[0]), _near(end, betas[-1]), len(betas)
        usual = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        if not torch.allclose(betas, usual, rtol=0.01):
            config["trained_betas"] = betas.tolist()
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": steps,
        "prediction_type": "v_prediction" if params.get("parameterization") == "v" else "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        **config,
    }


def _complete(converted: dict[str, Any], source: dict[str, Any], file: Path) -> dict[str, Any]:
    """diffusers drops names that it does not know; here each must have come through."""
    if len(converted) != len(source):
        kept = {value.data_ptr() for value in converted.values()}
        lost = sorted(name for name, value in source.items() if value.data_ptr() not in kept)
        raise refusal(
            file, f"holds tensor {(lost or sorted(source))[0]!r}, which Stable Diffusion 1 and 2 have not"
        )
    return {name: value.contiguous() for name, value in converted.items()}


def _unet_config(tensors: Mapping[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    levels: list[list[int]] = [[]]
    for number in range(1, 1 + max(_numbers("input_blocks", tensors), default=0)):
        if f"input_blocks.{number}.0.op.weight" in tensors:
            levels.append([])
        else:
            levels[-1].append(number)
    shapes = {name: tensor_shape(value) for name, value in tensors.items()}
    channels = [shapes[f"input_blocks.{(level or [0])[0]}.0.in_layers.2.weight"][0] for level in levels]
    attended = [f"input_blocks.{level[0]}.1.norm.weight" in shapes for level in levels]
    inner = "middle_block.1"
    linear = len(shapes[f"{inner}.proj_in.weight"]) == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": params.get("image_size", _LATENTS),
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attended)],
        "cross_attention_dim": shapes[f"{inner}.transformer_blocks.0.attn2.to_k.weight"][1],
        "transformer_layers_per_block": 1 + max(_numbers(f"{inner}.transformer_blocks", tensors), default=0),
        "attention_head_dim": _heads(channels, linear, params["unet"]),
        "use_linear_projection": linear,
    }


def _heads(channels: list[int], linear: bool, params: dict[str, Any]) -> int | list[int]:
    """diffusers calls the number of heads `attention_head_dim`."""
    if "num_head_channels" in params or ("num_heads" not in params and linear):
        each = params.get("num_head_channels", _HEAD_CHANNELS)
        return [max(1, width // each) for width in channels]
    return params.get("num_heads", _HEADS)


def _vae_config(tensors: Mapping[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    shapes = {name: tensor_shape(value) for name, value in tensors.items()}
    levels = range(1 + max(_numbers("encoder.down", tensors), default=0))
    channels = [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in levels]
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": params.get("image_size", _LATENTS) * 2 ** (len(levels) - 1),
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": 1 + max(_numbers("encoder.down.0.block", tensors), default=0),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "scaling_factor": params["scale_factor"],
    }


def _near(usual: float, buffer: Any) -> float:
    """The usual number where a buffer, which may be of half precision, says the same."""
    return usual if abs(buffer.item() - usual) <= _ROUNDING * usual else buffer.item()


def _numbers(start: str, names: Mapping[str, Any]) -> set[int]:
    pattern = re.compile(rf"{re.escape(start)}\.(\d+)\.")
    return {int(found[1]) for name in names if (found := pattern.match(name))}
