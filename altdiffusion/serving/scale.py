"""The same service on several machines or cores: a Ray Serve deployment (the extra `scale`).

    serve run altdiffusion.serving.scale:build model=FOLDER replicas=2
    curl -d '{"prompt": "a lobster", "seed": 7}' http://localhost:8000/ -o lobster.png

POST the fields of a request as JSON; the answer is a PNG that says how it was made, or one line with the
status 400 (not allowed) or 503 (busy). Ray spreads requests over the replicas; within one they are handed to
the queue together, which joins those that may be joined.
"""

import asyncio
import io
import json
from typing import Any

from pydantic import BaseModel
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from altdiffusion import GenerateRequest
from altdiffusion.images import write_png
from altdiffusion.requests import BadRequest
from altdiffusion.serving import Busy, Closed, Drawn, Service, Ticket

_MAX_BODY = 20_000  # bytes of JSON: both prompts at their longest are 16,000


class Options(BaseModel):
    """What `serve run` takes. `max_replicas` above `replicas` lets Ray add some while requests wait."""

    model: str | None = None
    encoder: str | None = None
    batch: int | None = None
    max_waiting: int = 32
    replicas: int = 1
    max_replicas: int = 0
    ongoing: int = 4
    """Requests under way in a replica above which Ray adds another."""
    cpus: float = 1
    gpus: float = 0


class Answer(BaseModel):
    """What became of one request; a batch may hold good ones and bad ones."""

    status: int
    body: bytes


@serve.deployment
class Replica:
    """One process with one model."""

    def __init__(self, options: Options) -> None:
        chosen = options.model_dump(include={"model", "encoder", "batch", "max_waiting"})
        self.service = Service.load(**chosen)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.02)
    async def draw(self, requests: list[dict[str, Any]]) -> list[Answer]:
        """All of them wait in the queue before the first is drawn, so that they can be joined."""
        with self.service.together():
            tickets = [_submitted(self.service, fields) for fields in requests]
        return await asyncio.gather(*(asyncio.to_thread(_answer, ticket) for ticket in tickets))

    async def __call__(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY:
                return Response(f"body: allowed {_MAX_BODY:,} bytes of JSON", 413, media_type="text/plain")
        try:
            fields = json.loads(body)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            return Response("body: allowed a JSON object", 400, media_type="text/plain")
        answer = await self.draw(fields)
        kind = "image/png" if answer.status == 200 else "text/plain"
        return Response(answer.body, answer.status, media_type=kind)

    def check_health(self) -> None:
        """Ray starts a replica anew where this raises."""
        if self.service.health()["status"] != "ok":
            raise Closed


def build(options: Options) -> serve.Application:
    """For `serve run`: so many replicas, or from so many to so many."""
    resources = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    scaled = {"num_replicas": options.replicas}
    if options.max_replicas > options.replicas:
        bounds = {"min_replicas": options.replicas, "max_replicas": options.max_replicas}
        scaled = {"autoscaling_config": bounds | {"target_ongoing_requests": options.ongoing}}
    return Replica.options(  # pyright: ignore[reportFunctionMemberAccess]
        ray_actor_options=resources, max_ongoing_requests=options.max_waiting, **scaled
    ).bind(options)


def _submitted(service: Service, fields: dict[str, Any]) -> Ticket | Answer:
    try:
        request = GenerateRequest.build(**fields)
        if request.count > 1:
            raise BadRequest(f"count: {request.count}; allowed here 1, as the answer is one picture")
        return service.generate(request)
    except Busy as error:
        return Answer(status=503, body=str(error).encode())
    except (BadRequest, TypeError) as error:
        return Answer(status=400, body=str(error).encode())


def _answer(ticket: Ticket | Answer) -> Answer:
    if isinstance(ticket, Answer):
        return ticket
    *_, last = ticket
    assert isinstance(last, Drawn)
    picture = last.pictures[0]
    file = io.BytesIO()
    write_png(picture.image, file, picture.provenance)
    return Answer(status=200, body=file.getvalue())
