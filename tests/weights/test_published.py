"""The published models give their published values. Needs the weights: `pytest tests/weights --weights DIR`.

DIR holds the folders AltCLIP, AltCLIP-m9, AltCLIP-m18, AltDiffusion, AltDiffusion-m9, AltDiffusion-m18 as
they are on the Hub, or some of them, and for AltCLIP's values 000000039769.jpg of COCO val2017;
docs/weights.md says where to get them. The values come from transformers' tests/models/altclip and from the
tests that diffusers had until its commit a0c54828a1; both were made on a GPU, hence the tolerances.
"""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

ALTCLIPS = ("AltCLIP", "AltCLIP-m9", "AltCLIP-m18")
ALTDIFFUSIONS = ("AltDiffusion", "AltDiffusion-m9", "AltDiffusion-m18")
SQUIRREL = "A painting of a squirrel eating a burger"


@pytest.fixture
def cats(weights: Path):
    from PIL import Image

    file = weights / "000000039769.jpg"
    if not file.is_file():
        pytest.skip(f"--weights holds no {file.name}")
    return Image.open(file).convert("RGB")


def part(weights: Path, name: str) -> Path:
    if not (weights / name).exists():
        pytest.skip(f"--weights holds no {name}")
    return weights / name


def test_altclip_knows_two_cats_from_a_dog(weights: Path, cats):
    from altdiffusion import AltCLIP

    clip = AltCLIP.from_pretrained(part(weights, "AltCLIP"))
    chances = clip.logits(["一张猫的照片", "一张狗的照片"], cats).T.softmax(dim=1)
    assert_close(chances.cpu(), torch.tensor([[9.9942e-01, 5.7805e-04]]), atol=5e-3, rtol=0)


def test_altclip_takes_smaller_pictures_at_interpolated_positions(weights: Path, cats):
    from transformers import CLIPImageProcessorPil

    from altdiffusion import AltCLIP

    clip = AltCLIP.from_pretrained(part(weights, "AltCLIP"))
    small = CLIPImageProcessorPil(size={"shortest_edge": 180}, crop_size={"height": 180, "width": 180})
    pixels = small(cats, return_tensors="pt").pixel_values.to(clip.device, clip.dtype)
    with torch.no_grad():
        states = clip.model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    expected = [[-0.3589, -0.5939, 0.3534], [0.4346, 0.1647, 0.7071], [1.1404, -0.4716, 0.1664]]
    assert states.shape == (1, 145, 1024)
    assert_close(states[0, :3, :3].cpu().float(), torch.tensor(expected), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("steps", "guidance_scale", "ddim", "expected"),
    [
        (20, 6.0, False, [0.1010, 0.0800, 0.0794, 0.0885, 0.0843, 0.0762, 0.0769, 0.0729, 0.0586]),
        (2, 7.5, True, [0.4019, 0.4052, 0.3810, 0.4119, 0.3916, 0.3982, 0.4651, 0.4195, 0.5323]),
    ],
    ids=["own scheduler", "ddim"],
)
def test_altdiffusion_paints_the_published_squirrel(
    weights: Path, steps: int, guidance_scale: float, ddim: bool, expected: list[float]
):
    from diffusers import DDIMScheduler

    from altdiffusion import AltDiffusionPipeline

    pipeline = AltDiffusionPipeline.from_pretrained(part(weights, "AltDiffusion"), safety_checker=None)
    if ddim:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    picture = pipeline(
        SQUIRREL,
        generator=torch.manual_seed(0),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="np",
    ).images[0]
    assert picture.shape == (512, 512, 3)
    assert_close(torch.from_numpy(picture[-3:, -3:, -1]).flatten(), torch.tensor(expected), atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", (*ALTCLIPS, *ALTDIFFUSIONS))
def test_a_published_model_is_converted_without_loss(weights: Path, tmp_path: Path, name: str):
    """`save_stock` re-reads what it wrote and compares every tensor and an encode."""
    from altdiffusion import layouts
    from altdiffusion.writing import save_stock

    found = layouts.detect(part(weights, name))
    assert found.format == ("B" if name in ALTDIFFUSIONS else "A")
    assert found.form == ("m18" if name.endswith("m18") else "m9")
    save_stock(layouts.read(found), tmp_path / name)
