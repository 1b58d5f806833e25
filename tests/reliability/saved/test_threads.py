"""Four threads on one pipeline, with every scheduler: each draws what it would draw alone."""

import itertools
import threading

import numpy as np
import pytest
import torch

from altdiffusion.generation import generate
from altdiffusion.requests import SCHEDULERS, GenerateRequest
from altdiffusion.schedulers import scheduler_like
from tests.fakes import SENTENCES

THREADS = 4
#: Of different lengths, in different scripts.
PROMPTS = [*SENTENCES.values(), "🦞", "a " * 70]


def called(pipeline, number: int) -> bytes:
    """By the pipeline's own call."""
    generator = torch.Generator("cpu").manual_seed(number)
    arguments = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    return pipeline(PROMPTS[number], generator=generator, **arguments).images.tobytes()


def asked(pipeline, number: int, scheduler: str) -> bytes:
    """By a request."""
    request = GenerateRequest.build(prompt=PROMPTS[number], seed=number, steps=2, scheduler=scheduler)
    return generate(pipeline, request)[0].image.tobytes()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_threads_draw_what_each_would_draw_alone(shared_pipeline, scheduler, tally, amount):
    calls, count = amount(1, 5), tally("C5 four threads on a pipeline")
    before = shared_pipeline.scheduler
    shared_pipeline.scheduler = scheduler_like(before, scheduler)
    try:
        found = {kind: together(shared_pipeline, kind, scheduler, calls) for kind in ("called", "asked")}
        for kind, (drawn, raised) in found.items():
            for number in range(THREADS * calls):
                alone = drawing(shared_pipeline, kind, number, scheduler)
                same = drawn.get(number) == alone and not raised
                count.add("right" if same else "wrong", f"{scheduler}, {kind}, {number}: {raised[:1]}")
    finally:
        shared_pipeline.scheduler = before
    count.check(2 * THREADS * calls)


def drawing(pipeline, kind: str, number: int, scheduler: str) -> bytes:
    return called(pipeline, number) if kind == "called" else asked(pipeline, number, scheduler)


def together(pipeline, kind: str, scheduler: str, calls: int) -> tuple[dict[int, bytes], list[Exception]]:
    drawn: dict[int, bytes] = {}
    raised: list[Exception] = []

    def work(first: int) -> None:
        for number in range(first, THREADS * calls, THREADS):
            try:
                drawn[number] = drawing(pipeline, kind, number, scheduler)
            except Exception as error:
                raised.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return drawn, raised


def test_pictures_of_these_prompts_differ(shared_pipeline):
    """Otherwise one could stand for another."""
    pictures = [np.frombuffer(called(shared_pipeline, number), np.float32) for number in range(4)]
    assert all(not np.array_equal(one, other) for one, other in itertools.pairwise(pictures))
