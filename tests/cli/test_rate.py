"""Rating pages and their results."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from altdiffusion.evaluation import rating
from altdiffusion.images import open_image, save_png
from altdiffusion.requests import BadRequest, Provenance
from tests.cli.conftest import Run

TEXTS = {"en": "red </script><b>", "ar": "أحمر"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Model A draws everything red, B everything blue; B lacks the last picture."""
    found = []
    for model, colour, numbers in (("first", "red", 3), ("second", "blue", 2)):
        for tag, text in TEXTS.items():
            (tmp_path / model / tag).mkdir(parents=True)
            for n in range(numbers):
                made = Provenance(
                    prompt=text,
                    seed=n,
                    steps=20,
                    guidance_scale=3.0,
                    language=tag,
                    model=model,
                    fingerprint=model * 9,
                )
                save_png(Image.new("RGB", (8, 8), colour), tmp_path / model / tag / f"{n:05}.png", made)
        Image.new("RGB", (9, 9)).save(tmp_path / model / "grid.png")
        found.append(tmp_path / model)
    return found[0], found[1]


def key_of(folder: Path) -> dict:
    return json.loads((folder / "key.json").read_text(encoding="utf-8"))


def answers(folder: Path, says: dict[str, str], name: str, rater: str = "R") -> Path:
    """A rater who says of each language that this model is better ("a", "b"), or "same"."""
    key = key_of(folder)
    sides = {
        pair["id"]: "same"
        if says[pair["language"]] == "same"
        else ("left" if pair["left"] == says[pair["language"]] else "right")
        for pair in key["pairs"]
        if pair["language"] in says
    }
    file = folder.parent / name
    file.write_text(json.dumps({"page": key["page"], "rater": rater, "answers": sides}), encoding="utf-8")
    return file


def test_a_page_shows_the_pairs_without_the_models_names_or_a_network(folders, tmp_path: Path):
    page = rating.make(*folders, tmp_path / "rate", 20)
    assert page == tmp_path / "rate/page/index.html"
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|first|second", text)
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data, key = json.loads(found[1]), key_of(tmp_path / "rate")
    assert data["page"] == key["page"] and len(data["pairs"]) == 4
    assert {pair["prompt"] for pair in data["pairs"]} == set(TEXTS.values())
    assert {pair["direction"] for pair in data["pairs"] if pair["language"] == "ar"} == {"rtl"}
    assert sorted(pair["left"] for pair in key["pairs"]) == ["a", "a", "b", "b"] and '"left"' not in found[1]
    colours = {"a": (255, 0, 0), "b": (0, 0, 255)}
    for pair in key["pairs"]:
        for side in ("left", "right"):
            file = tmp_path / f"rate/page/pictures/{pair['id']}-{side}.png"
            model = pair["left"] if side == "left" else {"a": "b", "b": "a"}[pair["left"]]
            assert open_image(file).getpixel((0, 0)) == colours[model]
            assert b"first" not in file.read_bytes() and b"second" not in file.read_bytes()
    assert [path.name for path in tmp_path.glob(".*")] == []


#: Answers by key and by click, goes back, runs past the end, types where keys mean letters, and saves.
DRIVER = """<script>
const press = (key, where = document) =>
  where.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"].forEach(key => press(key));
at("left").click();
at("right").click();
press("ArrowLeft");
at("rater").value = "Zoë / 1";
at("rater").dispatchEvent(new Event("input"));
press("ArrowUp", at("rater"));
HTMLAnchorElement.prototype.click = function () {
  fetch(this.href).then(file => file.text()).then(text => {
    document.body.insertAdjacentHTML("beforeend", "<pre id=saved></pre><p id=name></p>");
    at("saved").textContent = text;
    at("name").textContent = this.download;
  });
};
at("save").click();
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_and_saves_the_answers(folders, tmp_path: Path):
    page = rating.make(*folders, tmp_path / "rate", 20)
    with page.open("a", encoding="utf-8") as stream:
        stream.write(DRIVER)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        ["chromium", *flags, profile, page.as_uri()], capture_output=True, encoding="utf-8", timeout=120
    )
    saved = re.search(r'<pre id="saved">(.*?)</pre><p id="name">(.*?)</p>', done.stdout, re.DOTALL)
    assert saved is not None, done.stderr
    assert saved[2] == "ratings-Zoë-1.json"
    file = tmp_path / "1.json"
    file.write_text(saved[1], encoding="utf-8")
    content = json.loads(saved[1])
    assert content["rater"] == "Zoë / 1"
    assert content["answers"] == {"00000": "right", "00001": "same", "00002": "left", "00003": "right"}
    assert rating.read(tmp_path / "rate", [file]).rows[-1].answers == 4
    assert "That was the last one" in done.stdout and not re.search(r'id="done" hidden', done.stdout)


def test_the_number_of_pairs_is_of_each_language(folders, tmp_path: Path):
    rating.make(*folders, tmp_path / "rate", 1)
    assert sorted(pair["language"] for pair in key_of(tmp_path / "rate")["pairs"]) == ["ar", "en"]


def test_results_are_counted_by_model_whatever_the_side(folders, tmp_path: Path):
    rating.make(*folders, tmp_path / "rate", 20)
    files = [
        answers(tmp_path / "rate", {"en": "a", "ar": "same"}, "1.json"),
        answers(tmp_path / "rate", {"en": "a", "ar": "b"}, "2.json"),
        answers(tmp_path / "rate", {"en": "b"}, "3.json"),
    ]
    report = rating.read(tmp_path / "rate", files)
    rows = {row.language: row for row in report.rows}
    assert report.raters == 3
    assert (rows["en"].a, rows["en"].b, rows["en"].same, rows["en"].answers) == (4, 2, 0, 6)
    assert (rows["ar"].a, rows["ar"].b, rows["ar"].same) == (0, 2, 2)
    assert rows["en"].share == pytest.approx(2 / 3)
    assert rows["ar"].share == pytest.approx(1 / 4)
    assert rows["all"].share == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert rows["all"].pairs == 4 and rows["all"].low < rows["all"].share < rows["all"].high
    # of each pair in en one of three couples of raters agrees, of each in ar none of one
    assert report.agreement == pytest.approx(2 / (2 * 3 + 2 * 1))
    assert "| all | 4 | 10 | 4 | 4 | 2 | 45.8 |" in report.to_markdown()
    assert "A: first (firstfirstfi), 20 steps, guidance 3.0\n" in report.to_markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": "other"}, "is of another page"),
        ({"answers": {"99999": "left"}}, "which is no pair here"),
        ({"answers": {"00000": "a"}}, "is no ratings file"),
        ({"answers": {}}, "no answers"),
    ],
)
def test_strange_files_are_refused_in_a_line(folders, tmp_path: Path, change: dict, message: str):
    rating.make(*folders, tmp_path / "rate", 20)
    file = answers(tmp_path / "rate", {"en": "a"}, "1.json")
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(BadRequest, match=message) as refused:
        rating.read(tmp_path / "rate", [file])
    assert str(refused.value).startswith("paths: ") and "\n" not in str(refused.value)


def test_one_file_twice_is_refused(folders, tmp_path: Path):
    rating.make(*folders, tmp_path / "rate", 20)
    file = answers(tmp_path / "rate", {"en": "a"}, "1.json")
    with pytest.raises(BadRequest, match="the same answers"):
        rating.read(tmp_path / "rate", [file, file])


def test_pictures_of_different_texts_are_refused(folders, tmp_path: Path):
    made = Provenance(prompt="green", seed=0, language="en")
    save_png(Image.new("RGB", (8, 8)), folders[1] / "en/00000.png", made, overwrite=True)
    with pytest.raises(BadRequest, match="another text or seed"):
        rating.make(*folders, tmp_path / "rate", 20)
    assert not (tmp_path / "rate").exists()


def test_the_command_makes_and_reads(run: Run, folders, tmp_path: Path):
    code, out, _ = run("rate", "page", "first", "second", "-o", "rate", "--pictures", "2")
    assert (code, out) == (0, "rate/page/index.html\n")
    file = answers(tmp_path / "rate", {"en": "a", "ar": "a"}, "1.json")
    code, out, _ = run("rate", "results", "rate", file.name, "--json")
    assert code == 0
    assert json.loads(out)["rows"][-1]["a"] == 4
    assert json.loads(out) == json.loads(
        json.dumps(dataclasses.asdict(rating.read(tmp_path / "rate", [file])))
    )
    for name, *more in [
        ("output", "page", "first", "second"),
        ("output", "page", "first", "second", "-o", "rate"),
        ("paths", "page", "first", "-o", "x"),
        ("paths", "page", "first", "none", "-o", "x"),
        ("pictures", "page", "first", "second", "-o", "x", "--pictures", "0"),
        ("paths", "results", "rate"),
        ("paths", "results", "rate", "none.json"),
        ("paths", "results", "first", "1.json"),
    ]:
        code, out, err = run("rate", *more)
        assert (code, out) == (2, "") and err.startswith(f"{name}: ") and err.count("\n") == 1, more
