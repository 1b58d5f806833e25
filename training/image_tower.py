"""A CLIP without its image tower, and with it again: what a stage needs that knows all pictures' features."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AltCLIPModel, AutoConfig, CLIPModel

from altdiffusion.checkpoints import quiet
from altdiffusion.reading import read_tensors, variant_of, weight_files
from altdiffusion.towers import in_memory

IMAGE = ("vision_model", "visual_projection")


def text_side(folder: Path) -> Any:
    """The CLIP or AltCLIP of a transformers folder; of its image tower nothing is read."""
    config: Any = AutoConfig.from_pretrained(folder)
    kind = AltCLIPModel if config.model_type == "altclip" else CLIPModel
    vision = config.vision_config
    whole, vision.num_hidden_layers = vision.num_hidden_layers, 0
    state = {}
    for file in weight_files(folder, variant_of(folder)):
        state |= text_tensors(file)
    with quiet():
        clip: Any = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    vision.num_hidden_layers = whole
    for part in IMAGE:
        delattr(clip, part)
    if unread := clip.state_dict().keys() - state.keys():
        raise ValueError(f"model: {str(folder)!r:.80} has no tensor {min(unread)!r}")
    return clip


def text_tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        return {in_memory(k): v for k, v in read_tensors(file).items() if not k.startswith(IMAGE)}
    with safe_open(file, framework="pt") as tensors:
        names = [name for name in tensors.keys() if not name.startswith(IMAGE)]  # noqa: SIM118
        return {in_memory(name): tensors.get_tensor(name) for name in names}


@torch.no_grad()
def whole_again(trained: nn.Module, whole: nn.Module) -> nn.Module:
    """`whole` with what was trained of it."""
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            whole.get_parameter(name).copy_(parameter)
    return whole.eval()
