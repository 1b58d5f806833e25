"""What stands before an app: bodies that grow too large are refused in words."""

import pytest

from altdiffusion.serving.guard import Guard

pytest.importorskip("starlette", reason="needs the extra app: pip install 'altdiffusion[app]'")
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient


def test_a_body_that_hides_its_size_is_refused_as_it_grows():
    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    guarded = TestClient(Guard(Starlette(routes=[Route("/", size, methods=["POST"])])))
    assert guarded.post("/", content=iter([b"x" * 2**20] * 3)).text == str(3 * 2**20)
    answer = guarded.post("/", content=iter([b"x" * 2**20] * 13))
    assert answer.status_code == 413 and "12 MB" in answer.text
