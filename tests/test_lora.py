"""LoRA on the UNet and on the text tower: loaded, scaled, several at once, fused, and taken off again."""

import numpy as np
import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from torch.testing import assert_close

from altdiffusion.pipelines import AltDiffusionPipeline
from tests.fakes import SENTENCES, padded_encode

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute:UserWarning"),  # several
    pytest.mark.filterwarnings("ignore:Adapter unet was active which is now deleted:UserWarning"),
]

TARGETS = {"unet": ["to_k", "to_v"], "text_encoder": ["query", "value", "transformation"]}


def load(folder):
    pipeline = AltDiffusionPipeline.from_pretrained(folder, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, **arguments) -> np.ndarray:
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"} | arguments
    return pipeline("a red cat", generator=torch.Generator("cpu").manual_seed(0), **arguments).images


def apart(first, second) -> float:
    return float(np.abs(first - second).max())


def trained(part: str, model: torch.nn.Module, seed: int, rank: int = 2) -> tuple[dict, dict]:
    """A LoRA as training leaves it, peft's own state dict and config: random, so that it does something."""
    config = peft.LoraConfig(r=rank, lora_alpha=4, target_modules=TARGETS[part], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        state = {name: value.clone() for name, value in state.items()}
    return state, config.to_dict()


@pytest.fixture(scope="module")
def loras(shared_folder, tmp_path_factory):
    """Files of three LoRAs in diffusers' layout: on the UNet, on the tower, on both."""
    place = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(["unet", "tower", "both"]):
        pipeline = load(shared_folder)
        layers = {}
        for part in ("unet", "text_encoder"):
            if name in (part, "both") or (name, part) == ("tower", "text_encoder"):
                state, config = trained(part, getattr(pipeline, part), seed)
                layers[f"{part}_lora_layers"] = state
                layers[f"{part}_lora_adapter_metadata"] = config
        pipeline.save_lora_weights(place, weight_name=f"{name}.safetensors", **layers)
    return place


@pytest.fixture
def pipeline(shared_folder):
    return load(shared_folder)


def test_a_lora_changes_the_picture_and_at_scale_nought_does_not(pipeline, loras):
    plain = draw(pipeline)
    for name in ("unet", "tower", "both"):
        pipeline.load_lora_weights(loras, weight_name=f"{name}.safetensors", adapter_name=name)
        assert apart(draw(pipeline), plain) > 1e-3, name
        assert apart(draw(pipeline, cross_attention_kwargs={"scale": 0.0}), plain) < 1e-6, name
        pipeline.set_adapters(name, 0.0)
        assert apart(draw(pipeline), plain) < 1e-6, name
        pipeline.set_adapters(name, 1.0)
        half = draw(pipeline, cross_attention_kwargs={"scale": 0.5})
        assert apart(half, plain) > 1e-4
        assert apart(half, draw(pipeline)) > 1e-4
        pipeline.unload_lora_weights()
        assert np.array_equal(draw(pipeline), plain), name


def test_the_towers_lora_is_the_one_that_was_trained(pipeline, loras, shared_folder):
    tower = load(shared_folder).text_encoder
    trained("text_encoder", tower, seed=1)
    pipeline.load_lora_weights(loras, weight_name="tower.safetensors")
    with torch.no_grad():
        ours = pipeline.encode_prompt([SENTENCES["th"]], "cpu", 1, False)[0]
    expected = padded_encode(tower.eval(), pipeline.tokenizer, [SENTENCES["th"]])
    assert_close(ours, expected, rtol=0, atol=1e-5)


def test_several_loras_add_up_by_their_weights(pipeline, loras):
    for name in ("unet", "both"):
        pipeline.load_lora_weights(loras, weight_name=f"{name}.safetensors", adapter_name=name)
    assert pipeline.get_list_adapters() == {"unet": ["unet", "both"], "text_encoder": ["both"]}
    pipeline.set_adapters(["unet", "both"], [0.7, 0.4])
    together = draw(pipeline)
    pipeline.set_adapters(["unet", "both"], [0.7, 0.0])
    first = draw(pipeline)
    assert apart(together, first) > 1e-4
    pipeline.set_adapters("unet", 0.7)
    assert apart(draw(pipeline), first) < 1e-6
    pipeline.disable_lora()
    plain = draw(pipeline)
    pipeline.enable_lora()
    assert apart(draw(pipeline), plain) > 1e-4
    pipeline.delete_adapters(["unet", "both"])
    assert np.array_equal(draw(pipeline), plain)


def test_a_fused_lora_draws_the_same_and_comes_out_again(pipeline, loras):
    plain = draw(pipeline)
    pipeline.load_lora_weights(loras, weight_name="both.safetensors", adapter_name="both")
    apartness = draw(pipeline)
    pipeline.fuse_lora()
    assert apart(draw(pipeline), apartness) < 1e-4
    assert pipeline.num_fused_loras == 1
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    assert apart(draw(pipeline), plain) < 1e-5


def test_a_fused_lora_stays_when_its_adapter_goes_and_is_saved(pipeline, loras, tmp_path):
    pipeline.load_lora_weights(loras, weight_name="both.safetensors")
    pipeline.fuse_lora(lora_scale=0.5)
    fused = draw(pipeline)
    pipeline.unload_lora_weights()
    assert apart(draw(pipeline), fused) < 1e-6
    pipeline.save_pretrained(tmp_path)
    assert apart(draw(load(tmp_path)), fused) < 1e-6


def test_a_lora_may_be_given_as_tensors_and_under_the_names_on_disk(pipeline, loras, shared_folder):
    state, _ = trained("text_encoder", load(shared_folder).text_encoder, seed=1)
    pipeline.load_lora_weights({f"text_encoder.{name}": value for name, value in state.items()})
    first = draw(pipeline)
    pipeline.unload_lora_weights()
    on_disk = {name.replace("encoder.layers.", "encoder.layer."): value for name, value in state.items()}
    pipeline.load_lora_weights({f"text_encoder.{name}": value for name, value in on_disk.items()})
    assert np.array_equal(draw(pipeline), first)


def test_the_text_part_of_a_lora_made_for_clip_is_left_out_with_a_warning(pipeline, loras, shared_folder):
    state, _ = trained("unet", load(shared_folder).unet, seed=0)
    both = {f"unet.{name}": value for name, value in state.items()}
    place = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    both |= {f"{place}.lora_A.weight": torch.ones(2, 32), f"{place}.lora_B.weight": torch.ones(32, 2)}
    with pytest.warns(UserWarning, match=r"^lora: its text part was made for CLIP's tower and is left out"):
        pipeline.load_lora_weights(both)
    assert pipeline.get_list_adapters() == {"unet": ["default_0"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("another layer", r"^lora: 'roberta\.encoder\.layers\.7.*; allowed: pairs of lora_A and lora_B"),
        ("half of a pair", r"^lora: 'roberta.*query\.lora_A\.weight'; allowed: pairs of lora_A and lora_B"),
        ("another width", r"^lora: 'roberta.*has shape \(2, 48\); allowed: one that fits \(32, 32\)"),
    ],
)
def test_a_lora_that_does_not_fit_the_tower_is_refused_by_name(pipeline, change, message):
    number = 7 if change == "another layer" else 0
    place = f"text_encoder.roberta.encoder.layers.{number}.attention.self.query"
    state = {f"{place}.lora_A.weight": torch.ones(2, 48 if change == "another width" else 32)}
    if change != "half of a pair":
        state[f"{place}.lora_B.weight"] = torch.ones(32, 2)
    with pytest.raises(ValueError, match=message):
        pipeline.load_lora_into_text_encoder(state, None, pipeline.text_encoder)
    assert not hasattr(pipeline.text_encoder, "peft_config")
