"""The service without its widgets, on the tiny model: what is drawn, refused, found, told and given up."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from altdiffusion.generation import Picture, generate
from altdiffusion.images import save_png
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.requests import BadRequest, GenerateRequest
from altdiffusion.serving import Busy, Compared, Drawing, Drawn, Ranked, Service, Waiting
from tests.fakes import COVERED, SENTENCES
from tests.test_readme import ROOT, blocks


@pytest.fixture(scope="module")
def service(shared_pipeline: AltDiffusionPipeline) -> Iterator[Service]:
    with Service(shared_pipeline) as made:
        yield made


def asked(**fields: Any) -> GenerateRequest:
    return GenerateRequest.build(**{"prompt": "a red lobster", "seed": 7, "steps": 2, **fields})


def drawn(news: Iterator[Any]) -> tuple[Picture, ...]:
    last = list(news)[-1]
    assert isinstance(last, Drawn)
    return last.pictures


def alone(pipeline: AltDiffusionPipeline, request: GenerateRequest, **pictures: Any) -> list[bytes]:
    return [picture.image.tobytes() for picture in generate(pipeline, request, **pictures)]


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_drawing_tells_its_place_its_steps_and_its_pictures(service: Service):
    news = list(service.generate(asked(steps=6, count=2)))
    steps = [one for one in news if isinstance(one, Drawing)]
    assert news[0] == Waiting(0)
    assert [type(one) for one in news[1:]] == [Drawing] * len(steps) + [Drawn]
    assert all(one.steps == 6 for one in steps)  # two pictures in one batch
    assert steps[-1].step == 6
    assert steps[-1].seconds_left == 0
    assert len(steps[-1].pictures) == 2


def test_each_second_step_has_a_preview(service: Service):
    seen = {
        one.step: len(one.pictures) for one in service.generate(asked(steps=4)) if isinstance(one, Drawing)
    }
    assert all(pictures == (step % 2 == 0) for step, pictures in seen.items())
    assert {2, 4} <= seen.keys()


def test_sixteen_clients_get_what_each_would_get_alone(shared_pipeline: AltDiffusionPipeline):
    tags = list(SENTENCES)
    requests = [
        asked(prompt=SENTENCES[tags[n % 18]], seed=n, guidance_scale=float(n % 3 + 1), language=tags[n % 18])
        for n in range(16 * 3)
    ]
    expected = [alone(shared_pipeline, request) for request in requests]
    got: dict[int, list[bytes]] = {}
    with Service(shared_pipeline, max_waiting=16, batch=1) as service:

        def client(first: int) -> None:
            for number in range(first, len(requests), 16):
                pictures = drawn(service.generate(requests[number]))
                got[number] = [picture.image.tobytes() for picture in pictures]

        clients = [threading.Thread(target=client, args=(n,)) for n in range(16)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
    assert [got.get(number) for number in range(len(requests))] == expected


def test_joined_pictures_are_within_one_level_of_those_drawn_alone(shared_pipeline: AltDiffusionPipeline):
    """Not the same bytes: matrix products of four rows add up in another order than those of one, which puts
    some values on the other side of a rounding."""
    requests = [asked(prompt=text, seed=n) for n, text in enumerate(list(SENTENCES.values())[:8])]
    requests += [asked(seed=n, mix="eine rote Katze", mix_share=0.3) for n in range(2)]
    requests += [asked(prompt="a (red:1.4) cat", weighting=True), asked(clip_skip=1)]
    with Service(shared_pipeline, batch=4) as service:
        held = service.generate(asked(steps=100))
        until(lambda: service.health()["drawing"])
        news = [service.generate(request) for request in requests]
        held.close()
        pictures = [drawn(one)[0] for one in news]
        assert service.meters().count("altdiffusion_drawings_total 3\n") == 1
    for request, picture in zip(requests, pictures, strict=True):
        (serial,) = generate(shared_pipeline, request)
        difference = np.asarray(picture.image, np.int16) - np.asarray(serial.image, np.int16)
        assert abs(difference).max() <= 1
        assert picture.provenance == serial.provenance


def test_a_closed_drawing_leaves_the_model_idle_within_two_steps(service: Service):
    steps: list[int] = []
    between = service._thread.between

    def counted(members: Any) -> None:
        steps.append(1)
        between(members)

    service._thread.between = counted  # what the drawing calls after each step
    try:
        for number in range(20):
            news = service.generate(asked(steps=100))
            while not isinstance(next(news), Drawing):
                pass
            before = len(steps)
            if number % 2:
                news.close()
            else:
                del news
            until(lambda: not service.health()["drawing"])
            assert len(steps) - before <= 2
            closed = len(steps)
            time.sleep(0.01)
            assert len(steps) == closed
    finally:
        del service._thread.between


def test_a_full_queue_refuses_before_anything_is_drawn(shared_pipeline: AltDiffusionPipeline):
    with Service(shared_pipeline, max_waiting=2) as service:
        first = service.generate(asked(steps=100))
        until(lambda: service.health()["drawing"])
        waiting = [service.generate(asked(seed=seed)) for seed in range(2)]
        with pytest.raises(Busy, match="2 requests wait already; allowed 2"):
            service.generate(asked())
        assert service.health()["waiting"] == 2
        assert 'altdiffusion_refusals_total{reason="busy"} 1' in service.meters()
        first.close()
        assert all(drawn(one) for one in waiting)


def test_an_error_inside_a_step_reaches_who_asked_and_the_next_drawing_is_fine(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    def broken(latents: Any) -> list[Image.Image]:
        raise ZeroDivisionError("in a preview")

    with monkeypatch.context() as patch:
        patch.setattr(service, "_preview", broken)
        with pytest.raises(ZeroDivisionError, match="in a preview"):
            list(service.generate(asked()))
    assert drawn(service.generate(asked()))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"steps": 151}, "steps: 151; allowed here a whole number from 1 to 150"),
        ({"count": 17}, "count: 17; allowed here a whole number from 1 to 16"),
        ({"width": 1024, "height": 512}, "size: 1024x512 is too large here; allowed up to 262,144 pixels"),
        ({"image": "/etc/passwd"}, "image: a path is of no use here; allowed a picture (start)"),
        ({"clip_skip": 2}, "clip_skip: 2; allowed 0 to 1 of the text tower's 2 layers"),
        ({"strength": 0.5}, "strength: 0.5 is for image-to-image; give image as well"),
        (
            {"prompt": "a (cat:11)", "weighting": True},
            "prompt: 'a (cat:11)' has a weight of 11; allowed: 0 to 10",
        ),
    ],
)
def test_what_a_visitor_may_not_ask_for_is_refused_in_the_call_itself(
    service: Service, fields: dict[str, Any], line: str
):
    with pytest.raises(BadRequest) as refused:
        service.generate(asked(**fields))
    assert str(refused.value) == line
    assert not service.health()["waiting"]


def test_a_start_picture_and_a_mask_keep_what_is_not_marked(
    service: Service, shared_pipeline: AltDiffusionPipeline
):
    start = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    request = asked(strength=0.9, steps=4)
    (picture,) = drawn(service.generate(request, start=start, mask=mask))
    before, after = np.asarray(start), np.asarray(picture.image)
    assert (before[:, 32:] == after[:, 32:]).all()
    assert (before[:, :32] != after[:, :32]).any()
    assert picture.provenance.image
    assert picture.provenance.mask
    assert picture.provenance.strength == 0.9
    (whole,) = drawn(service.generate(request, start=start))
    assert [whole.image.tobytes()] == alone(shared_pipeline, request, start=start)
    assert whole.provenance.mask is None


@pytest.mark.parametrize("mask", [Image.new("L", (64, 64)), Image.new("RGB", (8, 8), "#222")])
def test_a_mask_needs_a_mark_and_a_picture(service: Service, mask: Image.Image):
    with pytest.raises(BadRequest, match=r"^mask: nothing is marked"):
        service.generate(asked(), start=Image.new("RGB", (64, 64)), mask=mask)
    with pytest.raises(BadRequest, match=r"^mask: given without a picture"):
        service.generate(asked(), mask=mask)


def test_a_mix_goes_from_one_prompt_to_the_other(service: Service):
    shares = {
        share: drawn(service.generate(asked(mix="eine Katze", mix_share=share)))[0]
        for share in (0.0, 0.5, 1.0)
    }
    (first,) = drawn(service.generate(asked()))
    (last,) = drawn(service.generate(asked(prompt="eine Katze")))
    assert shares[0.0].image.tobytes() == first.image.tobytes()
    assert shares[1.0].image.tobytes() == last.image.tobytes()
    assert shares[0.5].image.tobytes() not in (first.image.tobytes(), last.image.tobytes())
    made = shares[0.5].provenance
    assert (made.mix, made.mix_share) == ("eine Katze", 0.5)
    with pytest.raises(BadRequest, match=r"^mix_share: 2.0; allowed a number from 0 to 1"):
        service.generate(asked(mix="eine Katze", mix_share=2.0))


@pytest.mark.filterwarnings("ignore:prompt. too long by:UserWarning")
def test_a_picture_says_what_was_left_out_of_its_prompt(service: Service):
    long = "a red lobster beside a small blue boat " * 3 + "and a zebra"
    (picture,) = drawn(service.generate(asked(prompt=long, mix="eine Katze")))
    (line,) = picture.left_out
    assert re.match(r"prompt: too long by \d+ tokens, left out: .*and a zebra'$", line)
    assert drawn(service.generate(asked()))[0].left_out == ()


def test_languages_are_compared_from_one_seed_with_cosines_of_texts_and_pictures(service: Service):
    prompts = {tag: SENTENCES[tag] for tag in ("en", "zh", "ar")}
    last = list(service.compare(prompts, asked(seed=-1)))[-1]
    assert isinstance(last, Compared)
    assert list(last.pictures) == ["en", "zh", "ar"]
    assert len({picture.provenance.seed for picture in last.pictures.values()}) == 1
    assert last.pictures["zh"].provenance.prompt == SENTENCES["zh"]
    for cosines in (last.texts, last.images):
        assert np.shape(cosines) == (3, 3)
        assert np.allclose(np.diag(cosines), 1, atol=1e-5)
        assert np.allclose(cosines, np.transpose(cosines), atol=1e-6)
    assert last.grid.width > 128


def test_a_language_that_nobody_knows_is_refused_before_it_waits(service: Service):
    with pytest.raises(ValueError, match=r"^prompts: 'xx' is not known"):
        service.compare({"xx": "a"}, asked())
    with pytest.raises(BadRequest, match=r"^prompts: nothing given"):
        service.compare({}, asked())


def test_search_finds_emoji_by_text_and_by_picture_with_their_names(service: Service):
    found = service.search(SENTENCES["th"], k=5)
    assert len(found) == 5
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(one.picture.size == (64, 64) and len(one.names) == 18 for one in found)
    assert service.search(image=found[0].picture, k=1)[0].name == found[0].name
    with pytest.raises(BadRequest, match=r"^text: nothing to search for"):
        service.search("")
    with pytest.raises(BadRequest, match=r"^k: 101; allowed here a whole number from 1 to 100"):
        service.search("a", k=101)


def test_search_runs_over_an_index_where_one_is_given(
    shared_folder: Path, shared_pipeline: AltDiffusionPipeline, tmp_path: Path
):
    pytest.importorskip("qdrant_edge")
    from altdiffusion import ImageIndex

    (tmp_path / "pictures").mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (900, 600), colour).save(tmp_path / "pictures" / f"{colour}.png")
    ImageIndex.build(shared_pipeline.altclip, tmp_path / "pictures", tmp_path / "index").close()
    with Service.load(shared_folder, index=tmp_path / "index", device="cpu") as service:
        (tmp_path / "pictures" / "green.png").unlink()
        (found, *_rest) = service.search(image=Image.new("RGB", (64, 64), "red"), k=3)
        assert (found.caption, found.name, found.picture.size) == ("red", "red.png", (512, 341))
        assert {one.name for one in service.search("a", k=3)} <= {"red.png", "blue.png"}


def test_labels_are_ranked_and_languages_compared(service: Service):
    picture = Image.new("RGB", (64, 64), "red")
    ranked = service.classify(picture, ["a cat", "a dog", "ein Hummer"])
    assert isinstance(ranked, Ranked)
    assert sorted(ranked.labels) == ["a cat", "a dog", "ein Hummer"]
    assert sum(ranked.scores) == pytest.approx(1, abs=1e-4)
    ranked = service.classify(picture, {"en": ["a cat", "a dog"], "de": ["Katze", "Hund"]}, language="de")
    assert set(ranked.labels) == {"Katze", "Hund"}
    assert ranked.agreement["de"] == (ranked.labels[0], ranked.scores[0])
    assert ranked.agreement["en"][0] in ("a cat", "a dog")
    with pytest.raises(BadRequest, match=r"^labels: 101; allowed here"):
        service.classify(picture, [str(n) for n in range(101)])
    with pytest.raises(BadRequest, match=r"^templates: 'no place' has no place for the label"):
        service.classify(picture, ["a"], templates=["no place"])


def test_the_same_labels_are_encoded_once_and_the_cache_is_bounded(service: Service):
    for number in range(40):
        service.classify(Image.new("RGB", (8, 8)), [str(number)], templates=["{}"])
    assert len(service._classifiers) == 32
    kept = service._classifiers["en", ("39",), ("{}",)]
    service.classify(Image.new("RGB", (8, 8)), ["39"], templates=["{}"])
    assert service._classifiers["en", ("39",), ("{}",)] is kept


def test_an_encoder_call_runs_within_a_drawing_and_changes_no_byte_of_it(
    service: Service, shared_pipeline: AltDiffusionPipeline
):
    request = asked(steps=30)
    news = service.generate(request)
    while not isinstance(next(news), Drawing):
        pass
    service.classify(Image.new("RGB", (8, 8)), ["a cat", "a dog"])
    assert service.health()["drawing"] == 1
    assert [picture.image.tobytes() for picture in drawn(news)] == alone(shared_pipeline, request)


def test_the_names_of_an_emoji_are_known_in_the_other_languages(service: Service):
    assert service.versions_of("Lobster", ["de", "th", "xx"]) == {"de": "Hummer", "th": "กุ้งมังกร"}
    assert service.versions_of("龙虾", ["en"]) == service.versions_of("🦞", ["en"]) == {"en": "lobster"}
    assert service.versions_of("☕\ufe0f", ["en"]) == {"en": "hot beverage"}
    assert service.versions_of("no emoji at all", ["en"]) == {}


def test_a_picture_is_read_back(service: Service, tmp_path: Path):
    (picture,) = drawn(service.generate(asked(clip_skip=1, weighting=True, mix="eine Katze", mix_share=0.25)))
    save_png(picture.image, tmp_path / "a.png", picture.provenance)
    assert service.read(str(tmp_path / "a.png")) == picture.provenance
    assert service.read((tmp_path / "a.png").read_bytes()) == picture.provenance


def test_a_model_in_the_home_folder_is_told_by_its_own_name_and_with_its_card(
    shared_pipeline: AltDiffusionPipeline, shared_folder: Path, monkeypatch
):
    monkeypatch.setenv("HOME", str(shared_folder.parent))
    pipeline = AltDiffusionPipeline.from_pipe(shared_pipeline)
    pipeline._source = f"~/{shared_folder.name}"
    with Service(pipeline) as service:
        assert (service.info.name, service.info.covered) == (shared_folder.name, tuple(COVERED))


def test_the_widgets_are_told_what_the_model_can(service: Service):
    info = service.info
    assert info.generation_defaults.steps == 4
    assert info.languages == tuple(SENTENCES)
    assert info.covered == tuple(COVERED)
    assert info.has_search
    assert "dpm++" in info.schedulers


@pytest.mark.parametrize("requests", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_stays_flat(shared_pipeline: AltDiffusionPipeline, requests: int):
    psutil = pytest.importorskip("psutil")
    process, seen = psutil.Process(), []
    with Service(shared_pipeline) as service:
        for number in range(requests):
            news = service.generate(asked(steps=1, seed=number, prompt=f"a cat number {number}"))
            if number % 3:
                drawn(news)
            if number in (requests // 2, requests - 1):
                seen.append(process.memory_info().rss)
    assert seen[1] - seen[0] < 5e6


def test_the_modules_cost_no_heavy_import():
    import subprocess

    heavy = {"torch", "diffusers", "gradio", "starlette"}
    code = f"import sys, altdiffusion.serving; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.weights
def test_the_page_on_serving_is_right():
    names: dict[str, Any] = {}
    for code in blocks("python", ROOT / "docs/serving.md"):
        exec(compile(code, "docs/serving.md", "exec"), names)
    assert names["news"].pictures[0].image.size == (64, 64)
