"""Opening pictures of unknown origin; saving with notes, safe names and nothing overwritten."""

import io
import os
import random
import struct
import time
import unicodedata
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from altdiffusion import images
from altdiffusion.images import (
    ImageError,
    destination,
    file_stem,
    open_image,
    parameters_text,
    parse_parameters,
    read_provenance,
    save_numbered,
    save_png,
)
from altdiffusion.requests import BadRequest, Provenance, clean_text
from tests.fakes import SENTENCES

MADE = Provenance(
    prompt="a lobster, red: very",
    negative_prompt="blue",
    seed=2**64 - 1,
    steps=20,
    scheduler="dpm++",
    guidance_scale=3.5,
    width=64,
    height=96,
    model="bundled",
    fingerprint="0123456789abcdef",
    versions={"altdiffusion": "0.1.0"},
)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def gradient() -> Image.Image:
    return Image.linear_gradient("L").resize((32, 24)).convert("RGB")


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data does not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_five_formats_open_as_rgb(form: str):
    image = open_image(encoded(gradient(), form))
    assert (image.mode, image.size) == ("RGB", (32, 24))


@pytest.mark.parametrize("form", ["TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(form: str):
    with pytest.raises(ImageError, match=r"^image: picture of .* is not a picture; allowed PNG, JPEG"):
        open_image(encoded(gradient(), form))


def test_sixteen_bits_are_scaled_and_not_clipped():
    image = open_image(encoded(Image.new("I;16", (4, 4), 32896)))
    assert image.getpixel((0, 0)) == (128, 128, 128)
    assert open_image(encoded(Image.new("I;16", (4, 4), 65535))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert open_image(encoded(image, **options)).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparency_is_half_white():
    image = open_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))))
    assert image.getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(gradient(), "JPEG", exif=exif))
    assert image.size == ((32, 24) if orientation < 5 else (24, 32))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str):
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert open_image(encoded(gradient().convert(mode), form)).mode == "RGB"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(gradient())[:60],
        encoded(gradient(), "JPEG")[:300],
        png_of(20_000, 20_000),
        png_of(12_000, 12_000),
        png_of(30_000, 1),
        png_of(0, 5),
        png_of(64, 64),
    ],
    ids=["empty", "text", "svg", "cut PNG", "cut JPEG", "bomb", "144 MP", "thread", "no width", "no data"],
)
def test_damage_and_bombs_are_refused_in_one_line_and_at_once(data: bytes, tmp_path: Path):
    file = tmp_path / "picture.png"
    file.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(ImageError, match=r"^image: .*picture\.png") as refusal:
        open_image(file)
    assert time.perf_counter() - start < 1
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_flipped_bytes_give_a_picture_or_an_image_error():
    flips = random.Random(0)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = encoded(gradient(), form)
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(3):
                data[flips.randrange(len(data))] = flips.randrange(256)
            try:
                assert open_image(bytes(data)).mode == "RGB"
            except ImageError as refusal:
                assert str(refusal).startswith("image: ")


def test_addresses_folders_pipes_and_missing_files_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for source, cause in {
        "http://localhost/a.png": "is an address",
        "file:///a.png": "is an address",
        str(tmp_path): "is not a file",
        str(tmp_path / "pipe"): "is not a file",
        str(tmp_path / "none.png"): "no file",
        "a\0b.png": "",
        "n" * 5000: "",
    }.items():
        with pytest.raises(ImageError, match=f"^image: .*{cause}"):
            open_image(source)


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_notes_in_every_script_come_back_exactly(sentence: str, tmp_path: Path):
    made = Provenance(clean_text(sentence), negative_prompt="🦞\u200d❤️", seed=7, steps=20)
    save_png(gradient(), tmp_path / "a.png", made)
    assert read_provenance(tmp_path / "a.png") == made


def test_the_note_is_the_text_that_other_programs_read(tmp_path: Path):
    save_png(gradient(), tmp_path / "a.png", MADE)
    with Image.open(tmp_path / "a.png") as image:
        texts = image.text
    assert texts["parameters"] == (
        "a lobster, red: very\nNegative prompt: blue\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 3.5, "
        'Seed: 18446744073709551615, Size: 64x96, Model hash: 0123456789, Model: "bundled", '
        "Version: altdiffusion 0.1.0"
    )
    assert "digitalsourcetype/trainedAlgorithmicMedia" in texts["XML:com.adobe.xmp"]


def test_a_foreign_note_is_read_as_far_as_it_goes():
    made = parse_parameters(
        "a cat\nin a hat\nNegative prompt: dog\nSteps: 30, Sampler: Euler a, Schedule type: Automatic, "
        'CFG scale: 7, Seed: 5, Size: 512x768, Model hash: abc, Model: sd, Hashes: "x: 1, y: 2", Version: v1'
    )
    assert made == Provenance(
        "a cat in a hat",
        "dog",
        seed=5,
        steps=30,
        scheduler="euler-a",
        guidance_scale=7.0,
        width=512,
        height=768,
        model="sd",
        fingerprint="abc",
    )
    assert parse_parameters("a cat\nSteps: 20, Clip skip: 2, Seed: 1").clip_skip == 1
    assert parse_parameters("a cat\nSteps: 20, Clip skip: 1, Seed: 1").clip_skip is None
    assert parse_parameters("just a prompt, with: colons") == Provenance("just a prompt, with: colons")


def test_our_own_text_is_read_like_a_foreign_one():
    made = parse_parameters(parameters_text(MADE))
    assert (made.prompt, made.seed, made.scheduler, made.model) == (
        MADE.prompt,
        MADE.seed,
        MADE.scheduler,
        MADE.model,
    )


def test_a_picture_without_a_note_says_so(tmp_path: Path):
    gradient().save(tmp_path / "plain.png")
    with pytest.raises(ImageError, match=r"^from: .*plain\.png' does not say how it was made"):
        read_provenance(tmp_path / "plain.png", "from")


def test_a_forged_note_is_an_image_error(tmp_path: Path):
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("altdiffusion", '{"prompt": 3}')
    gradient().save(tmp_path / "forged.png", pnginfo=chunks)
    with pytest.raises(ImageError, match=r"^picture: the note in .*forged\.png' cannot be used"):
        read_provenance(tmp_path / "forged.png")


def test_nothing_is_overwritten_unless_asked(tmp_path: Path):
    file = tmp_path / "a.png"
    file.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        save_png(gradient(), file)
    assert file.read_bytes() == b"old"
    assert save_numbered(gradient(), file) == tmp_path / "a-2.png"
    assert save_numbered(gradient(), file) == tmp_path / "a-3.png"
    save_png(gradient(), file, overwrite=True)
    assert open_image(file).size == (32, 24)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.png", "a-3.png", "a.png"]


def test_a_picture_is_encoded_once_however_many_names_are_taken(tmp_path: Path, monkeypatch):
    for name in ("a", "a-2", "a-3"):
        (tmp_path / f"{name}.png").touch()
    encoded = []
    real = images.write_png
    monkeypatch.setattr(images, "write_png", lambda *given: encoded.append(1) or real(*given))
    assert save_numbered(gradient(), tmp_path / "a.png") == tmp_path / "a-4.png"
    assert len(encoded) == 1


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(OSError, match="cannot write mode HSV"):
        save_png(Image.new("HSV", (2, 2)), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_file_names_keep_the_script(sentence: str, tmp_path: Path):
    stem = file_stem(sentence, limit=250)
    assert stem == unicodedata.normalize("NFC", sentence).replace(" ", "-").replace("'", "-")
    (tmp_path / f"{file_stem(sentence)}.png").touch()


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("", "picture"),
        ("../../etc/passwd", "etc-passwd"),
        ("  a / b \\ c: d?* ", "a-b-c-d"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("👩‍🚀 on 🌙", "👩‍🚀-on-🌙"),
        ("\u200d\u200d", "picture"),
    ],
)
def test_file_names_hold_nothing_that_a_file_system_or_shell_reads(prompt: str, stem: str):
    assert file_stem(prompt) == stem


def test_long_names_are_cut_between_whole_characters():
    assert file_stem("é" * 100, limit=5) == "éé"
    assert file_stem("กุ้" * 100, limit=10) == "กุ้"
    assert file_stem("👩‍🚀" * 5, limit=15) == "👩‍🚀"


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_prompt_gives_a_name_within_its_limit(prompt: str):
    stem = file_stem(prompt)
    assert 0 < len(stem.encode()) <= 100
    assert not set(stem) & set('/\\:*?"<>|\0\n') and stem[0] not in ".-"


def test_a_destination_is_a_folder_or_a_file_in_one(tmp_path: Path):
    assert destination(str(tmp_path)) == (tmp_path, None)
    assert destination(str(tmp_path / "กุ้ง.PNG")) == (tmp_path, tmp_path / "กุ้ง.PNG")


@pytest.mark.parametrize(
    "name", ["none", "none/a.png", "a.jpg", "file/a.png", "n" * 300 + ".png", "\0.png", ""]
)
def test_a_destination_that_cannot_be_is_refused(name: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match=r"^output: "):
        destination(str(tmp_path / name) if name else "")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_to_is_refused():
    with pytest.raises(BadRequest, match=r"^output: '/proc/self' cannot be written to"):
        destination("/proc/self")
