"""`altdiffusion generate`: pictures, their names and notes, repeats, and grids over languages."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from altdiffusion.images import read_provenance
from altdiffusion.presets import PRESETS
from tests.cli.conftest import Run
from tests.fakes import SENTENCES


def test_words_are_one_prompt_and_path_and_seed_are_printed(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    code, out, err = run("generate", "a", "red", "lobster", "--seed", "7", *tiny)
    assert (code, out, err) == (0, "a-red-lobster-7.png\n", "seed 7\n")
    made = read_provenance(tmp_path / "a-red-lobster-7.png")
    assert (made.prompt, made.seed, made.steps) == ("a red lobster", 7, 2)


def test_nothing_is_overwritten(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(b"old")
    code, out, _ = run("generate", "cat", "-o", "cat.png", "--count", "2", *tiny)
    assert (code, out) == (0, "cat-2.png\ncat-3.png\n")
    assert (tmp_path / "cat.png").read_bytes() == b"old"


def test_json_is_one_document_on_stdout(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    code, out, err = run(
        "generate", "กุ้งมังกร", "--count", "2", "--seed", "5", "-o", str(tmp_path), "--json", *tiny
    )
    assert (code, err) == (0, "")
    pictures = json.loads(out)["pictures"]
    assert [picture["seed"] for picture in pictures] == [5, 6]
    assert all(Path(picture["path"]).is_file() and picture["prompt"] == "กุ้งมังกร" for picture in pictures)


def test_minus_one_draws_a_seed_and_says_which(run: Run, tiny: tuple[str, ...]):
    code, out, err = run("generate", "cat", "--seed", "-1", *tiny)
    assert code == 0
    assert out == f"cat-{err.removeprefix('seed ').strip()}.png\n"


@pytest.mark.parametrize("words", [["-"], []], ids=["dash", "nothing"])
def test_a_prompt_may_come_from_a_pipe(run: Run, tiny: tuple[str, ...], tmp_path: Path, words: list[str]):
    assert run("generate", *words, "-o", "a.png", *tiny, stdin="عنكبوت\n")[0] == 0
    assert read_provenance(tmp_path / "a.png").prompt == "عنكبوت"


@pytest.mark.parametrize("tag", SENTENCES)
def test_a_picture_drawn_from_its_own_note_is_the_same_picture(
    run: Run, shared_folder: Path, tmp_path: Path, tag: str
):
    settings = [
        "--seed",
        "7",
        "--steps",
        "1",
        "--guidance-scale",
        "2.3",
        "--size",
        "64x56",
        "--scheduler",
        "euler-a",
    ]
    first = json.loads(
        run(
            "generate",
            SENTENCES[tag],
            *settings,
            "--negative-prompt",
            "blue",
            "--model",
            str(shared_folder),
            "--json",
        )[1]
    )["pictures"][0]
    again = json.loads(run("generate", "--from", first["path"], "--model", str(shared_folder), "--json")[1])[
        "pictures"
    ][0]
    assert again["path"] != first["path"]
    assert {**again, "path": ""} == {**first, "path": ""}
    assert (tmp_path / again["path"]).read_bytes() == (tmp_path / first["path"]).read_bytes()


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("DDPMScheduler", {"clip_sample": False}, "DDPMScheduler"),  # which has no name here
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpm++-sde"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "PNDMScheduler"),  # "pndm" skips them
    ],
)
def test_a_picture_by_the_model_s_own_scheduler_is_drawn_again_to_the_byte(
    run: Run, tmp_path: Path, shared_folder: Path, kind: str, options: dict, name: str
):
    shutil.copytree(shared_folder, tmp_path / "model")
    for file, found in (
        ("scheduler/scheduler_config.json", {"_class_name": kind, **options}),
        ("model_index.json", {"scheduler": ["diffusers", kind]}),
        ("emoji.json", {"defaults": {"steps": 4, "guidance_scale": 3.0, "width": 64, "height": 64}}),
    ):
        path = tmp_path / "model" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | found))
    model = ("--model", "model")
    assert run("generate", "cat", "--seed", "7", "-o", "a.png", "--preset", "exact", *model)[0] == 0
    assert read_provenance(tmp_path / "a.png").scheduler == name
    assert run("generate", "--from", "a.png", "-o", "b.png", *model)[0] == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_flags_win_over_the_note(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    run("generate", "cat", "--seed", "7", "-o", "a.png", *tiny)
    code, _, _ = run(
        "generate", "dog", "--from", "a.png", "--seed", "8", "-o", "b.png", "--size", "32", *tiny
    )
    made = read_provenance(tmp_path / "b.png")
    assert code == 0
    assert (made.prompt, made.seed, made.width, made.steps) == ("dog", 8, 32, 2)


def test_a_note_without_its_model_asks_for_it_and_other_weights_are_told(
    run: Run, tiny: tuple[str, ...], tmp_path: Path
):
    from tests.fakes import tiny_pipeline_folder

    run("generate", "cat", "--seed", "7", "-o", "a.png", *tiny)
    code, _, err = run("generate", "--from", "a.png")
    assert code == 2
    assert err.startswith("from: made with the model 'tiny'; give its folder or file with --model")
    other = tiny_pipeline_folder(tmp_path / "other", seed=1)
    code, _, err = run("generate", "--from", "a.png", "--model", str(other))
    assert code == 0
    assert "warning: from: the picture was made by a model with other weights" in err


def test_image_to_image_repeats_with_its_picture_and_not_without(
    run: Run, tiny: tuple[str, ...], tmp_path: Path
):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    Image.new("RGB", (80, 60), "blue").save(tmp_path / "blue.png")
    assert (
        run(
            "generate", "cat", "--image", "red.png", "--strength", "0.5", "--seed", "7", "-o", "a.png", *tiny
        )[0]
        == 0
    )
    code, _, err = run("generate", "--from", "a.png", *tiny)
    assert code == 2
    assert err.startswith("from: 'a.png' was drawn from another picture; give that with --image")
    assert run("generate", "--from", "a.png", "--image", "red.png", "-o", "b.png", *tiny) == (
        0,
        "b.png\n",
        "seed 7\n",
    )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "is not what that picture" in run("generate", "--from", "a.png", "--image", "blue.png", *tiny)[2]


def test_languages_make_a_labelled_grid_of_one_seed(
    run: Run, tiny: tuple[str, ...], prompts: Path, tmp_path: Path
):
    code, out, _ = run(
        "generate", "--languages", "en,zh,ar", "--prompt-file", str(prompts), "--seed", "7", *tiny
    )
    assert code == 0
    *singles, grid = out.splitlines()
    assert grid == "grid-7.png"
    assert [name.split("-")[0] for name in singles] == ["en", "zh", "ar"]
    for name in singles:
        made = read_provenance(tmp_path / name)
        assert (made.seed, made.prompt) == (7, SENTENCES[made.language or ""])
    with Image.open(tmp_path / grid) as image:
        assert image.width > 2 * 64


def test_a_drawn_seed_is_one_for_all_languages(run: Run, tiny: tuple[str, ...], prompts: Path):
    code, out, _ = run("generate", "--prompt-file", "-", "--json", *tiny, stdin="en: a cat\nzh-CN: 猫\n")
    assert code == 0
    document = json.loads(out)
    assert len({picture["seed"] for picture in document["pictures"]}) == 1
    assert Path(document["grid"]).is_file()


def test_a_long_prompt_says_how_many_tokens_and_which_words_were_dropped(run: Run, tiny: tuple[str, ...]):
    code, _, err = run(
        "generate", "a red lobster and a cat " * 20 + "zebra", "-o", "a.png", "--count", "2", *tiny
    )
    assert code == 0
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "tokens" in warned[0] and "zebra" in warned[0] and len(warned[0]) < 500


def test_what_the_app_drew_between_two_prompts_is_repeated(
    run: Run, tiny: tuple[str, ...], shared_pipeline, tmp_path: Path
):
    from altdiffusion.generation import generate
    from altdiffusion.images import save_png
    from altdiffusion.requests import GenerateRequest

    start = Image.radial_gradient("L").convert("RGB")
    start.save(tmp_path / "start.png")
    fields = {"mix": "eine Katze", "mix_share": 0.25, "weighting": True, "clip_skip": 1}
    request = GenerateRequest.build(prompt="a (red:1.2) dog", seed=7, steps=2, strength=0.5, **fields)
    (picture,) = generate(shared_pipeline, request, start=start)
    save_png(picture.image, tmp_path / "a.png", picture.provenance)
    again = run("generate", "--from", "a.png", "--image", "start.png", "-o", "b.png", *tiny)
    assert again == (0, "b.png\n", "seed 7\n")
    with Image.open(tmp_path / "b.png") as repeated:
        assert repeated.tobytes() == picture.image.tobytes()
    assert read_provenance("b.png").mix == "eine Katze"
    (masked,) = generate(shared_pipeline, request, start=start, mask=Image.new("L", (8, 8), 255))
    save_png(masked.image, tmp_path / "c.png", masked.provenance)
    code, _, err = run("generate", "--from", "c.png", "--image", "start.png", *tiny)
    assert (code, err) == (2, "from: 'c.png' was drawn into a masked picture; allowed in the app only\n")


def test_clip_skip_leaves_out_layers_and_is_told_as_a1111_counts_it(
    run: Run, tiny: tuple[str, ...], tmp_path: Path
):
    run("generate", "cat", "--seed", "7", "-o", "a.png", *tiny)
    run("generate", "cat", "--seed", "7", "--clip-skip", "1", "-o", "b.png", *tiny)
    with Image.open(tmp_path / "a.png") as whole, Image.open(tmp_path / "b.png") as skipped:
        assert whole.tobytes() != skipped.tobytes()
        assert ", Clip skip: 2," in skipped.text["parameters"]
        assert "Clip skip" not in whole.text["parameters"]
    assert run("generate", "cat", "--clip-skip", "2", *tiny)[::2] == (
        2,
        "clip_skip: 2; allowed 0 to 1 of the text tower's 2 layers\n",
    )


def test_the_default_preset_is_noted_and_repeated(run: Run, shared_folder: Path, tmp_path: Path):
    model = ("--model", str(shared_folder))
    code, _, err = run("generate", "cat", "--seed", "7", "-o", "a.png", *model)
    assert code == 0
    assert err.startswith("warning: preset: 'default' is chosen by the bundled model's pictures")
    made, default = read_provenance(tmp_path / "a.png"), PRESETS["default"]
    assert (made.preset, made.steps, made.scheduler) == ("default", default.steps, default.scheduler)
    run("generate", "--from", "a.png", "-o", "b.png", *model)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_a_preset_takes_the_place_of_a_repeated_pictures_steps(run: Run, shared_folder: Path, tmp_path: Path):
    model = ("--model", str(shared_folder))
    run("generate", "cat", "--seed", "7", "--preset", "exact", "--scheduler", "ddim", "-o", "a.png", *model)
    run("generate", "--from", "a.png", "--preset", "fast", "-o", "b.png", *model)
    made, fast = read_provenance(tmp_path / "b.png"), PRESETS["fast"]
    assert (made.seed, made.preset, made.steps, made.scheduler) == (7, "fast", fast.steps, fast.scheduler)


def test_a_picture_without_a_preset_is_repeated_without_one(
    run: Run, shared_folder: Path, shared_pipeline, tmp_path: Path
):
    from altdiffusion.generation import generate
    from altdiffusion.images import save_png
    from altdiffusion.requests import GenerateRequest

    (picture,) = generate(shared_pipeline, GenerateRequest.build(prompt="cat", seed=7))
    save_png(picture.image, tmp_path / "a.png", picture.provenance)
    code, _, err = run("generate", "--from", "a.png", "-o", "b.png", "--model", str(shared_folder))
    assert (code, err) == (0, "seed 7\n")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
