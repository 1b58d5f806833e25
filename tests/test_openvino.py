"""`runtime="openvino"`: the same results as PyTorch's, converted once; and what it does not do is refused."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from altdiffusion import AltCLIP, AltDiffusionPipeline, openvino_cache
from altdiffusion.generation import generate
from altdiffusion.guided import AltDiffusionPAGPipeline
from altdiffusion.requests import GenerateRequest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra openvino is not installed"
)
TEXTS = ["a lobster", "龙虾", "ein roter Apfel neben einer Birne"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One folder of converted networks for the tests of this file: converting takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("ALTDIFFUSION_CACHE", str(folder))
        yield folder / "openvino"


@pytest.fixture(scope="module")
def pipeline(shared_folder, cache):
    pipeline = AltDiffusionPipeline.from_pretrained(shared_folder, runtime="openvino", dtype="float32")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def clip(shared_folder, cache):
    return AltCLIP.from_pretrained(shared_folder, runtime="openvino", dtype="float32")


def drawn(pipeline, **more) -> np.ndarray:
    prompts = ["a lobster", "a cat"]
    generator = torch.manual_seed(7)
    return pipeline(prompts, num_inference_steps=3, generator=generator, output_type="np", **more).images


def test_pictures_are_pytorchs(pipeline, shared_pipeline):
    """In float32, a picture of another size than the network was traced at, and a batch of two."""
    size = {"height": 48, "width": 32}
    assert np.abs(drawn(pipeline, **size) - drawn(shared_pipeline, **size)).max() < 1e-4


def test_a_picture_tells_that_openvino_drew_it(pipeline, shared_pipeline):
    request = GenerateRequest.build(prompt="a lobster", seed=7, steps=1, width=32, height=32)
    ours, torchs = (generate(p, request)[0].provenance.versions for p in (pipeline, shared_pipeline))
    assert ours == {**torchs, "openvino": importlib.metadata.version("openvino")}


def test_image_to_image_is_pytorchs(pipeline, shared_pipeline):
    start = Image.radial_gradient("L").convert("RGB").resize((32, 32))
    found, expected = (
        drawn(p.to_image_to_image(), image=[start, start], strength=0.7) for p in (pipeline, shared_pipeline)
    )
    assert np.abs(found - expected).max() < 1e-4


def test_features_are_pytorchs(clip, shared_folder):
    stock = AltCLIP.from_pretrained(shared_folder, device="cpu")
    pictures = [Image.radial_gradient("L"), Image.new("RGB", (40, 30), "red")]
    for one, other in (
        (clip.encode_text(TEXTS), stock.encode_text(TEXTS)),
        (clip.encode_image(pictures), stock.encode_image(pictures)),
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_it_is_known_as_the_model_that_it_was_converted_from(pipeline, clip, shared_pipeline, shared_folder):
    assert pipeline.fingerprint == shared_pipeline.fingerprint
    assert clip.fingerprint == AltCLIP.from_pretrained(shared_folder, device="cpu").fingerprint
    assert pipeline.runtime == clip.runtime == "openvino"
    assert not [name for name, _ in pipeline.unet.named_parameters() if name != "place"]


def test_bf16_is_within_its_rounding(cache, shared_folder, clip):
    """bf16 keeps 8 bits; features are unit vectors whose values come from some ten roundings in a row."""
    rounded = AltCLIP.from_pretrained(shared_folder, runtime="openvino", dtype="bfloat16")
    picture = Image.radial_gradient("L")
    torch.testing.assert_close(rounded.encode_image(picture), clip.encode_image(picture), atol=0.02, rtol=0)
    torch.testing.assert_close(rounded.encode_text(TEXTS), clip.encode_text(TEXTS), atol=0.02, rtol=0)


def test_what_was_converted_is_read_again(clip, shared_folder, monkeypatch):
    def fail(*arguments):
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino_cache, "convert", fail)
    again = AltCLIP.from_pretrained(shared_folder, runtime="openvino", dtype="float32")
    assert torch.equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))


@pytest.mark.parametrize("damage", ["cut", "list"])
def test_a_damaged_network_is_converted_again(clip, cache, shared_folder, damage):
    networks = cache.glob("vision_model-*/vision.bin")
    place = max(networks, key=lambda file: file.stat().st_size).parent  # the one in float32
    before = clip.encode_image(Image.radial_gradient("L"))
    file = place / ("files.json" if damage == "list" else "vision.bin")
    content = file.read_bytes()
    file.unlink()  # written in its place, it would change under the model that has it mapped
    file.write_bytes(content[:-8])
    again = AltCLIP.from_pretrained(shared_folder, runtime="openvino", dtype="float32")
    assert openvino_cache._is_whole(place)
    assert torch.equal(again.encode_image(Image.radial_gradient("L")), before)


def test_an_interrupted_conversion_leaves_nothing(shared_folder, tmp_path, monkeypatch):
    def stop(name, model_class, part, where, target, dtype):
        (target / "half.xml").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setenv("ALTDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(openvino_cache, "convert", stop)
    with pytest.raises(KeyboardInterrupt):
        AltCLIP.from_pretrained(shared_folder, runtime="openvino")
    assert not list((tmp_path / "openvino").iterdir())


@pytest.mark.slow
def test_a_large_part_is_converted_in_a_process_of_its_own(clip, shared_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ALTDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(openvino_cache, "_LARGE", 1)
    again = AltCLIP.from_pretrained(shared_folder, runtime="openvino", dtype="float32")
    assert torch.equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))


SIGNAL = """
import gc, signal, sys
from altdiffusion import AltCLIP

clip = AltCLIP.from_pretrained(sys.argv[1], runtime="openvino", dtype="float32")
clip.encode_text(["a lobster"])
del clip
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("answered"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_answered_after_the_model_is_gone(clip, shared_folder):
    done = subprocess.run([sys.executable, "-c", SIGNAL, shared_folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr[-2000:]


def test_what_was_not_converted_is_refused(pipeline, clip, shared_pipeline, shared_folder, tmp_path):
    asked = GenerateRequest.build(prompt="a lobster", clip_skip=1, steps=1)
    for call in (
        lambda: pipeline.unet.train(),
        lambda: pipeline.unet.load_lora_adapter({}),
        lambda: pipeline.unet.set_attn_processor(None),
        lambda: pipeline.unet.to(torch.float16),
        lambda: pipeline.save_pretrained(tmp_path),
        lambda: clip.save_pretrained(tmp_path),
        lambda: generate(pipeline, asked),
        lambda: AltDiffusionPipeline.from_altclip(clip, shared_pipeline),
        lambda: pipeline.unet(torch.zeros(1, 4, 4, 4), 1, torch.zeros(1, 2, 16), timestep_cond=torch.ones(1)),
    ):
        with pytest.raises(
            ValueError, match=r"^runtime: 'openvino' does not do .*; allowed with runtime='torch'"
        ):
            call()
    assert not list(tmp_path.iterdir())


def test_a_runtime_or_device_that_there_is_not_is_refused(shared_folder, monkeypatch):
    with pytest.raises(ValueError, match=r"^runtime: 'onnx' is not known here; allowed: torch, openvino"):
        AltCLIP.from_pretrained(shared_folder, runtime="onnx")
    with pytest.raises(ValueError, match=r"^runtime: 'openvino' is not known here; allowed: torch"):
        AltDiffusionPAGPipeline.from_pretrained(shared_folder, runtime="openvino")
    with pytest.raises(ValueError, match=r"^device: 'cuda' with runtime 'openvino'; allowed: cpu"):
        AltCLIP.from_pretrained(shared_folder, runtime="openvino", device="cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^runtime: 'openvino' is not installed \(pip install"):
        AltCLIP.from_pretrained(shared_folder, runtime="openvino")


def test_sizes_that_the_trace_does_not_hold_for_are_refused(pipeline):
    levels = len(pipeline.unet.config.block_out_channels)
    if levels == 1:
        pytest.skip("every size is a multiple of 1")
    sample = torch.zeros(1, 4, 2 ** (levels - 1) + 1, 4)
    with pytest.raises(ValueError, match=r"^runtime: 'openvino' does not do latents of"):
        pipeline.unet(sample, 1, torch.zeros(1, 2, pipeline.unet.config.cross_attention_dim))
