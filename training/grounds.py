"""Grounds that a caption names by their colour: "a lobster on a blue background", in 18 languages.

Each language has patterns, in which the name of the emoji stands as it is, and each colour in the form that
they ask for: its gender and case, an article, a particle. Where a language has two usual words for a colour
(Russian, Italian and Thai part light blue from blue), both stand there.
"""

from dataclasses import replace

import numpy as np

from training.emoji import Scene, held_out

#: Tints that are called by these names and on which the emoji can be seen: sRGB, 0 to 255.
GROUNDS = {
    "red": (240, 128, 120),
    "pink": (255, 200, 222),
    "orange": (255, 190, 120),
    "yellow": (255, 240, 150),
    "green": (160, 220, 160),
    "blue": (140, 185, 250),
    "purple": (205, 170, 240),
    "brown": (200, 165, 130),
    "grey": (200, 200, 200),
    "white": (255, 255, 255),
}
#: Share of the pairs (emoji, colour) that no training sees.
HELD_OUT_GROUNDS = 0.1
#: `{}` takes the name or the list of names, `{a}` the same behind an English article, `{colour}` a colour.
PATTERNS = {
    "en": ("{} on {colour} background", "{a} on {colour} background"),
    "zh": ("{colour}背景上的{}",),
    "ja": ("{colour}背景の{}",),
    "th": ("{}บนพื้นหลังสี{colour}",),
    "ko": ("{colour} 배경의 {}",),
    "hi": ("{colour} पृष्ठभूमि पर {}",),
    "uk": ("{} на {colour} тлі",),
    "ar": ("{} على خلفية {colour}",),
    "tr": ("{colour} arka planda {}",),
    "vi": ("{} trên nền màu {colour}",),
    "pl": ("{} na {colour} tle",),
    "nl": ("{} op een {colour} achtergrond",),
    "pt": ("{} em um fundo {colour}", "{} sobre fundo {colour}"),
    "it": ("{} su sfondo {colour}", "{} su uno sfondo {colour}"),
    "es": ("{} sobre un fondo {colour}", "{} sobre fondo {colour}"),
    "de": ("{} auf {colour} Hintergrund",),
    "fr": ("{} sur fond {colour}", "{} sur un fond {colour}"),
    "ru": ("{} на {colour} фоне",),
}
#: The colours in the order of `GROUNDS`; `|` stands between two words for one.
_WORDS = {
    "en": "a red, a pink, an orange, a yellow, a green, a blue, a purple, a brown, a grey|a gray, a white",
    "zh": "红色, 粉色|粉红色, 橙色, 黄色, 绿色, 蓝色, 紫色, 棕色, 灰色, 白色",
    "ja": "赤い, ピンクの, オレンジの|オレンジ色の, 黄色い, 緑の|緑色の, 青い, 紫の|紫色の, 茶色い|茶色の, "
    "灰色の|グレーの, 白い",
    "th": "แดง, ชมพู, ส้ม, เหลือง, เขียว, ฟ้า|น้ำเงิน, ม่วง, น้ำตาล, เทา, ขาว",
    "ko": "빨간색, 분홍색, 주황색, 노란색, 초록색|녹색, 파란색, 보라색, 갈색, 회색, 흰색",
    "hi": "लाल, गुलाबी, नारंगी, पीली, हरी, नीली, बैंगनी, भूरी, स्लेटी, सफ़ेद",
    "uk": "червоному, рожевому, помаранчевому|оранжевому, жовтому, зеленому, синьому|блакитному, "
    "фіолетовому, коричневому, сірому, білому",
    "ar": "حمراء, وردية, برتقالية, صفراء, خضراء, زرقاء, بنفسجية|أرجوانية, بنية, رمادية, بيضاء",
    "tr": "kırmızı, pembe, turuncu, sarı, yeşil, mavi, mor, kahverengi, gri, beyaz",
    "vi": "đỏ, hồng, cam, vàng, xanh lá cây|lục, xanh dương|lam, tím, nâu, xám, trắng",
    "pl": "czerwonym, różowym, pomarańczowym, żółtym, zielonym, niebieskim, fioletowym, brązowym, "
    "szarym, białym",
    "nl": "rode, roze, oranje, gele, groene, blauwe, paarse, bruine, grijze, witte",
    "pt": "vermelho, rosa, laranja, amarelo, verde, azul, roxo, marrom, cinza, branco",
    "it": "rosso, rosa, arancione, giallo, verde, blu|azzurro, viola, marrone, grigio, bianco",
    "es": "rojo, rosa, naranja, amarillo, verde, azul, morado, marrón, gris, blanco",
    "de": "rotem, rosa, orangefarbenem, gelbem, grünem, blauem, violettem|lila, braunem, grauem, weißem",
    "fr": "rouge, rose, orange, jaune, vert, bleu, violet, marron, gris, blanc",
    "ru": "красном, розовом, оранжевом, жёлтом|желтом, зелёном|зеленом, синем|голубом, фиолетовом, "
    "коричневом, сером, белом",
}
WORDS = {
    tag: {ground: tuple(words.split("|")) for ground, words in zip(GROUNDS, line.split(", "), strict=True)}
    for tag, line in _WORDS.items()
}


def on_ground(scene: Scene, ground: str) -> Scene:
    """The scene on this ground, which its captions then name."""
    return replace(scene, top=GROUNDS[ground], bottom=GROUNDS[ground], ground=ground)


def held_out_ground(characters: tuple[str, ...], ground: str) -> bool:
    """Whether training never shows one of the emoji on this ground."""
    return any(held_out(HELD_OUT_GROUNDS, "ground", ground, character) for character in characters)


def grounded(seed: int, index: int, scene: Scene, share: float) -> Scene:
    """Of the scenes with number `index` such a share on one of the grounds that they are trained on."""
    random = np.random.default_rng((seed, index, 6))
    if random.random() >= share:
        return scene
    seen = [ground for ground in GROUNDS if not held_out_ground(scene.characters, ground)]
    return on_ground(scene, seen[int(random.integers(len(seen)))]) if seen else scene
