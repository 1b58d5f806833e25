"""A service that draws coloured squares: the page's tests need no model."""

import time
from types import SimpleNamespace

from PIL import Image

from altdiffusion.requests import SCHEDULERS, BadRequest, GenerateRequest, Provenance, clean_text
from altdiffusion.serving import Compared, Drawing, Drawn, Found, ModelInfo, Ranked, Waiting

COLOURS = ["crimson", "seagreen", "royalblue", "goldenrod", "orchid", "teal"]
DEFAULTS = SimpleNamespace(steps=6, guidance_scale=3.0, width=64, height=64, scheduler="ddim")


class Painter:
    """`drawn` counts steps, `closed` the drawings that somebody left; `pace` is the seconds of a step."""

    def __init__(self, pace: float = 0.0) -> None:
        self.pace, self.drawn, self.closed, self.asked = pace, 0, 0, []
        self.info = ModelInfo("squares", DEFAULTS, ("en", "zh", "th", "ar"), ("🦞",), tuple(SCHEDULERS), True)

    def generate(self, request, *, start=None, mask=None):
        self.asked.append((request, start, mask))
        return self._news(
            request.with_seed(), [request.prompt] * request.count, lambda made: Drawn(tuple(made))
        )

    def compare(self, prompts, request):
        ones = [[1.0 if a == b else 0.8 for a in prompts] for b in prompts]

        def compared(made):
            return Compared(dict(zip(prompts, made, strict=True)), made[0].image, ones, ones)

        return self._news(request.with_seed(), list(prompts.values()), compared)

    def _news(self, request, prompts, conclude):
        try:
            yield Waiting(0)
            steps = request.steps or DEFAULTS.steps
            pictures = [_picture(request, prompt, i) for i, prompt in enumerate(prompts)]
            for step in range(1, steps + 1):
                time.sleep(self.pace)
                self.drawn += 1
                yield Drawing(step, steps, tuple(one.image for one in pictures), self.pace * (steps - step))
            yield conclude(pictures)
        except GeneratorExit:
            self.closed += 1
            raise

    def search(self, text="", *, image=None, more="", less="", weight=0.5, k=20):
        if not text and image is None:
            raise BadRequest("text: nothing to search for; allowed a text, a picture (image), or both")
        return [Found(name, 0.9 - i / 10, _square(i), f"{i}") for i, name in enumerate(COLOURS[:k])]

    def classify(self, image, labels, *, language="en", templates=None, multi_label=False):
        by_language = labels if isinstance(labels, dict) else {language: labels}
        names = tuple(next(iter(by_language.values())))
        return Ranked(names, tuple(1 / 2 ** (i + 1) for i in range(len(names))),
                      {tag: (found[0], 0.5) for tag, found in by_language.items()})  # fmt: skip

    def read(self, picture):
        from altdiffusion import read_provenance

        return read_provenance(picture)

    def versions_of(self, prompt, tags):
        return {tag: f"{prompt} ({tag})" for tag in tags} if prompt == "lobster" else {}

    def health(self):
        return {"status": "ok"}

    def meters(self):
        return "altdiffusion_requests_total 0\n"

    def close(self):
        pass


def _square(number):
    return Image.new("RGB", (64, 64), COLOURS[number % len(COLOURS)])


def _picture(request: GenerateRequest, prompt: str, number: int):
    from altdiffusion import Picture

    made = Provenance(
        prompt=clean_text(prompt), seed=request.seed + number, steps=request.steps, model="squares"
    )
    lost = ("prompt: too long by 3 tokens, left out: '<b>end'",) if "too long" in prompt else ()
    return Picture(_square(request.seed + number), made, "nude" in prompt, lost)
