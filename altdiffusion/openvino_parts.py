"""Parts of stock models run by OpenVINO, on many CPUs faster than PyTorch: `runtime="openvino"`.

Each part stands where the stock model stood and is called as that is, so that the stock pipelines run it. It
computes what was asked for and refuses what was not converted with it: training, LoRA, ControlNet, PAG.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

#: What a query may not see: exp of it is 0 in every format, and no format rounds it to minus infinity.
_HIDDEN = -3e4
#: Methods of stock models that change what was converted.
_REFUSED = {
    "load_lora_adapter": "LoRA",
    "add_adapter": "LoRA",
    "load_adapter": "LoRA",
    "set_adapters": "LoRA",
    "_load_ip_adapter_weights": "IP-Adapter",
    "set_attn_processor": "another attention",
    "fuse_qkv_projections": "another attention",
    "enable_gradient_checkpointing": "training",
    "gradient_checkpointing_enable": "training",
    "resize_token_embeddings": "new words",
    "get_input_embeddings": "new words",
    "enable_tiling": "tiles",
    "enable_slicing": "slices",
}


def refuse(what: str) -> ValueError:
    return ValueError(f"runtime: 'openvino' does not do {what}; allowed with runtime='torch'")


class Part(nn.Module):
    """A part without weights: one constant says its format and place, for which pipelines ask parameters."""

    def __init__(
        self, config: Any, networks: Mapping[str, Any], weights: Mapping[str, Tensor], precision: torch.dtype
    ) -> None:
        super().__init__()
        self.config, self.networks, self.precision = config, dict(networks), precision
        self.weights = dict(weights)
        """What it was converted from, for fingerprints; forgotten once they are taken."""
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.training = False

    def __getattr__(self, name: str) -> Any:
        if name in _REFUSED:
            raise refuse(_REFUSED[name])
        return super().__getattr__(name)

    def train(self, mode: bool = True) -> "Part":
        if mode:
            raise refuse("training")
        return self

    def to(self, *arguments: Any, **more: Any) -> "Part":
        """Stays where it is, in the format that it was converted for."""
        moved = self.place.detach().to(*arguments, **more) if arguments or more else self.place
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise refuse(f"{moved.dtype} on {moved.device}: it takes and gives float32 on the CPU")
        return self

    def state_dict(
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Tensor]:
        found = {} if destination is None else destination
        found.update({prefix + name: value for name, value in self.weights.items()})
        return found

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    def _run(self, name: str, *inputs: Tensor) -> Tensor:
        arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
        # the network writes its next result into the same memory
        return torch.from_numpy(self.networks[name](arrays)[0].copy())


class UNet(Part):
    def forward(
        self,
        sample: Float[Tensor, "batch channels height width"],
        timestep: Any,
        encoder_hidden_states: Float[Tensor, "batch tokens dim"],
        return_dict: bool = True,
        **more: Any,
    ) -> Any:
        given = [name for name, value in more.items() if value is not None and value != {}]
        if given:
            raise refuse(given[0])
        multiple = 2 ** (len(self.config.block_out_channels) - 1)
        height, width = sample.shape[2:]
        if height % multiple or width % multiple:
            raise refuse(f"latents of {width} x {height}: their sides are no multiples of {multiple}")
        times = torch.as_tensor(timestep, dtype=torch.int64).reshape(-1).expand(len(sample))
        noise = self._run("unet", sample.float(), times, encoder_hidden_states.float())
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)


class VAE(Part):
    def encode(self, x: Float[Tensor, "batch 3 height width"], return_dict: bool = True) -> Any:
        found = DiagonalGaussianDistribution(self._run("vae_encoder", x.float()))
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    def decode(
        self,
        z: Float[Tensor, "batch channels height width"],
        return_dict: bool = True,
        generator: Any = None,
    ) -> Any:
        pixels = self._run("vae_decoder", z.float())
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)


class Tower(Part):
    """AltCLIP's text tower: `last_hidden_state` of texts that are padded, or packed as `packing` does."""

    transformation = True  # what `conditioning` knows a tower by

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch tokens"] | None = None,
        output_hidden_states: bool = False,
        **more: Any,
    ) -> BaseModelOutputWithPooling:
        if output_hidden_states:
            raise refuse("clip_skip")
        if attention_mask is None or attention_mask.dim() == 2:
            seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            visible = seen[:, None, None, :].bool()
            mask = torch.zeros(visible.shape).masked_fill(~visible, _HIDDEN)
            mask = mask.expand(-1, -1, input_ids.shape[1], -1)
        else:
            mask = attention_mask.float().clamp(min=_HIDDEN)
        if position_ids is None:
            real = (input_ids != self.config.pad_token_id).long()
            positions = real.cumsum(1) * real + self.config.pad_token_id
        else:
            positions = position_ids
        states = self._run("text", input_ids.long(), mask, positions)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])

    @property
    def roberta(self) -> Any:
        raise refuse("clip_skip")


class Vision(Part):
    """AltCLIP's image tower, up to its pooled state."""

    def forward(
        self, pixel_values: Float[Tensor, "batch 3 height width"], **more: Any
    ) -> BaseModelOutputWithPooling:
        if more.get("interpolate_pos_encoding"):
            raise refuse("interpolate_pos_encoding")
        return BaseModelOutputWithPooling(pooler_output=self._run("vision", pixel_values.float()))


class _Graph(nn.Module):
    """What is traced of a stock model: tensors in, one tensor out."""

    def __init__(self, model: Any, call: Any) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.model, *inputs)


#: By the name of a pipeline's part, or of one of an AltCLIP's towers.
KINDS: dict[str, type[Part]] = {
    "unet": UNet,
    "vae": VAE,
    "text_encoder": Tower,
    "text_model": Tower,
    "vision_model": Vision,
}


def graphs(name: str, model: Any) -> dict[str, SimpleNamespace]:
    """The networks that a model is converted to: `module`, `example` inputs and `shapes`, where -1 is any."""
    return {UNet: _unet, VAE: _vae, Tower: _text, Vision: _vision}[KINDS[name]](model)


def _unet(unet: Any) -> dict[str, SimpleNamespace]:
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    side = 2 ** len(unet.config.block_out_channels)
    example = (torch.randn(2, channels, side, side), torch.tensor([7, 7]), torch.randn(2, 5, width))
    call = lambda unet, *inputs: unet(*inputs, return_dict=False)[0]  # noqa: E731
    shapes = [[-1, channels, -1, -1], [-1], [-1, -1, width]]
    return {"unet": SimpleNamespace(module=_Graph(unet, call), example=example, shapes=shapes)}


def _vae(vae: Any) -> dict[str, SimpleNamespace]:
    channels, side = vae.config.latent_channels, 2 ** len(vae.config.block_out_channels)
    encode = lambda vae, pixels: vae.encode(pixels, return_dict=False)[0].parameters  # noqa: E731
    decode = lambda vae, latents: vae.decode(latents, return_dict=False)[0]  # noqa: E731
    ways = {"vae_encoder": (encode, 3), "vae_decoder": (decode, channels)}
    return {
        name: SimpleNamespace(
            module=_Graph(vae, call),
            example=(torch.randn(1, count, side, side),),
            shapes=[[-1, count, -1, -1]],
        )
        for name, (call, count) in ways.items()
    }


def _text(tower: Any) -> dict[str, SimpleNamespace]:
    def call(tower: Any, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return tower(ids, attention_mask=mask, position_ids=positions).last_hidden_state

    first = tower.config.pad_token_id + 1
    example = (
        torch.full((2, 5), first),
        torch.zeros(2, 1, 5, 5),
        torch.arange(first, first + 5).expand(2, 5),
    )
    shapes = [[-1, -1], [-1, 1, -1, -1], [-1, -1]]
    return {"text": SimpleNamespace(module=_Graph(tower, call), example=example, shapes=shapes)}


def _vision(vision: Any) -> dict[str, SimpleNamespace]:
    side = vision.config.image_size
    call = lambda vision, pixels: vision(pixel_values=pixels).pooler_output  # noqa: E731
    shapes = [[-1, 3, side, side]]
    example = (torch.randn(2, 3, side, side),)
    return {"vision": SimpleNamespace(module=_Graph(vision, call), example=example, shapes=shapes)}
