"""The app of the wheel, run with nothing of the checkout in reach."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.app.test_launching import ROOT, free_port

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, without what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    built = next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run(
        [*pip, "--target", str(folder / "site"), built], check=True, capture_output=True, timeout=120
    )
    return folder / "site"


def test_the_wheel_serves_the_app(site: Path, shared_folder: Path, tmp_path: Path):
    port = free_port()
    code = "import sys, altdiffusion.cli; sys.exit(altdiffusion.cli.main())"
    run = [sys.executable, "-c", code, "app", "--model", str(shared_folder), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(site), "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(run, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = next((line for line in process.stderr if "the app is at" in line), "it never came up")
            assert f"http://127.0.0.1:{port}" in told
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").json()["model"] == shared_folder.name
            page = httpx.get(f"http://127.0.0.1:{port}/config").json()
            assert any(one["api_name"] == "generate" for one in page["dependencies"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def test_it_is_the_wheels_own_code(site: Path, tmp_path: Path):
    code = (
        "import altdiffusion.web as web; web.find(); import altdiffusion._app.launching as launching, sys; "
        "print(launching.__file__, 'app' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == f"{site}/altdiffusion/_app/launching.py False", done.stderr
