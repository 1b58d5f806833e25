"""Which captions are drawn, and what pictures that are known by heart are worth."""

import json
from pathlib import Path

import pytest

from altdiffusion.evaluation import captioned, generated
from altdiffusion.evaluation.datasets import Found, Picture, find
from altdiffusion.evaluation.generated_report import GenerationReport, summaries
from altdiffusion.evaluation.tasks import Features
from altdiffusion.requests import BadRequest
from tests import mini_data
from tests.test_evaluation import ColourClip


def found_in(root: Path) -> dict[str, Found]:
    by_tag: dict[str, Found] = {}
    for one in find(root, captioned.READERS, "retrieval"):
        by_tag |= dict.fromkeys(one.languages, one)
    return by_tag


def test_two_folders_of_one_data_set_share_pictures_and_first_captions(tmp_path: Path):
    mini_data.flickr30k(tmp_path)
    data = generated.parallel(found_in(tmp_path), ["zh"], 4)
    assert data.captions == {"zh": tuple(f"{name}0" for name in mini_data.COLOURS["zh"][:4])}
    assert data.english == tuple(f"{name} 0" for name in mini_data.COLOURS["en"][:4])
    assert [picture.file.name for picture in data.pictures] == [f"100{n}.jpg" for n in range(4)]


def test_only_pictures_with_a_caption_in_every_language_are_taken(tmp_path: Path):
    mini_data.clip_benchmark_json(tmp_path)
    file = tmp_path / "colours-de.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    kept = {"image_paths": content["image_paths"][2:4], "annotations": content["annotations"][2:4]}
    mini_data.write(file, kept)
    data = generated.parallel(found_in(tmp_path), ["en", "de"], None)
    assert data.captions == {"en": ("blue", "yellow"), "de": ("blau", "gelb")}
    mini_data.write(file, {name: values[:1] for name, values in kept.items()})
    with pytest.raises(BadRequest, match=r"^data: colours has 1 pictures with captions in en, de"):
        generated.parallel(found_in(tmp_path), ["en", "de"], None)


def test_pictures_of_one_name_in_two_folders_keep_their_own_captions(tmp_path: Path):
    for folder, number in (("a", 0), ("b", 1)):
        mini_data.save(tmp_path / folder / "1.jpg", number)
    for tag in ("en", "de"):
        content = {"image_paths": ["a/1.jpg", "b/1.jpg"], "annotations": mini_data.COLOURS[tag][:2]}
        mini_data.write(tmp_path / f"colours-{tag}.json", content)
    data = generated.parallel(found_in(tmp_path), ["en", "de"], None)
    assert data.captions == {"en": ("red", "green"), "de": ("rot", "grün")}
    assert [picture.file.parent.name for picture in data.pictures] == ["a", "b"]


def test_right_pictures_are_near_and_alike_and_wrong_ones_are_not(tmp_path: Path):
    """German is drawn as its captions say, Japanese with every picture exchanged for the next."""
    pytest.importorskip("torchmetrics")
    mini_data.clip_benchmark_json(tmp_path)
    data = generated.parallel(found_in(tmp_path), ["en", "de", "ja"], None)
    drawn = {"en": data.pictures, "de": data.pictures, "ja": (*data.pictures[1:], data.pictures[0])}
    en, de, ja = generated.scored(data, drawn, Features(ColourClip()))
    for one in (en, de):
        assert one.scores["CLIP-sim"] == one.scores["CLIP-sim of the data"]
        assert one.scores["consistency"].value == pytest.approx(1 / 2)
    assert ja.scores["CLIP-sim"].value < 0.1 < 0.9 < de.scores["CLIP-sim"].value
    assert ja.scores["consistency"].value == pytest.approx(0)
    # of 30 unlike couples of a right language 6 are one colour in Japanese; Japanese has those in both
    assert (en.chance, ja.chance) == (pytest.approx(6 / 60), pytest.approx(12 / 60))
    assert all(abs(one.distances["FD"]) < 1e-6 for one in (en, de, ja))  # the same pictures in another order
    assert len({one.data for one in (en, de, ja)}) == 3


def test_the_worst_of_a_distance_is_the_largest_and_of_a_similarity_the_smallest(tmp_path: Path):
    def outcome(tag: str, distance: float, value: float) -> generated.Generated:
        scores = {"CLIP-sim": generated.Score(value, value - 0.1, value + 0.1)}
        return generated.Generated(
            "set", tag, 9, scores, {"FD": distance, "KID": distance / 100}, 0.1, "0" * 64
        )

    outcomes = (outcome("en", 0.2, 0.5), outcome("zh", 0.4, 0.4), outcome("th", 0.3, 0.3))
    rows = {row.figure: row for row in summaries(outcomes)}
    assert (rows["FD"].worst, rows["CLIP-sim"].worst) == ("zh", "th")
    assert rows["FD"].worst_by_english == pytest.approx(2)
    assert rows["CLIP-sim"].mean_by_english == pytest.approx(0.4 / 0.5)
    text = GenerationReport(outcomes, {"command": "c"}).to_markdown()
    assert "| zh | 0.4000 | 4.00 | 0.4000 | 0.3000 to 0.5000 |" in text
    assert "- CLIP-sim over 3 languages: mean 0.4000, worst th 0.3000 (0.800 and 0.600 of English)\n" in text


def test_a_picture_that_cannot_be_written_is_a_line(tmp_path: Path, shared_pipeline):
    data = generated.Parallel("set", (Picture(tmp_path, "x"),), {"en": ("red",)}, None)
    wanted = generated.requests(data, "en", {"steps": "1"})
    (tmp_path / "00000.png").mkdir()
    with pytest.raises(BadRequest, match=r"^output: .* was not saved"):
        generated.draw(shared_pipeline, wanted, tmp_path, lambda number: None)
