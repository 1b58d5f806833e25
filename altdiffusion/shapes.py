"""Configurations of text and vision towers whose files bring none: read off the tensors' shapes.

What shapes do not tell is the same in all published models: XLM-R has heads of 64 channels, both vision
towers have 16 heads.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from altdiffusion.reading import refusal, tensor_shape

_TEXT_HEAD, _VISION_HEADS = 64, 16


@contextlib.contextmanager
def names_missing(file: Path, prefix: str) -> Iterator[None]:
    """A tensor whose shape is looked for and not found is named as the file would name it."""
    try:
        yield
    except KeyError as error:
        raise refusal(file, f"misses tensor {prefix + str(error.args[0])!r}") from None


def text_config(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of a published tower named without prefix."""
    shapes = {name: tensor_shape(value) for name, value in tensors.items()}
    vocab, hidden = shapes["roberta.embeddings.word_embeddings.weight"]
    return {
        "model_type": "altclip_text_model",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": shapes["roberta.encoder.layer.0.intermediate.dense.weight"][0],
        "num_hidden_layers": _count(r"roberta\.encoder\.layer", shapes),
        "num_attention_heads": max(1, hidden // _TEXT_HEAD),
        "max_position_embeddings": shapes["roberta.embeddings.position_embeddings.weight"][0],
        "type_vocab_size": shapes["roberta.embeddings.token_type_embeddings.weight"][0],
        "project_dim": shapes["transformation.weight"][0],
    }


def altclip_config(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of a whole published AltCLIP."""
    text = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    shapes = {name: tensor_shape(value) for name, value in tensors.items()}
    patches = shapes["vision_model.embeddings.position_embedding.weight"][0] - 1
    width, channels, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    return {
        "projection_dim": shapes["text_projection.weight"][0],
        "text_config": text_config(text),
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
            "num_hidden_layers": _count(r"vision_model\.encoder\.layers", shapes),
            "num_attention_heads": _VISION_HEADS,
            "num_channels": channels,
            "patch_size": patch,
            "image_size": patch * round(patches**0.5),
        },
    }


def _count(start: str, names: Mapping[str, Any]) -> int:
    return 1 + max(
        (int(found[1]) for name in names if (found := re.match(rf"{start}\.(\d+)\.", name))), default=-1
    )
