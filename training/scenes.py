"""The emoji as the contrastive stage trains on them: scenes with captions, and the names of all."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.captions import Captions, training_scene
from training.emoji import Emoji, Scene, centred, in_reading_order, pixels, some_emoji
from training.fixed_shapes import in_fixed_shapes
from training.teacher import Teacher


def group_of(scene: Scene, ordered: bool = False) -> int:
    """One number for all scenes of the same emoji, and all their captions; if `ordered` of the same in one
    order. Those on a ground that captions name are by themselves."""
    characters = scene.characters if ordered else sorted(scene.characters)
    return hash((*map(ord, characters), *map(ord, scene.ground)))


class CaptionedScenes(torch.utils.data.Dataset):
    """Endless scenes with a caption each; none with a pair of emoji that is held out."""

    items = None

    def __init__(self, config: Any) -> None:
        self.config = config
        self.emoji = some_emoji(config.emoji)
        self.captions = Captions(self.emoji, all_keywords=True, ordered=config.ordered)

    def __getitem__(self, index: int):
        scene = self.ordered(index) if self.config.ordered else self.scene(index)
        random = np.random.default_rng((self.config.run.seed, index, 1))
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        return scene, self.captions.caption(scene, tag, random)

    def scene(self, index: int) -> Scene:
        config, characters = self.config, self.emoji.characters
        return training_scene(config.run.seed, index, characters, config.counts, 0.5, config.ground_share)

    def ordered(self, index: int) -> Scene:
        """In reading order. Behind each even one of several emoji stands the same one turned round."""
        before = self.scene(index - index % 2)
        if index % 2 and len(before.placed) > 1:
            return in_reading_order(before, turned=True)
        return in_reading_order(self.scene(index))

    def collate(self, items: list) -> tuple[Tensor, list[str], Tensor]:
        scenes, texts = zip(*items, strict=True)
        groups = [group_of(scene, self.config.ordered) for scene in scenes]
        return (
            torch.from_numpy(pixels(list(scenes), self.config.size)),
            list(texts),
            torch.tensor(groups),
        )


class AllNames(nn.Module):
    """What a locked text tower says of all names of `emoji`, which scenes of one emoji are told from.

    A batch holds some sixty of the 1,364 names. English stands in where a name is held out.
    """

    def __init__(self, tower: Teacher, emoji: Emoji, languages: tuple[str, ...]) -> None:
        super().__init__()
        captions = Captions(emoji)
        tags = languages or captions.tags
        states = []
        for tag in tags:
            seen = {c: "en" if captions.unseen_name(tag, c) else tag for c in emoji.characters}
            texts = [emoji.names[seen[c]][c] for c in emoji.characters]
            states.append(in_fixed_shapes(tower.pooled, tower.lengths(texts), texts))
        self.states: Tensor
        self.groups: Tensor
        self.register_buffer("states", torch.stack(states), persistent=False)
        groups = torch.tensor([group_of(centred(c)) for c in emoji.characters])
        self.register_buffer("groups", groups, persistent=False)

    def loss(
        self,
        image: Float[Tensor, "batch dim"],
        groups: Int[Tensor, " batch"],
        project: nn.Module,
        logit_scale: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Cross-entropy over the names of each language, its mean over languages; scenes of several emoji
        count as zero, so that a batch weighs the same however it is shared out."""
        rows, numbers = (groups[:, None] == self.groups[None, :]).nonzero(as_tuple=True)
        names = F.normalize(project(self.states).float(), dim=-1)  # (languages, names, dim)
        logits = logit_scale.exp() * image[rows] @ names.transpose(1, 2)  # (languages, singles, names)
        target = numbers.expand(len(names), -1)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / (
            len(names) * len(image)
        )
