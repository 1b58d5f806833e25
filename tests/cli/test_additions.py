"""LoRA, learned words, weights and mixed prompts on the command line; a picture brings them back by file."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from altdiffusion.images import read_provenance
from altdiffusion.requests import BadRequest, Provenance
from tests.cli.conftest import Run
from tests.fakes import tiny_stock_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRA, and a learned word, as training leaves them."""
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(["style", "other"]):
        stock = tiny_stock_pipeline()
        config = peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stock.unet.add_adapter(config)
        layers = get_peft_model_state_dict(stock.unet, save_embedding_layers=False)
        stock.save_lora_weights(place, unet_lora_layers=layers, weight_name=f"{name}.safetensors")
    vector = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    (place / "word").mkdir()
    save_file({"<zorp>": vector}, place / "word/learned_embeds.safetensors")
    return place


def drawn(file: str) -> bytes:
    with Image.open(file) as picture:
        return picture.tobytes()


def test_loras_and_words_change_the_picture_and_are_told_by_name_and_digest(
    run: Run, tiny: tuple[str, ...], made: Path
):
    added = ["--lora", f"{made}/style.safetensors:0.5", "--lora", f"{made}/other.safetensors"]
    ask = ["generate", "a <zorp>", "--seed", "7", *tiny]
    assert run(*ask, "-o", "plain.png")[0] == 0
    code, _, err = run(*ask, *added, "--embedding", f"{made}/word", "-o", "all.png")
    assert (code, err) == (0, "seed 7\n")
    assert run(*ask, "--embedding", f"{made}/word", "-o", "word.png")[0] == 0
    assert len({drawn(f"{name}.png") for name in ("plain", "all", "word")}) == 3
    note = read_provenance("all.png")
    assert [(one.name, one.scale) for one in note.loras] == [
        ("style.safetensors", 0.5),
        ("other.safetensors", 1.0),
    ]
    (word,) = note.embeddings
    assert word.name == "learned_embeds.safetensors" and len(word.digest) == 64
    assert read_provenance("plain.png").loras == ()
    assert str(made) not in note.to_json()
    assert "lora style.safetensors: strength 0.5, SHA-256 " in run("show", "all.png")[1]


def test_a_repeat_with_the_same_files_is_the_same_picture_whatever_they_are_called_now(
    run: Run, tiny: tuple[str, ...], made: Path, tmp_path: Path
):
    shutil.copy(made / "style.safetensors", tmp_path / "renamed.safetensors")
    added = ["--lora", f"{made}/style.safetensors:0.5", "--embedding", f"{made}/word"]
    run("generate", "a <zorp>", "--seed", "7", *added, *tiny, "-o", "a.png")
    again = ["generate", "--from", "a.png", *tiny[:2], "--lora", "renamed.safetensors"]
    code, _, err = run(*again, "--embedding", f"{made}/word", "-o", "b.png")
    assert (code, err) == (0, "seed 7\n")  # and no warning of other weights
    assert drawn("a.png") == drawn("b.png")
    assert read_provenance("b.png").loras[0].scale == 0.5


def test_a_repeat_without_the_same_file_is_refused_before_a_model_is_read(
    run: Run, tiny: tuple[str, ...], made: Path, monkeypatch: pytest.MonkeyPatch
):
    run("generate", "cat", "--seed", "7", "--lora", f"{made}/style.safetensors", *tiny, "-o", "a.png")
    digest = read_provenance("a.png").loras[0].digest[:12]
    line = f"from: it was drawn with 'style.safetensors' (SHA-256 {digest}…); give that with --lora\n"
    from altdiffusion import checkpoints

    monkeypatch.setattr(checkpoints, "resolve", lambda *_: pytest.fail("a model was read"))
    assert run("generate", "--from", "a.png", *tiny[:2]) == (2, "", line)
    assert run("generate", "--from", "a.png", "--lora", f"{made}/other.safetensors", *tiny[:2]) == (
        2,
        "",
        line,
    )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lora", "none.safetensors"], "lora: no file 'none.safetensors'; allowed one in .safetensors"),
        (["--lora", "a.pt"], "lora: no file 'a.pt'; allowed one in .safetensors, with :STRENGTH"),
        (["--lora", "made/style.safetensors:x"], "lora: strength 'x'; allowed a number from -10 to 10"),
        (["--lora", "made/style.safetensors:nan"], "lora: strength 'nan'; allowed a number from -10 to 10"),
        (["--embedding", "made"], "embedding: no file 'made/learned_embeds.safetensors'; allowed one in "),
        (["--mix-share", "0.5"], "mix_share: 0.5 is for two prompts; give mix as well"),
        (["--mix", "dog", "--mix-share", "2"], "mix_share: '2'; allowed a number from 0 to 1"),
    ],
)
def test_mistakes_are_one_line_before_a_model_is_read(
    run: Run, no_model: None, made: Path, tmp_path: Path, flags: list[str], line: str
):
    (tmp_path / "made").symlink_to(made)
    code, out, err = run("generate", "cat", *flags)
    assert (code, out) == (2, "")
    assert err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("flag", ["lora", "embedding"])
def test_a_file_that_fits_another_model_is_one_line(
    run: Run, tiny: tuple[str, ...], tmp_path: Path, flag: str
):
    tensors = {
        "lora": {
            f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_{side}.weight": torch.ones(
                *shape
            )
            for side, shape in (("A", (2, 999)), ("B", (999, 2)))
        },
        "embedding": {"<zorp>": torch.ones(2, 999)},
    }[flag]
    save_file(tensors, tmp_path / "wrong.safetensors")
    code, _, err = run("generate", "cat", f"--{flag}", "wrong.safetensors", *tiny)
    assert code == 2 and err.startswith(f"{flag}: 'wrong.safetensors' does not fit this model (")
    assert err.count("\n") == 1


def test_weights_and_a_second_prompt_are_flags_and_are_repeated(run: Run, tiny: tuple[str, ...]):
    ask = ["generate", "a (red:1.4) cat", "--seed", "7", *tiny]
    run(*ask, "-o", "words.png")
    run(*ask, "--weighting", "-o", "weights.png")
    run(*ask, "--weighting", "--mix", "eine Katze", "--mix-share", "0.25", "-o", "mixed.png")
    assert len({drawn(f"{name}.png") for name in ("words", "weights", "mixed")}) == 3
    note = read_provenance("mixed.png")
    assert (note.weighting, note.mix, note.mix_share) == (True, "eine Katze", 0.25)
    assert run("generate", "--from", "mixed.png", *tiny[:2], "-o", "again.png")[0] == 0
    assert drawn("mixed.png") == drawn("again.png")


def test_a_note_of_somebody_else_s_is_checked():
    good = {"prompt": "a", "loras": [{"name": "a.safetensors", "digest": "00", "scale": 0.5}]}
    assert Provenance.from_json(json.dumps(good)).loras[0].scale == 0.5
    for bad in ("x", [5], [{"name": 5, "digest": "0"}], [{"name": "a"}]):
        with pytest.raises(BadRequest, match=r"^loras"):
            Provenance.from_json(json.dumps(good | {"loras": bad}))
