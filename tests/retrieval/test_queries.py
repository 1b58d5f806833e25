"""Queries and groups worked out by hand, and what filters may be asked."""

from datetime import datetime

import numpy as np
import pytest

from altdiffusion.requests import BadRequest
from altdiffusion.retrieval.queries import Frame, Part, alike, unit
from altdiffusion.retrieval.where import ANYWHERE, Where

IMAGE_MEAN = np.array([0.8, 0.0, 0.0])
TEXT_MEAN = np.array([0.0, 0.8, 0.0])
CAT_TEXT = np.array([0.0, 0.8, 0.6])
CAT_IMAGE = np.array([0.8, 0.0, 0.6])
DOG_IMAGE = np.array([0.8, 0.0, -0.6])
SKY_IMAGE = np.array([0.8, 0.6, 0.0])


@pytest.fixture
def frame() -> Frame:
    return Frame(IMAGE_MEAN, TEXT_MEAN)


def score(frame: Frame, query, image: np.ndarray) -> float:
    return float(query.vector @ frame.picture(image) + query.offset)


def test_one_text_or_picture_scores_by_its_cosine_whatever_the_frame():
    random = np.random.default_rng(0)
    for image_mean, text_mean in [
        random.standard_normal((2, 6)),
        np.zeros((2, 6)),
        np.ones((2, 6)),
        np.eye(2, 6),
    ]:
        frame = Frame(image_mean, text_mean)
        text, image, other = unit(random.standard_normal((3, 6)))
        assert score(frame, frame.query([Part(text, text_mean)]), image) == pytest.approx(
            text @ image, abs=1e-6
        )
        stored = frame.picture(np.stack([image, other]))
        assert frame.whole(stored)[0] @ frame.whole(stored)[1] == pytest.approx(image @ other, abs=1e-6)


def test_a_frame_turns_the_means_onto_the_first_axes():
    image_mean, text_mean = np.random.default_rng(1).standard_normal((2, 6))
    frame = Frame(image_mean, text_mean)
    assert np.abs(frame.query([Part(text_mean, text_mean)]).vector[1:]).max() < 1e-6
    assert np.abs(frame.query([Part(image_mean, text_mean)]).vector[2:]).max() < 1e-6


def test_a_weighted_sum_gives_either_kind_its_share(frame):
    """Without the means' removal the picture's part of the sum would be 0.64 + 0.36, the text's 0.36."""
    query = frame.query([Part(SKY_IMAGE, IMAGE_MEAN, 0.5), Part(CAT_TEXT, TEXT_MEAN, 0.5)])
    assert score(frame, query, SKY_IMAGE) == pytest.approx(score(frame, query, CAT_IMAGE), abs=1e-6)
    assert score(frame, query, SKY_IMAGE) == pytest.approx(0.6 * 0.5**0.5, abs=1e-6)
    more = frame.query([Part(SKY_IMAGE, IMAGE_MEAN, 0.7), Part(CAT_TEXT, TEXT_MEAN, 0.3)])
    assert score(frame, more, SKY_IMAGE) > score(frame, more, CAT_IMAGE)


def test_less_like_a_text_turns_away_from_it(frame):
    query = frame.query([Part(SKY_IMAGE, IMAGE_MEAN), Part(CAT_TEXT, TEXT_MEAN, -0.5)])
    scores = [score(frame, query, image) for image in (SKY_IMAGE, DOG_IMAGE, CAT_IMAGE)]
    assert scores[0] > scores[1] > 0 > scores[2]


def test_nothing_stays_nothing():
    assert unit(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0, 0], [0.6, 0.8]]


def test_groups_follow_the_best_of_them():
    vectors = unit(np.array([[1.0, 0.0], [0.0, 1.0], [0.99, 0.05], [0.05, 0.99], [0.7, 0.7]]))
    assert alike(vectors, list("abcde"), 0.98) == [[0, 2], [1, 3], [4]]
    assert alike(vectors, list("abcde"), None) == [[0], [1], [2], [3], [4]]
    assert alike(vectors, list("abcda"), None) == [[0, 4], [1], [2], [3]]
    assert alike(vectors[:0], [], 0.98) == []


def test_a_day_is_included_as_a_whole():
    where = Where.build(since="2024-05-31", until="2024-05-31")
    assert where.since == datetime(2024, 5, 31).timestamp()
    assert where.until == datetime(2024, 6, 1).timestamp()
    assert Where.build(until="2024-05-31T18:00+02:00").until == 1717171200


@pytest.mark.parametrize(
    ("text", "size"), [("5000", 5000), ("200k", 200_000), ("1.5M", 1_500_000), ("2 GB", 2_000_000_000)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert Where.build(smallest=text) == Where(smallest=size)


def test_the_whole_folder_is_no_filter():
    assert Where.build(path=".") == ANYWHERE
    assert Where.build(path="./a//").path == "a"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"path": ""}, r"^path: ''; allowed a folder inside the indexed one"),
        ({"path": "../secret"}, r"^path: '../secret'; allowed"),
        ({"path": "a\0"}, r"^path: 'a\\x00'; allowed"),
        ({"path": "raw\udcff"}, r"^path: 'raw\\udcff'; allowed"),
        ({"since": "yesterday"}, r"^since: 'yesterday'; allowed a date or a time"),
        ({"since": "9999999-01-01"}, r"^since: "),
        ({"until": "0001-01-01T00:00"}, r"^until: "),
        ({"smallest": "-1"}, r"^smallest: '-1'; allowed a number of bytes"),
        ({"largest": "1e999"}, r"^largest: '1e999'; allowed"),
        (
            {"since": "2024-05-31", "until": "2024-05-30"},
            r"^until: '2024-05-30' is before since, '2024-05-31'",
        ),
        ({"smallest": "2k", "largest": "1k"}, r"^largest: '1k' is below smallest, '2k'"),
    ],
)
def test_what_no_file_can_be_is_refused_by_name(asked, message):
    with pytest.raises(BadRequest, match=message):
        Where.build(**asked)
