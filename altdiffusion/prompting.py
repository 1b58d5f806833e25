"""What our pipelines do with prompts before the stock pipelines draw: the one part of them that is ours."""

import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from altdiffusion import prompts
from altdiffusion.adapters import load_lora
from altdiffusion.conditioning import MAX_LENGTH, as_texts, dropped, encode_prompts, tower_length
from altdiffusion.requests import shorten

_Stock = StableDiffusionPipeline if TYPE_CHECKING else object
_locks: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


def lock_of(pipeline: Any) -> threading.RLock:
    """To be held from the prompt to the picture, by one thread at a time: that of the text encoder, which
    text-to-image and image-to-image share.

    Schedulers keep the state of the loop and fast tokenizers their padding: two threads that draw with one
    pipeline get wrong pictures, without an error.
    """
    with _locks_guard:
        return _locks.setdefault(pipeline.text_encoder or pipeline.unet, threading.RLock())


class Prompting(_Stock):
    """Comes before a stock pipeline class: exact trimmed conditioning, weights, LoRA of this tower."""

    def encode_prompt(
        self,
        prompt: Any,
        device: Any,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: Any = None,
        prompt_embeds: Float[Tensor, "batch tokens dim"] | None = None,
        negative_prompt_embeds: Float[Tensor, "batch tokens dim"] | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock method, with the exact trimmed encode.

        `clip_skip` holds for both prompts, as if the tower had been built without those layers.
        """
        with _scaled_lora(self.text_encoder, lora_scale):
            if prompt_embeds is None:
                prompt_embeds = self._embed("prompt", prompt, self._length, clip_skip)
            if do_classifier_free_guidance and negative_prompt_embeds is None:
                texts = negatives(prompt, negative_prompt, len(prompt_embeds))
                length = prompt_embeds.shape[1]
                negative_prompt_embeds = self._embed("negative_prompt", texts, length, clip_skip)
        return super().encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale,
            clip_skip,
        )

    @torch.no_grad()
    def embed_prompts(
        self,
        prompt: Any,
        negative_prompt: Any = None,
        *,
        weights: bool = True,
        long: str = "cut",
        clip_skip: int | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
        """`prompt_embeds` and `negative_prompt_embeds` to call the pipeline with: weighted, of any length.

        See `altdiffusion.prompts` for the marks, for `long`, and for what to do with embeds.
        """
        texts = as_texts(prompt, "prompt")
        texts += negatives(prompt, negative_prompt, len(texts))
        texts = self._with_vectors(texts)
        if long != "windows":
            limit = self._length if long == "cut" else tower_length(self.text_encoder)
            self._warn("prompt", [prompts.parse(text).text if weights else text for text in texts], limit)
        embeds = prompts.embed(
            self.text_encoder,
            self.tokenizer,
            texts,
            weights=weights,
            long=long,
            max_length=self._length,
            clip_skip=clip_skip,
        )
        positive, negative = embeds.chunk(2)
        return positive, negative

    def left_out(self, texts: Mapping[str, str], weights: bool = False) -> tuple[str, ...]:
        """A line for each text, by its argument's name, whose end `embed_prompts` would cut off."""
        whole = self._with_vectors(list(texts.values()))
        plain = [prompts.parse(text).text if weights else text for text in whole]
        lost = [self._lost(name, text, self._length) for name, text in zip(texts, plain, strict=True)]
        return tuple(line for line in lost if line)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Any,
        network_alphas: Any,
        text_encoder: Any,
        prefix: str | None = None,
        **options: Any,
    ) -> None:
        """As the stock method, which knows only the layers of CLIP."""
        prefix = f"{prefix or cls.text_encoder_name}."
        part, metadata = (
            {
                name.removeprefix(prefix): value
                for name, value in (given or {}).items()
                if name.startswith(prefix)
            }
            for given in (state_dict, options.get("metadata"))
        )
        if part:
            load_lora(
                text_encoder,
                part,
                adapter_name=options.get("adapter_name"),
                metadata=metadata or None,
                scale=options.get("lora_scale", 1.0),
            )

    @property
    def _length(self) -> int:
        length = self.tokenizer.model_max_length  # diffusers' rule; a tokenizer that sets no limit says 1e30
        return length if length <= tower_length(self.text_encoder) else MAX_LENGTH

    def _embed(
        self, argument: str, prompts: Any, length: int, clip_skip: int | None
    ) -> Float[Tensor, "batch tokens dim"]:
        texts = self._with_vectors(as_texts(prompts, argument))
        self._warn(argument, texts, min(length, tower_length(self.text_encoder)))
        return encode_prompts(
            self.text_encoder, self.tokenizer, texts, max_length=length, clip_skip=clip_skip
        )

    def _with_vectors(self, texts: list[str]) -> list[str]:
        """Each learned token as all its vectors; without one the stock method does nothing, slowly."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        learned = any(not token.special for token in tokens)
        return self.maybe_convert_prompt(texts, self.tokenizer) if learned else texts

    def _warn(self, argument: str, texts: list[str], length: int) -> None:
        for text in dict.fromkeys(texts):
            if (message := self._lost(argument, text, length)) is not None:
                warnings.warn(message, stacklevel=5)

    def _lost(self, argument: str, text: str, length: int) -> str | None:
        lost = dropped(self.tokenizer, text, length)
        return lost and f"{argument}: too long by {lost.tokens} tokens, left out: {lost.text!r:.300}"


def negatives(prompt: Any, negative_prompt: Any, count: int) -> list[str]:
    """As many as there are prompts: one text is for all where `prompt` is one text too."""
    if negative_prompt is None:
        return [""] * count
    texts = as_texts(negative_prompt, "negative_prompt")
    if isinstance(negative_prompt, str):
        if isinstance(prompt, list | tuple):
            raise TypeError(
                f"negative_prompt: {shorten(negative_prompt)} is one text; allowed: a list, as prompt is"
            )
        return texts * count
    if len(texts) != count:
        raise ValueError(f"negative_prompt: {len(texts)} texts; allowed: {count}, as of prompt")
    return texts


@contextmanager
def _scaled_lora(text_encoder: nn.Module | None, scale: float | None) -> Iterator[None]:
    from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers

    if scale is None or text_encoder is None:
        yield
        return
    scale_lora_layers(text_encoder, scale)
    try:
        yield
    finally:
        unscale_lora_layers(text_encoder, scale)
