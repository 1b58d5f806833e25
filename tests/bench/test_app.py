"""The app's bench, on a handful of requests."""

import pytest

from altdiffusion import bundled

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
app = pytest.importorskip("bench.app")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.weights,
    pytest.mark.skipif(not bundled.exists(), reason="needs the bundled model"),
]


def test_every_client_gets_the_own_pictures_and_a_crowd_is_refused():
    found = app.clients(12, 1, ["--batch", "1"])
    assert found["asked"] == found["equal"] == 12 and not found["lost"]
    assert 0 < found["refused"] < found["burst"] and any("32" in told for told in found["told"])


def test_memory_is_read_of_the_server():
    found = app.memory(10)
    assert found["MB in the middle"] > 100 and not found["left in its folder"]
