"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1): pictures to latents and back.

Trained from nothing for small models; the published checkpoints bring their own and need none of this.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from altdiffusion import aside
from training.config import OptimConfig, RunConfig, parse
from training.emoji import load_emoji, pixels, random_scene
from training.export import EMOJI, Made, finish
from training.grounds import grounded
from training.loop import Run
from training.pictures import latent_shape
from training.stage import run_stage


@dataclass(frozen=True)
class AutoencoderConfig:
    """The VAE: reconstructs scenes of emoji, with latents near a unit normal."""

    output_dir: Path
    model: Path | None = None
    """diffusers folder of the autoencoder to go on from. None starts a new one."""
    size: int = 64
    """Side of the training pictures in pixels."""
    ground_share: float = 0.0
    """Share of the scenes on a ground of `training.grounds`."""
    block_out_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 8
    kl_weight: float = 1e-6
    """Weight of the KL term against the mean absolute error (latent diffusion's own)."""
    colour_weight: float = 0.0
    """Weight of the error of hue, in blocks of 4x4 pixels; without it rare colours come out as common."""
    edge_weight: float = 0.5
    """Weight of the error of horizontal and vertical differences, which keeps outlines sharp."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


class Scenes(torch.utils.data.Dataset):
    """Endless scenes of one to four emoji, of all there are, half of them on coloured grounds."""

    items = None

    def __init__(self, seed: int, size: int, ground_share: float = 0.0) -> None:
        self.seed, self.size, self.ground_share = seed, size, ground_share
        self.characters = load_emoji().characters

    def __getitem__(self, index: int):
        scene = random_scene(self.seed, index, self.characters, counts=(1, 1, 2, 4), pastel=0.5)
        return grounded(self.seed, index, scene, self.ground_share)

    def collate(self, scenes: list) -> Tensor:
        return torch.from_numpy(pixels(scenes, self.size))


class Reconstruction(nn.Module):
    """Autoencoder and loss in one module, so that one forward is all that several processes wrap."""

    def __init__(self, vae: AutoencoderKL, config: AutoencoderConfig) -> None:
        super().__init__()
        self.vae, self.config = vae, config

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        decoded = self.vae.decode(latents).sample.float()
        error = F.l1_loss(decoded, images)
        edges = sum(F.l1_loss(decoded.diff(dim=d), images.diff(dim=d)) for d in (2, 3))
        loss = error + self.config.edge_weight * edges + self.config.kl_weight * posterior.kl().mean()
        if self.config.colour_weight:
            loss = loss + self.config.colour_weight * F.l1_loss(hue(decoded), hue(images))
        return loss, error


def hue(images: Tensor) -> Tensor:
    """What is left of blocks of 4x4 pixels when their grey is taken away."""
    blocks = F.avg_pool2d(images, 4)
    return blocks - blocks.mean(dim=1, keepdim=True)


def build(config: AutoencoderConfig) -> AutoencoderKL:
    if config.model is not None:
        return AutoencoderKL.from_pretrained(config.model)
    blocks = len(config.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.size,
    )


def train(config: AutoencoderConfig) -> None:
    torch.manual_seed(config.run.seed)
    vae = build(config)
    shape = latent_shape(vae, config.size)
    run = Run.start(config, Reconstruction(vae, config))
    for images in run.batches(Scenes(config.run.seed, config.size, config.ground_share)):
        noise = run.noise(len(images), *shape)
        with run.accelerator.autocast():
            loss, error = run.model(images.to(run.accelerator.device), noise)
        run.log(l1=error.detach())
        run.step(loss)
    if run.accelerator.is_main_process:
        export(run.trained().vae, config)


@torch.no_grad()
def export(vae: AutoencoderKL, config: AutoencoderConfig) -> None:
    """Saves it with the factor that brings latents to unit variance, and its error on unseen scenes."""
    scenes = Scenes(config.run.seed + 1, config.size, config.ground_share)
    images = scenes.collate([scenes[n] for n in range(512)]).to(vae.device)
    means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    decoded = torch.cat([vae.decode(part).sample for part in means.split(64)])
    vae.register_to_config(scaling_factor=round(1 / means.std().item(), 5))
    with aside.merged(config.output_dir / "model") as place:
        vae.save_pretrained(place)
    figures = {
        "scenes": len(images),
        "l1": F.l1_loss(decoded, images).item(),
        "latent_std": means.std().item(),
    }
    (config.output_dir / "report.json").write_text(json.dumps(figures, indent=1))
    made = Made(
        title="Autoencoder",
        stage="autoencoder (Rombach et al. 2022, section 3.1)",
        library="diffusers",
        task=None,
        bases={"autoencoder": config.model},
        data=EMOJI,
        languages=(),
        figures=figures,
        metric="On scenes that training never saw, in [-1, 1]",
        opens="`diffusers.AutoencoderKL.from_pretrained` opens it",
    )
    finish(config, made)


def main() -> None:
    run_stage(parse(AutoencoderConfig), train)


if __name__ == "__main__":
    main()
