"""Presets: named ways to draw, what they leave out of the steps, and that nothing of it stays behind."""

import copy
import inspect
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from PIL import Image

from altdiffusion.generation import generate, prepare
from altdiffusion.guided import AltDiffusionControlNetPipeline, AltDiffusionInpaintPipeline
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.presets import PRESETS
from altdiffusion.requests import BadRequest, GenerateRequest
from altdiffusion.shortcuts import shortened
from tests.fakes import SENTENCES, tiny_controlnet, tiny_unet

START = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
MASK = Image.linear_gradient("L").resize((64, 64)).point([0] * 128 + [255] * 128)
PROMPTS = ["a red lobster", "猫"]
UNPROVEN = pytest.mark.filterwarnings("ignore:preset. .* is chosen by the bundled model")


@pytest.fixture(scope="module")
def pipeline(shared_pipeline) -> AltDiffusionPipeline:
    return shared_pipeline


def latents(pipeline, prompt=PROMPTS, seed=0, **arguments) -> torch.Tensor:
    arguments = {"num_inference_steps": 7, "guidance_scale": 3.0, "output_type": "latent"} | arguments
    return pipeline(prompt, generator=torch.Generator("cpu").manual_seed(seed), **arguments).images


def calls(module: torch.nn.Module, draw) -> list[int]:
    """Rows of each call of `module` while `draw` runs."""
    rows: list[int] = []
    handle = module.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    try:
        draw()
    finally:
        handle.remove()
    return rows


def unguided_by_callback(first: int):
    """diffusers' own way to end guidance, where a callback may replace all that has two halves."""

    def after_step(pipeline, step, timestep, tensors):
        if step + 1 == first:
            pipeline._guidance_scale = 0.0
            return {name: tensor.chunk(2)[1] for name, tensor in tensors.items()}
        return {}

    return {
        "callback_on_step_end": after_step,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }


@pytest.mark.parametrize("task", ["text", "image"])
def test_guidance_ends_as_by_a_callback_that_halves_the_batch(pipeline, task: str):
    runner, pictures = pipeline, {}
    if task == "image":
        runner, pictures = pipeline.to_image_to_image(), {"image": [START] * 2, "strength": 1.0}
    expected = latents(runner, **pictures, **unguided_by_callback(5))
    with shortened(runner, guided=0.7):
        found = latents(runner, **pictures)
    # How many rows a batch has moves the last bits of a convolution.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - latents(runner, **pictures)).abs().max() > 1e-3


def test_the_last_steps_of_every_pipeline_run_one_half(pipeline):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shown = AltDiffusionInpaintPipeline.from_pipe(pipeline, unet=tiny_unet(in_channels=9))
    net = tiny_controlnet(pipeline.unet)
    controlled = AltDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=net)
    for runner, more in (
        (pipeline, {}),
        (pipeline, {"guidance_rescale": 0.7}),
        (shown, {"image": [START] * 2, "mask_image": [MASK] * 2, "strength": 1.0}),
        (controlled, {"image": [START] * 2}),
    ):

        def draw(runner=runner, more=more):
            with shortened(runner, guided=0.7):
                latents(runner, **more)

        assert calls(runner.unet.conv_in, draw) == [4] * 5 + [2] * 2


def test_without_guidance_there_is_nothing_to_leave_out(pipeline):
    plain = latents(pipeline, guidance_scale=1.0)
    with shortened(pipeline, guided=0.5):
        assert torch.equal(latents(pipeline, guidance_scale=1.0), plain)


def test_features_used_at_every_step_change_no_bit(pipeline):
    with shortened(pipeline, guided=1.0, reuse=1):
        assert torch.equal(latents(pipeline), plain := latents(pipeline))
    assert torch.equal(latents(pipeline), plain)


@pytest.mark.parametrize("reuse", [2, 3, 9])
def test_deep_features_are_computed_in_every_so_many_steps(pipeline, reuse: int):
    def draw():
        with shortened(pipeline, reuse=reuse):
            latents(pipeline)

    assert calls(pipeline.unet.mid_block.resnets[0], draw) == [4] * math.ceil(7 / reuse)
    assert calls(pipeline.unet.up_blocks[-1].resnets[-1], draw) == [4] * 7


def test_deep_features_keep_their_conditional_half_when_guidance_ends(pipeline):
    with shortened(pipeline, guided=0.7, reuse=7):
        rows = calls(pipeline.unet.up_blocks[-1].resnets[-1], lambda: latents(pipeline))
    assert rows == [4] * 5 + [2] * 2
    with shortened(pipeline, guided=0.7, reuse=7):
        both = latents(pipeline)
    with shortened(pipeline, guided=0.7, reuse=7):
        other = latents(pipeline, ["a cat", "猫"])
    torch.testing.assert_close(both[1:], other[1:], rtol=0, atol=1e-4)  # the second prompt's is its own
    assert (both[:1] - other[:1]).abs().max() > 1e-3


def test_a_step_at_the_same_place_is_the_same_with_the_features_of_the_last(pipeline):
    """The shallow layers are computed anew, from the deep features of equal latents: nothing may change."""
    sample, words = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    with shortened(pipeline, reuse=2), torch.no_grad():
        first, again, fresh = (pipeline.unet(sample, 500, words).sample for _ in range(3))
        moved = pipeline.unet(sample + 1, 500, words).sample
    torch.testing.assert_close(again, first, rtol=0, atol=1e-6)
    assert torch.equal(fresh, first)
    with torch.no_grad():
        full = pipeline.unet(sample + 1, 500, words).sample
    assert (moved - first).abs().max() > 1e-3  # the new latents are seen
    assert (moved - full).abs().max() > 1e-4  # though not by the deep layers


def test_nothing_stays_behind_even_of_a_call_that_fails(pipeline):
    before = latents(pipeline)
    own = {name: dict(module.__dict__) for name, module in pipeline.unet.named_modules()}

    def fail(*arguments):
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError), shortened(pipeline, guided=0.5, reuse=2):
        latents(pipeline, callback_on_step_end=fail)
    for name, module in pipeline.unet.named_modules():
        assert module.__dict__.keys() == own[name].keys()
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert torch.equal(latents(pipeline), before)


@UNPROVEN
def test_threads_that_share_a_unet_draw_what_each_would_alone(pipeline):
    """diffusers lets each thread have a pipeline of shared parts; what is counted is counted by thread."""
    ways = ({"preset": "fast"}, {"preset": "default"}, {}, {"num_inference_steps": 15})

    def draw(number: int, runner) -> torch.Tensor:
        return latents(runner, SENTENCES["en"], seed=number, **({"num_inference_steps": 12} | ways[number]))

    def worker() -> AltDiffusionPipeline:
        runner = AltDiffusionPipeline.from_pipe(pipeline)
        runner.scheduler = copy.deepcopy(pipeline.scheduler)
        return runner

    alone = [draw(number, worker()) for number in range(len(ways))]
    with ThreadPoolExecutor(len(ways)) as pool:
        found = list(pool.map(draw, range(len(ways)), [worker() for _ in ways]))
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert not [name for name, module in pipeline.unet.named_modules() if "forward" in vars(module)]


def test_exact_is_the_stock_pipeline(pipeline, stock_pipeline):
    arguments = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
    expected = stock_pipeline("a cat", generator=torch.Generator().manual_seed(3), **arguments).images
    found = pipeline(
        "a cat", generator=torch.Generator().manual_seed(3), preset="exact", output_type="np"
    ).images
    assert abs(found - expected).max() <= 1e-4
    request = GenerateRequest.build(prompt="a cat", seed=3)
    exact = request.model_copy(update={"preset": "exact"})
    (plain,), (named,) = generate(pipeline, request), generate(pipeline, exact)
    assert plain.image.tobytes() == named.image.tobytes()
    assert (plain.provenance.preset, named.provenance.preset) == (None, "exact")


def test_exact_in_bfloat16_is_the_stock_pipeline_within_what_bfloat16_rounds(shared_folder, stock_pipeline):
    """The compact keys add up in another order: as far from float32 as stock, or a quarter more."""
    ours = AltDiffusionPipeline.from_pretrained(shared_folder, dtype="bfloat16", device="cpu")
    stock = DiffusionPipeline.from_pretrained(shared_folder, dtype=torch.bfloat16)
    expected, exact = latents(stock), latents(stock_pipeline)
    found, rounding = latents(ours, preset="exact").float(), (expected.float() - exact).norm()
    assert 0 < (found - exact).norm() <= 1.25 * rounding
    assert (found - expected.float()).norm() <= 2 * rounding


@UNPROVEN
def test_the_call_and_the_request_of_a_preset_draw_the_same(pipeline):
    for name in PRESETS:
        (called,) = pipeline("a cat", generator=[torch.Generator().manual_seed(3)], preset=name).images
        (asked,) = generate(pipeline, GenerateRequest.build(prompt="a cat", seed=3, preset=name))
        assert called.tobytes() == asked.image.tobytes()


@UNPROVEN
def test_a_preset_brings_scheduler_and_steps_and_the_pipeline_keeps_its_own(pipeline):
    own = pipeline.scheduler
    kinds: list[type] = []

    def look(runner, step, timestep, tensors):
        kinds.append(type(runner.scheduler))
        return {}

    pipeline("a cat", preset="default", callback_on_step_end=look)
    assert set(kinds) == {UniPCMultistepScheduler}
    assert len(kinds) == PRESETS["default"].steps
    assert pipeline.scheduler is own


@UNPROVEN
def test_what_is_given_comes_before_the_presets(pipeline):
    steps: list[int] = []

    def look(runner, step, timestep, tensors):
        steps.append(step)
        return {}

    pipeline("a cat", 64, 64, 3, preset="default", callback_on_step_end=look)  # by position: three steps
    assert steps == [0, 1, 2]
    request = GenerateRequest.build(prompt="a", seed=1, preset="fast", steps=2, scheduler="ddim")
    (picture,) = generate(pipeline, request)
    made = picture.provenance
    assert (made.preset, made.steps, made.scheduler) == ("fast", 2, "ddim")
    fields = {name: getattr(made, name) for name in ("prompt", "seed", "preset", "steps", "scheduler")}
    (again,) = generate(pipeline, GenerateRequest.build(**fields))
    assert again.image.tobytes() == picture.image.tobytes()


@UNPROVEN
def test_a_presets_name_may_be_written_in_any_case(pipeline):
    drawn = [latents(pipeline, preset=name, num_inference_steps=2) for name in ("fast", " FAST ")]
    assert torch.equal(*drawn)


@UNPROVEN
def test_a_strength_that_leaves_none_of_the_presets_steps_is_refused(pipeline):
    """Of diffusers' 50 steps it would leave two."""
    draw = pipeline.to_image_to_image()
    with pytest.raises(BadRequest, match=r"^strength: 0.05 of 15 steps leaves none to draw"):
        draw("a cat", START, 0.05, preset="default")
    with pytest.raises(BadRequest, match=r"^strength: 0.05 of 4 steps leaves none to draw"):  # the model's
        draw("a cat", START, 0.05, preset="exact")
    assert draw("a cat", START, 0.05, 40, preset="default").images  # by place: 40 steps


@UNPROVEN
def test_requests_of_different_presets_share_no_batch(pipeline):
    same = {"prompt": "a", "steps": 2, "scheduler": "ddim"}
    keys = {prepare(pipeline, GenerateRequest.build(preset=name, **same)).key for name in PRESETS}
    assert len(keys) == len(PRESETS)


def test_a_preset_says_where_it_is_unproven(pipeline):
    with pytest.warns(UserWarning, match=r"^preset: 'default' is chosen by the bundled model's pictures"):
        prepare(pipeline, GenerateRequest.build(prompt="a", preset="default"))
    prepare(pipeline, GenerateRequest.build(prompt="a", preset="exact"))  # a warning is an error here


def test_a_unet_without_blocks_draws_by_all_presets_that_leave_them_whole(pipeline):
    class Wrapped(torch.nn.Module):
        """As a runtime other than torch has it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = [pipeline.unet], pipeline.unet.config
            self.dtype, self.device = torch.float32, torch.device("cpu")

        def forward(self, *arguments, **named):
            return self.inner[0](*arguments, **named)

    runner = AltDiffusionPipeline.from_pipe(pipeline, unet=Wrapped())
    runner.set_progress_bar_config(disable=True)
    with pytest.raises(BadRequest, match=r"^preset: 'fast' needs a UNet that torch .* here exact, default"):
        prepare(runner, GenerateRequest.build(prompt="a", preset="fast"))
    expected, found = (latents(one, preset="exact") for one in (pipeline, runner))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with shortened(runner, guided=0.7):
        assert calls(pipeline.unet.conv_in, lambda: latents(runner)) == [4] * 5 + [2] * 2


def test_unknown_names_are_refused_with_the_known_ones(pipeline):
    with pytest.raises(
        BadRequest, match=r"^preset: 'fats' is not known; did you mean 'fast'\? allowed exact"
    ):
        GenerateRequest.build(prompt="a", preset="fats")
    with pytest.raises(BadRequest, match=r"^preset: 'quick' is not known; allowed exact, default, fast"):
        pipeline("a cat", preset="quick")


def test_every_pipeline_takes_a_preset():
    import altdiffusion

    for name in altdiffusion.__all__:
        if name.endswith("Pipeline"):
            assert "preset" in inspect.signature(getattr(altdiffusion, name).__call__).parameters
