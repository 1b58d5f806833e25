"""Textual inversion: a new word's vectors are all that moves, and the file is what diffusers loads."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch.testing import assert_close

from altdiffusion import AltDiffusionPipeline
from tests.fakes import SENTENCES
from tests.training import data_files
from tests.training.conftest import flags
from training.config import parse
from training.inversion import Inversion, InversionConfig, WithWord, starting_vectors
from training.text_to_image import TextToImageConfig, train
from training.tower import TextTower

WORD = "--trainable textual_inversion --inversion.token <zorp> --inversion.initial cat"


def config(folder, steps, drawing, more="") -> TextToImageConfig:
    places = f"--text {drawing / 'altclip'} --vae {drawing / 'vae'} --unet {drawing / 'unet'}"
    return parse(TextToImageConfig, flags(folder, steps, f"{places} --emoji 1 --variants 1 {WORD} {more}"))


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def learned(folder) -> torch.Tensor:
    (vectors,) = load_file(folder / "model/learned_embeds.safetensors").values()
    return vectors


def inversion(drawing, vectors: int = 1) -> Inversion:
    unet = UNet2DConditionModel.from_pretrained(drawing / "unet")
    word = InversionConfig("<zorp>", "a red lobster", vectors)
    return Inversion(unet, TextTower(drawing / "altclip"), word)


def test_nothing_but_the_new_vectors_moves_bit_for_bit(drawing):
    model = inversion(drawing, 2)
    unet, tower = model.frozen
    before = {
        name: value.clone() for part in (unet, tower.model) for name, value in part.state_dict().items()
    }
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    noisy, timesteps = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0)), torch.tensor([100, 900])
    found = []
    for _ in range(10):
        loss = model(noisy, timesteps, ["a <zorp>", SENTENCES["th"]]).sample.square().mean()
        loss.backward()
        found.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    after = {name: value for part in (unet, tower.model) for name, value in part.state_dict().items()}
    moved = [name for name in before if not after[name].equal(before[name])]
    assert moved == ["roberta.embeddings.word_embeddings.vectors"]
    assert [name for name, _ in model.named_parameters()] == ["vectors"]
    assert found[-1] < found[0]


def test_a_text_without_the_word_gives_no_gradient(drawing):
    model = inversion(drawing)
    noisy, timesteps = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0)), torch.tensor([100])
    for text, moved in (("a cat", False), ("a <zorp>", True)):
        model.zero_grad()
        model(noisy, timesteps, [text]).sample.square().mean().backward()
        assert (model.vectors.grad.abs().max() > 0) == moved


@pytest.mark.parametrize("count", [1, 3])
def test_a_pipeline_that_loads_the_file_hears_what_was_trained(drawing, tmp_path, count):
    train(config(tmp_path, 4, drawing, f"--inversion.vectors {count} --optim.learning-rate 0.1"))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "learned_embeds.safetensors",
        "README.md",
        "manifest.json",
    }
    checkpoint = load_file(tmp_path / "checkpoint-00000004/model.safetensors")
    assert list(checkpoint) == ["vectors"] and learned(tmp_path).equal(checkpoint["vectors"])
    model = inversion(drawing, count)
    model.vectors.data.copy_(learned(tmp_path))
    texts = ["a <zorp> on the beach", "das <zorp>"]
    expected = model.frozen[1].encode(model.spelling.maybe_convert_prompt(texts, model.frozen[1].tokenizer))
    ours = AltDiffusionPipeline.from_pretrained(drawing, device="cpu")
    stock = DiffusionPipeline.from_pretrained(drawing, safety_checker=None)
    for pipeline in (ours, stock):
        known = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
        pipeline.load_textual_inversion(tmp_path / "model")
        found = pipeline.text_encoder.get_input_embeddings().weight
        assert found[: len(known)].equal(known)
        assert found[len(known) :].equal(learned(tmp_path))
        assert_close(pipeline.encode_prompt(texts, "cpu", 1, False)[0], expected, rtol=0, atol=1e-5)


def test_a_resumed_run_is_the_same_bit_for_bit(drawing, tmp_path):
    more = (
        "--run.gradient-accumulation-steps 2 --run.ema-decay 0.5 --languages en th --optim.learning-rate 0.05"
    )
    train(config(tmp_path / "whole", 4, drawing, more))
    for steps in (1, 4):
        train(config(tmp_path / "cut", steps, drawing, more))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert learned(tmp_path / "whole").equal(learned(tmp_path / "cut"))


def test_initial_words_are_shared_out_among_the_vectors(drawing):
    tower = TextTower(drawing / "altclip")
    embedding = tower.model.get_input_embeddings()
    rows = embedding.weight[tower.tokenizer.convert_tokens_to_ids(["▁a", "▁red", "▁lobster"])]

    def start(count: int) -> torch.Tensor:
        return starting_vectors(InversionConfig("<x>", "a red lobster", count), tower.tokenizer, embedding)

    assert_close(start(1), rows.mean(0, keepdim=True))
    assert_close(start(2), torch.stack([rows[:2].mean(0), rows[2]]))
    assert_close(start(4), rows[[0, 1, 2, 0]])


class Data:
    items = None
    texts = ("", "a red cat", "<zorp>", "a <zorp> on the beach")

    def __getitem__(self, index):
        return torch.zeros(1), self.texts[index % 4]


def test_captions_have_the_word_in_every_language_and_keep_what_more_they_say():
    data = WithWord(Data(), InversionConfig("<zorp>"), ("en", "th", "el"), 0)
    texts = [data[index][1] for index in range(80)]
    assert set(texts[::4]) == {""} and set(texts[3::4]) == {"a <zorp> on the beach"}
    for given in (1, 2):
        assert set(texts[given::4]) == {"a <zorp>", "a picture of a <zorp>", "รูป<zorp>"}
    assert [WithWord(Data(), InversionConfig("<zorp>"), (), 0)[n] for n in range(80)] != texts


def test_ones_own_pictures_need_no_captions(drawing, tmp_path):
    folder = data_files.image_folder(tmp_path / "pictures", 3)
    (folder / "metadata.jsonl").unlink()
    more = f"--data {folder} --reading.resolution 64 --reading.flip True"
    train(config(tmp_path / "out", 2, drawing, more))
    assert "pictures" in (tmp_path / "out/model/README.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--inversion.token cat", r"^inversion\.token: the tower knows 'cat'; allowed: a new word"),
        (
            "--inversion.initial ☃",
            r"^inversion\.initial: the tower does not know '☃'; allowed: words of its own$",
        ),
    ],
)
def test_words_that_do_not_fit_the_tower_are_refused_before_a_picture_is_read(
    drawing, tmp_path, more, message
):
    with pytest.raises(ValueError, match=message):
        train(config(tmp_path, 1, drawing, more))
    assert not (tmp_path / "latents.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--inversion.vectors 0", "inversion.vectors: 0; allowed: 1 to 75"),
        ("--inversion.token=", "inversion.token: empty with trainable textual_inversion"),
        ("--inversion.initial=", "inversion.initial: empty with trainable textual_inversion"),
        ("--instance-prompt cat", "instance_prompt: 'cat' is without '<zorp>'; allowed: a prompt with it"),
        ("--prior.prompts cat", "prior.prompts: with trainable textual_inversion"),
        (
            "--reading.streaming True",
            "reading.streaming: True with trainable textual_inversion; allowed: False",
        ),
        ("--unet None", "unet: None, and trainable needs one that draws"),
    ],
)
def test_what_textual_inversion_cannot_do_is_one_line(drawing, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as done:
        config(tmp_path, 1, drawing, more)
    assert done.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
