"""The original Stable Diffusion names, found by turning diffusers' readers round."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from altdiffusion import ldm
from altdiffusion.layouts import detect, read
from altdiffusion.reading import read_tensors
from tests import published
from tests.published_parts import stock_vae


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_what_diffusers_renames_gets_its_names_and_shapes_back(tmp_path, form):
    """The file's names are spelt out by hand in published_ldm; m9 has conv projections, m18 linear ones."""
    file = published.write("C", tmp_path, form, safetensors=True)
    source = read(detect(file))
    unet, vae = source.parts["unet"], source.parts["vae"]
    found = ldm.from_stock(unet.tensors, unet.config, vae.tensors, vae.config)
    starts = (ldm.UNET, ldm.VAE)
    expected = {n: t for n, t in read_tensors(file).items() if n.startswith(starts)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_names_at_the_published_depth_are_those_of_stable_diffusion():
    """686 tensors and these names are facts about v1-4.ckpt: the first upsampler follows no attention."""
    levels = 4
    blocks = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8, 16, 16),
        down_block_types=blocks,
        up_block_types=[name.replace("Down", "Up") for name in reversed(blocks)],
        attention_head_dim=1,
        norm_num_groups=2,
        cross_attention_dim=4,
    )
    config, vae = stock_vae(0)
    new = {old.replace(".query.", ".to_q."): tensor for old, tensor in vae.items()}
    for old, name in ((".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        new = {key.replace(old, name): tensor for key, tensor in new.items()}
    found = ldm.from_stock(unet.state_dict(), unet.config, new, config)
    names = {name.removeprefix(ldm.UNET) for name in found if name.startswith(ldm.UNET)}
    assert len(names) == 686
    assert {
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.11.0.in_layers.2.weight",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "out.2.bias",
    } <= names
    assert not any(name.startswith(f"output_blocks.{3 * levels}.") for name in names)


def test_a_tensor_that_such_files_have_no_place_for_is_named():
    config, vae = stock_vae(0)
    with pytest.raises(ValueError, match=r"^source: the unet's tensor 'add_embedding\.scale' has no place"):
        ldm.from_stock(
            {"add_embedding.scale": torch.ones(1)},
            {"layers_per_block": 1, "block_out_channels": (4, 4)},
            vae,
            config,
        )
