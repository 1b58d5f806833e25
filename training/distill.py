"""Teacher learning (Chen et al. 2022, section 3.2): a multilingual student repeats what the CLIP text tower
says in English.

Parallel text only, no pictures. The result is an AltCLIP: the student's tower with the teacher's image tower
and projections.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AltCLIPTextModel,
    AutoConfig,
    CLIPImageProcessor,
    CLIPModel,
)

from altdiffusion import aside, checkpoints
from altdiffusion.conditioning import encode_trimmed
from altdiffusion.losses import distillation_loss
from altdiffusion.model import AltCLIP
from training.attending import attend_in_text
from training.captions import Captions, check_captions
from training.config import OptimConfig, RunConfig, parse
from training.data import open_text, parallel_text
from training.emoji import load_emoji, some_emoji
from training.export import Made, data_of, finish
from training.fixed_shapes import ROWS, in_fixed_shapes
from training.frozen import store_rounded
from training.known import texts_of
from training.loop import Run
from training.multilingual import SourceConfig
from training.names import first_states, name_retrieval
from training.opened import Opened
from training.parallel_captions import Named, ParallelCaptions, english_texts, owners_of
from training.samples import shorten
from training.stage import run_stage
from training.streams import check_workers
from training.student import (
    StudentConfig,
    assemble,
    build_student,
    mix_in_start,
    still,
    student_from_backbone,
    student_of,
    two_states,
)
from training.targets import Targets, asks_for_names, targets_of
from training.teacher import KeptTeacher, Teacher
from training.tokenizers import train_xlmr_tokenizer

#: Texts encoded at a time on a CPU, where padding costs more than a call.
CHUNK = 64
#: English captions whose targets are kept.
REMEMBERED = 100_000


@dataclass(frozen=True)
class DistillConfig:
    """Stage 1, teacher learning: the student repeats the CLIP text tower's pooled output."""

    output_dir: Path
    teacher: Path
    """CLIP whose text tower is imitated: a transformers folder or a Hub name. Of an AltCLIP, its English."""
    model: Path | None = None
    """AltCLIP folder whose text tower to go on from. None starts a new student."""
    form: Literal["own", "m18"] = "own"
    """own: one head for search and drawing. m18: a second one on the states before the last layer, which
    conditions a UNet and learns what the teacher says there, as the UNets of Stable Diffusion 2 heard it."""
    loss: Literal["mse", "cosine", "contrastive"] = "mse"
    """mse: the paper's. cosine: the direction alone. contrastive: told from the other texts of the batch."""
    freeze_embeddings: bool = False
    """Leave the word embeddings as they are: half of an XLM-R-large, a fifth of each step's time."""
    data: str = ""
    """Parallel text, in the place of the emoji's names: a folder, a file, or a data set's name."""
    reading: SourceConfig = field(default_factory=SourceConfig)
    kept_share: float = 0.0
    """Share of `model`'s own weights in the result, the rest are the trained ones (Wortsman et al. 2022)."""
    emoji: int = 0
    """Learn only so many of the emoji, spread evenly; 0: all."""
    counts: tuple[int, ...] = (1,) * 8 + (2, 3)
    """Emoji in a caption, drawn evenly from this list."""
    keyword_share: float = 0.1
    """Share of keywords among the captions of one emoji."""
    even_keywords: float = 0.0
    """Share of captions that are a keyword, each of its language as often as another, whatever it names."""
    strange_share: float = 0.0
    """Share of the captions of one emoji in which its name stands among words that say nothing of it."""
    ordered: bool = False
    """Captions name several emoji in the same order as the English one."""
    own_words: bool = False
    """In such captions the tokens of each name are drawn to what that name says alone, and to which of the
    names it is, so that a UNet is told the things apart. Needs ordered."""
    ground_share: float = 0.0
    """Share of the captions that name the colour of the ground too."""
    languages: tuple[str, ...] = ()
    """Caption languages; empty means all, of the emoji English twice. Where one stands several times, each of
    the emoji's is drawn as often as it stands here."""
    sequence_weight: float = 0.5
    """Weight of drawing every state of the student to the target, not the first alone."""
    whiten: float | None = None
    """Targets in coordinates in which the English names vary alike in all directions; the text projection
    undoes it. A number is the floor, as a share of the mean power, that keeps silent directions silent. None:
    as in the paper."""
    apart: float = 0.0
    """Least distance between the targets of two English names, as a share of the mean one; 0: as the teacher
    has them, who may see hardly a difference between two o'clock and nine o'clock."""
    apart_share: float = 0.0
    """Share of the captions, but for `even_keywords`, that are of one emoji whose name was set apart."""
    cache: Path | None = None
    """Folder, which runs may share, for what the teacher says of each English text, so that it is read only
    where something is missing, and for its image tower at the end. None: computed anew in every run."""
    student: StudentConfig = field(default_factory=StudentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.data:
            check_captions(self.languages, self.counts)
        check_workers(self.reading.streaming, self.run.workers)
        passes = self.run.gradient_accumulation_steps
        if self.loss == "contrastive" and passes > 1:
            raise ValueError(
                f"run.gradient_accumulation_steps: {passes} with loss contrastive, which compares the whole "
                "batch; allowed: 1"
            )
        if self.reading.streaming and self.cache is not None:
            raise ValueError(
                "cache: with reading.streaming, whose texts are not known beforehand; allowed: without"
            )
        if self.model is not None and self.student.backbone is not None:
            raise ValueError(
                f"student.backbone: {str(self.student.backbone)!r:.80} with model {str(self.model)!r:.80}; "
                "allowed: one of the two"
            )
        if self.data and self.model is None and self.student.backbone is None:
            raise ValueError(
                f"data: {shorten(self.data)} with a new student, whose tokenizer knows emoji alone; "
                "allowed: with model or student.backbone"
            )
        if not 0 <= self.kept_share < 1 or (self.kept_share and (self.model is None or self.form != "own")):
            raise ValueError(
                f"kept_share: {self.kept_share}; allowed: 0 to below 1, above 0 with model, form own"
            )
        if self.own_words and not (self.ordered and self.form == "own" and self.sequence_weight):
            raise ValueError(
                "own_words: True without ordered, without sequence_weight or with form m18; "
                "allowed: with both, form own"
            )
        if self.own_words and self.data:
            raise ValueError("own_words: True with data, whose names are not known; allowed: False")
        self.check_shares()
        if self.freeze_embeddings and self.model is None and self.student.backbone is None:
            raise ValueError(
                "freeze_embeddings: True with a new student, which has learnt no words; "
                "allowed: with model or student.backbone"
            )

    def check_shares(self) -> None:
        """Refuses shares that are none, and names set apart where they cannot be."""
        if not 0 <= self.apart < 1 or (self.apart and (self.form != "own" or self.data)):
            raise ValueError(
                f"apart: {self.apart}; allowed: 0 to below 1, above 0 with form own, without data"
            )
        for name in ("keyword_share", "even_keywords", "strange_share", "apart_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name}: {share}; allowed: 0 to 1")
        if self.apart_share and not self.apart:
            raise ValueError(f"apart_share: {self.apart_share} without apart; allowed: 0, or with apart")


class Distillation(nn.Module):
    """Student, frozen teacher and loss in one module. `generation_head` is m18's `transformation_pre`."""

    def __init__(
        self,
        student: AltCLIPTextModel,
        tokenizer,
        teacher: Teacher | KeptTeacher,
        known: Targets,
        config: DistillConfig,
        generation_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.student, self.tokenizer, self.known, self.config = student, tokenizer, known, config
        self.generation_head = generation_head
        # Held outside the module tree: it has nothing to train, save or average.
        self.frozen = (teacher,)
        self.targets: dict[str, Tensor] = {}

    @torch.no_grad()
    def target(self, english: list[str]) -> Tensor:
        """(texts, heads, dim): what the teacher says, remembered: the same names come again and again."""
        if not self.targets or len(self.targets) > REMEMBERED:
            device = self.student.device
            self.targets = {text: of_head[None].to(device) for text, of_head in self.known.apart.items()}
        new = [text for text in dict.fromkeys(english) if text not in self.targets]
        if new:
            teacher, device = self.frozen[0], self.student.device
            rows = ROWS if device.type == "cpu" else 32 * ROWS
            said = in_fixed_shapes(partial(self.said, device=device), teacher.lengths(new), new, rows)
            self.targets.update(zip(new, said, strict=True))
        return torch.stack([self.targets[text] for text in english])

    def said(self, english: list[str], device: torch.device) -> Tensor:
        """(texts, heads, dim): the teacher's own words."""
        teacher = self.frozen[0]
        pooled = teacher.pooled(english, device)
        heads = [pooled @ self.known.change.to(pooled.device)]
        if self.generation_head is not None:
            heads.append(teacher.penultimate(english, device))
        return torch.stack(heads, dim=1)

    def states(self, texts: list[str]) -> tuple[list[Tensor], Tensor]:
        """(texts, tokens, dim) of each head, and the tokens of each text."""
        if self.generation_head is None:
            states, lengths = encode_trimmed(self.student, self.tokenizer, texts)
            return [states], lengths
        states, before_last, lengths = two_states(self.student, self.tokenizer, texts)
        return [states, self.generation_head(before_last)], lengths

    def of_tokens(self, texts: list[str], named: list[list[Named]], whole: Tensor, tokens: int) -> Tensor:
        """(texts, tokens, dim): what each token is drawn to; of a name in a list what that name says."""
        goal = whole[:, None].repeat(1, tokens, 1)
        if owners := owners_of(self.tokenizer, texts, named):
            assert self.known.places is not None
            names = [name.english for of_text in named for name in of_text]
            places = [place for of_text in named for place in range(len(of_text))]
            own = self.target(names)[:, 0] + self.known.places[places].to(goal)
            rows, columns = zip(*owners, strict=True)
            goal[rows, columns] = own[list(owners.values())]
        return goal

    def forward(self, texts: list[str], english: list[str], named: list[list[Named]] | None = None) -> Tensor:
        losses = []
        whole = self.config.loss == "contrastive" or self.student.device.type != "cpu"
        chunk = len(texts) if whole else CHUNK
        for first in range(0, len(texts), chunk):
            part = slice(first, first + chunk)
            groups = None
            if self.config.loss == "contrastive":
                groups = torch.tensor([english.index(text) for text in english], device=self.student.device)
            (states, lengths), target = self.states(texts[part]), self.target(english[part])
            weight, kind = self.config.sequence_weight, self.config.loss
            goal = None
            if named is not None:
                goal = self.of_tokens(texts[part], named[part], target[:, 0], states[0].shape[1])
            for head, of_head in enumerate(states):
                loss = distillation_loss(
                    of_head.float(), target[:, head], weight, kind, groups, lengths, goal
                )
                losses.append(loss * len(of_head))
        return torch.stack(losses).sum() / len(texts)


def build(config: DistillConfig, width: int) -> tuple[AltCLIPTextModel, Any, nn.Linear | None]:
    """Student, tokenizer and, in form m18, the generation head."""
    state = None
    if config.model is not None:
        student, tokenizer, state = student_of(config.model, config.form)
        if student.config.project_dim != width:
            raise ValueError(
                f"model: {str(config.model)!r:.80} repeats a teacher of width {student.config.project_dim}, "
                f"{str(config.teacher)!r:.80} has {width}; allowed: the same"
            )
    elif config.student.backbone is not None:
        student, tokenizer = student_from_backbone(config.student.backbone, width)
    else:
        captions = Captions(load_emoji(), all_keywords=True)
        lines = captions.corpus(grounds=config.ground_share > 0)
        tokenizer = train_xlmr_tokenizer(lines, config.student.vocab_size)
        student = build_student(config.student, len(tokenizer), width)
    still(student)
    attend_in_text(student, config.run.mixed_precision)
    if config.freeze_embeddings:
        student.roberta.embeddings.word_embeddings.requires_grad_(False)
    if config.form == "own":
        return student, tokenizer, None
    head = nn.Linear(student.config.hidden_size, width)
    head.load_state_dict(state or student.transformation.state_dict())
    return student, tokenizer, head


def check_towers(config: DistillConfig) -> None:
    """Refuses, before a weight is read, emoji that are not there, a teacher that is no CLIP and a form that
    would lose a head."""
    if not config.data:
        some_emoji(config.emoji)
    found = AutoConfig.from_pretrained(config.teacher).model_type
    if found not in ("clip", "altclip"):
        raise ValueError(f"teacher: {str(config.teacher)!r:.80} is {found}; allowed: a CLIP or an AltCLIP")
    if found == "altclip" and config.form != "own":
        raise ValueError(f"form: {config.form} with an AltCLIP as teacher; allowed: own")
    if config.model is not None and config.form == "own":
        form = checkpoints.find(str(config.model)).form
        if form == "m18":
            raise ValueError(f"form: own, and {str(config.model)!r:.80} has m18's two heads; allowed: m18")


def open_teacher(config: DistillConfig, opened: Opened | None) -> Teacher | KeptTeacher:
    """The frozen teacher; one with a cache has then said what it will be asked."""
    if config.cache is None:
        return Teacher.read(config.teacher)
    teacher = KeptTeacher(config.teacher, config.cache, 1 if config.form == "own" else 2)
    names = english_texts(config)
    if asks_for_names(config):
        teacher.kept.keep(names, RunConfig())  # in full precision, as `targets_of` asks for them
    teacher.kept.keep(texts_of(opened, "en") if opened else names, config.run)
    return teacher


def train(config: DistillConfig) -> None:
    check_towers(config)
    opened = open_text(config.data, config.reading, config.languages) if config.data else None
    torch.manual_seed(config.run.seed)
    guide = open_teacher(config, opened)
    student, tokenizer, head = build(config, guide.width)
    known = targets_of(config, guide)
    if isinstance(guide, Teacher):
        store_rounded(guide.tower, config.run.mixed_precision)
    stage = Distillation(student, tokenizer, guide, known, config, head)
    pairs: Any = ParallelCaptions(config, known.near) if opened is None else None
    if opened is not None:
        pairs = parallel_text(opened, config.run, tokenizer)
    run = Run.start(config, stage)
    if config.loss == "contrastive" and run.accelerator.num_processes > 1:
        raise ValueError("loss: contrastive compares the whole batch; allowed on one process alone")
    for batch in run.batches(pairs):
        with run.accelerator.autocast():
            loss = run.model(*batch)
        run.step(loss)
    if run.accelerator.is_main_process:
        trained: Any = run.trained()
        mix_in_start(trained.student, config.model, config.form, config.kept_share)
        export(trained, guide.clip, config)
        pooled = first_states(trained.student, tokenizer)
        figures = opened.report() if opened else name_retrieval(pooled, config.emoji)
        (config.output_dir / "report.json").write_text(json.dumps(figures, indent=1))
        made = Made(
            title="AltCLIP",
            stage="teacher learning (Chen et al. 2022, section 3.2)",
            library="transformers",
            task="zero-shot-image-classification",
            bases={"teacher": config.teacher, "student": config.model or config.student.backbone},
            **data_of(opened),
            figures={} if opened else figures,
            metric="R@1 of a language's names among the English ones",
        )
        finish(config, made)


def export(trained: Distillation, teacher: CLIPModel, config: DistillConfig) -> None:
    """An AltCLIP folder; of form m18 with the generation head under its published name."""
    folder, head = config.output_dir / "model", trained.generation_head
    altclip = assemble(trained.student, teacher, trained.known.change)
    processor = CLIPImageProcessor.from_pretrained(config.teacher)
    if head is not None:
        AltCLIP(
            altclip, trained.tokenizer, processor, form="m18", generation_head=dict(head.state_dict())
        ).save_pretrained(folder)
        return
    with aside.merged(folder) as place:
        for part in (altclip, trained.tokenizer, processor):
            part.save_pretrained(place)


def main() -> None:
    run_stage(parse(DistillConfig), train)


if __name__ == "__main__":
    main()
