"""The emoji's names as parallel text: what is in the files, and what is kept out of them."""

import json
import subprocess
import sys

import pytest

from training.captions import Captions
from training.emoji import load_emoji
from training.emoji_text import EmojiTextConfig, with_languages, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    write(EmojiTextConfig(languages=("el",), output_dir=place, scenes=50))
    return place


def rows(folder, name):
    return [json.loads(line)["captions"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_every_emoji_has_its_names_in_19_languages_but_those_held_out(folder):
    emoji = load_emoji()
    found, captions = rows(folder, "names"), Captions(emoji)
    assert [row["en"] for row in found] == [[emoji.names["en"][c]] for c in emoji.characters]
    assert set().union(*found) == {*emoji.names, "el"}
    for c, row in zip(emoji.characters, found, strict=True):
        assert set(row) == {tag for tag in (*emoji.names, "el") if not captions.unseen_name(tag, c)}
    greek = dict(zip(emoji.characters, found, strict=True))
    assert greek["🐱"]["el"] == ["πρόσωπο γάτας"]


def test_what_is_held_out_is_in_no_record(folder):
    emoji = with_languages(load_emoji(), "el")
    captions, found = Captions(emoji), rows(folder, "parallel")
    for tag in ("el", "de"):
        seen = {name for c, name in emoji.names[tag].items() if not captions.unseen_name(tag, c)}
        words = {word for c in emoji.characters for word in captions.seen_keywords(tag, c)}
        unseen = {name for c, name in emoji.names[tag].items() if captions.unseen_name(tag, c)}
        texts = {text for row in found for text in row.get(tag, ())}
        assert seen <= texts
        assert not (unseen - seen - words) & texts
    assert all("en" in row for row in found)


def test_scenes_are_joined_by_the_languages_own_pattern(folder):
    scenes = rows(folder, "parallel")[-50:]
    greek = [row["el"][0] for row in scenes if "el" in row]
    assert sum(" και " in text for text in greek) > 30  # the others have one emoji, for a pair held out


def test_a_language_that_cldr_has_not_is_refused():
    with pytest.raises(ValueError, match=r"^languages: 'xx'; allowed: a language of CLDR's, like 'el'$"):
        with_languages(load_emoji(), "xx")


def test_the_command_of_the_docs_writes_both_files_and_names_a_mistake(tmp_path):
    command = [sys.executable, "-m", "training.emoji_text", "--scenes", "5", "--output-dir", str(tmp_path)]
    done = subprocess.run([*command, "--languages", "el"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"parallel.jsonl", "names.jsonl"}
    wrong = subprocess.run([*command, "--languages", "xx"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == ["languages: 'xx'; allowed: a language of CLDR's, like 'el'"]
