"""Data in every form: what is read, what is refused, what is skipped and named."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Translation, Value, config

from tests.training import data_files
from training.multilingual import (
    LanguageOrder,
    SourceConfig,
    caption_reader,
    drawn_from,
    survey,
    wanted_languages,
)
from training.order import Mixed, Shuffled
from training.samples import Bad, BadSample
from training.sources import open_rows, open_stream

PLAIN = SourceConfig()
CAT = {"en": ("a cat",)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"captions": {"en": "a cat", "zh-TW": "貓", "de": None}}, CAT | {"zh": ("貓",)}),
        ({"captions": {"en": ["a cat", "one cat"]}}, {"en": ("a cat", "one cat")}),
        (
            {"captions": [{"lang": "en", "text": "a cat"}, {"language": "TH", "text": "แมว"}]},
            CAT | {"th": ("แมว",)},
        ),
        ({"caption_en": "a cat", "caption_pt_BR": "um gato", "url": "x"}, CAT | {"pt": ("um gato",)}),
        ({"caption": "a cat", "id": "7"}, CAT),
        ({"text": "eine Katze", "language": "de"}, {"de": ("eine Katze",)}),
        ({"en": "a cat", "fr": "un chat", "id": "7"}, CAT | {"fr": ("un chat",)}),
        ({"translation": {"en": "a cat", "fr": "un chat"}}, CAT | {"fr": ("un chat",)}),
        ({"json": {"caption": "a cat", "key": "x", "url": "y"}, "txt": "no"}, CAT),
        ({"json": {"key": "x1", "url": "y"}, "txt": "a cat"}, CAT),
        ({"caption": "  "}, {}),
    ],
)
def test_captions_are_read_in_every_form(row, expected):
    assert caption_reader(tuple(row), PLAIN)(row) == expected


def test_a_column_that_is_not_there_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"^caption_column: no 'title'; allowed: image, caption$"):
        caption_reader(("image", "caption"), SourceConfig(caption_column="title"))
    with pytest.raises(ValueError, match=r"^caption_column: none found; allowed: a, b$"):
        caption_reader(("a", "b"), PLAIN)


@pytest.mark.parametrize("name", ["parallel.tsv", "parallel.jsonl", "parallel.parquet", "disk"])
def test_parallel_text_is_the_same_from_every_file(tmp_path, name):
    rows = [{"en": 'a 6" nail', "de": "NA"}, {"en": "two", "de": "zwei"}]
    path = tmp_path / name
    if name == "parallel.tsv":
        lines = ["\t".join(row.values()) for row in rows]
        path.write_text("\n".join(["en\tde", *lines]) + "\n", encoding="utf-8")
    elif name == "parallel.jsonl":
        data_files.write_lines(path, rows)
    elif name == "parallel.parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    read = open_rows(str(path))
    assert [read[n] for n in range(len(read))] == rows and read.columns == ("en", "de")


def test_a_translation_column_of_parquet_is_parallel_text(tmp_path):
    features = Features({"translation": Translation(["en", "fr"])})
    Dataset.from_list([{"translation": {"en": "a cat", "fr": "un chat"}}], features).to_parquet(
        tmp_path / "a.parquet"
    )
    rows = open_rows(str(tmp_path))
    assert caption_reader(rows.columns, PLAIN)(rows[0]) == CAT | {"fr": ("un chat",)}


def test_broken_lines_are_skipped_counted_and_named(tmp_path):
    good = [{"en": f"text {n}", "de": f"Text {n}"} for n in range(7)]
    path = data_files.write_lines(tmp_path / "p.jsonl", ['{"en": "cut', *good, "[1]", {"de": "ohne"}])
    rows = open_rows(str(path))
    read = caption_reader(rows.columns, PLAIN)
    found = survey(rows, read, {"": 1.0}, 0.3, needed="en")
    assert found.bad.count == 3 and len(found.usable) == 7
    for line, reason in ((1, "no JSON"), (9, "no JSON object"), (10, "no text in 'en'")):
        assert any(f"p.jsonl line {line} " in name and reason in name for name in found.bad.named)
    with pytest.raises(
        ValueError, match=r"^data: 3 of 10 samples cannot be used, more than the share of 0.2"
    ):
        survey(rows, read, {"": 1.0}, 0.2, needed="en")


def test_a_tsv_line_with_a_tab_too_many_is_named(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text("en\tde\none\teins\ntwo\tzwei\tdrei\n", encoding="utf-8")
    rows = open_rows(str(path))
    with pytest.raises(BadSample, match="has 3 columns, the header 2"):
        rows[1]
    assert rows.name(1) == "p.tsv line 3"


def test_no_caption_in_a_wanted_language_is_refused(tmp_path):
    path = data_files.write_lines(tmp_path / "p.jsonl", [{"en": "a cat", "de": "eine Katze"}])
    rows = open_rows(str(path))
    with pytest.raises(ValueError, match=r"^languages: none of the 1 samples has a text in th$"):
        survey(rows, caption_reader(rows.columns, PLAIN), wanted_languages(PLAIN, ("th",)), 0.0)


@pytest.mark.parametrize(
    "name, message",
    [
        ("./nothing", r"^data: no file or folder \./nothing$"),
        ("nothing.jsonl", r"^data: no file or folder nothing\.jsonl$"),
        ("empty.jsonl", r"empty\.jsonl is empty$"),
        ("folder", r"holds no data; allowed: metadata\.jsonl"),
        ("notes.txt", r"notes\.txt is no file of a known kind; allowed: \.jsonl, \.tsv, \.tar, \.parquet$"),
        ("bad.parquet", r"^data: .*bad\.parquet cannot be read: "),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("empty.jsonl").touch()
    Path("notes.txt").write_text("hello")
    Path("bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=message) as caught:
        open_rows(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_refused_with_the_choices(tmp_path):
    DatasetDict({"train": Dataset.from_list([{"en": "a"}])}).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match=r"^split: .* has no 'test'; allowed: train$"):
        open_rows(str(tmp_path / "d"), "test")


def test_tars_keep_captions_in_languages_that_come_late(tmp_path):
    """`datasets` alone takes the languages from the first five samples and drops all others."""
    folder = str(data_files.tar_shards(tmp_path / "tars"))
    rows = open_rows(folder)
    read = caption_reader(rows.columns, PLAIN)
    expected = [{tag: (text,) for tag, text in data_files.captions(n).items()} for n in range(12)]
    assert [read(rows[n]) for n in range(len(rows))] == expected
    assert [read(row) for row in open_stream(folder, "train", "")] == expected


def test_pictures_stay_undecoded(tmp_path):
    features = Features({"image": Image(), "caption": Value("string")})
    rows = [{"image": {"bytes": b"no picture", "path": None}, "caption": "x"}]
    Dataset.from_list(rows, features).to_parquet(tmp_path / "a.parquet")
    read = open_rows(str(tmp_path / "a.parquet"))
    assert read[0]["image"]["bytes"] == b"no picture"
    assert read.without_pictures().columns == ("caption",)


def test_each_round_of_a_shuffle_holds_everything_once():
    order = Shuffled(7, 3)
    rounds = [[order[7 * n + place] for place in range(7)] for n in range(3)]
    assert all(sorted(one) == list(range(7)) for one in rounds) and rounds[0] != rounds[1]


def test_a_mix_keeps_its_shares_and_counts_each_kind_on():
    order = Mixed([6.5, 3.0, 0.5], 1, 0)
    drawn = [order[n] for n in range(1000)]
    counts = [sum(kind == k for kind, _ in drawn) for k in range(3)]
    assert counts == [650, 300, 50]
    for k in range(3):
        assert sorted(place for kind, place in drawn if kind == k) == list(range(counts[k]))
    assert [Mixed([6.5, 3.0, 0.5], 1, 0)[n] for n in (999, 17, 500)] == [drawn[n] for n in (999, 17, 500)]


def test_a_kind_smaller_than_a_batch_still_comes_in_its_share():
    order = Mixed([30.0, 2.0], 8, 0)
    kinds = [order[n][0] for n in range(160)]
    assert kinds.count(1) == 10


@pytest.mark.parametrize("temperature, share", [(1.0, 0.9), (2.0, 0.75), (1e6, 0.5)])
def test_temperature_evens_the_languages_out(tmp_path, temperature, share):
    rows = [{"captions": {"en" if n < 90 else "de": f"text {n}"}} for n in range(100)]
    read = open_rows(str(data_files.write_lines(tmp_path / "p.jsonl", rows)))
    found = survey(read, caption_reader(read.columns, PLAIN), {"": 1.0}, 0.0)
    order = LanguageOrder(found, temperature, None, 0)
    tags = [order[n][0] for n in range(1000)]
    assert abs(tags.count("en") / 1000 - share) < 0.01


def test_weights_scale_languages_and_zero_leaves_one_out(tmp_path):
    rows = [{"captions": {"en": "a", "de": "b", "fr": "c"}} for _ in range(10)]
    read = open_rows(str(data_files.write_lines(tmp_path / "p.jsonl", rows)))
    wanted = wanted_languages(SourceConfig(language_weights=("de=3", "fr=0")), ())
    found = survey(read, caption_reader(read.columns, PLAIN), wanted, 0.0)
    order = LanguageOrder(found, 1.0, None, 0)
    tags = [order[n][0] for n in range(400)]
    assert (tags.count("en"), tags.count("de"), tags.count("fr")) == (100, 300, 0)
    drawn = [drawn_from({"en": ("a",), "fr": ("c",)}, wanted, np.random.default_rng(n)) for n in range(20)]
    assert set(drawn) == {"en"}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"language_weights": ("zh",)}, r"^language_weights: 'zh'; allowed: tag=number"),
        ({"language_weights": ("zh=-1",)}, r"^language_weights: 'zh=-1'"),
        ({"temperature": 0.0}, r"^temperature: 0.0; allowed: above 0"),
        ({"temperature": 2.0, "streaming": True}, r"^temperature: 2.0 needs counts"),
        ({"max_bad_share": 1.0}, r"^max_bad_share: 1.0; allowed"),
        ({"shuffle_buffer": 0}, r"^shuffle_buffer: 0; allowed"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig(**fields)


def test_a_stream_is_judged_as_if_it_had_a_thousand_samples():
    bad = Bad(0.01, 1000, seen=50)
    for n in range(10):
        bad.add(f"s{n}", "cut")
    with pytest.raises(ValueError, match=r"^data: 11 of 1000 samples"):
        bad.add("s10", "cut")
    assert len(bad.named) == 10
