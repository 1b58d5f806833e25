"""What a language that was added is worth on the emoji model: names that training saw and did not, pictures.

    python -m bench.add_language --model runs/emoji/add_greek/model --language el

Names: R@1 among the English ones, by cosine of the first states. Pictures: the shipped UNet under the shipped
tower and under the new one, plain names as prompts, prompt number n with seed n, judged by bench/judge.py.
"""

import argparse
import json

import torch
import torch.nn.functional as F

from altdiffusion import AltCLIP, AltDiffusionPipeline
from altdiffusion.conditioning import encode_trimmed
from bench.judge import Judge, figures
from bench.quality import covered, pictures, sample
from training.captions import Captions
from training.emoji import Emoji, load_emoji
from training.emoji_text import with_languages


@torch.no_grad()
def pooled(clip: AltCLIP, texts: list[str]) -> torch.Tensor:
    parts = [texts[at : at + 256] for at in range(0, len(texts), 256)]
    states = [encode_trimmed(clip.model.text_model, clip.tokenizer, part)[0][:, 0] for part in parts]
    return F.normalize(torch.cat(states), dim=-1)


def measure_names(clip: AltCLIP, emoji: Emoji, tag: str) -> dict[str, float]:
    """`unseen` are names that training held out in this language."""
    captions = Captions(emoji)
    english, own = (pooled(clip, [emoji.names[each][c] for c in emoji.characters]) for each in ("en", tag))
    hits = (own @ english.T).argmax(1) == torch.arange(len(own))
    held = torch.tensor([captions.unseen_name(tag, c) for c in emoji.characters])
    return {
        "seen": hits[~held].float().mean().item(),
        "unseen": hits[held].float().mean().item(),
        "unseen names": int(held.sum()),
    }


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
