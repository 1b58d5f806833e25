"""The one reader: nothing read runs, nothing damaged passes, shards and variants come together."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from altdiffusion.reading import (
    check_tensors,
    metadata,
    read_folder,
    read_tensors,
    shapes_of,
    tensor_shapes,
    variant_of,
    weight_files,
)
from tests.published import write_weights

TENSORS = {name: torch.randn(3, 4) for name in "abcd"}


class Mischief:
    """What a torch file may hold: an order to run something as it is opened."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_torch_file_cannot_run_code(tmp_path):
    torch.save({"weight": Mischief(tmp_path / "canary")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"^model: .* cannot be read safely: it would run "):
        read_tensors(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "canary").exists()


def test_a_plain_pickle_is_no_torch_file_and_is_not_opened(tmp_path):
    import pickle

    file = tmp_path / "model.ckpt"
    file.write_bytes(pickle.dumps(Mischief(tmp_path / "canary")))
    with pytest.raises(ValueError, match=r"^model: .* is truncated or no torch file"):
        read_tensors(file)
    assert not (tmp_path / "canary").exists()


def test_a_torch_file_of_something_else_than_names_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"^model: .* holds list; allowed: named tensors"):
        read_tensors(tmp_path / "pytorch_model.bin")


def test_a_file_under_the_other_format_s_name_is_told_apart(tmp_path):
    torch.save(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no safetensors file .*by its content a torch file"):
        read_tensors(tmp_path / "model.safetensors")
    save_file(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no torch file .*by its content a safetensors file"):
        read_tensors(tmp_path / "pytorch_model.bin")


def test_a_header_whose_shapes_are_off_by_one_is_damaged(tmp_path):
    file = tmp_path / "model.safetensors"
    header = {"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 48]}}
    content = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(content)) + content + bytes(48))
    with pytest.raises(ValueError, match=r"^model: .* is damaged: tensor 'a' of shape \[3, 5\] has 48 bytes"):
        tensor_shapes(file)


def test_shapes_come_from_the_header_and_notes_too(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", {"form": "m9"})
    assert tensor_shapes(tmp_path / "model.safetensors") == dict.fromkeys(TENSORS, (3, 4))
    assert metadata(tmp_path / "model.safetensors") == {"form": "m9"}
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert metadata(tmp_path / "pytorch_model.bin") == {}
    assert shapes_of(tmp_path / "pytorch_model.bin") == dict.fromkeys(TENSORS, (3, 4))


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [True, False])
def test_a_folder_is_read_whole_in_every_packing(tmp_path, safetensors, variant, shards):
    write_weights(tmp_path, TENSORS, safetensors=safetensors, variant=variant, shards=shards)
    assert variant_of(tmp_path) == variant
    assert len(weight_files(tmp_path, variant)) == 1 + shards
    assert shapes_of(tmp_path) == dict.fromkeys(TENSORS, (3, 4))
    found = read_folder(tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, TENSORS[name].to(tensor.dtype))


def test_safetensors_go_before_torch_files_and_plain_before_a_variant(tmp_path):
    write_weights(tmp_path, TENSORS, variant="fp16", safetensors=True)
    write_weights(tmp_path, TENSORS)
    assert weight_files(tmp_path, variant_of(tmp_path))[0].name == "pytorch_model.bin"
    write_weights(tmp_path, TENSORS, safetensors=True)
    assert weight_files(tmp_path, variant_of(tmp_path))[0].name == "model.safetensors"
    assert weight_files(tmp_path, variant_of(tmp_path, "fp16"))[0].name == "model.fp16.safetensors"
    assert variant_of(tmp_path, "bf16") is None


def test_a_missing_shard_and_an_extra_one_are_named(tmp_path):
    write_weights(tmp_path, TENSORS, safetensors=True, shards=True)
    first, second = weight_files(tmp_path)
    extra = second.with_name("model-00003-of-00003.safetensors")
    second.rename(extra)
    with pytest.raises(ValueError, match=r"00003-of-00003\.safetensors' is a shard that .* does not list"):
        weight_files(tmp_path)
    extra.unlink()
    with pytest.raises(ValueError, match=r"^model: .*-00002-of-00002\.safetensors' is missing"):
        weight_files(tmp_path)
    assert first.is_file()


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_weights(tmp_path, TENSORS, safetensors=True, shards=True)
    second = weight_files(tmp_path)[1]
    save_file(load_file(second) | {"a": torch.zeros(1)}, second)
    with pytest.raises(ValueError, match=r"^model: .* repeats tensor 'a' of another shard"):
        read_folder(tmp_path)


def test_an_index_may_not_point_outside_its_folder(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(ValueError, match=r"^model: .*lists no files of its own folder"):
        weight_files(tmp_path)


def test_tensors_that_fit_pass_and_values_or_shapes_may_be_given():
    check_tensors({"a": torch.zeros(2, 3)}, {"a": (2, 3)})
    with pytest.raises(ValueError, match=r"^model: 'here' .*'a' has shape \(3,\), expected \(2,\)"):
        check_tensors({"a": (2,)}, {"a": (3,)}, "here")
