"""A small CLIP that starts from nothing."""

from dataclasses import dataclass

from transformers import CLIPConfig, CLIPModel


@dataclass(frozen=True)
class TowersConfig:
    """Shape of a CLIP that starts from nothing."""

    vocab_size: int = 3000
    text_width: int = 256
    text_layers: int = 4
    vision_width: int = 192
    vision_layers: int = 4
    patch_size: int = 8
    head_width: int = 64
    projection_dim: int = 256


def build_clip(towers: TowersConfig, size: int, vocabulary: int) -> CLIPModel:
    """CLIP's own architecture, for pictures of `size` pixels."""
    common = {"hidden_act": "gelu", "projection_dim": towers.projection_dim}
    text = {
        "vocab_size": vocabulary,
        "hidden_size": towers.text_width,
        "intermediate_size": 4 * towers.text_width,
        "num_hidden_layers": towers.text_layers,
        "num_attention_heads": towers.text_width // towers.head_width,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": towers.vision_width,
        "intermediate_size": 4 * towers.vision_width,
        "num_hidden_layers": towers.vision_layers,
        "num_attention_heads": towers.vision_width // towers.head_width,
        "image_size": size,
        "patch_size": towers.patch_size,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text | common, vision_config=vision | common, projection_dim=towers.projection_dim
        )
    )
