"""Stock models filled with weights that were checked before: each value copied once, none in memory twice."""

from typing import Any

from altdiffusion.reading import let_go, mapped_spans
from altdiffusion.sources import Part

#: Values of a tensor that are taken at a time: what lies in memory twice is seen in the peak.
PIECE = 2**22


def filled(model: Any, part: Part, dtype: Any) -> Any:
    """Weights are copies: the file that they are mapped from may be written again while they are in use.

    What is copied is let go of at once, so that a model never lies in memory twice.
    """
    import torch

    dtype = dtype or torch.float32
    state, spans = {}, mapped_spans()
    for name, value in part.tensors.items():
        state[name] = _copied(value, dtype if value.is_floating_point() else value.dtype, spans)
    model.load_state_dict(state, assign=True)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, _computed(name, buffer.shape))
    if hasattr(model, "config_class"):
        for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
            config.dtype = dtype
    return model.eval()


def _copied(value: Any, dtype: Any, spans: list[tuple[int, int]]) -> Any:
    """In pieces: a text tower's word embeddings alone are a third of a pipeline."""
    import torch

    target = torch.empty(value.shape, dtype=dtype)
    source = value.contiguous().flatten()
    for piece, place in zip(source.split(PIECE), target.flatten().split(PIECE), strict=True):
        place.copy_(piece)
        let_go(piece, spans)
    return target


def _computed(name: str, shape: tuple[int, ...]) -> Any:
    """A buffer that transformers' classes make themselves and no file holds."""
    import torch

    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape)
    assert name.endswith("token_type_ids"), name
    return torch.zeros(shape, dtype=torch.long)
