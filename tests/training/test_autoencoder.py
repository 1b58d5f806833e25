"""The autoencoder's stage: what it goes on from, and what its lines of metrics are about."""

import json

from tests.training.conftest import flags
from training.autoencoder import AutoencoderConfig, train
from training.config import parse


def test_it_goes_on_from_an_autoencoder_of_another_shape_and_each_line_has_its_own_error(tmp_path):
    more = "--size 16 --kl-weight 0 --edge-weight 0"  # the loss is then the error itself
    new = "--block-out-channels 8 8 --norm-num-groups 4 --latent-channels 2"
    train(parse(AutoencoderConfig, flags(tmp_path / "new", 1, f"{more} {new}")))
    train(parse(AutoencoderConfig, flags(tmp_path / "on", 2, f"{more} --model {tmp_path / 'new/model'}")))
    lines = [json.loads(line) for line in (tmp_path / "on/metrics.jsonl").read_text().splitlines()]
    assert [line["l1"] for line in lines] == [line["loss"] for line in lines]
    assert json.loads((tmp_path / "on/model/config.json").read_text())["latent_channels"] == 2
