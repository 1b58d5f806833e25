"""R@1 of the emoji's names in each language among their English names, of a teacher or of its student.

    python -m bench.names runs/emoji/teacher_more/model runs/emoji/distill_again/model

The teacher is a CLIP that knows English alone, the student an AltCLIP.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AltCLIPModel, AutoConfig, AutoTokenizer

from altdiffusion.languages import LANGUAGES
from training.names import Pooled, first_states, name_retrieval
from training.teacher import Teacher


def reader(folder: Path) -> Pooled:
    """What makes pooled states of texts: a CLIP's or an AltCLIP's."""
    if AutoConfig.from_pretrained(folder).model_type == "clip":
        return Teacher.read(folder).pooled
    model = AltCLIPModel.from_pretrained(folder, dtype=torch.float32)
    return first_states(model.text_model, AutoTokenizer.from_pretrained(folder))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="transformers folders")
    for folder in parser.parse_args().models:
        figures = name_retrieval(reader(folder))
        others = [figures[tag] for tag in LANGUAGES if tag != "en"]
        print(json.dumps({"model": str(folder), "mean without en": sum(others) / len(others)} | figures))


if __name__ == "__main__":
    main()
