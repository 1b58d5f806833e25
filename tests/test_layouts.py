"""Each published layout is told apart, and read whole: every tensor in a part, or left over."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import AltCLIPModel, AltCLIPTextModel

from altdiffusion import towers
from altdiffusion.layouts import FORMATS, Layout, Source, detect, read
from altdiffusion.reading import check_tensors
from tests.published import write
from tests.published_ldm import unet
from tests.published_parts import altclip, ldm_tensors, stock_unet, stock_vae, text_tower

FORMS = ("m9", "m18")
EVERY = [(format, form) for format in "ABCDE" for form in FORMS if (format, form) != ("E", "m18")]
CLASSES = {
    "text_encoder": AltCLIPTextModel,
    "altclip": AltCLIPModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}


def source_of(path: Path, **options) -> Source:
    return read(detect(path), **options)


def strictly(name: str, source: Source) -> None:
    """The part's tensors are exactly those of the stock class of its config."""
    part, kind = source.parts[name], CLASSES[name]
    with torch.device("meta"):
        if hasattr(kind, "config_class"):
            expected = kind(kind.config_class.from_dict(part.config)).state_dict()
        else:
            expected = kind.from_config(part.config).state_dict()
    check_tensors(expected, part.tensors, name)


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def tower_of(source: Source) -> dict:
    """The published text tower, back from its part and what was left over."""
    left = {
        n.removeprefix("text_encoder."): t for n, t in source.left.items() if n.startswith("text_encoder.")
    }
    return towers.to_published(source.parts["text_encoder"].tensors, left, source.layout.form)


@pytest.mark.parametrize(("format", "form"), EVERY)
def test_each_published_layout_is_told_apart_in_no_time_with_the_reason(published, format, form):
    path = published(format, form)
    start = time.perf_counter()
    layout = detect(path)
    assert time.perf_counter() - start < 1
    assert (layout.format, layout.form, layout.path) == (format, form, path)
    assert ("transformation_pre: the form of m18" in layout.why) == (form == "m18")
    assert layout.draws == (format in "BCD")
    assert layout.vision == (format in "ADE")
    assert layout.ema == (format == "D")
    assert "\n" not in layout.why
    assert format in FORMATS


@pytest.mark.parametrize(("format", "form"), EVERY)
def test_the_text_tower_comes_back_tensor_by_tensor(published, format, form):
    source = source_of(published(format, form))
    strictly("text_encoder", source)
    expected = text_tower(form, pooled=format != "B")
    if (format, form) == ("B", "m18"):
        expected["logit_scale"] = torch.tensor(2.6592)
    same(tower_of(source), expected)


@pytest.mark.parametrize(("format", "form"), [pair for pair in EVERY if pair[0] in "ADE"])
def test_an_altclip_is_whole_beside_its_generation_tower(published, format, form):
    source = source_of(published(format, form))
    strictly("altclip", source)
    rest = {n: t for n, t in altclip(form).items() if not n.startswith("text_model.") and "_ids" not in n}
    found = source.parts["altclip"].tensors
    same({name: tensor for name, tensor in found.items() if not name.startswith("text_model.")}, rest)
    assert "altclip.vision_model.embeddings.position_ids" in source.left
    ours = found["text_model.roberta.encoder.layers.0.attention.self.query.weight"]
    theirs = source.parts["text_encoder"].tensors["roberta.encoder.layers.0.attention.self.query.weight"]
    assert ours.data_ptr() == theirs.data_ptr()


@pytest.mark.parametrize("form", FORMS)
def test_a_published_folder_keeps_its_unet_vae_scheduler_and_safety_checker(published, form):
    source = source_of(published("B", form))
    strictly("unet", source)
    strictly("vae", source)
    same(source.parts["unet"].tensors, stock_unet(form, 0)[1])
    assert source.scheduler["_class_name"] == "PNDMScheduler"
    assert "vision_model.embeddings.class_embedding" in source.parts["safety_checker"].tensors
    assert source.processors["feature_extractor"]["size"] == 32
    old = stock_vae(0)[1]["decoder.mid_block.attentions.0.proj_attn.weight"]
    assert torch.equal(source.parts["vae"].tensors["decoder.mid_block.attentions.0.to_out.0.weight"], old)


@pytest.mark.parametrize("library", ["alt_diffusion", "diffusers", "transformers"])
@pytest.mark.parametrize("pipeline", ["AltDiffusionPipeline", "AltDiffusionImg2ImgPipeline"])
def test_the_library_that_a_published_folder_names_does_not_matter(published, tmp_path, library, pipeline):
    folder = Path(shutil.copytree(published("B", "m9"), tmp_path / "folder"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": pipeline, "text_encoder": [library, "RobertaSeriesModelWithTransformation"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    layout = detect(folder)
    assert layout.format == "B"
    assert f"{library}.RobertaSeriesModelWithTransformation" in layout.why


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", ["C", "D"])
def test_a_single_file_gives_stock_parts_with_configs_from_its_shapes(published, format, form):
    source = source_of(published(format, form), ema=False)
    strictly("unet", source)
    strictly("vae", source)
    config = source.parts["unet"].config
    assert config["use_linear_projection"] == (form == "m18")
    assert config["block_out_channels"] == [32, 64]
    assert config["down_block_types"] == ["CrossAttnDownBlock2D", "DownBlock2D"]
    assert source.parts["vae"].config["scaling_factor"] == 0.18215
    tensors = ldm_tensors(form)
    placed = {t.data_ptr() for name in ("unet", "vae") for t in source.parts[name].tensors.values()}
    assert len(placed) == len([name for name in tensors if name.startswith(("model.", "first_stage_model."))])
    expected = tensors["model.diffusion_model.output_blocks.1.1.conv.weight"]
    assert torch.equal(source.parts["unet"].tensors["up_blocks.0.upsamplers.0.conv.weight"], expected)
    same(
        {name: tensor for name, tensor in source.left.items() if "." not in name},
        {name: tensor for name, tensor in tensors.items() if "." not in name},
    )


def test_the_yaml_beside_a_single_file_says_what_shapes_do_not(published, tmp_path):
    with_yaml = source_of(published("C", "m18")).parts["unet"].config
    alone = tmp_path / "alone.ckpt"
    shutil.copyfile(published("C", "m18"), alone)
    without = source_of(alone).parts["unet"].config
    assert (with_yaml["attention_head_dim"], with_yaml["sample_size"]) == ([4, 8], 8)
    assert (without["attention_head_dim"], without["sample_size"]) == ([1, 1], 64)
    assert source_of(published("C", "m9")).parts["unet"].config["attention_head_dim"] == 8


def test_heads_are_those_of_stable_diffusion_1_and_2_where_nothing_says_more():
    from altdiffusion.single_files import _heads

    assert _heads([320, 640, 1280, 1280], True, {}) == [5, 10, 20, 20]
    assert _heads([320, 640, 1280, 1280], False, {}) == 8


def test_the_schedule_of_a_single_file_is_that_of_its_betas(published, tmp_path):
    scheduler = source_of(published("C", "m9")).scheduler
    assert scheduler["_class_name"] == "DDIMScheduler"
    assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.00085, 0.012)
    assert scheduler["prediction_type"] == "epsilon"
    assert "trained_betas" not in scheduler
    file = write("C", tmp_path, "m9", safetensors=True)
    tensors = load_file(file)
    tensors["betas"] = torch.linspace(0.0001, 0.02, 1000)
    save_file(tensors, file)
    assert source_of(file).scheduler["trained_betas"] == tensors["betas"].double().tolist()


@pytest.mark.parametrize("options", [{"wrapped": False}, {"safetensors": True}, {"dtype": torch.float16}])
def test_a_single_file_reads_the_same_however_it_is_packed(published, tmp_path, options):
    source = source_of(write("C", tmp_path, "m9", **options))
    expected = source_of(published("C", "m9"))
    for name, part in expected.parts.items():
        cast = {n: t.to(options.get("dtype", t.dtype)) for n, t in part.tensors.items()}
        same(source.parts[name].tensors, cast)
        assert source.parts[name].config == part.config


def test_a_folder_with_one_single_file_is_that_file(published):
    file = published("C", "m9")
    assert detect(file.parent) == detect(file)


@pytest.mark.parametrize("ema", [None, True, False])
def test_a_training_checkpoint_gives_its_averaged_weights_or_the_raw_ones(published, ema):
    source = source_of(published("D", "m18"), ema=ema)
    raw = ldm_tensors("m18")["model.diffusion_model.input_blocks.0.0.weight"]
    expected = raw if ema is False else raw * 0.5
    assert torch.equal(source.parts["unet"].tensors["conv_in.weight"], expected)
    assert not [name for name in source.left if name.startswith("model_ema")]


def test_averaged_weights_of_a_single_file_are_kept_unless_asked_for(tmp_path):
    file = write("C", tmp_path, "m9", ema=True)
    raw, averaged = source_of(file), source_of(file, ema=True)
    assert detect(file).ema
    assert "model_ema.diffusion_modelinput_blocks00weight" in raw.left
    assert not [name for name in averaged.left if name.startswith("model_ema")]
    for name, tensor in averaged.parts["unet"].tensors.items():
        assert torch.equal(tensor, raw.parts["unet"].tensors[name] * 0.5), name


def test_averaged_weights_that_are_not_there_are_refused(published):
    with pytest.raises(ValueError, match=r"^model: .* holds no averaged weights; allowed: ema=False"):
        source_of(published("C", "m9"), ema=True)


def test_two_different_text_towers_in_one_training_checkpoint_are_refused(published, tmp_path):
    content = torch.load(published("D", "m9"), weights_only=True)
    name = "cond_stage_model.text_encoder.transformation.bias"
    content["state_dict"] |= {name: content["state_dict"][name] + 1}
    torch.save(content, tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match=r"^model: .* holds two text towers: .*transformation.bias' differs"):
        source_of(tmp_path / "two.ckpt")


@pytest.mark.parametrize(
    "options", [{"safetensors": True}, {"shards": True}, {"shards": True, "safetensors": True}]
)
@pytest.mark.parametrize("format", ["A", "B", "E"])
def test_a_folder_reads_the_same_in_either_format_sharded_or_not(published, tmp_path, format, options):
    source, expected = source_of(write(format, tmp_path, "m9", **options)), source_of(published(format, "m9"))
    for name, part in expected.parts.items():
        same(source.parts[name].tensors, part.tensors)
    same(source.left, expected.left)


@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_is_read_when_asked_for_and_when_it_lies_there_alone(tmp_path, shards):
    write("B", tmp_path, "m9", variant="fp16", safetensors=True, shards=shards)
    alone = source_of(tmp_path).parts["unet"].tensors["conv_in.weight"]
    assert alone.dtype == torch.float16
    write("B", tmp_path, "m9", safetensors=True, shards=shards)
    whole, asked = source_of(tmp_path), source_of(tmp_path, variant="fp16")
    assert whole.parts["unet"].tensors["conv_in.weight"].dtype == torch.float32
    assert torch.equal(asked.parts["unet"].tensors["conv_in.weight"], alone)


def test_nine_channels_of_an_inpainting_unet_are_read_off_its_shapes(tmp_path):
    file = write("C", tmp_path, "m9", safetensors=True)
    tensors = {name: t for name, t in load_file(file).items() if not name.startswith("model.")}
    wide = unet(24, linear=False, in_channels=9)
    save_file(tensors | {f"model.diffusion_model.{name}": tensor for name, tensor in wide.items()}, file)
    source = source_of(file)
    assert source.parts["unet"].config["in_channels"] == 9
    strictly("unet", source)


def test_our_own_folders_are_stock_with_the_stock_formula(shared_folder):
    layout, inner = detect(shared_folder), detect(shared_folder / "altclip")
    assert (layout.format, layout.form, layout.draws) == ("stock pipeline", "own", True)
    assert (inner.format, inner.form, inner.draws) == ("stock altclip", "own", False)
    source = read(layout)
    for name in ("text_encoder", "unet", "vae", "altclip"):
        strictly(name, source)
    assert source.left == {}
    assert source.scheduler["_class_name"] == "DPMSolverMultistepScheduler"


def test_a_tokenizer_is_found_beside_a_file_or_given(published, tmp_path, shared_folder):
    assert source_of(published("C", "m9")).tokenizer == published("C", "m9").parent
    assert source_of(published("D", "m9")).tokenizer == published("D", "m9").parent / "tokenizer"
    bare = write("C", tmp_path, "m9", tokenizer=False)
    assert source_of(bare).tokenizer is None
    assert source_of(bare, tokenizer=shared_folder / "tokenizer").tokenizer == shared_folder / "tokenizer"


def test_a_layout_says_what_it_is_without_its_weights(published):
    assert isinstance(detect(published("A", "m9")), Layout)
    assert detect(published("E", "m9")).why.startswith("its text model is 'xlm-roberta'")
    assert detect(published("A", "m18")).why.startswith("its config.json has 'direct_kd'")
