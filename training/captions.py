"""Captions of emoji scenes in 18 languages: names, templates, keywords, and CLDR's own grammar for lists.

What is held out never reaches training: some names of each language, one template per language, some pairs of
emoji, some emoji on some grounds. Some keywords reach the towers alone, as a pretrained one knows more words
than a UNet was shown.
"""

import unicodedata
from itertools import combinations

import numpy as np

from altdiffusion.languages import LANGUAGES, language
from training.emoji import CELLS, Emoji, Scene, held_out, random_scene
from training.grounds import PATTERNS, WORDS, grounded
from training.samples import shorten

#: Shares that no training sees. English names are all seen: the teacher knows no other language.
HELD_OUT_NAMES, HELD_OUT_KEYWORDS, HELD_OUT_PAIRS = 0.02, 0.1, 0.1
#: How often a caption of one emoji is its bare name, its name in a template, one of its keywords.
KINDS = {"name": 0.6, "template": 0.3, "keyword": 0.1}
#: Ways to ask for a picture of {}, written so that the name needs no inflection. The last of each language is
#: held out.
TEMPLATES = {
    "en": ("{a}", "a picture of {a}", "{} emoji", "a drawing of {a}"),
    "zh": ("一张{}的图片", "{}表情", "一幅{}的画"),
    "ja": ("{}の絵", "{}の絵文字", "{}のイラスト"),
    "th": ("รูป{}", "อีโมจิ{}", "ภาพ{}"),
    "ko": ("{} 그림", "{} 이모지", "{} 사진"),
    "hi": ("{} का चित्र", "{} इमोजी", "{} की तस्वीर"),
    "uk": ("зображення: {}", "емодзі {}", "малюнок: {}"),
    "ar": ("صورة {}", "رمز {}", "رسم {}"),
    "tr": ("{} resmi", "{} emojisi", "{} çizimi"),
    "vi": ("hình {}", "biểu tượng {}", "bức tranh {}"),
    "pl": ("obrazek: {}", "emoji: {}", "rysunek: {}"),
    "nl": ("een plaatje van {}", "emoji van {}", "een tekening van {}"),
    "pt": ("uma imagem de {}", "emoji de {}", "um desenho de {}"),
    "it": ("un'immagine di {}", "emoji di {}", "un disegno di {}"),
    "es": ("una imagen de {}", "emoji de {}", "un dibujo de {}"),
    "de": ("ein Bild von {}", "Emoji: {}", "eine Zeichnung von {}"),
    "fr": ("une image de {}", "émoji {}", "un dessin de {}"),
    "ru": ("изображение: {}", "эмодзи {}", "рисунок: {}"),
}


def check_captions(languages: tuple[str, ...], counts: tuple[int, ...] = (1,)) -> None:
    """Refuses languages, and numbers of emoji in a scene, that there are no captions of."""
    for tag in languages:
        if (known := language(tag, "languages").tag) != tag:
            raise ValueError(f"languages: {shorten(tag, 40)!r}; allowed: {known!r}")
    if not counts or not set(counts) <= set(CELLS):
        asked = shorten(" ".join(map(str, counts)), 40) or "none"
        raise ValueError(f"counts: {asked}; allowed: numbers from {min(CELLS)} to {max(CELLS)}")


class Captions:
    """Writes captions for scenes. Every choice comes from the generator that is handed in.

    Several emoji are named in any order, or if `ordered` as the scene lists them. `keyword_share` of those of
    one emoji are keywords, where it has any; with `all_keywords` also those that are held out.
    """

    def __init__(
        self,
        emoji: Emoji,
        keyword_share: float = KINDS["keyword"],
        all_keywords: bool = False,
        ordered: bool = False,
    ) -> None:
        self.emoji, self.all_keywords, self.ordered = emoji, all_keywords, ordered
        self.tags = tuple(LANGUAGES)
        others = (1 - keyword_share) / (1 - KINDS["keyword"])
        self.shares = [KINDS["name"] * others, KINDS["template"] * others, keyword_share]

    def random_language(
        self, random: np.random.Generator, characters: tuple[str, ...], allowed: tuple[str, ...] = ()
    ) -> str:
        """One of the allowed languages (none named: all of them, English twice as likely).

        Where one is named several times, each is drawn as often as it stands there. Otherwise one of 19 is
        drawn, all and English again, and its number counts round the allowed ones where it is none of them:
        these are then not all equally likely. English stands in for a language in which one of the names is
        held out, allowed or not.
        """
        if len(set(allowed)) < len(allowed):
            tag = allowed[int(random.integers(len(allowed)))]
            return "en" if any(self.unseen_name(tag, c) for c in characters) else tag
        number = int(random.integers(len(self.tags) + 1))
        tag = "en" if number == len(self.tags) else self.tags[number]
        if allowed and tag not in allowed:
            tag = allowed[number % len(allowed)]
        return "en" if any(self.unseen_name(tag, c) for c in characters) else tag

    def unseen_name(self, tag: str, character: str) -> bool:
        return tag != "en" and held_out(HELD_OUT_NAMES, "name", tag, character)

    def seen_keywords(self, tag: str, character: str) -> tuple[str, ...]:
        words = self.emoji.keywords[tag][character]
        if self.all_keywords:
            return words
        return tuple(w for w in words if not held_out(HELD_OUT_KEYWORDS, "keyword", tag, w))

    def caption(self, scene: Scene, tag: str, random: np.random.Generator) -> str:
        """A training caption of the scene in the language `tag`."""
        if scene.ground:
            return self.with_ground(scene, tag, random)
        names = [self.emoji.names[tag][c] for c in scene.characters]
        if len(names) > 1:
            order = range(len(names)) if self.ordered else random.permutation(len(names))
            return self.listing(tag, [names[i] for i in order])
        kind = random.choice(list(KINDS), p=self.shares)
        words = self.seen_keywords(tag, scene.characters[0]) if kind == "keyword" else ()
        if words:
            return str(random.choice(words))
        if kind == "template":
            return fill(str(random.choice(TEMPLATES[tag][:-1])), names[0])
        return names[0]

    def of_one(self, character: str, tag: str) -> list[str]:
        """Every training caption of one emoji."""
        name = self.emoji.names[tag][character]
        templates = [fill(template, name) for template in TEMPLATES[tag][:-1]]
        return [name, *templates, *self.seen_keywords(tag, character)]

    def name(self, scene: Scene, tag: str = "en") -> str:
        """The plain caption: the name, or the list of names, and the ground where captions name it."""
        names = self.listing(tag, [self.emoji.names[tag][c] for c in scene.characters])
        if not scene.ground:
            return names
        return fill(PATTERNS[tag][0], names, WORDS[tag][scene.ground][0])

    def with_ground(self, scene: Scene, tag: str, random: np.random.Generator) -> str:
        """A training caption that names the ground too; one emoji's also in a template."""
        names = self.listing(tag, [self.emoji.names[tag][c] for c in scene.characters])
        colour = str(random.choice(WORDS[tag][scene.ground]))
        if len(scene.placed) > 1 or random.random() >= KINDS["template"]:
            return fill(str(random.choice(PATTERNS[tag])), names, colour)
        template, pattern = str(random.choice(TEMPLATES[tag][:-1])), PATTERNS[tag][0]
        if pattern.startswith("{colour}"):
            return fill(template, fill(pattern, names, colour))
        return fill(pattern, fill(template, names), colour)

    def listing(self, tag: str, names: list[str]) -> str:
        """The names joined by the language's own list pattern (Unicode TR35, part 2, list patterns)."""
        patterns = self.emoji.list_patterns[tag]
        if len(names) <= 2:
            return names[0] if len(names) == 1 else patterns["2"].format(*names)
        joined = patterns["end"].format(*names[-2:])
        for name in reversed(names[1:-2]):
            joined = patterns["middle"].format(name, joined)
        return patterns["start"].format(names[0], joined)

    def corpus(self, *tags: str, grounds: bool = False) -> list[str]:
        """Every name, keyword and training template of these languages, and the grounds' patterns and words:
        what the tokenizers learn from."""
        lines = []
        for tag in tags or self.tags:
            lines += [name for c, name in self.emoji.names[tag].items() if not self.unseen_name(tag, c)]
            lines += [word for c in self.emoji.characters for word in self.seen_keywords(tag, c)]
            lines += [fill(template, "") for template in TEMPLATES[tag][:-1]] * 20
            lines += [pattern.format("", "") for pattern in self.emoji.list_patterns[tag].values()] * 20
            if grounds:
                words = [word for words in WORDS[tag].values() for word in words]
                lines += [fill(pattern, "", word) for pattern in PATTERNS[tag] for word in words] * 10
        return [line for line in (unicodedata.normalize("NFC", line).strip() for line in lines) if line]


def fill(template: str, name: str, colour: str = "") -> str:
    """`{}` takes the name, `{a}` the name behind the English indefinite article, `{colour}` the colour."""
    article = "an" if name[:1].lower() in set("aeiou") else "a"
    return template.replace("{colour}", colour).replace("{a}", f"{article} {name}").replace("{}", name)


def training_scene(
    seed: int,
    index: int,
    characters: tuple[str, ...],
    counts: tuple[int, ...],
    pastel: float = 0.0,
    ground_share: float = 0.0,
) -> Scene:
    """As `random_scene`, with a single emoji in the place of a scene that holds a held-out pair, and a share
    of the scenes on a ground that their captions name."""
    scene = random_scene(seed, index, characters, counts=counts, pastel=pastel)
    if held_out_pair(scene.characters):
        scene = random_scene(seed, index, characters, pastel=pastel)
    return grounded(seed, index, scene, ground_share)


def held_out_pair(characters: tuple[str, ...]) -> bool:
    """Whether two emoji of the scene are a pair that training never shows together."""
    return any(held_out(HELD_OUT_PAIRS, "pair", *pair) for pair in combinations(sorted(characters), 2))
