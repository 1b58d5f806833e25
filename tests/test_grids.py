"""Grids of pictures with their languages' names."""

import warnings

import pytest
from PIL import Image

from altdiffusion import grids
from altdiffusion.grids import labelled_grid
from altdiffusion.languages import LANGUAGES

COLOURS = [(10 * number, 255 - 10 * number, 99) for number in range(18)]


@pytest.fixture(autouse=True)
def no_warning_about_fonts():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="labels: ")
        yield


def rows(pictures: int, languages: int = 18) -> list:
    squares = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
    return [
        (spoken, [square] * pictures)
        for spoken, square in zip(list(LANGUAGES.values())[:languages], squares[:languages], strict=True)
    ]


@pytest.mark.parametrize("pictures", [1, 3])
def test_every_picture_stands_in_the_grid_whole(pictures: int):
    counts = {colour: count for count, colour in labelled_grid(rows(pictures)).getcolors(1 << 20)}
    assert [counts[colour] for colour in COLOURS] == [64 * 48 * pictures] * 18


def test_single_pictures_are_wrapped_about_square_and_series_are_rows():
    wrapped, series = labelled_grid(rows(1)), labelled_grid(rows(2))
    assert 0.5 < wrapped.width / wrapped.height < 2
    assert series.height > 2 * series.width


def test_labels_are_drawn_even_without_any_font(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grids, "_font", lambda spoken, size: None)
    with pytest.warns(UserWarning, match=r"^labels: no font here for the names of en, zh, ja; in English"):
        grid = labelled_grid(rows(1, 3))
    assert grid.getpixel((0, 0)) == (255, 255, 255)
    assert len(grid.crop((0, 0, grid.width, 26)).getcolors(1 << 16)) > 5
