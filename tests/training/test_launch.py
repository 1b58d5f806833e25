"""The files for `accelerate launch` say to accelerate what they are meant to say."""

import pytest
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import UNet2DConditionModel
from transformers import AltCLIPTextModel

from tests.fakes import tiny_text_config, tiny_unet
from tests.training.together import CONFIGS, launch_arguments
from training.config import OptimConfig, RunConfig
from training.sharded import fill_deepspeed, layers_of


@pytest.mark.parametrize(
    "name, engine", [("ddp", "multi_gpu"), ("fsdp2", "use_fsdp"), ("deepspeed", "use_deepspeed")]
)
def test_each_file_chooses_its_engine(name, engine):
    arguments = launch_arguments(CONFIGS / f"{name}.yaml")
    chosen = [e for e in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, e)]
    assert chosen == [engine]
    assert arguments.num_processes == 8


def test_the_fsdp_file_makes_a_plugin_of_version_2(monkeypatch):
    for name, value in prepare_multi_gpu_env(launch_arguments(CONFIGS / "fsdp2.yaml")).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading is False


def test_blocks_are_gathered_one_at_a_time():
    assert "BasicTransformerBlock" in layers_of(tiny_unet())
    assert "AltRobertaLayer" in layers_of(AltCLIPTextModel(tiny_text_config(100)))
    names = {type(module).__name__ for module in tiny_unet().modules()}
    assert set(layers_of(tiny_unet())) <= names & set(UNet2DConditionModel._no_split_modules)


def test_the_deepspeed_file_makes_a_plugin_that_takes_the_stages_own_figures():
    arguments = launch_arguments(CONFIGS / "deepspeed.yaml")
    plugin = DeepSpeedPlugin(hf_ds_config=arguments.deepspeed_config_file)
    assert plugin.zero_stage == 2
    fill_deepspeed(plugin, RunConfig(batch_size=32), OptimConfig(max_grad_norm=5.0), processes=8)
    assert not plugin.is_auto("train_micro_batch_size_per_gpu")
    assert plugin.deepspeed_config["train_micro_batch_size_per_gpu"] == 4
    assert plugin.deepspeed_config["gradient_clipping"] == 5.0
    several = RunConfig(batch_size=32, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"^run.gradient_accumulation_steps: 2 with DeepSpeed"):
        fill_deepspeed(plugin, several, OptimConfig(), processes=8)
