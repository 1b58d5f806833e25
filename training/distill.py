"""Teacher learning (Chen et al. 2022, section 3.2): a multilingual student repeats what the CLIP text tower
says in English.

Parallel text only, no pictures. The result is an AltCLIP: the student's tower with the teacher's image tower
and projections.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPTextModel,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPModel,
)

from altdiffusion.conditioning import encode_trimmed
from altdiffusion.languages import LANGUAGES
from altdiffusion.losses import distillation_loss
from training.captions import Captions, training_scene
from training.config import OptimConfig, RunConfig, parse
from training.emoji import centred, load_emoji
from training.loop import Run
from training.stage import run_stage
from training.tokenizers import train_xlmr_tokenizer

#: Texts encoded at a time.
CHUNK = 64
#: English captions whose targets are kept.
REMEMBERED = 100_000


@dataclass(frozen=True)
class StudentConfig:
    """Shape of the XLM-R student; its project_dim is the teacher's text width."""

    vocab_size: int = 16000
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    max_position_embeddings: int = 514
    """XLM-R's: 512 tokens and two positions that padding takes."""


@dataclass(frozen=True)
class DistillConfig:
    """Stage 1, teacher learning: the student repeats the CLIP text tower's pooled output."""

    output_dir: Path
    teacher: Path
    """transformers folder of the CLIP whose text tower is imitated."""
    model: Path | None = None
    """AltCLIP folder whose text tower to go on from. None starts a new student."""
    counts: tuple[int, ...] = (1,) * 8 + (2, 3)
    """Emoji in a caption, drawn evenly from this list."""
    sequence_weight: float = 0.5
    """Weight of drawing every state of the student to the target, not the first alone."""
    whiten: float | None = None
    """Targets in coordinates in which the English names vary alike in all directions; the text projection
    undoes it. A number is the floor, as a share of the mean power, that keeps silent directions silent. None:
    as in the paper."""
    student: StudentConfig = field(default_factory=StudentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


class ParallelCaptions(torch.utils.data.Dataset):
    """Endless pairs (caption in some language, plain English caption) of one to three emoji."""

    items = None

    def __init__(self, seed: int, counts: tuple[int, ...]) -> None:
        self.seed, self.counts, self.emoji = seed, counts, load_emoji()
        self.captions = Captions(self.emoji)

    def __getitem__(self, index: int) -> tuple[str, str]:
        scene = training_scene(self.seed, index, self.emoji.characters, self.counts)
        random = np.random.default_rng((self.seed, index, 2))
        tag = self.captions.random_language(random, scene.characters)
        return self.captions.caption(scene, tag, random), self.captions.name(scene)

    def collate(self, pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Sorted by length, so that the chunks in which they are encoded hold little padding."""
        texts, english = zip(*sorted(pairs, key=lambda pair: len(pair[0].encode())), strict=True)
        return list(texts), list(english)


class Teacher:
    """The frozen text tower of a CLIP with its tokenizer."""

    def __init__(self, clip: CLIPModel, tokenizer) -> None:
        self.tower, self.tokenizer = clip.text_model.eval().requires_grad_(False), tokenizer

    @torch.no_grad()
    def pooled(self, texts: list[str], device: torch.device | str = "cpu") -> Tensor:
        """(texts, dim): the states that its text projection takes."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        tower = self.tower.to(device)
        return tower(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output.float()


def whitening(states: Tensor, floor: float) -> Tensor:
    """Symmetric (dim, dim) change of coordinates after which `states` have the same power in all directions.

    `floor`, a share of the mean power, is added to each: what hardly varies is not blown up.
    """
    power, directions = torch.linalg.eigh(states.double().T @ states.double() / len(states))
    gain = (power.clamp(min=0) + floor * power.mean()).rsqrt()
    return (directions * gain @ directions.T).float()


class Distillation(nn.Module):
    """Student, frozen teacher and loss in one module."""

    def __init__(
        self, student: AltCLIPTextModel, tokenizer, teacher: "Teacher", change: Tensor, weight: float
    ) -> None:
        super().__init__()
        self.student, self.tokenizer, self.weight, self.change = student, tokenizer, weight, change
        # Held outside the module tree: it has nothing to train, save or average.
        self.frozen = (teacher,)
        self.targets: dict[str, Tensor] = {}

    @torch.no_grad()
    def target(self, english: list[str]) -> Tensor:
        """The teacher's pooled outputs, remembered: the same names come again and again."""
        if len(self.targets) > REMEMBERED:
            self.targets.clear()
        new = [text for text in dict.fromkeys(english) if text not in self.targets]
        if new:
            pooled = self.frozen[0].pooled(new, self.student.device)
            self.targets.update(zip(new, pooled @ self.change.to(pooled.device), strict=True))
        return torch.stack([self.targets[text] for text in english])

    def forward(self, texts: list[str], english: list[str]) -> Tensor:
        losses = []
        for first in range(0, len(texts), CHUNK):
            part = slice(first, first + CHUNK)
            states, _ = encode_trimmed(self.student, self.tokenizer, texts[part])
            loss = distillation_loss(states.float(), self.target(english[part]), self.weight)
            losses.append(loss * len(states))
        return torch.stack(losses).sum() / len(texts)


def build_student(config: StudentConfig, vocabulary: int, teacher: CLIPModel) -> AltCLIPTextModel:
    return AltCLIPTextModel(
        AltCLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=1,
            project_dim=teacher.config.text_config.hidden_size,
            hidden_dropout_prob=0.0,  # the target is exact: noise in the student would only slow it
            attention_probs_dropout_prob=0.0,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            use_attention_mask=True,  # tells diffusers' own pipelines to pass the mask
        )
    )


def train(config: DistillConfig) -> None:
    torch.manual_seed(config.run.seed)
    teacher = CLIPModel.from_pretrained(config.teacher, dtype=torch.float32)
    if config.model is not None:
        student, tokenizer = (
            AltCLIPModel.from_pretrained(config.model, dtype=torch.float32).text_model,
            AutoTokenizer.from_pretrained(config.model),
        )
    else:
        tokenizer = train_xlmr_tokenizer(Captions(load_emoji()).corpus(), config.student.vocab_size)
        student = build_student(config.student, len(tokenizer), teacher)
    guide = Teacher(teacher, AutoTokenizer.from_pretrained(config.teacher))
    change = torch.eye(teacher.config.text_config.hidden_size)
    if config.whiten is not None:
        emoji = load_emoji()
        change = whitening(guide.pooled([emoji.names["en"][c] for c in emoji.characters]), config.whiten)
    stage = Distillation(student, tokenizer, guide, change, config.sequence_weight)
    run = Run.start(config, stage)
    for texts, english in run.batches(ParallelCaptions(config.run.seed, config.counts)):
        with run.accelerator.autocast():
            loss = run.model(texts, english)
        run.step(loss)
    if run.accelerator.is_main_process:
        student = run.trained().student
        assemble(student, teacher, change).save_pretrained(config.output_dir / "model")
        tokenizer.save_pretrained(config.output_dir / "model")
        CLIPImageProcessor.from_pretrained(config.teacher).save_pretrained(config.output_dir / "model")
        figures = name_retrieval(student, tokenizer)
        (config.output_dir / "report.json").write_text(json.dumps(figures, indent=1))


def assemble(student: AltCLIPTextModel, teacher: CLIPModel, change: Tensor | None = None) -> AltCLIPModel:
    """An AltCLIP of the student's text tower and the teacher's everything else.

    `change` are the coordinates of the student's states; its inverse goes into the text projection.
    """
    vision = teacher.config.vision_config.to_dict() | {"model_type": "altclip_vision_model"}
    altclip = AltCLIPModel(
        AltCLIPConfig(
            text_config=student.config.to_dict(),
            vision_config=vision,
            projection_dim=teacher.config.projection_dim,
        )
    )
    altclip.text_model.load_state_dict(student.state_dict())
    altclip.vision_model.load_state_dict(teacher.vision_model.state_dict())
    for name in ("visual_projection", "text_projection"):
        getattr(altclip, name).load_state_dict(getattr(teacher, name).state_dict())
    if change is not None:
        projection = altclip.text_projection.weight
        projection.data = (projection.double() @ torch.linalg.inv(change.double()).T).float()
    altclip.logit_scale.data.copy_(teacher.logit_scale.data)
    return altclip.eval()


@torch.no_grad()
def name_retrieval(student: AltCLIPTextModel, tokenizer) -> dict[str, float]:
    """R@1 of each language's names among the English ones, by cosine; `unseen` are held-out names."""
    emoji = load_emoji()
    captions = Captions(emoji)
    student.eval()

    def pooled(tag: str) -> Tensor:
        names = [captions.name(centred(c), tag) for c in emoji.characters]
        parts = [names[first : first + 256] for first in range(0, len(names), 256)]
        parts = [encode_trimmed(student, tokenizer, part)[0][:, 0] for part in parts]
        return F.normalize(torch.cat(parts), dim=-1)

    english, figures, unseen = pooled("en"), {}, []
    for tag in LANGUAGES:
        hits = (pooled(tag) @ english.T).argmax(1) == torch.arange(len(english))
        held = torch.tensor([captions.unseen_name(tag, c) for c in emoji.characters])
        figures[tag] = hits[~held].float().mean().item()
        unseen += hits[held].tolist()
    return figures | {"unseen": sum(unseen) / max(1, len(unseen)), "unseen_names": len(unseen)}


def main() -> None:
    run_stage(parse(DistillConfig), train)


if __name__ == "__main__":
    main()
