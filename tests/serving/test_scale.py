"""The service on Ray Serve: two replicas of the tiny model draw what one process draws.

In a process of its own: Ray starts servers, leaves threads behind and warns of much.
"""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from altdiffusion.generation import generate
from altdiffusion.images import read_provenance
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.requests import GenerateRequest

ROOT = Path(__file__).parents[2]
REQUESTS = 12
CLIENT = """
import base64, json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
import ray
from ray import serve
from altdiffusion.serving.scale import Options, build

model, port, requests = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build(Options(model=model, replicas=2, batch=1)))

def post(body):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=120) as answer:
            return answer.status, base64.b64encode(answer.read()).decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()

bodies = [json.dumps(fields).encode() for fields in requests] + [b"[", b"{" + b" " * 30_000 + b"}"]
with ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(post, bodies))
replicas = serve.status().applications["default"].deployments["Replica"].replica_states
print(json.dumps({"answers": answers, "replicas": {str(k): v for k, v in replicas.items()}}))
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_two_replicas_draw_what_one_process_draws(shared_folder: Path, shared_pipeline: AltDiffusionPipeline):
    pytest.importorskip("ray", reason="needs Ray: pip install 'altdiffusion[scale]'")
    import base64

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    requests = [{"prompt": f"a cat number {n}", "seed": n, "steps": 2} for n in range(REQUESTS)]
    bad = [{"prompt": "a", "steps": 0}, {"prompt": "a", "count": 2}]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(shared_folder), port, json.dumps([*requests, *bad])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"answers"'))
    *drawn, refused, several, broken, long = told["answers"]
    assert refused == [400, "steps: 0; allowed a whole number from 1 to 1000"]
    assert several == [400, "count: 2; allowed here 1, as the answer is one picture"]
    assert broken == [400, "body: allowed a JSON object"]
    assert long == [413, "body: allowed 20,000 bytes of JSON"]
    assert told["replicas"] == {"RUNNING": 2}
    for (status, body), fields in zip(drawn, requests, strict=True):
        assert status == 200
        data = base64.b64decode(body)
        (serial,) = generate(shared_pipeline, GenerateRequest.build(**fields))
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.tobytes() == serial.image.tobytes()
        assert read_provenance(data) == serial.provenance
