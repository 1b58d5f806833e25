"""What a language that was added is worth on the emoji model: names that training saw and did not, pictures.

    python -m bench.add_language --model runs/emoji/add_greek/model --language el

Names: R@1 among the English ones, by cosine of the first states. Pictures: the shipped UNet under the shipped
tower and under the new one, plain names as prompts, prompt number n with seed n, judged by bench/judge.py.
"""

import argparse
import json

import torch

from altdiffusion import AltCLIP, AltDiffusionPipeline
from bench.judge import Judge, figures
from bench.quality import covered, pictures, sample
from training.captions import Captions
from training.emoji import Emoji, load_emoji
from training.emoji_text import with_languages
from training.names import directions, first_states, found_and_seen, shares


def measure_names(clip: AltCLIP, emoji: Emoji, tag: str) -> dict[str, float]:
    """R@1 among the English names; `unseen` are names that training held out in this language."""
    pooled = first_states(clip.model.text_model, clip.tokenizer)
    return shares(*found_and_seen(pooled, emoji, tag, directions(pooled, emoji, "en")))


def measure_pictures(clip: AltCLIP, judge: Judge, emoji: Emoji, tags: list[str], number: int) -> dict:
    pipeline = AltDiffusionPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_modules(text_encoder=clip.model.text_model, tokenizer=clip.tokenizer)
    captions, table = Captions(emoji), {}
    for tag in tags:
        known = [c for c in covered(None) if c in emoji.names[tag] and not captions.unseen_name(tag, c)]
        chosen = sample(known, number)
        drawn = pictures(pipeline, [emoji.names[tag][c] for c in chosen])
        table[tag] = figures(judge.ranks(drawn, chosen))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="AltCLIP folder that training.add_language wrote")
    parser.add_argument("--language", required=True, help="the language that was added, like el")
    parser.add_argument("--beside", nargs="*", default=["en", "ru"], help="old languages to draw too")
    parser.add_argument("--emoji", type=int, default=50, help="pictures per language; 0 draws none")
    arguments = parser.parse_args()
    emoji, judge, report = with_languages(load_emoji(), arguments.language), Judge(), {}
    for name, folder in {"before": None, "after": arguments.model}.items():
        clip = AltCLIP.from_pretrained(folder, dtype=torch.float32, device="cpu")
        report[name] = {"names": measure_names(clip, emoji, arguments.language)}
        if arguments.emoji:
            tags = [arguments.language, *arguments.beside]
            report[name]["pictures"] = measure_pictures(clip, judge, emoji, tags, arguments.emoji)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
