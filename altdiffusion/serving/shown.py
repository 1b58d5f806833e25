"""Pictures as a page shows them: in its text, and as files beside it."""

import base64
import hashlib
import io
import secrets
from pathlib import Path

from PIL import Image

from altdiffusion import aside

#: Goes into the names of files, so that who has a picture cannot tell whether others were shown it.
_KEY = secrets.token_bytes(32)


def data_uri(image: Image.Image, longest: int = 256) -> str:
    small = image.copy()
    small.thumbnail((longest, longest))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def kept(image: Image.Image, folder: Path) -> str:
    """Path in `folder` of the picture as PNG, one file whoever is shown it.

    gradio, where it is handed pictures, writes into the file that another visitor may be reading just then.
    """
    data = io.BytesIO()
    image.save(data, "PNG")
    path = folder / hashlib.blake2b(data.getvalue(), key=_KEY, digest_size=20).hexdigest() / "image.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside.file(path, durable=False) as place:
        place.write_bytes(data.getvalue())
    return str(path)
