"""From request to pictures: seeds, batches, schedulers, threads, and nothing left changed."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from altdiffusion import memory
from altdiffusion.generation import Picture, Step, draw_together, generate, model_name, prepare
from altdiffusion.images import read_provenance, save_png
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.requests import SCHEDULERS, BadRequest, GenerateRequest
from tests.fakes import SENTENCES, tiny_pipeline_folder


@pytest.fixture
def pipeline(shared_pipeline: AltDiffusionPipeline) -> AltDiffusionPipeline:
    return shared_pipeline


def draw(pipeline: AltDiffusionPipeline, **fields: object) -> list[Picture]:
    return generate(
        pipeline, GenerateRequest.build(**{"prompt": "a red lobster", "seed": 7, "steps": 2, **fields})
    )


def values(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image, dtype=np.int16)


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(pipeline: AltDiffusionPipeline):
    (first,), (again,), (other,) = draw(pipeline), draw(pipeline), draw(pipeline, seed=8)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


def test_picture_i_of_a_request_is_the_single_picture_of_seed_plus_i(pipeline: AltDiffusionPipeline):
    several = draw(pipeline, count=3)
    assert [picture.provenance.seed for picture in several] == [7, 8, 9]
    for picture in several:
        (single,) = draw(pipeline, seed=picture.provenance.seed)
        assert picture.image.tobytes() == single.image.tobytes()


def test_a_batch_equals_its_singles_to_one_level(pipeline: AltDiffusionPipeline):
    request = GenerateRequest.build(prompt="a cat", seed=7, steps=2, count=4)
    for one, other in zip(
        generate(pipeline, request, batch_size=4), generate(pipeline, request), strict=True
    ):
        assert abs(values(one) - values(other)).max() <= 1  # 1e-4 may fall on the other side of a rounding


def test_seeds_go_round_at_64_bits(pipeline: AltDiffusionPipeline):
    assert [p.provenance.seed for p in draw(pipeline, seed=2**64 - 1, count=2)] == [2**64 - 1, 0]


def test_what_a_request_leaves_open_is_the_models_own(pipeline: AltDiffusionPipeline):
    (picture,) = generate(pipeline, GenerateRequest.build(prompt="a cat"))
    made = picture.provenance
    assert (made.steps, made.guidance_scale, made.width, made.height, made.scheduler) == (
        4,
        3.0,
        64,
        64,
        "dpm++",
    )
    assert made.seed is not None and made.seed >= 0
    assert made.fingerprint == pipeline.fingerprint
    assert set(made.versions) == {"altdiffusion", "torch", "diffusers", "transformers"}


def test_only_the_folders_own_name_goes_into_the_note(pipeline: AltDiffusionPipeline):
    assert pipeline.source is not None
    assert draw(pipeline)[0].provenance.model == Path(pipeline.source).name


def test_of_a_file_too_only_its_own_name_is_told(tmp_path: Path, monkeypatch):
    (tmp_path / "model.ckpt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (tmp_path / "model.ckpt", str(tmp_path / "model.ckpt"), "~/model.ckpt"):
        assert model_name(source) == "model.ckpt"
    assert [model_name(source) for source in (None, "BAAI/AltDiffusion-m9")] == [
        "bundled",
        "BAAI/AltDiffusion-m9",
    ]


def test_the_size_is_width_by_height(pipeline: AltDiffusionPipeline):
    assert draw(pipeline, width=64, height=96)[0].image.size == (64, 96)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_and_the_callers_stays(
    pipeline: AltDiffusionPipeline, scheduler: str, steps: int
):
    before = pipeline.scheduler
    config = dict(before.config)
    (picture,) = draw(pipeline, scheduler=scheduler, steps=steps)
    assert picture.provenance.scheduler == scheduler
    assert pipeline.scheduler is before
    assert dict(before.config) == config
    assert picture.image.tobytes() == draw(pipeline, scheduler=scheduler, steps=steps)[0].image.tobytes()


def test_schedulers_differ(pipeline: AltDiffusionPipeline):
    pictures = {name: draw(pipeline, scheduler=name, steps=4)[0].image.tobytes() for name in SCHEDULERS}
    assert len(set(pictures.values())) > len(SCHEDULERS) - 2


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "pndm", "euler"])
def test_threads_draw_what_each_would_draw_alone(pipeline: AltDiffusionPipeline, scheduler: str):
    prompts = list(SENTENCES.values())[:8]
    alone = [draw(pipeline, prompt=prompt, scheduler=scheduler)[0].image.tobytes() for prompt in prompts]
    together: dict[int, bytes] = {}

    def work(numbers: range) -> None:
        for number in numbers:
            picture = draw(pipeline, prompt=prompts[number], scheduler=scheduler)[0]
            together[number] = picture.image.tobytes()

    threads = [threading.Thread(target=work, args=(range(first, 8, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together.get(number) for number in range(8)] == alone


def test_every_step_is_reported_over_all_pictures(pipeline: AltDiffusionPipeline):
    seen: list[tuple[int, int]] = []
    request = GenerateRequest.build(prompt="a", steps=3, count=2)
    generate(pipeline, request, lambda done, of: seen.append((done, of)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_what_the_callback_raises_ends_the_drawing_and_the_next_call_is_fine(pipeline: AltDiffusionPipeline):
    def stop(done: int, of: int) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError):
        generate(pipeline, GenerateRequest.build(prompt="a", seed=7, steps=2), stop)
    assert draw(pipeline)[0].image.size == (64, 64)


def test_image_to_image_starts_from_the_picture(pipeline: AltDiffusionPipeline, tmp_path: Path):
    Image.new("RGB", (90, 70), "red").save(tmp_path / "red.png")
    Image.new("RGB", (90, 70), "blue").save(tmp_path / "blue.png")
    red, blue = (
        draw(pipeline, image=str(tmp_path / f"{name}.png"), strength=0.5)[0] for name in ("red", "blue")
    )
    assert red.image.size == (64, 64)
    assert red.image.tobytes() != blue.image.tobytes()
    assert red.provenance.strength == 0.5
    assert red.provenance.image != blue.provenance.image
    assert str(tmp_path) not in red.provenance.to_json()


def test_a_strength_that_leaves_no_step_is_refused(pipeline: AltDiffusionPipeline, tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(
        BadRequest, match=r"^strength: 0.1 of 2 steps leaves none to draw; allowed at least 0.5"
    ):
        draw(pipeline, image=str(tmp_path / "a.png"), strength=0.1)


def test_values_that_are_no_colours_are_refused(tmp_path: Path):
    broken = AltDiffusionPipeline.from_pretrained(tiny_pipeline_folder(tmp_path / "tiny"), device="cpu")
    torch.nn.init.constant_(broken.unet.conv_out.bias, torch.nan)
    with pytest.raises(
        BadRequest, match=r"^guidance_scale: 3 with dpm\+\+ in float32 gave values that are no colours"
    ):
        draw(broken)


def test_a_picture_too_large_for_the_memory_names_the_size(pipeline: AltDiffusionPipeline):
    def out_of_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = pipeline.unet.register_forward_pre_hook(out_of_memory)
    try:
        with pytest.raises(BadRequest, match=r"^size: 64x64 does not fit into the memory of cpu; lower size"):
            draw(pipeline)
    finally:
        handle.remove()
    assert draw(pipeline)[0].image.size == (64, 64)


def test_a_shortage_of_memory_leaves_no_later_picture_tiled(pipeline: AltDiffusionPipeline, monkeypatch):
    expected = draw(pipeline, width=96, height=96)[0].image.tobytes()
    with monkeypatch.context() as short:
        short.setattr(memory, "free_bytes", lambda device: 1)
        for _ in range(2):  # each says so
            with pytest.warns(UserWarning, match=r"^size: 96x96 is decoded in tiles, for lack of memory"):
                assert draw(pipeline, width=96, height=96)[0].image.tobytes() != expected
    assert draw(pipeline, width=96, height=96)[0].image.tobytes() == expected


@pytest.mark.parametrize("tag", SENTENCES)
def test_prompts_of_every_language_survive_drawing_and_saving(
    pipeline: AltDiffusionPipeline, tmp_path: Path, tag: str
):
    (picture,) = draw(pipeline, prompt=SENTENCES[tag], language=tag, steps=1)
    save_png(picture.image, tmp_path / "a.png", picture.provenance)
    assert read_provenance(tmp_path / "a.png") == picture.provenance
    assert picture.provenance.prompt == SENTENCES[tag]


def test_a_prompt_over_77_tokens_is_drawn_with_a_warning_that_quotes_the_rest(pipeline: AltDiffusionPipeline):
    with pytest.warns(UserWarning, match=r"^prompt: too long by \d+ tokens, left out: .*zebra"):
        draw(pipeline, prompt="a red lobster and a cat " * 20 + "zebra", steps=1)


def test_orders_of_one_key_share_a_batch_and_others_are_refused(pipeline: AltDiffusionPipeline):
    requests = [GenerateRequest.build(prompt=text, seed=7, steps=2) for text in ("a cat", "eine Katze", "猫")]
    orders = [prepare(pipeline, request) for request in requests]
    seen: list[Step] = []
    together = draw_together(pipeline, orders, seen.append, batch_size=2)
    assert [step.places for step in seen] == [((0, 0), (1, 0))] * 2 + [((2, 0),)] * 2
    assert [(step.done, step.of, len(step.latents)) for step in seen] == [
        (1, 4, 2), (2, 4, 2), (3, 4, 1), (4, 4, 1),
    ]  # fmt: skip
    for (picture,), request in zip(together, requests, strict=True):
        assert abs(values(picture) - values(generate(pipeline, request)[0])).max() <= 1
        assert picture.provenance.prompt == request.prompt
    other = prepare(pipeline, GenerateRequest.build(prompt="a cat", steps=3))
    with pytest.raises(ValueError, match=r"^orders: none, or of several keys"):
        draw_together(pipeline, [orders[0], other])


def test_a_mask_is_turned_as_its_picture_is(pipeline: AltDiffusionPipeline):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    stored: dict[str, Image.Image] = {}
    for name, mode in (("start", "RGB"), ("mask", "L")):
        upright, file = Image.new(mode, (64, 64)), io.BytesIO()
        upright.paste("white", (0, 0, 64, 32))
        upright.rotate(180).save(file, "PNG", exif=exif)
        stored[name] = Image.open(file)
    order = prepare(pipeline, GenerateRequest.build(prompt="a cat", strength=0.5), **stored)
    assert order.start is not None and order.mask is not None
    assert order.start.convert("L").tobytes() == order.mask.tobytes()
    assert order.mask.getbbox() == (0, 0, 64, 32)


def test_watching_changes_no_byte(pipeline: AltDiffusionPipeline):
    order = prepare(pipeline, GenerateRequest.build(prompt="a cat", seed=7, steps=4))
    (plain,), (watched,) = (draw_together(pipeline, [order], watch) for watch in (None, lambda step: None))
    assert plain[0].image.tobytes() == watched[0].image.tobytes()


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler", "heun", "dpm2", "unipc", "pndm"])
def test_a_step_shows_the_picture_that_the_model_expects(
    pipeline: AltDiffusionPipeline, scheduler: str, monkeypatch: pytest.MonkeyPatch
):
    """However noisy the latents still are: a model that knows one picture only shows it from the start."""
    wanted = torch.linspace(-1, 1, 16 * 16).reshape(1, 1, 16, 16).expand(1, 4, 16, 16)

    def towards_wanted(sample: torch.Tensor, timestep: torch.Tensor, **more: object) -> tuple[torch.Tensor]:
        kept = pipeline.scheduler.alphas_cumprod[round(float(timestep))]
        noise = (sample - kept.sqrt() * wanted) / (1 - kept).sqrt()
        return (kept.sqrt() * noise - (1 - kept).sqrt() * wanted,)

    monkeypatch.setattr(pipeline.unet, "forward", towards_wanted)
    request = GenerateRequest.build(prompt="a", seed=1, steps=4, scheduler=scheduler, guidance_scale=1.0)
    seen: list[Step] = []
    draw_together(pipeline, [prepare(pipeline, request)], seen.append)
    assert len(seen) >= 4
    for step in seen[1:-1]:  # the last ones are what is decoded, with what noise the scheduler leaves
        assert (step.latents - wanted).abs().max() < 0.05


def test_clip_skip_is_noted_and_refused_where_the_tower_has_too_few_layers(pipeline: AltDiffusionPipeline):
    (skipped,), (whole,) = draw(pipeline, clip_skip=1), draw(pipeline, clip_skip=0)
    assert skipped.image.tobytes() != whole.image.tobytes() == draw(pipeline)[0].image.tobytes()
    assert (skipped.provenance.clip_skip, whole.provenance.clip_skip) == (1, None)
    with pytest.raises(BadRequest, match=r"^clip_skip: 2; allowed 0 to 1 of the text tower's 2 layers"):
        draw(pipeline, clip_skip=2)


def test_marks_in_a_prompt_are_words_unless_they_are_asked_to_be_weights(pipeline: AltDiffusionPipeline):
    plain, marked = draw(pipeline, prompt="a red cat")[0], draw(pipeline, prompt="a (red:1.5) cat")[0]
    (weighted,) = draw(pipeline, prompt="a (red:1.5) cat", weighting=True)
    (unmarked,) = draw(pipeline, prompt="a red cat", weighting=True)
    assert len({picture.image.tobytes() for picture in (plain, marked, weighted)}) == 3
    assert unmarked.image.tobytes() == plain.image.tobytes()
    assert weighted.provenance.weighting is True
    assert marked.provenance.weighting is None


def test_a_start_picture_at_hand_draws_what_its_file_draws(pipeline: AltDiffusionPipeline, tmp_path: Path):
    start = Image.radial_gradient("L").convert("RGB")
    start.save(tmp_path / "a.png")
    (by_path,) = draw(pipeline, image=str(tmp_path / "a.png"), strength=0.5)
    request = GenerateRequest.build(prompt="a red lobster", seed=7, steps=2, strength=0.5)
    (at_hand,) = generate(pipeline, request, start=start)
    assert by_path.image.tobytes() == at_hand.image.tobytes()
    assert at_hand.provenance.image
