"""One training step of each stage, the peers' way and ours, in parts that `bench.training` times.

The peers' way is written after what they run: diffusers' `train_text_to_image.py` and
`train_text_to_image_lora.py` (autoencoder and text encoder at every step, captions padded to 77, PyTorch's
AdamW with its defaults); teacher learning with student and teacher padded to 77 and the teacher run at every
step (no code of it was published); contrastive learning with a locked image tower as open_clip's
`--lock-image` and Chinese-CLIP's `--freeze-vision` have it, the pictures encoded at every step.

Ours has everything in its step: the loader, attention as the stages choose it, `training.loop.Run` and its
optimizer.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    AltCLIPTextModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from altdiffusion.conditioning import MAX_LENGTH, encode_trimmed, expand
from altdiffusion.losses import contrastive_loss, diffusion_loss, distillation_loss
from altdiffusion.trainable import add_lora, select_parameters
from bench.limits import PRECISIONS
from bench.training_models import LONGEST, Models, Samples, captions, padded, started, tokenizer
from training.attending import attend_in_text, set_attention
from training.frozen import store_rounded
from training.loop import Run
from training.unet import drawn_timesteps, schedule_fields

#: A thing to time, ready to be called.
Part = Callable[[], None]
#: diffusers' own `to` warns of models that have nothing to be warned of: those are cast by nn.Module's.


def forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None


# Concept alignment.


def diffusers_inputs(models: Models, batch: int, precision: str) -> Part:
    """Autoencoder and text encoder, stored in the precision of the training, as in diffusers' scripts."""
    dtype = PRECISIONS[precision]
    vae = nn.Module.to(AutoencoderKL(**models.shape.vae), dtype).requires_grad_(False)
    tower = models.new_tower().to(dtype).eval().requires_grad_(False)
    pixels = torch.randn(batch, 3, models.shape.pixels, models.shape.pixels)
    input_ids = padded(batch)["input_ids"]

    def encode() -> None:
        vae.encode(pixels.to(dtype)).latent_dist.sample().mul_(vae.config.scaling_factor)
        tower(input_ids)

    return encode


def diffusers_step(models: Models, unet: UNet2DConditionModel, batch: int, precision: str) -> Part:
    """Noise, prediction, loss and backward pass; the gradients stay."""
    dtype = PRECISIONS[precision]
    schedule = DDPMScheduler(**schedule_fields("epsilon", False))
    latents = torch.randn(batch, 4, models.side, models.side, dtype=dtype)
    states = torch.randn(batch, MAX_LENGTH, models.width, dtype=dtype)

    def learn() -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,))
        noisy = schedule.add_noise(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            prediction = unet(noisy, timesteps, states).sample
        F.mse_loss(prediction.float(), noise.float()).backward()

    return learn


def diffusers_full(models: Models, batch: int, precision: str) -> Part:
    learn = diffusers_step(models, models.unet, batch, precision)

    def step() -> None:
        learn()
        forget_gradients(models.unet)

    return step


def diffusers_lora(models: Models, batch: int, precision: str) -> Part:
    """The UNet in the training's precision, pairs of rank 4 at its attention; the optimizer's step too."""
    unet = nn.Module.to(models.new_unet(), PRECISIONS[precision]).requires_grad_(False).train()
    add_lora(unet, 4)
    learn = diffusers_step(models, unet, batch, precision)
    update = adamw([p for p in unet.parameters() if p.requires_grad])

    def step() -> None:
        learn()
        update()
        forget_gradients(unet)

    return step


def our_alignment(models: Models, batch: int) -> Part:
    """The body of `training.text_to_image`, with latents and text states from its caches."""
    unet = models.new_unet()
    set_attention(unet, "auto", "bf16")
    select_parameters(unet, "kv")
    store_rounded(unet, "bf16")
    run = started(models, unet, batch)
    schedule = DDPMScheduler(**schedule_fields("epsilon", False))
    lengths = [len(text.split()) + 3 for text in captions(batch)]
    samples = [
        (torch.randn(4, models.side, models.side), torch.randn(length, models.width)) for length in lengths
    ]

    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        latents, states = zip(*items, strict=True)
        return torch.stack(latents), torch.cat([expand(one[None]) for one in states])

    batches = run.batches(Samples(samples, collate))

    def step() -> None:
        clean, states = next(batches)
        noise = run.noise(*clean.shape)
        timesteps = drawn_timesteps(run, schedule, len(clean))
        noisy = schedule.add_noise(clean, noise, timesteps)
        with run.accelerator.autocast():
            prediction = run.model(noisy, timesteps, states).sample
        run.step(diffusion_loss(prediction.float(), noise, torch.ones(len(clean)), "epsilon", None))

    return step


# Teacher learning.


def teacher_inputs(models: Models, batch: int, precision: str) -> Part:
    teacher = CLIPTextModel(CLIPTextConfig(**models.shape.teacher)).eval().requires_grad_(False)
    input_ids = torch.randint(3, 90, (batch, MAX_LENGTH))
    input_ids[:, LONGEST:] = teacher.config.eos_token_id

    def encode() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            teacher(input_ids)

    return encode


def peer_student(models: Models, batch: int, precision: str) -> Part:
    tokens, target = padded(batch), torch.randn(batch, models.width)
    words = models.student.get_input_embeddings().weight

    def step() -> None:
        trained, words.requires_grad = words.requires_grad, True
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            pooled = models.student(**tokens).last_hidden_state[:, 0]
        F.mse_loss(pooled.float(), target).backward()
        forget_gradients(models.student)
        words.requires_grad = trained

    return step


def steps_of(run: Run, samples: Samples) -> Part:
    """The steps of a run whose model gives the loss of a batch."""
    batches = run.batches(samples)

    def step() -> None:
        batch = next(batches)
        with run.accelerator.autocast():
            loss = run.model(*batch)
        run.step(loss)

    return step


def attending(tower: AltCLIPTextModel, step: Part) -> Part:
    """The step with the tower's attention as our stages choose it; the peers' steps have the same tower."""

    def ours() -> None:
        attend_in_text(tower, "bf16")
        step()
        tower.set_attn_implementation("sdpa")

    return ours


class Student(nn.Module):
    """What `training.distill` trains, once the teacher's embeddings are kept."""

    def __init__(self, tower: AltCLIPTextModel) -> None:
        super().__init__()
        self.tower, self.tokenizer = tower, tokenizer()

    def forward(self, texts: list[str], target: Tensor) -> Tensor:
        states, lengths = encode_trimmed(self.tower, self.tokenizer, texts)
        return distillation_loss(states.float(), target, 0.5, lengths=lengths)


def our_distillation(models: Models, batch: int) -> Part:
    models.student.get_input_embeddings().requires_grad_(False)  # freeze_embeddings
    run = started(models, Student(models.student), batch)
    targets = torch.randn(batch, models.width).unbind()

    def collate(items: list[tuple[str, Tensor]]) -> tuple[list[str], Tensor]:
        texts, target = zip(*items, strict=True)
        return list(texts), torch.stack(target)

    step = steps_of(run, Samples(list(zip(captions(batch), targets, strict=True)), collate))
    return attending(models.student, step)


# Contrastive learning.


def image_inputs(models: Models, batch: int, precision: str) -> Part:
    config = CLIPVisionConfig(**models.shape.vision, image_size=224, patch_size=14)
    tower = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    pixels = torch.randn(batch, 3, 224, 224)

    def encode() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            tower(pixels)

    return encode


class TextSide(nn.Module):
    """What `training.contrast` trains against a locked image tower, once the pictures' features are kept."""

    def __init__(self, tower: AltCLIPTextModel, width: int) -> None:
        super().__init__()
        self.tower, self.projection = tower, nn.Linear(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, tokens: dict[str, Tensor], image: Tensor) -> Tensor:
        pooled = self.projection(self.tower(**tokens).last_hidden_state[:, 0])
        return contrastive_loss(image, F.normalize(pooled.float(), dim=-1), self.logit_scale)


def peer_text(models: Models, batch: int, precision: str) -> Part:
    side = TextSide(models.student, models.width)
    tokens, image = padded(batch), F.normalize(torch.randn(batch, models.width), dim=-1)
    words = models.student.get_input_embeddings().weight

    def step() -> None:
        trained, words.requires_grad = words.requires_grad, True
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = side(tokens, image)
        loss.backward()
        forget_gradients(side)
        words.requires_grad = trained

    return step


def our_contrast(models: Models, batch: int) -> Part:
    models.student.get_input_embeddings().requires_grad_(False)  # freeze_embeddings
    run = started(models, TextSide(models.student, models.width), batch)
    images, tokenize = F.normalize(torch.randn(batch, models.width), dim=-1).unbind(), tokenizer()

    def collate(items: list[tuple[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        texts, image = zip(*items, strict=True)
        return dict(tokenize(list(texts), padding=True, return_tensors="pt")), torch.stack(image)

    step = steps_of(run, Samples(list(zip(captions(batch), images, strict=True)), collate))
    return attending(models.student, step)


# The peers' optimizer.


def adamw(parameters: list[nn.Parameter]) -> Part:
    """Clipping and PyTorch's AdamW, which is not the fused one on a CPU unless it is asked for."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return update


def whole_update(module: nn.Module) -> Part:
    """The optimizer's step on all of a module, with gradients that stay."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return adamw(parameters)
