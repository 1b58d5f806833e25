"""Text to image: LoRA, prior preservation, and what changes the noise, the memory and the attention."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch.testing import assert_close

from altdiffusion import AltDiffusionPipeline
from altdiffusion.trainable import add_lora, lora_state, select_parameters
from tests.fakes import SENTENCES, padded_encode, tiny_unet
from tests.training.conftest import flags
from training.captions import held_out_pair
from training.config import parse
from training.emoji import load_emoji
from training.emoji_latents import CaptionedLatents, chosen_scenes
from training.grounds import GROUNDS, held_out_ground
from training.prior import PriorConfig, WithPrior, WithPrompt
from training.text_to_image import TextToImageConfig, stage_loss, train
from training.tower import TextTower

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def config(folder, steps, drawing, more="") -> TextToImageConfig:
    places = f"--text {drawing / 'altclip'} --vae {drawing / 'vae'} --unet {drawing / 'unet'}"
    return parse(TextToImageConfig, flags(folder, steps, f"{places} --emoji 2 --variants 1 {more}"))


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 7, 32)


def test_a_lora_is_the_file_that_diffusers_loads_beside_the_untouched_unet(drawing, tmp_path):
    more = "--trainable lora --lora.rank 2 --lora.alpha 6 --optim.learning-rate 1e-2"
    train(config(tmp_path, 4, drawing, more))
    files = [path.name for path in (tmp_path / "model").glob("*.safetensors")]
    assert files == ["pytorch_lora_weights.safetensors"]
    trained = UNet2DConditionModel.from_pretrained(drawing / "unet")
    plain = trained(*inputs()).sample
    add_lora(trained, 2, 6)
    weights = load_file(tmp_path / "checkpoint-00000004/model.safetensors")
    before = trained.state_dict()
    assert all(weights[name].equal(before[name]) for name in weights if "lora" not in name)
    trained.load_state_dict(weights)
    pipeline = AltDiffusionPipeline.from_pretrained(drawing, device="cpu")
    pipeline.load_lora_weights(tmp_path / "model")
    found = pipeline.unet(*inputs()).sample
    assert_close(found, trained(*inputs()).sample)
    assert (found - plain).abs().max() > 1e-3


def test_a_fresh_lora_changes_nothing_and_only_it_is_trained():
    unet = tiny_unet()
    plain = unet(*inputs()).sample
    add_lora(unet, 3)
    chosen = select_parameters(unet, "lora")
    assert_close(unet(*inputs()).sample, plain)
    names = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names) and len(names) == len(chosen)
    state, settings = lora_state(unet)
    assert len(state) == len(names)
    assert (settings["r"], settings["lora_alpha"]) == (3, 3)
    assert json.dumps(settings["target_modules"])


def test_a_resumed_lora_equals_an_uninterrupted_one_bit_for_bit(drawing, tmp_path):
    more = "--trainable lora --run.ema-decay 0.9 --run.gradient-accumulation-steps 2"
    train(config(tmp_path / "whole", 3, drawing, more))
    train(config(tmp_path / "cut", 1, drawing, more))
    train(config(tmp_path / "cut", 3, drawing, more))
    whole, cut = (
        load_file(tmp_path / name / "model/pytorch_lora_weights.safetensors") for name in ("whole", "cut")
    )
    assert all(whole[name].equal(cut[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_gradient_checkpointing_changes_no_loss(drawing, tmp_path):
    for name, on in (("plain", False), ("again", True)):
        train(config(tmp_path / name, 3, drawing, f"--trainable kv --gradient-checkpointing {on}"))
    assert_close(losses(tmp_path / "plain"), losses(tmp_path / "again"), rtol=0, atol=1e-6)


def test_offset_noise_is_the_same_all_over_a_channel(drawing, tmp_path, monkeypatch):
    seen = []
    real = UNet2DConditionModel.forward

    def forward(self, sample, *args, **kwargs):
        seen.append(sample.detach().clone())
        return real(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    for offset in (0, 2):
        train(config(tmp_path / str(offset), 1, drawing, f"--noise-offset {offset} --timestep-bias 20"))
    added = seen[1] - seen[0]
    assert added.std(dim=(2, 3)).max() < 1e-5
    assert added.mean(dim=(2, 3)).abs().min() > 1e-3


def test_zero_terminal_snr_needs_v_prediction_and_is_told_to_the_sampler(drawing, tmp_path, capsys):
    with pytest.raises(SystemExit):
        config(tmp_path, 1, drawing, "--zero-terminal-snr True --prediction-type epsilon")
    message = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "zero_terminal_snr: True with prediction_type epsilon" in message
    assert "allowed: prediction_type v_prediction, or zero_terminal_snr False" in message
    train(config(tmp_path, 2, drawing, "--zero-terminal-snr True --snr-gamma 0 --timestep-bias 50"))
    assert np.isfinite(losses(tmp_path)).all()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert pipeline.scheduler.alphas_cumprod[-1] < 1e-6
    picture = pipeline("a cat", num_inference_steps=2, output_type="np").images[0]
    assert np.isfinite(picture).all()


def test_xformers_asked_for_without_cuda_is_refused_in_one_line(drawing, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=r"^attention: 'xformers' cannot run here: .*; allowed here: auto"):
        train(config(tmp_path, 1, drawing, "--attention xformers"))
    assert not tmp_path.joinpath("latents.safetensors").exists()


def test_the_prior_is_drawn_once_and_trained_beside_the_data(drawing, tmp_path):
    more = "--prior.prompts emoji 表情 --prior.images 3 --prior.steps 1"
    train(config(tmp_path, 1, drawing, more))
    drawn = tmp_path / "prior.safetensors"
    assert load_file(drawn)["latents"].shape == (3, 4, 16, 16)
    when = drawn.stat().st_mtime_ns
    train(config(tmp_path, 2, drawing, more))
    assert drawn.stat().st_mtime_ns == when
    before = load_file(drawn)["latents"]
    (tmp_path / "other").mkdir()
    shutil.copyfile(drawn, tmp_path / "other/prior.safetensors")
    train(config(tmp_path / "other", 1, drawing, f"{more} --prediction-type epsilon"))
    assert not load_file(tmp_path / "other/prior.safetensors")["latents"].equal(before)
    train(config(tmp_path / "without", 1, drawing))
    assert losses(tmp_path / "without")[0] != losses(tmp_path)[0]


def test_data_and_prior_take_turns_and_the_weight_is_the_priors(drawing, tmp_path):
    settings = config(tmp_path, 1, drawing, "--prior.prompts a --prior.weight 3 --snr-gamma 0")
    prediction = torch.tensor([1.0, 2.0, 1.0, 2.0])[:, None, None, None]
    loss = stage_loss(settings, prediction, torch.zeros(4, 1, 1, 1), torch.ones(4))
    assert loss.item() == pytest.approx(1 + 3 * 4)
    latents = torch.zeros(2, 4, 16, 16)
    data = CaptionedLatents(settings, latents, chosen_scenes(settings))
    both = WithPrior(data, torch.ones(5, 4, 16, 16), PriorConfig(prompts=("a", "b")), seed=0)
    mixed, texts = both.collate([both[n] for n in range(3)])
    assert mixed[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert set(texts[1::2]) <= {"a", "b"}
    wide = WithPrior(data, torch.ones(5, 4, 16, 24), PriorConfig(prompts=("a",)), seed=0)
    with pytest.raises(ValueError, match=r"^prior\.prompts: the UNet draws latents of \(4, 16, 24\)"):
        wide.collate([wide[0]])


def test_an_instance_prompt_captions_the_chosen_emoji(drawing, tmp_path):
    rare = "🪁"
    more = f"--characters {rare} --caption-dropout 0.5"
    settings = config(tmp_path, 1, drawing, more)
    scenes = chosen_scenes(settings)
    assert {scene.characters for scene in scenes} == {(rare,)}
    data = WithPrompt(CaptionedLatents(settings, torch.zeros(len(scenes), 1), scenes), "sks")
    assert {data[n][1] for n in range(30)} == {"sks", ""}
    train(config(tmp_path, 1, drawing, f"--characters {rare} --instance-prompt sks"))
    train(config(tmp_path / "named", 1, drawing, f"--characters {rare}"))
    assert losses(tmp_path) != losses(tmp_path / "named")
    with pytest.raises(ValueError, match=r"^characters: 'x' is none"):
        chosen_scenes(config(tmp_path, 1, drawing, "--characters x"))


def test_pairs_stand_side_by_side_as_their_caption_names_them(drawing, tmp_path):
    settings = config(tmp_path, 1, drawing, "--emoji 60 --pairs 50 --pair-share 0.5 --caption-dropout 0")
    scenes = chosen_scenes(settings)
    singles, pairs = scenes[:60], scenes[60:]
    assert all(len(scene.placed) == 1 for scene in singles) and len(pairs) == 50
    assert all([placed.x for placed in scene.placed] == [0.25, 0.75] for scene in pairs)
    assert not any(held_out_pair(scene.characters) for scene in pairs)
    numbers = torch.arange(float(len(scenes)))[:, None]
    data, names = CaptionedLatents(settings, numbers, scenes), load_emoji().names
    seen = [data[n] for n in range(400)]
    drawn = [(scenes[int(latent)].characters, text) for latent, text in seen]
    both = [(pair, text) for pair, text in drawn if len(pair) == 2]
    assert 0.4 < len(both) / len(seen) < 0.6
    english = {pair: "{} and {}".format(*(names["en"][c] for c in pair)) for pair, _ in both}
    assert sum(text == english[pair] for pair, text in both) > 5
    lists = {tag: load_emoji().list_patterns[tag]["2"] for tag in names}
    for pair, text in both:
        assert text in {lists[tag].format(*(names[tag][c] for c in pair)) for tag in names}


def test_pairs_need_two_emoji_that_may_meet(drawing, tmp_path):
    with pytest.raises(ValueError, match=r"^pairs: of '🪁' there is none; allowed: 0$"):
        chosen_scenes(config(tmp_path, 1, drawing, "--characters 🪁 --pairs 3"))
    for more in ("--pairs -1", "--pairs 1 --pair-share 1", "--pairs 1 --cache c"):
        with pytest.raises(SystemExit):
            config(tmp_path, 1, drawing, more)


def test_groups_and_grounds_come_in_their_shares_as_their_captions_say(drawing, tmp_path):
    shares = "--scenes.groups 40 --scenes.group-share 0.4 --scenes.ground-share 0.3 --caption-dropout 0"
    settings = config(tmp_path, 1, drawing, f"--emoji 30 --languages en {shares}")
    scenes = chosen_scenes(settings)
    groups, grounds = scenes[30:70], scenes[70:]
    assert {len(scene.placed) for scene in groups} == {2, 3, 4}
    assert not any(held_out_pair(scene.characters) for scene in groups)
    assert 0 < sum(1 for scene in groups if scene.ground) < 25
    assert all(len(scene.placed) == 1 and scene.ground for scene in grounds)
    everything = {(scene.characters[0], ground) for scene in scenes[:30] for ground in GROUNDS}
    drawn = {(scene.characters[0], scene.ground) for scene in grounds}
    assert drawn == {(c, ground) for c, ground in everything if not held_out_ground((c,), ground)}
    data = CaptionedLatents(settings, torch.arange(float(len(scenes)))[:, None], scenes)
    seen = [(int(latent), text) for latent, text in (data[n] for n in range(600))]
    numbers = np.array([number for number, _ in seen])
    assert 0.25 < np.mean(numbers < 30) < 0.35
    assert 0.35 < np.mean((numbers >= 30) & (numbers < 70)) < 0.45
    names = load_emoji().names["en"]
    for number, text in seen:
        scene = scenes[number]
        assert bool(scene.ground) == ("background" in text)
        if number >= 30:
            assert all(names[c] in text for c in scene.characters)
        if scene in groups and not scene.ground:
            assert text == data.captions.name(scene)


def test_some_emoji_come_up_more_often(drawing, tmp_path):
    settings = config(
        tmp_path, 1, drawing, "--emoji 30 --variants 2 --scenes.often 🪁🕑 --scenes.often-share 0.4"
    )
    scenes = chosen_scenes(settings)
    assert [scene.characters for scene in scenes[60:]] == [("🪁",), ("🪁",), ("🕑",), ("🕑",)]
    data = CaptionedLatents(settings, torch.arange(float(len(scenes)))[:, None], scenes)
    assert 0.33 < np.mean([int(data[n][0]) >= 60 for n in range(400)]) < 0.47
    with pytest.raises(ValueError, match=r"^scenes\.often: 'x' is none; allowed: the emoji of the font"):
        chosen_scenes(config(tmp_path, 1, drawing, "--scenes.often x"))


def test_shares_of_scenes_leave_something_to_the_single_emoji(drawing, tmp_path, capsys):
    for more in (
        "--scenes.ground-share 0.6 --scenes.groups 2 --scenes.group-share 0.5",
        "--scenes.groups -1",
        "--scenes.often 🪁 --scenes.often-share 1",
    ):
        with pytest.raises(SystemExit):
            config(tmp_path, 1, drawing, more)
    with pytest.raises(SystemExit):
        config(tmp_path, 1, drawing, "--scenes.ground-share 0.1 --cache c")
    assert "cache: with pairs or scenes" in " ".join(capsys.readouterr().err.replace("│", "").split())


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_a_published_altclip_conditions_as_its_altdiffusion_does(form, published):
    pipeline = AltDiffusionPipeline.from_pretrained(published("B", form), device="cpu")
    expected = padded_encode(pipeline.text_encoder, pipeline.tokenizer, SENTENCES.values())
    assert_close(TextTower(published("A", form)).encode(list(SENTENCES.values())), expected)


def test_what_needs_a_unet_says_so(tmp_path, capsys):
    for more in ("--trainable lora", "--prior.prompts a"):
        with pytest.raises(SystemExit):
            parse(TextToImageConfig, flags(tmp_path, 1, f"--text a --vae b {more}"))
        assert "unet: None, and" in " ".join(capsys.readouterr().err.replace("│", "").split())


@pytest.mark.parametrize(
    "more", ["", "--noise-offset 0.5 --prior.prompts a --prior.images 2 --prior.steps 1"]
)
def test_accumulated_passes_train_as_the_one_big_batch(more, drawing, tmp_path):
    more = f"{more} --run.batch-size 8 --trainable kv"
    train(config(tmp_path / "one", 3, drawing, more))
    train(config(tmp_path / "four", 3, drawing, f"{more} --run.gradient-accumulation-steps 4"))
    assert_close(losses(tmp_path / "one"), losses(tmp_path / "four"), rtol=0, atol=1e-6)
    before, after = (
        load_file(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors")
        for name in ("one", "four")
    )
    for name in before:
        assert_close(before[name], after[name], rtol=0, atol=1e-6, msg=name)
