"""What one visitor may ask for. A service is shared, and its widgets' limits bind nobody."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from altdiffusion.requests import BadRequest, GenerateRequest, shorten

if TYPE_CHECKING:
    from altdiffusion.pipelines import GenerationDefaults


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for."""

    steps: int = 150
    count: int = 16
    pixels: int = 512 * 512
    """Of one picture; a model's own size is always allowed."""
    labels: int = 100
    templates: int = 8
    results: int = 100

    def check(self, request: GenerateRequest, defaults: "GenerationDefaults") -> None:
        """Refuses a request whose defaults are filled in already."""
        assert request.width and request.height and request.steps
        pixels = max(self.pixels, defaults.width * defaults.height)
        if request.width * request.height > pixels:
            size = f"{request.width}x{request.height}"
            raise BadRequest(f"size: {size} is too large here; allowed up to {pixels:,} pixels")
        at_most("steps", request.steps, self.steps)
        at_most("count", request.count, self.count)


def at_most(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadRequest(f"{name}: {shorten(value)}; allowed here a whole number from 1 to {most}")
