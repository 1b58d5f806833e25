"""Files that are damaged, incomplete, hostile or of another model: each refused at once, in one line.

The line names the file and what is wrong with it. What is wrong with a stock folder is in test_checkpoints.
"""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from altdiffusion import AltCLIP, AltDiffusionPipeline
from tests.published import write
from tests.test_reading import Mischief

WORDS = "cond_stage_model.roberta.embeddings.word_embeddings.weight"
UNET = "model.diffusion_model."


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def to_torch(file: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def to_safetensors(file: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def renamed(tensors: dict, pattern: str, replacement: str) -> None:
    for name in list(tensors):
        if pattern in name:
            tensors[name.replace(pattern, replacement)] = tensors.pop(name)


def hostile(file: Path) -> None:
    torch.save({"state_dict": {WORDS: Mischief(file.with_name("canary"))}}, file)


def one_terabyte(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 10**12) + file.read_bytes()[8:])


def off_by_one(file: Path) -> None:
    """The header says one row more than the bytes hold."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header[WORDS]["shape"][0] += 1
    changed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])


#: Damage to a single file of torch's format, and what the refusal must say.
TORCH = {
    "truncated": (cut, "is truncated or no torch file"),
    "cut by one byte": (lambda f: cut(f, 0.999999), "is truncated or no torch file"),
    "empty": (lambda f: f.write_bytes(b""), "is empty"),
    "of zeros": (lambda f: f.write_bytes(bytes(5000)), "no torch file"),
    "a zip of something else": (lambda f: zip_of_nothing(f), "cannot be read safely"),
    "hostile": (hostile, "cannot be read safely: it would run"),
    "without a UNet": (
        lambda f: to_torch(f, lambda c: renamed(c["state_dict"], UNET, "model.other.")),
        "is incomplete: it holds no model.diffusion_model.",
    ),
    "without a tensor": (
        lambda f: to_torch(f, lambda c: c["state_dict"].pop(f"{UNET}time_embed.2.bias")),
        "'time_embedding.linear_2.bias' is missing, expected shape (128,)",
    ),
    "without what the shapes are read from": (
        lambda f: to_torch(f, lambda c: c["state_dict"].pop(f"{UNET}out.2.weight")),
        "misses tensor 'model.diffusion_model.out.2.weight'",
    ),
    "with a tensor too many": (
        lambda f: to_torch(f, lambda c: c["state_dict"].update({"extra.weight": torch.zeros(2, 3)})),
        "holds unexpected tensor 'extra.weight' of shape (2, 3)",
    ),
    "with a UNet tensor too many": (
        lambda f: to_torch(f, lambda c: c["state_dict"].update({f"{UNET}extra.weight": torch.zeros(2)})),
        "holds tensor 'model.diffusion_model.extra.weight'",
    ),
    "with a text tensor too many": (
        lambda f: to_torch(f, lambda c: c["state_dict"].update({"cond_stage_model.extra": torch.zeros(2)})),
        "tensor 'extra' is unexpected, found shape (2,)",
    ),
    "misshapen": (
        lambda f: to_torch(f, lambda c: c["state_dict"].update({f"{UNET}out.2.bias": torch.zeros(5)})),
        "'conv_out.bias' has shape (5,), expected (4,)",
    ),
    "of plain Stable Diffusion 1": (
        lambda f: to_torch(
            f, lambda c: renamed(c["state_dict"], "cond_stage_model.roberta", "cond_stage_model.transformer")
        ),
        "is plain Stable Diffusion 1",
    ),
}
#: The same for safetensors.
SAFETENSORS = {
    "truncated": (cut, "is truncated or damaged"),
    "empty": (lambda f: f.write_bytes(b""), "is empty"),
    "header of a terabyte": (one_terabyte, "is truncated or no safetensors file"),
    "renamed": (lambda f: torch.save({"a": torch.zeros(2)}, f), "by its content a torch file"),
    "shapes off by one": (off_by_one, f"is damaged: tensor '{WORDS}' of shape"),
    "of Stable Diffusion XL": (
        lambda f: to_safetensors(f, lambda t: renamed(t, "cond_stage_model.", "conditioner.embedders.0.")),
        "is Stable Diffusion XL",
    ),
    "of plain Stable Diffusion 2": (
        lambda f: to_safetensors(f, lambda t: renamed(t, "cond_stage_model.", "cond_stage_model.model.")),
        "is plain Stable Diffusion 2",
    ),
    "of a CLIP": (
        lambda f: save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2)}, f),
        "is a CLIP",
    ),
    "of a LoRA": (lambda f: save_file({"unet.lora_up.weight": torch.zeros(2, 2)}, f), "is a LoRA"),
    "of nothing known": (lambda f: save_file({"a": torch.zeros(2)}, f), f"it holds no {WORDS}"),
}


def zip_of_nothing(file: Path) -> None:
    import zipfile

    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("holiday.txt", "sun")


def refused(path: Path, named: str, kind=AltDiffusionPipeline) -> str:
    """The one line with which `path` is refused, in under a second of work."""
    start = time.process_time()
    with pytest.raises(ValueError, match=r"^model: ") as refusal:
        kind.from_pretrained(path, device="cpu")
    assert time.process_time() - start < 1
    message = str(refusal.value)
    assert named in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("damage", TORCH)
def test_a_damaged_torch_file_is_refused_with_its_name_and_the_cause(published, tmp_path, damage):
    file = tmp_path / "model.ckpt"
    shutil.copytree(published("C", "m9").parent, tmp_path, dirs_exist_ok=True)
    break_it, named = TORCH[damage]
    break_it(file)
    assert "model.ckpt'" in refused(file, named)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("damage", SAFETENSORS)
def test_a_damaged_safetensors_file_is_refused_with_its_name_and_the_cause(tmp_path, damage):
    file = write("C", tmp_path, "m9", safetensors=True)
    break_it, named = SAFETENSORS[damage]
    break_it(file)
    assert "model.safetensors'" in refused(file, named)


#: Damage to a published AltCLIP folder of torch's format.
ALTCLIP = {
    "truncated": (lambda f: cut(f / "pytorch_model.bin"), "pytorch_model.bin' is truncated"),
    "hostile": (
        lambda f: torch.save({"a": Mischief(f / "canary")}, f / "pytorch_model.bin"),
        "cannot be read safely",
    ),
    "without weights": (lambda f: (f / "pytorch_model.bin").unlink(), "holds no weights"),
    "without tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    "without preprocessing": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        "preprocessor_config.json' is missing",
    ),
    "without a tensor": (
        lambda f: to_torch(f / "pytorch_model.bin", lambda c: c.pop("visual_projection.weight")),
        "tensor 'visual_projection.weight' is missing, expected shape (20, 32)",
    ),
    "with a tensor too many": (
        lambda f: to_torch(f / "pytorch_model.bin", lambda c: c.update(extra=torch.zeros(3))),
        "tensor 'extra' is unexpected, found shape (3,)",
    ),
    "misshapen by one": (
        lambda f: to_torch(
            f / "pytorch_model.bin", lambda c: c.update({"text_model.transformation.bias": torch.zeros(25)})
        ),
        "'text_model.transformation.bias' has shape (25,), expected (24,)",
    ),
    "of a CLIP": (
        lambda f: (f / "config.json").write_text('{"model_type": "clip", "text_config": {}}'),
        "is of another kind: 'clip'",
    ),
    "with weights of a CLIP": (
        lambda f: torch.save({"text_model.encoder.a": torch.zeros(2)}, f / "pytorch_model.bin"),
        "is of another kind: its weights hold no text_model.transformation.weight",
    ),
    "with a config that is no config": (
        lambda f: (f / "config.json").write_text('{"model_type": "altclip", "text_config": 3}'),
        "is damaged: text_config",
    ),
}


@pytest.mark.parametrize("damage", ALTCLIP)
def test_a_damaged_altclip_is_refused_with_its_name_and_the_cause(published, tmp_path, damage):
    folder = Path(shutil.copytree(published("A", "m9"), tmp_path / "folder"))
    break_it, named = ALTCLIP[damage]
    break_it(folder)
    assert "folder" in refused(folder, named, AltCLIP)
    assert not (folder / "canary").exists()


def edit_index(folder: Path, **fields) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


#: Damage to a published AltDiffusion folder in shards of torch's format.
PIPELINE = {
    "of Stable Diffusion XL": (
        lambda f: edit_index(f, _class_name="StableDiffusionXLPipeline"),
        "is of another kind: 'StableDiffusionXLPipeline'",
    ),
    "of plain Stable Diffusion": (
        lambda f: edit_index(
            f, _class_name="StableDiffusionPipeline", text_encoder=["transformers", "CLIPTextModel"]
        ),
        "its text_encoder is 'CLIPTextModel'",
    ),
    "with a missing shard": (
        lambda f: (f / "unet/diffusion_pytorch_model-00002-of-00002.bin").unlink(),
        "unet/diffusion_pytorch_model-00002-of-00002.bin' is missing",
    ),
    "with an extra shard": (
        lambda f: shutil.copyfile(
            f / "vae/diffusion_pytorch_model-00002-of-00002.bin",
            f / "vae/diffusion_pytorch_model-00003-of-00003.bin",
        ),
        "00003-of-00003.bin' is a shard that diffusion_pytorch_model.bin.index.json does not list",
    ),
    "with a truncated shard": (
        lambda f: cut(f / "text_encoder/pytorch_model-00001-of-00002.bin"),
        "text_encoder/pytorch_model-00001-of-00002.bin' is truncated",
    ),
    "without tokenizer": (
        lambda f: (f / "tokenizer/sentencepiece.bpe.model").unlink(),
        "holds no tokenizer",
    ),
    "with a tokenizer cut short": (
        lambda f: cut(f / "tokenizer/sentencepiece.bpe.model"),
        "holds a tokenizer that cannot be read",
    ),
    "with an unknown scheduler": (
        lambda f: (f / "scheduler/scheduler_config.json").write_text('{"_class_name": "UNet2DModel"}'),
        "names the scheduler 'UNet2DModel'",
    ),
    "without a UNet": (lambda f: shutil.rmtree(f / "unet"), "unet/config.json' is missing"),
    "with a safety checker without weights": (
        lambda f: [file.unlink() for file in (f / "safety_checker").glob("*.bin*")],
        "safety_checker' holds no weights",
    ),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return write("B", tmp_path_factory.mktemp("sharded"), "m9", shards=True)


@pytest.mark.parametrize("damage", PIPELINE)
def test_a_damaged_published_folder_is_refused_with_its_name_and_the_cause(sharded, tmp_path, damage):
    folder = Path(shutil.copytree(sharded, tmp_path / "folder"))
    break_it, named = PIPELINE[damage]
    break_it(folder)
    assert "folder" in refused(folder, named)


def test_a_yaml_that_is_no_configuration_is_refused(published, tmp_path):
    shutil.copytree(published("C", "m9").parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.yaml").write_text("model: [1, 2]")
    assert "config.yaml'" in refused(tmp_path / "model.ckpt", "is no Stable Diffusion configuration")


def test_a_generation_head_of_another_shape_is_refused(tmp_path):
    name = "text_model.transformation_pre.weight"
    folder = write("A", tmp_path, "m18")
    to_torch(folder / "pytorch_model.bin", lambda tensors: tensors.update({name: tensors[name][:, :-1]}))
    with pytest.raises(ValueError, match=r"^model: .*'transformation_pre.weight' has shape"):
        AltCLIP.from_pretrained(folder)
