import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import AltCLIPModel, AltCLIPTextModel

from altdiffusion import checkpoints
from altdiffusion.checkpoints import find, load_strict, resolve
from altdiffusion.reading import read_tensors, weight_files

UNET = "unet/diffusion_pytorch_model.safetensors"


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def edit(file: Path, **fields) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | fields
    file.write_text(json.dumps(content), encoding="utf-8")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


#: What may befall a folder, and what the refusal must name.
DAMAGE = {
    "removed": (shutil.rmtree, "does not exist"),
    "empty": (empty, "is empty"),
    "weights cut in half": (lambda f: cut(f / UNET), UNET),
    "weights cut by one byte": (lambda f: cut(f / UNET, 0.999999), UNET),
    "weights cut in the header": (lambda f: cut(f / UNET, 0.001), UNET),
    "weights emptied": (lambda f: (f / UNET).write_bytes(b""), UNET),
    "weights of zeros": (lambda f: (f / UNET).write_bytes(bytes(5000)), UNET),
    "weights with a header of a terabyte": (lambda f: (f / UNET).write_bytes(b"\0" * 5 + b"\1" * 3000), UNET),
    "weights with junk for a header": (lambda f: (f / UNET).write_bytes(b"\5" + bytes(7) + b"[[1]]"), UNET),
    "weights missing": (lambda f: (f / UNET).unlink(), "holds no weights"),
    "text encoder cut": (lambda f: cut(f / "text_encoder/model.safetensors"), "text_encoder/model"),
    "altclip cut": (lambda f: cut(f / "altclip/model.safetensors"), "altclip/model"),
    "altclip without preprocessing": (
        lambda f: (f / "altclip/preprocessor_config.json").unlink(),
        "preprocessor",
    ),
    "altclip of another kind": (lambda f: edit(f / "altclip/config.json", model_type="clip"), "another kind"),
    "vae missing": (lambda f: shutil.rmtree(f / "vae"), "vae/config.json"),
    "index cut": (lambda f: cut(f / "model_index.json"), "model_index.json"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json"),
    "index missing": (lambda f: (f / "model_index.json").unlink(), "no model_index.json, no config.json"),
    "config cut": (lambda f: cut(f / "unet/config.json"), "unet/config.json"),
    "tokenizer cut": (lambda f: cut(f / "tokenizer/tokenizer.json"), "tokenizer/tokenizer.json"),
    "tokenizer missing": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "holds no tokenizer"),
    "scheduler missing": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json"),
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "another kind: 'StableDiffusionXLPipeline'",
    ),
    "another text encoder": (
        lambda f: edit(f / "model_index.json", text_encoder=["transformers", "CLIPTextModel"]),
        "text_encoder is 'CLIPTextModel'",
    ),
    "no unet": (lambda f: edit(f / "model_index.json", unet=[None, None]), "its unet is None"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_fast_in_one_line_that_names_the_fault(model_folder, damage):
    break_it, named = DAMAGE[damage]
    break_it(model_folder)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"^model: ") as refusal:
        resolve(str(model_folder))
    assert time.perf_counter() - start < 0.5
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "a/b/c", "", "a\0b", "x" * 5000, Path("a/b")])
def test_a_name_that_is_nothing_is_refused(name):
    with pytest.raises(ValueError, match=r"^model: .*allowed: a model folder, a Hub name") as refusal:
        resolve(name)
    assert len(str(refusal.value)) < 300


def test_a_hub_name_offline_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"^model: 'nobody/nothing' is no folder here, and the Hub gave"
    ) as refusal:
        resolve("nobody/nothing")
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_checkpoint_is_refused(model_folder):
    with pytest.raises(ValueError, match=r"^model: .* is a file"):
        resolve(model_folder / "README.md")


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(ValueError, match=r"^model: .* is of another kind"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"^model: .* is of another kind: 'bert'; allowed: 'altclip'"):
        resolve(tmp_path)


def test_a_whole_folder_is_returned_and_its_kind_known(model_folder):
    assert resolve(str(model_folder)) == resolve(model_folder) == model_folder
    assert find(model_folder).draws
    assert not find(model_folder / "altclip").draws


def change_weights(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_a_missing_tensor_is_named_with_its_expected_shape(model_folder):
    change_weights(model_folder / UNET, lambda tensors: tensors.pop("conv_in.bias"))
    with pytest.raises(ValueError, match=r"^model: .*'conv_in.bias' is missing, expected shape \(16,\)$"):
        load_strict(UNet2DConditionModel, model_folder / "unet")


def test_an_unexpected_tensor_is_named_with_its_shape(model_folder):
    change_weights(model_folder / UNET, lambda tensors: tensors.update(extra=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r"^model: .*'extra' is unexpected, found shape \(2, 3\)$"):
        load_strict(UNet2DConditionModel, model_folder / "unet")


@pytest.mark.parametrize(
    ("part", "kind", "name"),
    [
        ("text_encoder", AltCLIPTextModel, "pre_LN.weight"),
        ("altclip", AltCLIPModel, "text_model.pre_LN.weight"),
        ("vae", AutoencoderKL, "decoder.conv_in.weight"),
        ("unet", UNet2DConditionModel, "conv_in.weight"),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(model_folder, part, kind, name):
    (file,) = (model_folder / part).glob("*.safetensors")
    change_weights(file, lambda tensors: tensors.update({name: torch.zeros(7)}))
    pattern = rf"^model: .*'{re.escape(name)}' has shape \(7,\), expected \(\d+,"
    with pytest.raises(ValueError, match=pattern):
        load_strict(kind, model_folder / part)


def test_a_config_that_asks_for_more_layers_than_the_file_has_is_refused(model_folder):
    edit(model_folder / "text_encoder/config.json", num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"^model: .*layers\.2\..* is missing.*\(and 15 more tensors"):
        load_strict(AltCLIPTextModel, model_folder / "text_encoder")


def test_a_config_that_makes_no_model_is_refused_in_one_line(model_folder):
    edit(model_folder / "unet/config.json", down_block_types=["NoSuchBlock", "DownBlock2D"])
    with pytest.raises(ValueError, match=r"^model: .*config\.json' makes no UNet2DConditionModel") as refusal:
        load_strict(UNet2DConditionModel, model_folder / "unet")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("part", ["text_encoder", "altclip", "unet", "vae"])
def test_shards_of_float16_load_as_float32_with_the_same_values(model_folder, part):
    kinds = {"text_encoder": AltCLIPTextModel, "altclip": AltCLIPModel, "unet": UNet2DConditionModel}
    kind = kinds.get(part, AutoencoderKL)
    model = load_strict(kind, model_folder / part, dtype=torch.float16)
    (model_folder / part / next((model_folder / part).glob("*.safetensors")).name).unlink()
    with checkpoints.quiet():
        model.save_pretrained(model_folder / part, max_shard_size="40KB")
    assert len(weight_files(model_folder / part)) > 1
    resolve(model_folder)
    again = load_strict(kind, model_folder / part)
    assert again.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float()), name


def test_a_torch_file_loads_strictly_too(model_folder):
    file = model_folder / UNET
    torch.save(load_file(file), file.with_name("diffusion_pytorch_model.bin"))
    expected = read_tensors(file)
    file.unlink()
    resolve(model_folder)
    unet = load_strict(UNet2DConditionModel, model_folder / "unet")
    assert torch.equal(unet.state_dict()["conv_in.weight"], expected["conv_in.weight"])


def test_a_tokenizer_larger_than_the_tower_is_refused(model_folder):
    with pytest.raises(ValueError, match=r"^model: .* has \d+ ids; allowed by the text encoder: 100"):
        checkpoints.load_tokenizer(model_folder / "tokenizer", 100)


def test_a_tokenizer_that_cannot_be_read_is_refused_in_one_line(model_folder):
    (model_folder / "tokenizer/tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(ValueError, match=r"^model: .*tokenizer that cannot be read") as refusal:
        checkpoints.load_tokenizer(model_folder / "tokenizer")
    assert "\n" not in str(refusal.value)


def test_a_variant_that_lies_there_alone_is_found(model_folder):
    file = model_folder / UNET
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    resolve(model_folder)
    assert load_strict(UNet2DConditionModel, model_folder / "unet").dtype == torch.float32


def test_a_fingerprint_is_of_values_not_of_files():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    assert checkpoints.fingerprint([first]) == checkpoints.fingerprint([second])
    assert checkpoints.fingerprint([first], ["a"]) != checkpoints.fingerprint([first], ["b"])
    with torch.no_grad():
        second.bias[1] += 1e-3
    assert checkpoints.fingerprint([first]) != checkpoints.fingerprint([second])


def test_a_stamp_changes_with_the_weights_however_they_are_written():
    model = torch.nn.Linear(30, 20)
    stamps = [checkpoints.stamp(model)]
    with torch.no_grad():
        model.weight[3, 4] = 1
    stamps.append(checkpoints.stamp(model))
    model.weight.data.mul_(0.5)
    stamps.append(checkpoints.stamp(model))
    model.weight = torch.nn.Parameter(model.weight.detach().clone())
    stamps.append(checkpoints.stamp(model))
    assert len(set(stamps)) == len(stamps)
    assert checkpoints.stamp(model) == stamps[-1]
