"""The readers on miniature data in the published layouts: which pictures, captions, classes and languages."""

import io
import json
import tarfile

import pytest

from altdiffusion.evaluation import captioned, labelled
from altdiffusion.evaluation.datasets import find, read_lines
from tests import mini_data
from tests.mini_data import COLOURS

ALL = (*captioned.READERS, *labelled.READERS)


def only(root, name, tag):
    (found,) = [one for one in find(root, ALL) if one.name == name and tag in one.languages]
    return found.read(tag)


def colours(data) -> list[str]:
    """What the pictures show, in their order."""
    names = {mini_data.picture(n).getpixel((0, 0)): name for n, name in enumerate(COLOURS["en"])}
    seen = []
    for picture in data.pictures:
        pixel = picture.open().getpixel((0, 0))
        seen.append(
            min(names, key=lambda colour: sum(abs(a - b) for a, b in zip(colour, pixel, strict=True)))
        )
    return [names[colour] for colour in seen]


def test_flickr30k_is_the_test_split_in_english_and_chinese(tmp_path):
    mini_data.flickr30k(tmp_path)
    for tag in ("en", "zh"):
        data = only(tmp_path, "flickr30k", tag)
        assert colours(data) == COLOURS["en"]
        assert [len(texts) for texts in data.captions] == [5] * 6
        assert [texts[0].rstrip(" 0") for texts in data.captions] == COLOURS[tag]


def test_clip_benchmarks_table_of_flickr30k_keeps_commas(tmp_path):
    mini_data.flickr30k_table(tmp_path)
    data = only(tmp_path, "flickr30k", "en")
    assert colours(data) == COLOURS["en"][:3]
    assert data.captions[1] == ("green, with a comma",) * 5


def test_coco_keeps_all_captions(tmp_path):
    mini_data.coco(tmp_path)
    data = only(tmp_path, "coco", "en")
    assert colours(data) == COLOURS["en"]
    assert [len(texts) for texts in data.captions] == [5, 6, 5, 5, 7, 5]


def test_karpathys_coco_is_read_by_folder_and_name(tmp_path):
    mini_data.coco(tmp_path)
    (tmp_path / "coco/coco_test_karpathy.json").unlink()
    rows = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012}.jpg",
            "split": split,
            "sentences": [{"raw": "x"}],
        }
        for n, split in enumerate(["test", "train", "restval", "test"])
    ]
    mini_data.write(tmp_path / "coco/dataset_coco.json", {"images": rows})
    assert colours(only(tmp_path, "coco", "en")) == ["red", "yellow"]


def test_coco_cn_has_written_and_translated_captions_of_the_test_pictures(tmp_path):
    mini_data.coco(tmp_path)
    mini_data.coco_cn(tmp_path)
    written, translated = (only(tmp_path, f"coco-cn-{size}", "zh") for size in ("1k", "5k"))
    assert colours(written) == colours(translated) == COLOURS["en"][:3]
    assert [len(texts) for texts in written.captions] == [2, 1, 1]
    assert [len(texts) for texts in translated.captions] == [5, 5, 5]


@pytest.mark.parametrize("tag", ["en", "zh", "de", "ja"])
def test_xtd10_crossmodal_and_clip_benchmarks_json_speak_several_languages(tmp_path, tag):
    mini_data.xtd10(tmp_path)
    mini_data.crossmodal3600(tmp_path)
    mini_data.clip_benchmark_json(tmp_path)
    for name, number in (("xtd10", 1), ("crossmodal-3600", 2), ("colours", 1)):
        data = only(tmp_path, name, tag)
        assert colours(data) == COLOURS["en"]
        assert [texts[0] for texts in data.captions] == COLOURS[tag]
        assert {len(texts) for texts in data.captions[1:]} == {number}
    assert len(only(tmp_path, "colours", tag).captions[0]) == 2


def test_multi30k_is_read_packed_beside_the_pictures_of_flickr30k(tmp_path):
    mini_data.flickr30k(tmp_path)
    mini_data.multi30k(tmp_path)
    for tag in ("en", "de"):
        data = only(tmp_path, "multi30k-2016-flickr", tag)
        assert colours(data) == COLOURS["en"]
        assert data.captions == tuple((text,) for text in COLOURS[tag])


def test_crossmodal_s_languages_are_told_by_its_first_row_alone(tmp_path):
    mini_data.crossmodal3600(tmp_path)
    with (tmp_path / "xm3600/captions.jsonl").open("a") as file:
        file.write("\n{no json\n")
    (found,) = find(tmp_path, captioned.READERS)
    assert set(found.languages) == set(COLOURS)
    with pytest.raises(ValueError, match=r"^data: .* has a line that is not JSON"):
        found.read("en")


@pytest.mark.parametrize("name", ["imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch"])
@pytest.mark.parametrize("tag", ["en", "zh"])
def test_imagenets_trees_get_the_names_of_their_classes(tmp_path, name, tag):
    mini_data.imagenet(tmp_path)
    data = only(tmp_path, name, tag)
    classes = 5 if name in ("imagenet-a", "imagenet-r", "imagenet-sketch") else 6
    assert colours(data) == COLOURS["en"][:classes]
    assert [data.class_names[label] for label in data.labels] == COLOURS[tag][:classes]
    assert len(data.templates) == 2 and "{c}" in data.templates[0]


def test_babel_imagenet_takes_the_classes_that_the_language_has_a_name_for(tmp_path):
    mini_data.imagenet(tmp_path)
    data = only(tmp_path, "babel-imagenet", "de")
    assert colours(data) == ["red", "blue", "black"]
    assert data.class_names == ("rot", "blau", "schwarz")
    assert data.labels == (0, 1, 2)
    assert [template.split()[-1] for template in data.templates] == ["{}"]


def test_chinese_clips_list_of_class_names_is_read(tmp_path):
    mini_data.imagenet(tmp_path)
    names = json.loads((tmp_path / "cn_classnames.json").read_text(encoding="utf-8"))["imagenet1k"]
    (tmp_path / "cn_classnames.json").unlink()
    mini_data.write(tmp_path / "label_cn.txt", names)
    assert only(tmp_path, "imagenet", "zh").class_names == tuple(COLOURS["zh"])


def test_the_ids_of_imagenet_are_a_thousand_in_order():
    order = labelled.wnids()
    assert len(set(order)) == 1000
    assert list(order) == sorted(order)
    # Known pairs, from the class index that Keras publishes.
    assert (order[0], order[1], order[281], order[999]) == (
        "n01440764",
        "n01443537",
        "n02123045",
        "n15075141",
    )


def test_cifar_is_read_from_its_binary_versions(tmp_path):
    mini_data.cifar(tmp_path)
    for name, end in (("cifar10", ""), ("cifar100", " thing")):
        data = only(tmp_path, name, "en")
        assert colours(data) == COLOURS["en"]
        assert data.class_names == tuple(colour + end for colour in COLOURS["en"])
        assert data.labels == tuple(range(6))
        assert data.pictures[0].open().size == (32, 32)


def test_webdatasets_of_both_kinds_are_read_without_unpacking(tmp_path):
    mini_data.webdataset(tmp_path)
    mini_data.webdataset(tmp_path, "retrieval")
    classes, captions = only(tmp_path, "colours", "en"), only(tmp_path, "flickr8k", "zh")
    assert colours(classes) == colours(captions) == COLOURS["en"]
    assert classes.labels == tuple(range(6))
    assert classes.templates == ("a photo of {c}.", "{c}")
    assert captions.captions[5] == ("黑色", "黑色的")


def test_a_folder_for_each_class_is_named_in_every_language(tmp_path):
    mini_data.plain_tree(tmp_path)
    (found,) = labelled.plain_tree(tmp_path)
    assert set(found.languages) == set(COLOURS)
    data = found.read("zh")
    assert [data.class_names[label] for label in data.labels].count("黄色") == 4
    assert data.templates is None
    mini_data.write(tmp_path / "templates.json", {"zh": ["{}的照片"]})
    (found,) = labelled.plain_tree(tmp_path)
    assert (found.read("zh").templates, found.read("en").templates) == (("{}的照片",), None)
    (tmp_path / "classnames.json").unlink()
    (found,) = labelled.plain_tree(tmp_path)
    assert found.languages == ("en",)
    assert sorted(found.read("en").class_names) == sorted(COLOURS["en"][:4])


def test_the_digest_tells_texts_and_pictures_apart(tmp_path):
    mini_data.clip_benchmark_json(tmp_path)
    before = {tag: only(tmp_path, "colours", tag).digest for tag in COLOURS}
    assert len(set(before.values())) == 4
    assert only(tmp_path, "colours", "en").digest == before["en"]
    (tmp_path / "images/0.jpg").write_bytes((tmp_path / "images/1.jpg").read_bytes() + b"0")
    assert only(tmp_path, "colours", "en").digest != before["en"]


def test_lines_end_only_where_lines_end(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still\x85one\r\ntwo\n\nfour".encode())
    assert read_lines(tmp_path / "a.txt") == ["one\u2028still\x85one", "two", "", "four"]


@pytest.mark.parametrize(
    ("make", "name", "fault"),
    [
        (mini_data.flickr30k, "flickr30k", "flickr30k/flickr30k-images/1003.jpg"),
        (mini_data.xtd10, "xtd10", "xtd10/STAIR/test_1kcaptions_jp.txt"),
        (mini_data.cifar, "cifar10", "cifar-10-batches-bin/test_batch.bin"),
        (mini_data.webdataset, "colours", "wds_colours_test/test/1.tar"),
    ],
)
def test_data_with_a_fault_is_refused_in_one_line_that_names_it(tmp_path, make, name, fault):
    make(tmp_path)
    file = tmp_path / fault
    if file.suffix == ".jpg":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5])
        if file.suffix == ".tar":
            file.write_bytes(b"junk")
        if file.suffix == ".txt":
            file.write_text("one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^data: [^\n]*{file.stem}[^\n]*$"):
        for found in find(tmp_path, ALL):
            for tag in found.languages:
                found.read(tag)


@pytest.mark.parametrize(
    ("make", "fault", "text"),
    [
        (mini_data.webdataset, "wds_colours_test/test/nshards.txt", "two"),
        (mini_data.webdataset, "wds_colours_test/dataset_type.txt", ""),
        (mini_data.imagenet, "babel-imagenet/babel_imagenet.json", '{"DE": [[1, 2]]}'),
        (mini_data.imagenet, "babel-imagenet/babel_imagenet.json", '{"DE": [[1, 2], ["rot"]]}'),
    ],
)
def test_data_in_another_layout_is_refused_in_one_line(tmp_path, make, fault, text):
    make(tmp_path)
    (tmp_path / fault).write_text(text)
    with pytest.raises(ValueError, match=r"^data: [^\n]* is not in [^\n]* layout[^\n]*$"):
        for found in find(tmp_path, ALL):
            for tag in found.languages:
                found.read(tag)


@pytest.mark.parametrize(
    ("number", "message"), [("x", "is not in"), ("-1", "class -1 of"), ("6", "class 6 of")]
)
def test_class_numbers_that_are_none_are_refused(tmp_path, number, message):
    mini_data.webdataset(tmp_path)
    file = tmp_path / "wds_colours_test/test/0.tar"
    with tarfile.open(file) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}
    content[next(name for name in content if name.endswith(".cls"))] = number.encode()
    with tarfile.open(file, "w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match=rf"^data: [^\n]*{message}"):
        only(tmp_path, "colours", "en")


def test_rows_without_what_they_should_hold_are_refused(tmp_path):
    mini_data.write(tmp_path / "dataset_flickr30k.json", {"images": [{"filename": "a.jpg"}]})
    with pytest.raises(ValueError, match=r"^data: .* is not in the published layout of flickr30k"):
        only(tmp_path, "flickr30k", "en")


def test_texts_stay_as_they_are_and_what_is_none_is_refused(tmp_path):
    mini_data.clip_benchmark_json(tmp_path)
    file = tmp_path / "colours-en.json"
    content = json.loads(file.read_text())
    content["annotations"][1] = " \u200fe\u0301\u200b!\n"
    file.write_text(json.dumps(content))
    assert only(tmp_path, "colours", "en").captions[1] == ("\u200fe\u0301\u200b!",)
    for wrong in (3, "\ud800"):
        content["annotations"][1] = wrong
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"^data: .* is no text"):
            only(tmp_path, "colours", "en")
