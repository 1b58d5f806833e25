"""Cross-attention over a prompt's words without their padding, with keys and values made once a prompt.

The rows of `prompt_embeds` that follow a prompt are all one row (`conditioning`), so that attention gives
their keys equal weights and adds up equal values. One key that counts as so many, by a bias of the logarithm
of their number, is the same in real arithmetic: 77 keys become 8 or 16. This looks at the rows alone and not
at where they come from, and so holds for weighted, mixed, negative and long prompts as well.
"""

import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from altdiffusion.shortcuts import replaced

#: Kernels want masks in such rows, on GPUs above all; what is added is padding too, and counts as itself.
_MULTIPLE = 8
_active: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
_guard = threading.Lock()


@contextmanager
def keys_once(unet: nn.Module) -> Iterator[None]:
    """Calls of `unet` within this go by the compact keys, made once while the tensor of a prompt is the same.

    For drawing, without gradients. Exact to rounding: 5e-6 of float32.
    """
    with _guard:
        taken = unet in _active  # by a call of another thread, which does it for both while it lasts
        _active.add(unet)
    if taken:
        yield
        return
    compacted = _Once(compact_keys)
    with ExitStack() as stack:
        stack.callback(_active.discard, unet)
        for module in unet.modules():
            if not isinstance(module, Attention) or not module.is_cross_attention:
                continue
            stack.callback(module.register_forward_pre_hook(_Compacting(compacted), with_kwargs=True).remove)
            for name in ("to_k", "to_v", "to_kv"):
                if (layer := getattr(module, name, None)) is not None:
                    once = _Once(layer.forward, lambda layer=layer: _state(layer))
                    stack.enter_context(replaced(layer, once))
        yield


def has_keys(unet: Any) -> bool:
    """Whether `keys_once` is of use: not to modules that are compiled, which it would have compiled anew."""
    if not isinstance(unet, nn.Module):
        return False
    return all(module._compiled_call_impl is None for module in unet.modules())


def compact_keys(
    states: Float[Tensor, "batch tokens dim"],
) -> tuple[Float[Tensor, "batch keys dim"], Float[Tensor, "batch 1 keys"]] | None:
    """The first rows of `states` and what to add to their scores; None where that would save nothing."""
    batch, tokens, _ = states.shape
    words = ~(states == states[:, -1:]).all(dim=2).all(dim=0)
    length = int(words.nonzero().max()) + 1 if words.any() else 0
    kept = -(-(length + 2) // _MULTIPLE) * _MULTIPLE
    if kept >= tokens:
        return None
    bias = torch.zeros(kept, dtype=states.dtype, device=states.device)
    standing_for = tokens - kept + 1
    bias[-1] = math.log(standing_for)
    # bfloat16 rounds log 70 by 0.3 % of all padding: the padding beside it makes up for that
    bias[-2] = math.log(max(1 + standing_for - math.exp(float(bias[-1])), 1e-3))
    return states[:, :kept].contiguous(), bias.expand(batch, 1, kept)


class _Once:
    """A function of one tensor, remembered for the last one, as long as `state` stays the same."""

    def __init__(self, function: Callable[[Tensor], Any], state: Callable[[], Any] = lambda: None) -> None:
        self.function, self.state = function, state
        self.entry: tuple[Tensor, Any, Any] | None = None

    def __call__(self, tensor: Tensor) -> Any:
        now = (_version(tensor), self.state())
        entry = self.entry  # replaced whole: other threads may be at it
        if entry is None or entry[0] is not tensor or entry[1] != now:
            self.entry = entry = (tensor, now, self.function(tensor))
        return entry[2]


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _state(layer: Any) -> tuple:
    """What makes the same layer another one: weights written to, or a LoRA of another scale."""
    lora = (
        (dict(layer.scaling), layer.active_adapters, layer.disable_adapters, layer.merged)
        if hasattr(layer, "scaling")
        else ()
    )
    return (*(_version(weight) for weight in layer.parameters()), *lora)


class _Compacting:
    def __init__(self, compacted: _Once) -> None:
        self.compacted = compacted

    def __call__(self, module: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
        states = named.get("encoder_hidden_states")
        if not isinstance(states, Tensor) or states.ndim != 3 or named.get("attention_mask") is not None:
            return None
        found = self.compacted(states)
        if found is None:
            return None
        return arguments, named | {"encoder_hidden_states": found[0], "attention_mask": found[1]}
