"""Steps of a stock pipeline that cost less: without the unconditional half, or with deep features used again.

Both work on the UNet's own modules for the time of one call, so that every stock pipeline can take them, with
LoRA, masks, ControlNets and callbacks as ever, and nothing of a pipeline's state is touched.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_locks: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


@contextmanager
def shortened(pipeline: Any, *, guided: float = 1.0, reuse: int = 1) -> Iterator[None]:
    """One call of `pipeline` within this computes less; `guided` and `reuse` as of `presets.Preset`.

    1.0 and 1 leave out nothing. Other threads may draw with the same UNet meanwhile: by presets one after the
    other, without them as ever.
    """
    if guided >= 1 and reuse <= 1:
        yield
        return
    steps = _Steps(pipeline, guided, reuse)
    with _locks_guard:
        lock = _locks.setdefault(pipeline.unet, threading.RLock())
    with lock, ExitStack() as stack:
        if guided < 1:
            stack.callback(pipeline.unet.register_forward_pre_hook(steps.leave_out, with_kwargs=True).remove)
            stack.callback(pipeline.unet.register_forward_hook(steps.fill_in).remove)
        if reuse > 1:
            for module in _deep(pipeline.unet):
                stack.enter_context(replaced(module, steps.remembering(module)))
        stack.callback(pipeline.unet.register_forward_pre_hook(steps.count, prepend=True).remove)
        yield


class _Steps:
    """Where a call is, by how often it has come to the UNet."""

    def __init__(self, pipeline: Any, guided: float, reuse: int) -> None:
        self.pipeline, self.guided, self.reuse = pipeline, guided, reuse
        self.number = -1
        self.thread = threading.get_ident()
        self.halved = False
        self.words: tuple[Any, Any] | None = None
        self.remembered: dict[nn.Module, Any] = {}

    def count(self, unet: nn.Module, arguments: Any) -> None:
        self.number += self._own()

    def leave_out(self, unet: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
        """Halves everything that has a row for each row of the latents: unconditional first, as diffusers has
        it."""
        pipeline = self.pipeline
        perturbed = getattr(pipeline, "do_perturbed_attention_guidance", False)  # has halves of its own
        if perturbed or not pipeline.do_classifier_free_guidance or not self._own():
            return None
        if self.number < self.guided * pipeline.num_timesteps:
            return None
        rows = len(arguments[0] if arguments else named["sample"])
        if not self.halved:
            self.remembered = _second_half(self.remembered, rows)
        self.halved = True
        halves = _second_half(named, rows)
        if (words := named.get("encoder_hidden_states")) is not None:
            if self.words is None or self.words[0] is not words:
                self.words = words, halves["encoder_hidden_states"]
            halves["encoder_hidden_states"] = self.words[1]  # one tensor for all steps, for `keys`
        return _second_half(arguments, rows), halves

    def fill_in(self, unet: nn.Module, arguments: Any, output: Any) -> Any:
        """Both halves alike: guidance between them, of whatever scale, changes nothing."""
        if not self.halved or not self._own():
            return None
        if isinstance(output, tuple):
            return tuple(torch.cat([part, part]) for part in output)
        output.sample = torch.cat([output.sample, output.sample])
        return output

    def remembering(self, module: nn.Module) -> Callable[..., Any]:
        compute = module.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            if not self._own():
                return compute(*arguments, **named)
            if self.number % self.reuse == 0 or module not in self.remembered:
                self.remembered[module] = compute(*arguments, **named)
            return self.remembered[module]

        return forward

    def _own(self) -> bool:
        return threading.get_ident() == self.thread


def _deep(unet: Any) -> list[nn.Module]:
    """All of the UNet but its first convolution, its last layer and what surrounds them (DeepCache's branch
    0)."""
    last = unet.up_blocks[-1]
    attentions = getattr(last, "attentions", None) or []
    middle = [] if unet.mid_block is None else [unet.mid_block]
    return [*unet.down_blocks, *middle, *unet.up_blocks[:-1], *last.resnets[:-1], *attentions[:-1]]


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` with another `forward`; accelerate keeps its own in the same place."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _second_half(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value.chunk(2)[1] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {key: _second_half(part, rows) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_second_half(part, rows) for part in value)
    return value
