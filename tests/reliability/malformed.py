"""Malformed and hostile picture files, made by hand; and seeds that mutations start from."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tests.test_images import encoded, png_of

MAGIC = b"\x89PNG\r\n\x1a\n"
#: EXIF of a picture to be turned by a quarter.
TURNED = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    *,
    size: tuple[int, int] = (8, 8),
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    data: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
    crc: int | None = None,
) -> bytes:
    """8 x 8 black pixels, unless something is said."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    raw = b"\0" * 8 * (1 + 8 * 3) if data is None else data
    body = chunk(b"IDAT", zlib.compress(raw), crc)
    return MAGIC + chunk(b"IHDR", header) + before + body + after + chunk(b"IEND", b"")


def noise(side: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def cut(form: str, share: float = 0.5) -> bytes:
    whole = encoded(noise(), form)
    return whole[: int(len(whole) * share)]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def sof(height: int, width: int) -> bytes:
    """A JPEG whose header promises another size."""
    data = encoded(noise(), "JPEG")
    return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def exif_of(data: bytes) -> bytes:
    return encoded(noise(), "JPEG", exif=b"Exif\0\0" + data)


def looped_exif() -> bytes:
    """A directory whose next directory is itself."""
    entry = struct.pack("<HHII", 0x0112, 3, 1, 6)
    return exif_of(b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8))


def with_text(text: str, zip_it: bool = True) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text, zip=zip_it)
    return encoded(noise(8), "PNG", pnginfo=chunks)


def gif(**options: Any) -> bytes:
    frames = [Image.new("RGB", (4, 4), (n % 256, 0, 0)) for n in range(300)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], **options)


def webp_canvas(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(at: int, new: bytes) -> bytes:
    return patched(encoded(noise(8), "BMP"), at, new)


#: What is in the file, and whether it has to open ("right"), be refused, or may do either (None).
FILES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "empty": (lambda: b"", "refused"),
    "text": (lambda: b"not a picture", "refused"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "refused"),
    "html": (lambda: b"<!doctype html><img src=x onerror=alert(1)>", "refused"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "refused"),
    "zip": (lambda: b"PK\x03\x04" + bytes(60), "refused"),
    "zeros": (lambda: bytes(5000), "refused"),
    "TIFF": (lambda: encoded(noise(8), "TIFF"), "refused"),
    "ICO": (lambda: encoded(noise(16), "ICO"), "refused"),
    "PPM": (lambda: encoded(noise(8), "PPM"), "refused"),
    "TGA": (lambda: encoded(noise(8), "TGA"), "refused"),
    "PNG magic alone": (lambda: MAGIC, "refused"),
    "PNG cut": (lambda: cut("PNG"), "refused"),
    "PNG without its end": (lambda: png()[:-12], None),
    "PNG, wrong sum of the header": (lambda: patched(png(), 29, b"\0\0\0\0"), "refused"),
    "PNG, wrong sum of the data": (lambda: png(crc=0), None),
    "PNG without data": (lambda: png_of(64, 64), "refused"),
    "PNG with too little data": (lambda: png(data=b"\0" * 10), "refused"),
    "PNG with too much data": (lambda: png(data=b"\0" * 10**7), None),
    "PNG 0 x 5": (lambda: png_of(0, 5), "refused"),
    "PNG 5 x 0": (lambda: png_of(5, 0), "refused"),
    "PNG 2147483647 x 1": (lambda: png_of(2**31 - 1, 1), "refused"),
    "PNG 30000 x 1": (lambda: encoded(Image.new("1", (30_000, 1))), "refused"),
    "PNG 5000 x 1": (lambda: encoded(Image.new("RGB", (5000, 1))), "right"),
    "PNG 400 MP": (lambda: png_of(20_000, 20_000), "refused"),
    "PNG 144 MP": (lambda: png_of(12_000, 12_000), "refused"),
    "PNG of 3 bits": (lambda: png(depth=3), "refused"),
    "PNG of colours 5": (lambda: png(colour=5), "refused"),
    "PNG interlaced by 9": (lambda: png(interlace=9), None),
    "PNG without palette": (lambda: png(colour=3), None),
    "PNG beyond its palette": (
        lambda: png(colour=3, data=b"\0" + b"\xff" * 71, before=chunk(b"PLTE", bytes(3))),
        None,
    ),
    "PNG with a broken tRNS": (lambda: png(before=chunk(b"tRNS", b"\0")), None),
    "PNG, a note of 100 MB": (lambda: with_text("a" * 10**8), None),
    "PNG, a profile of 100 MB": (
        lambda: png(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))),
        None,
    ),
    "PNG of 16 bits": (lambda: encoded(Image.new("I;16", (8, 8), 40_000)), "right"),
    "PNG with a zip behind it": (lambda: encoded(noise(8)) + b"PK\x03\x04" + bytes(99), "right"),
    "APNG with a broken frame": (
        lambda: png(before=chunk(b"acTL", struct.pack(">II", 2**31, 0)), after=chunk(b"fdAT", b"\0\0\0\2x")),
        None,
    ),
    "JPEG cut": (lambda: cut("JPEG"), "refused"),
    "JPEG header alone": (lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0", "refused"),
    "JPEG 0 high": (lambda: sof(0, 48), "refused"),
    "JPEG 65535 x 65535": (lambda: sof(65535, 65535), "refused"),
    "JPEG higher than its data": (lambda: sof(480, 48), None),
    "JPEG without tables": (lambda: encoded(noise(), "JPEG").replace(b"\xff\xdb", b"\xff\xfe"), None),
    "JPEG of CMYK": (lambda: encoded(noise().convert("CMYK"), "JPEG"), "right"),
    "EXIF of noise": (lambda: exif_of(bytes(range(256)) * 20), None),
    "EXIF without end": (looped_exif, None),
    "EXIF turned by 9": (lambda: exif_of(TURNED[:-8] + b"\x09" + bytes(7)), "right"),
    "WebP cut": (lambda: cut("WEBP"), "refused"),
    "WebP of another length": (lambda: patched(encoded(noise(), "WEBP"), 4, b"\xff\xff\xff\x7f"), None),
    "WebP canvas 16384 x 16384": (lambda: webp_canvas(16_384, 16_384), "refused"),
    "BMP cut": (lambda: cut("BMP"), "refused"),
    "BMP upside down": (lambda: bmp(22, struct.pack("<i", -8)), "right"),
    "BMP -2147483648 high": (lambda: bmp(22, struct.pack("<i", -(2**31))), "refused"),
    "BMP with pixels beyond its end": (lambda: bmp(10, struct.pack("<I", 2**31)), "refused"),
    "BMP squeezed by 1": (lambda: bmp(30, struct.pack("<I", 1)), None),
    "BMP of 7 bits": (lambda: bmp(28, struct.pack("<H", 7)), "refused"),
}


def seeds() -> list[bytes]:
    """Eight files of all formats that are allowed, with palettes, transparency, notes and frames."""
    small = noise(24)
    return [
        encoded(small, "PNG"),
        encoded(small.convert("P"), "PNG", transparency=0),
        with_text("a lobster", zip_it=False),
        encoded(small, "JPEG", exif=b"Exif\0\0" + TURNED),
        encoded(small.convert("CMYK"), "JPEG", progressive=True),
        encoded(small.convert("RGBA"), "WEBP", lossless=True),
        encoded(small, "GIF", save_all=True, append_images=[small.rotate(90)] * 2),
        encoded(small, "BMP"),
    ]


def mutated(data: bytes, random: Any) -> bytes:
    """Some bytes flipped, cut out, put in, copied elsewhere, or the end lost."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 6)):
        at, kind = random.randrange(len(changed) or 1), random.randrange(6)
        length = random.choice((1, 1, 2, 4, 30))
        if kind == 0 and changed:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[at : at + length] = random.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = random.randbytes(length)
        elif kind == 4:
            changed[at : at + length] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        else:
            start = random.randrange(len(changed) or 1)
            changed[at:at] = changed[start : start + length]
    return bytes(changed[: random.randrange(1, len(changed) + 1)] if random.random() < 0.1 else changed)
