"""atheris looks for pictures that `open_image` neither opens nor refuses well, led by what each try reaches.

python -m tests.reliability.fuzz_pictures REPORT RUNS
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "altdiffusion.images"]):
    from altdiffusion.images import ImageError, open_image

from tests.reliability.malformed import seeds

_SECONDS = 1.0


def main(report: Path, runs: int) -> None:
    counts = {"right": 0, "refused": 0}
    wrongs: list[str] = []

    def one(data: bytes) -> None:
        began = time.process_time()
        try:
            ending = "right" if open_image(data, "picture").mode == "RGB" else "of another mode"
        except ImageError as refusal:
            text = str(refusal)
            well = text.startswith("picture: picture") and "\n" not in text and len(text) < 500
            ending = "refused" if well else text
        except Exception as error:
            ending = f"{type(error).__name__}: {error}"
        if (seconds := time.process_time() - began) > _SECONDS:
            ending = f"took {seconds:.1f} s"
        if ending in counts:
            counts[ending] += 1
        else:
            wrongs.append(f"{ending[:200]} for {data[:200].hex()}")
        if (done := sum(counts.values()) + len(wrongs)) >= runs or not done % 500:  # libFuzzer exits for us
            report.write_text(json.dumps({"counts": counts, "wrongs": wrongs[:20]}), encoding="utf-8")

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-runs={runs}", "-seed=1", "-max_len=20000", "-verbosity=0", "-rss_limit_mb=0"]
        atheris.Setup([sys.argv[0], corpus, *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
