"""Published data sets in miniature: a few pictures each, in exactly the layouts of their owners.

Picture n shows colour n of `COLOURS`, so that a model that tells colours apart gets them right.
"""

import gzip
import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from altdiffusion.evaluation.labelled import wnids

COLOURS = {
    "en": ["red", "green", "blue", "yellow", "white", "black"],
    "zh": ["红色", "绿色", "蓝色", "黄色", "白色", "黑色"],
    "de": ["rot", "grün", "blau", "gelb", "weiß", "schwarz"],
    "ja": ["赤", "緑", "青", "黄色", "白", "黒"],
}


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (40, 32), COLOURS["en"][number])


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")


def flickr30k(root: Path, count: int = 6) -> None:
    """Karpathy's split in flickr30k/, the Chinese test captions in flickr30k-cn/."""
    images = []
    for n in range(count):
        save(root / f"flickr30k/flickr30k-images/100{n}.jpg", n)
        texts = [{"raw": f"{COLOURS['en'][n]} {part}"} for part in range(5)]
        images.append({"filename": f"100{n}.jpg", "split": "test", "sentences": texts})
    images.append({"filename": "999.jpg", "split": "train", "sentences": [{"raw": "none"}]})
    write(root / "flickr30k/dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    rows = [f"100{n}#{part}\t{COLOURS['zh'][n]}{part}" for n in range(count) for part in range(5)]
    write(root / "flickr30k-cn/flickr30k_cn_test.txt", rows)


def flickr30k_table(root: Path) -> None:
    """The same as CLIP_benchmark has it: commas in captions, a line of titles."""
    for n in range(3):
        save(root / f"100{n}.jpg", n)
    rows = [f"100{n}.jpg,{COLOURS['en'][n]}, with a comma" for n in range(3) for _ in range(5)]
    write(root / "flickr30k_test_karpathy.txt", ["image,caption", *rows])


def coco(root: Path) -> None:
    names = [f"COCO_val2014_{n:012}.jpg" for n in range(6)]
    for n, name in enumerate(names):
        save(root / "coco/val2014" / name, n)
    numbers = [5, 6, 5, 5, 7, 5]  # COCO has more than five captions here and there
    rows = [(n, f"a {COLOURS['en'][n]} thing {part}") for n in range(6) for part in range(numbers[n])]
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"image_id": n, "id": at, "caption": text} for at, (n, text) in enumerate(rows)],
    }
    write(root / "coco/coco_test_karpathy.json", content)


def coco_cn(root: Path) -> None:
    base = root / "coco-cn/coco-cn-version1805v1.1"
    names = [f"COCO_val2014_{n:012}" for n in range(4)]
    write(base / "coco-cn_test.txt", names[:3])
    written = [f"{name}#{0}\t{COLOURS['zh'][n]}" for n, name in enumerate(names)]
    write(base / "imageid.human-written-caption.txt", [*written, f"{names[0]}#1\t{COLOURS['zh'][0]}的"])
    rows = [f"{names[n]}#{part} {COLOURS['zh'][n]}{part}" for n in range(3) for part in range(5)]
    write(base / "imageid.manually-translated-caption.txt", rows)


def xtd10(root: Path) -> None:
    names = [f"COCO_train2014_{n:012}.jpg" for n in range(6)]
    for n, name in enumerate(names):
        save(root / "xtd10/images" / name, n)
    write(root / "xtd10/XTD10/test_image_names.txt", names)
    for part, tag in (("XTD10", "zh"), ("MIC", "de"), ("MIC", "en"), ("STAIR", "jp")):
        captions = COLOURS["ja" if tag == "jp" else tag]
        write(root / f"xtd10/{part}/test_1kcaptions_{tag}.txt", captions)


def crossmodal3600(root: Path) -> None:
    rows = []
    for n in range(6):
        save(root / f"xm3600/images/{n:016x}.jpg", n)
        by_language = {tag: {"caption": [text[n], f"{text[n]}!"]} for tag, text in COLOURS.items()}
        rows.append(json.dumps({"image/key": f"{n:016x}", "image/locale": "en", **by_language}))
    write(root / "xm3600/captions.jsonl", rows)


def multi30k(root: Path) -> None:
    base = root / "multi30k/data/task1"
    write(base / "image_splits/test_2016_flickr.txt", [f"100{n}.jpg" for n in range(6)])
    (base / "raw").mkdir(parents=True)
    for tag in ("en", "de"):
        content = "".join(f"{text}\n" for text in COLOURS[tag]).encode()
        (base / f"raw/test_2016_flickr.{tag}.gz").write_bytes(gzip.compress(content))


def clip_benchmark_json(root: Path, name: str = "colours") -> None:
    """With the paths of another machine, and one picture twice, as its captions are."""
    for n in range(6):
        save(root / f"images/{n}.jpg", n)
    paths = [f"elsewhere/{n}.jpg" for n in [*range(6), 0]]
    for tag, texts in COLOURS.items():
        content = {"image_paths": paths, "annotations": [*texts, f"{texts[0]}!"], "indicies": list(range(7))}
        write(root / f"{name}-{tag}.json", content)


def imagenet(root: Path) -> None:
    """Six of the 1,000 classes in the trees of ImageNet and its kin, with class names in two languages."""
    order = wnids()
    numbers = [0, 7, 340, 500, 998, 999]
    trees = {"imagenet/val": "JPEG", "imagenet-a": "jpg", "imagenet-r": "jpg", "sketch": "JPEG"}
    for tree, suffix in trees.items():
        for n, number in enumerate(numbers[: 6 if tree == "imagenet/val" else 5]):
            save(root / f"{tree}/{order[number]}/{n}.{suffix}", n)
    for n, number in enumerate(numbers):
        save(root / f"imagenetv2-matched-frequency-format-val/{number}/{n}.jpeg", n)
    for code, tag in (("en", "en"), ("cn", "zh")):
        names = [f"{tag} {number}" for number in range(1000)]
        for n, number in enumerate(numbers):
            names[number] = COLOURS[tag][n]
        write(root / f"{code}_classnames.json", {"imagenet1k": names})
        templates = {"imagenet1k": ["a photo of {c}." if tag == "en" else "{c}的照片。", "{c}"]}
        write(root / f"{code}_zeroshot_classification_templates.json", templates)
    babel = {"DE": [[0, 340, 999], [COLOURS["de"][n] for n in (0, 2, 5)]]}
    write(root / "babel-imagenet/babel_imagenet.json", babel)
    prompts = {
        "de": ["ein Foto von {}"],
    }
    upper = {tag.upper(): texts for tag, texts in prompts.items()}
    write(root / "babel-imagenet/nllb_dist13b_prompts.json", upper)


def cifar(root: Path) -> None:
    """Both binary versions, of as many pictures as there are colours."""
    planes = [b"".join(bytes([c]) * 1024 for c in picture(n).getpixel((0, 0))) for n in range(6)]
    ten, hundred = root / "cifar-10-batches-bin", root / "cifar-100-binary"
    write(ten / "batches.meta.txt", [*COLOURS["en"], ""])
    (ten / "test_batch.bin").write_bytes(b"".join(bytes([n]) + plane for n, plane in enumerate(planes)))
    write(hundred / "fine_label_names.txt", [name + "_thing" for name in COLOURS["en"]])
    (hundred / "test.bin").write_bytes(b"".join(bytes([9, n]) + plane for n, plane in enumerate(planes)))


def webdataset(root: Path, kind: str = "classification") -> None:
    """Two shards, as CLIP_benchmark's converter writes them."""
    folder = root / ("wds_colours_test" if kind == "classification" else "wds_flickr8k-zh")
    for shard in range(2):
        members = []
        for n in range(3 * shard, 3 * shard + 3):
            image = io.BytesIO()
            picture(n).save(image, "WEBP", lossless=True)
            text = str(n) if kind == "classification" else f"{COLOURS['zh'][n]}\n{COLOURS['zh'][n]}的"
            suffix = "cls" if kind == "classification" else "txt"
            members += [(f"s{n:07}.webp", image.getvalue()), (f"s{n:07}.{suffix}", text.encode())]
        _tar(folder / f"test/{shard}.tar", members)
    write(folder / "test/nshards.txt", ["2"])
    if kind == "classification":
        write(folder / "classnames.txt", COLOURS["en"])
        write(folder / "zeroshot_classification_templates.txt", ["a photo of {c}.", "{c}"])
    else:
        write(folder / "dataset_type.txt", ["retrieval"])


def plain_tree(root: Path) -> None:
    for n, name in enumerate(COLOURS["en"][:4]):
        for copy in range(n + 1):
            save(root / f"{name}/{copy}.png", n)
    spoken = {tag: dict(zip(COLOURS["en"], names[:4], strict=False)) for tag, names in COLOURS.items()}
    write(root / "classnames.json", spoken)


def _tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
