"""Tasks, reports and the papers' figures: a model that knows colours gets every layout right."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from altdiffusion.evaluation import captioned, labelled, metrics, published, reports
from altdiffusion.evaluation.datasets import find
from altdiffusion.evaluation.metrics import Score
from altdiffusion.evaluation.tasks import Features, Outcome, run
from altdiffusion.model import AltCLIP
from tests import mini_data
from tests.mini_data import COLOURS

READERS = (*captioned.READERS, *labelled.READERS)


class ColourClip(AltCLIP):
    """Puts a picture and its colour's name, in any language, on the same axis; counts what it encodes."""

    fingerprint, dtype, device = "colours", torch.float32, torch.device("cpu")

    def __init__(self, fail_at: int | None = None) -> None:
        self.pictures = self.texts = 0
        self.fail_at = fail_at

    def encode_text(self, texts):
        self.texts += len(texts)
        rows = [
            [float(any(names[n] in text for names in COLOURS.values())) for n in range(6)] for text in texts
        ]
        return F.normalize(torch.tensor(rows) + 0.01, dim=-1)

    def encode_image(self, images):
        self.pictures += len(images)
        if self.fail_at is not None and self.pictures > self.fail_at:
            raise KeyboardInterrupt
        axes, pixels = (
            np.array([image.getpixel((0, 0)) for image in some], dtype=float)
            for some in ([mini_data.picture(n) for n in range(6)], images)
        )
        nearest = ((pixels[:, None] - axes) ** 2).sum(axis=-1).argmin(axis=1)
        return F.one_hot(torch.from_numpy(nearest), 6).float()


@pytest.mark.parametrize(
    ("make", "sets"),
    [
        (mini_data.flickr30k, {"flickr30k"}),
        (mini_data.coco, {"coco"}),
        (mini_data.xtd10, {"xtd10"}),
        (mini_data.crossmodal3600, {"crossmodal-3600"}),
        (mini_data.clip_benchmark_json, {"colours"}),
        (
            mini_data.imagenet,
            {"imagenet", "babel-imagenet", *(f"imagenet-{kind}" for kind in ("v2", "a", "r", "sketch"))},
        ),
        (mini_data.cifar, {"cifar10", "cifar100"}),
        (mini_data.webdataset, {"colours"}),
        (lambda root: mini_data.webdataset(root, "retrieval"), {"flickr8k"}),
    ],
)
def test_a_model_that_knows_colours_gets_everything_right(tmp_path, make, sets):
    make(tmp_path)
    found = find(tmp_path, READERS)
    assert {one.name for one in found} == sets
    features = Features(ColourClip())
    for one in found:
        for tag in one.languages:
            outcome = run(one, tag, features)
            assert {score.value for score in outcome.scores.values()} == {1.0}, (one.name, tag)
            assert outcome.pictures >= 3


def test_a_wrong_caption_is_a_miss(tmp_path):
    mini_data.clip_benchmark_json(tmp_path)
    file = tmp_path / "colours-en.json"
    content = json.loads(file.read_text())
    content["annotations"][1] = "blue"
    file.write_text(json.dumps(content))
    (found,) = find(tmp_path, READERS)
    scores = run(found, "en", Features(ColourClip())).scores
    assert scores["t2i@1"].value == pytest.approx(6 / 7)
    assert scores["i2t@1"].value < 1


def test_an_interrupted_run_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("altdiffusion.evaluation.tasks._STRETCH", 2)
    mini_data.crossmodal3600(tmp_path)
    (found,) = find(tmp_path, READERS)
    whole = run(found, "de", Features(ColourClip()))
    with pytest.raises(KeyboardInterrupt):
        run(found, "de", Features(ColourClip(fail_at=4), tmp_path / "parts"))
    again = ColourClip()
    assert run(found, "de", Features(again, tmp_path / "parts")) == whole
    assert (again.texts, again.pictures) == (0, 2)
    assert not [file for file in (tmp_path / "parts").iterdir() if file.suffix != ".npy"]
    other = ColourClip()
    other.fingerprint = "another"
    run(found, "de", Features(other, tmp_path / "parts"))
    assert (other.texts, other.pictures) == (12, 6)


def test_changed_pictures_are_encoded_anew(tmp_path):
    mini_data.crossmodal3600(tmp_path / "data")
    (found,) = find(tmp_path / "data", READERS)
    run(found, "en", Features(ColourClip(), tmp_path / "parts"))
    mini_data.picture(3).save(tmp_path / f"data/xm3600/images/{0:016x}.jpg")
    clip = ColourClip()
    assert run(found, "en", Features(clip, tmp_path / "parts")).scores["i2t@1"].value < 1
    assert (clip.texts, clip.pictures) == (0, 6)


def test_languages_share_the_pictures_features(tmp_path):
    mini_data.crossmodal3600(tmp_path)
    (found,) = find(tmp_path, READERS)
    clip = ColourClip()
    features = Features(clip)
    for tag in found.languages:
        run(found, tag, features)
    assert (clip.texts, clip.pictures) == (4 * 12, 6)


def test_a_picture_that_cannot_be_opened_stops_the_run_by_name(tmp_path):
    mini_data.webdataset(tmp_path)
    (found,) = find(tmp_path, READERS)
    data = found.read("en")
    file = data.pictures[0].file
    content = bytearray(file.read_bytes())
    content[data.pictures[0].start : data.pictures[0].start + 20] = bytes(20)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^data: .*0\.tar.*s0000000"):
        run(found, "en", Features(ColourClip()))


@pytest.mark.parametrize(
    "row",
    [row for row in published.rows() if row.model == "AltCLIP" and "MR" in row.scores],
    ids=lambda row: f"{row.data_set}-{row.language}",
)
def test_the_papers_mean_recalls_are_the_means_of_its_own_numbers(row):
    assert round(metrics.mean_recall(row.scores), 1) == row.scores["MR"]


def test_the_papers_rows_are_there_with_their_sources():
    rows = published.rows()
    assert sum(row.model == "AltCLIP" and "MR" in row.scores for row in rows) == 5
    assert all(row.source and row.scores for row in rows)
    assert all(0 < value <= 100 for row in rows for value in row.scores.values())
    assert {row.data_set for row in rows} <= set(published.where())
    chinese = [row.scores["top1"] for row in published.rows_for("imagenet-v2", "zh", ("AltCLIP",))]
    assert chinese == [54.0, 50.9]  # the paper's table and its page differ: both


def outcome(language: str, value: float, data_set: str = "flickr30k") -> Outcome:
    score = Score(value, value - 0.1, value + 0.1)
    scores = dict.fromkeys((*metrics.SIX, "MR"), score)
    return Outcome(data_set, language, "retrieval", 1000, 5000, scores, "digest")


def test_a_summary_has_the_mean_the_worst_and_their_share_of_english():
    (summary,) = reports.summaries([outcome("en", 0.8), outcome("zh", 0.6), outcome("de", 0.4)])
    assert (summary.worst, summary.languages, summary.figure) == ("de", 3, "MR")
    assert summary.mean == pytest.approx(0.6)
    assert summary.mean_by_english == pytest.approx(0.75)
    assert summary.worst_by_english == pytest.approx(0.5)
    assert reports.summaries([outcome("en", 0.8)]) == []
    (without,) = reports.summaries([outcome("zh", 0.6), outcome("de", 0.4)])
    assert without.mean_by_english is None


def test_a_report_shows_the_published_rows_beside_ours():
    report = reports.Report((outcome("en", 0.5), outcome("zh", 0.4)), {"model": "m", "versions": {"a": "1"}})
    text = report.to_markdown()
    assert "| en | this one | 50.0 |" in text
    assert "| en | AltCLIP, published (1) | 72.5 | 91.6 | 95.4 | 86.0 | 98.0 | 99.1 | 90.4 | |" in text
    assert "mean 45.0, worst zh 40.0 (0.900 and 0.800 of English)" in text
    content = json.loads(json.dumps(report.to_dict()))
    assert content["results"][1]["published"][0]["scores"]["MR"] == 89.2
    assert content["summary"][0]["worst"] == "zh"
