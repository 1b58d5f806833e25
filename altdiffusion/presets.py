"""Named ways to draw: how many steps, by which scheduler, and what the last steps may leave out.

Standard library only, so that command lines and requests can name them before anything heavy is imported.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What a name stands for. None is the checkpoint's own; what a request says itself comes first."""

    scheduler: str | None = None
    """As in `requests.SCHEDULERS`."""
    steps: int | None = None
    guided: float = 1.0
    """The share of the steps, from noise on, that are guided. The later ones need no unconditional half: what
    guidance decides is decided by then (Kynkäänniemi et al. 2024, "limited interval")."""
    reuse: int = 1
    """In every so many steps the UNet's deep features are computed, which the steps between use again
    (DeepCache, Ma et al. 2023); 1 is always."""

    def in_words(self) -> str:
        """Without commas, so that it can stand in a list."""
        guided = f" guided for the first {self.guided:.0%}" if self.guided < 1 else ""
        reuse = f" with deep features every {self.reuse}" if self.reuse > 1 else ""
        steps = f"{self.steps} steps" if self.steps else "its own number of steps"
        scheduler = self.scheduler or "the model's own scheduler"
        return f"{scheduler} in {steps}{guided}{reuse}"


#: Chosen by the pictures of the bundled model (`python -m bench.presets`, docs/results.md).
PRESETS: dict[str, Preset] = {
    "exact": Preset(),
    "default": Preset("unipc", 15, guided=0.7),
    "fast": Preset("unipc", 15, guided=0.7, reuse=3),
}
