"""Training goes on from an exported LoRA."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from altdiffusion import AltDiffusionPipeline
from altdiffusion.trainable import add_lora, lora_state, select_parameters
from tests.fakes import tiny_unet
from tests.training.test_text_to_image import config, losses
from training import lora
from training.lora import LoraConfig
from training.text_to_image import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:No LoRA keys associated to:UserWarning"),
]
FILE = "model/pytorch_lora_weights.safetensors"


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return (
        torch.randn(1, 4, 16, 16, generator=draw),
        torch.tensor([500]),
        torch.randn(1, 7, 32, generator=draw),
    )


def exported(folder, rank=2, alpha=6, width=32):
    """A LoRA with something to say, and what a UNet says with it."""
    unet = tiny_unet(width)
    add_lora(unet, rank, alpha)
    draw = torch.Generator().manual_seed(5)
    for parameter in select_parameters(unet, "lora"):
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    layers, settings = lora_state(unet)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers, unet_lora_adapter_metadata=settings
    )
    return layers


@pytest.mark.parametrize("half", [False, True])
def test_an_exported_lora_is_taken_up_whole_with_its_rank_and_alpha(tmp_path, half):
    layers = exported(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    if half:
        layers = {name: tensor.half().float() for name, tensor in layers.items()}
        save_file({f"unet.{name}": tensor.half() for name, tensor in layers.items()}, file)
    unet = tiny_unet()
    lora.prepare(unet, LoraConfig(start=tmp_path if not half else file))
    state, settings = lora_state(unet)
    assert state.keys() == layers.keys() and all(state[name].equal(layers[name]) for name in layers)
    assert settings["r"] == 2
    assert half or settings["lora_alpha"] == 6
    chosen = select_parameters(unet, "lora")
    assert len(chosen) == len(layers) and all(p.dtype == torch.float32 for p in chosen)


def test_kohyas_file_is_taken_up_with_its_alpha(tmp_path):
    layers = exported(tmp_path / "plain")
    kohya = {}
    for name, tensor in layers.items():
        place, side = name.rsplit(".lora_", 1)
        place = f"lora_unet_{place.replace('.', '_')}"
        kohya[f"{place}.lora_{'down' if side[0] == 'A' else 'up'}.weight"] = tensor
        kohya[f"{place}.alpha"] = torch.tensor(6.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    ours, theirs, again = tiny_unet(), tiny_unet(), tiny_unet()
    for unet in (theirs, again):
        unet.load_state_dict(ours.state_dict())
    lora.prepare(ours, LoraConfig(start=tmp_path / "kohya.safetensors"))
    lora.prepare(theirs, LoraConfig(start=tmp_path / "plain"))
    assert_close(ours(*inputs()).sample, theirs(*inputs()).sample)
    layers_again, settings = lora_state(ours)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "again", unet_lora_layers=layers_again, unet_lora_adapter_metadata=settings
    )
    lora.prepare(again, LoraConfig(start=tmp_path / "again"))
    assert_close(again(*inputs()).sample, ours(*inputs()).sample)


def test_training_goes_on_from_what_was_exported(drawing, tmp_path):
    more = "--trainable lora --lora.rank 2 --lora.alpha 6 --optim.learning-rate 1e-2"
    train(config(tmp_path / "first", 3, drawing, more))
    more = f"--trainable lora --lora.start {tmp_path / 'first/model'} --optim.learning-rate 1e-3"
    train(config(tmp_path / "more", 3, drawing, more))
    for steps in (1, 3):
        train(config(tmp_path / "cut", steps, drawing, more))
    first, whole, cut = (load_file(tmp_path / name / FILE) for name in ("first", "more", "cut"))
    assert losses(tmp_path / "more") == losses(tmp_path / "cut")
    assert all(whole[name].equal(cut[name]) for name in whole)
    assert first.keys() == whole.keys()
    distance = max((whole[name] - first[name]).abs().max().item() for name in first)
    assert 0 < distance < 1e-2
    assert "**LoRA:** model" in (tmp_path / "more/model/README.md").read_text()
    pipeline = AltDiffusionPipeline.from_pretrained(drawing, device="cpu")
    pipeline.load_lora_weights(tmp_path / "more/model")
    trained = UNet2DConditionModel.from_pretrained(drawing / "unet")
    lora.prepare(trained, LoraConfig(start=tmp_path / "more" / FILE))
    assert_close(pipeline.unet(*inputs()).sample, trained(*inputs()).sample)


def test_what_is_no_lora_of_this_unet_is_refused_in_one_line(tmp_path):
    exported(tmp_path / "wide", width=48)
    layers = exported(tmp_path / "good")
    files = {
        "other": {"unet.down_blocks.9.to_q.lora_A.weight": torch.ones(2, 32)},
        "both": {
            **{f"unet.{name}": tensor for name, tensor in layers.items()},
            "text_encoder.roberta.lora_A.weight": torch.ones(2, 32),
        },
        "none": {"weight": torch.ones(2)},
    }
    for name, tensors in files.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "pytorch_lora_weights.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("wide", "does not fit the UNet"),
        ("other", "does not fit the UNet"),
        ("both", "has 'text_encoder.roberta.lora_A.weight'; allowed: a LoRA of the UNet alone"),
        ("none", "has 'weight'; allowed: a LoRA of the UNet alone"),
        ("broken.safetensors", "holds no LoRA"),
        ("empty", "holds no LoRA"),
    ):
        with pytest.raises(ValueError, match=r"^lora\.start: ") as caught:
            lora.prepare(tiny_unet(), LoraConfig(start=tmp_path / name))
        assert message in str(caught.value) and "\n" not in str(caught.value), name


def test_a_start_has_its_own_rank_and_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"^lora\.start: no file or folder '/nowhere'$"):
        LoraConfig(start=Path("/nowhere"))
    with pytest.raises(
        ValueError, match=r"^lora\.rank: 8 and alpha None with lora\.start; allowed: those of its"
    ):
        LoraConfig(rank=8, start=tmp_path)
