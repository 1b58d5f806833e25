"""One picture, one embedding: however it was saved, and whichever way it comes in.

Pictures have the size of the tiny tower, so that none is resized: training, which resizes by another filter,
then has to give the same as well.
"""

import io
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.testing import assert_close

from altdiffusion import encoding
from altdiffusion.images import ImageError, open_image
from altdiffusion.model import AltCLIP
from altdiffusion.retrieval import pictures
from altdiffusion.shards import Row
from bench.training import resident
from tests.test_images import png_of
from training.contrast import normalised
from training.pictures import as_pixels, opened

SIDE = 32
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def clip(shared_folder) -> AltCLIP:
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


def by_path(clip: AltCLIP, path: Path) -> torch.Tensor:
    return clip.encode_image(open_image(path))[0]


def by_pil(clip: AltCLIP, path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        return clip.encode_image(picture)[0]


def by_bytes(clip: AltCLIP, path: Path) -> torch.Tensor:
    """As an index reads files."""
    return clip.encode_image(clip.preprocess(open_image(path.read_bytes())))[0]


def by_embed(clip: AltCLIP, path: Path) -> torch.Tensor:
    (row,) = encoding.encode(clip, encoding.batches([], [str(path)]))
    return torch.tensor(row.embedding)


def by_shard(clip: AltCLIP, path: Path) -> torch.Tensor:
    block = encoding.encode_rows(clip, [Row("a", picture=path)])
    assert not block.errors
    return torch.tensor(block.image_vectors[0])


def by_training(clip: AltCLIP, path: Path) -> torch.Tensor:
    return clip.encode_image(normalised(as_pixels(opened(path), (SIDE, SIDE))[None]))[0]


def by_index(clip: AltCLIP, path: Path) -> torch.Tensor:
    """As an index reads the files of its folder."""
    _, image = pictures.read(path.parent, path.name, {})
    assert image is not None
    return clip.encode_image(image)[0]


def by_app(clip: AltCLIP, path: Path) -> torch.Tensor:
    """As the app takes what was uploaded."""
    handling = pytest.importorskip("app.handling")
    folder = Path(handling.get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=path.suffix) as upload:
        shutil.copyfile(path, upload.name)
        return clip.encode_image(handling.uploaded({"path": upload.name}))[0]


WAYS = [by_path, by_pil, by_bytes, by_embed, by_shard, by_training, by_index, by_app]


def picture() -> Image.Image:
    """Without any symmetry, in shades of grey that 16 bits and palettes hold exactly."""
    shades = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 4
    return Image.fromarray(shades.astype(np.uint8))


def turned(orientation: int) -> tuple[Image.Image, dict]:
    """Stored as a camera would: turned, and with the tag that says how to turn it back."""
    back, exif = Image.Exif(), Image.Exif()
    back[ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)  # the inverse
    exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    picture().convert("RGB").save(stream, "PNG", exif=back)
    return ImageOps.exif_transpose(Image.open(stream)), {"exif": exif}


def on_glass() -> Image.Image:
    """White parts are transparent, with another colour under them."""
    shades = np.asarray(picture())
    colours = np.stack([shades, shades, shades, np.full_like(shades, 255)], axis=-1)
    colours[shades == 255] = (200, 10, 10, 0)
    return Image.fromarray(colours)


SAVED = {
    "RGB": lambda: (picture().convert("RGB"), {}),
    "grey": lambda: (picture(), {}),
    "palette": lambda: (picture().convert("P"), {}),
    "16 bits": lambda: (Image.fromarray(np.asarray(picture()).astype(np.uint16) * 257), {}),
    "transparent": lambda: (on_glass(), {}),
    **{f"turned {n}": lambda n=n: turned(n) for n in range(1, 9)},
}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_orientation_and_mode_change_nothing(clip, tmp_path, way, saved):
    """Tolerance: training's whole numbers pass through [-1, 1]."""
    shown, options = SAVED[saved]()
    shown.save(tmp_path / "a.png", **options)
    expected = clip.encode_image(picture().convert("RGB"))[0]
    assert_close(way(clip, tmp_path / "a.png"), expected, rtol=0, atol=2e-5)
    mirrored = clip.encode_image(ImageOps.mirror(picture()))[0]
    assert (mirrored - expected).abs().max() > 1e-2  # a turn would have been seen


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_encoded(clip, tmp_path, way, form):
    first, second = picture().convert("RGB"), Image.new("RGB", (SIDE, SIDE), "red")
    file = tmp_path / f"a.{form.lower()}"
    first.save(file, form, save_all=True, append_images=[second], duration=100, lossless=True)
    with Image.open(file) as animation:
        assert animation.n_frames == 2
    assert_close(way(clip, file), clip.encode_image(first)[0], rtol=0, atol=2e-5)


def measured(clip: AltCLIP, path: Path) -> torch.Tensor:
    """The embedding, or ImageError; in under a second of work and 300 MB."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back: proc(5)
    start = time.process_time()
    try:
        return clip.encode_image(open_image(path))[0]
    finally:
        assert time.process_time() - start < 1
        assert resident("VmHWM") - before < 300 * 10**6


def large(width: int = 3000, height: int = 4000) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def rotated(file: Path) -> None:
    """Of 48 megapixels, as phones make them."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    large(6000, 8000).transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=exif)


HARD = {
    "CMYK": lambda file: large(6000, 8000).convert("CMYK").save(file, "JPEG"),
    "16 bits": lambda file: Image.fromarray(np.asarray(large().convert("L")).astype(np.uint16) * 257).save(
        file, "PNG", compress_level=1
    ),
    "rotated": rotated,
    "animated": lambda file: large().save(
        file, "WEBP", method=0, save_all=True, append_images=[Image.new("RGB", (3000, 4000))] * 3
    ),
    "transparent": lambda file: large().convert("RGBA").save(file, "PNG", compress_level=1),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
@pytest.mark.parametrize("kind", HARD)
def test_a_hard_picture_has_its_embedding_quickly_and_in_little_memory(clip, tmp_path, kind):
    """Cosine, since JPEG and WebP lose something."""
    HARD[kind](tmp_path / "a")
    expected = clip.encode_image(large())[0]
    assert measured(clip, tmp_path / "a") @ expected > 0.9999
    upside_down = clip.encode_image(large().transpose(Image.Transpose.ROTATE_180))[0]
    assert upside_down @ expected < 0.999


def cut(form: str) -> bytes:
    stream = io.BytesIO()
    large().save(stream, form)
    return stream.getvalue()[: stream.tell() // 2]


def webp_of(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "WEBP", method=0)
    return stream.getvalue()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
@pytest.mark.parametrize(
    "content",
    [
        lambda: png_of(30_000, 1),
        lambda: png_of(20_000, 20_000),
        lambda: png_of(8000, 5000),
        lambda: webp_of(5000, 3500),
        lambda: cut("PNG"),
        lambda: cut("JPEG"),
    ],
    ids=["30000 x 1", "400 MP", "40 MP PNG", "17.5 MP WebP", "cut PNG", "cut JPEG"],
)
def test_what_cannot_be_encoded_is_refused_by_its_name(clip, tmp_path, content):
    (tmp_path / "holiday.png").write_bytes(content())
    with pytest.raises(ImageError, match=r"^image: .*holiday\.png"):
        measured(clip, tmp_path / "holiday.png")
    block = encoding.encode_rows(clip, [Row("a", picture=tmp_path / "holiday.png")])
    assert "holiday.png" in block.errors["a"] and block.image_vectors == [None]


def test_a_thread_of_30000_pixels_is_what_its_middle_shows(clip):
    """As a picture it is taken; its middle is a single pixel, and the filter sees two on either side."""
    thread = Image.new("RGB", (30_000, 1), "blue")
    thread.paste("red", (14_980, 0, 15_020, 1))
    expected = clip.encode_image(Image.new("RGB", (SIDE, SIDE), "red"))
    assert_close(clip.encode_image(thread), expected, rtol=0, atol=1e-5)
