"""Model cards of trained stages, and the Hub as a small server that takes what the real client sends."""

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from altdiffusion import bundled, cards
from altdiffusion.languages import LANGUAGES
from training.config import OptimConfig, RunConfig
from training.export import EMOJI, Made, check, finish
from training.stage import run_stage


@dataclass(frozen=True)
class Config:
    output_dir: Path
    run: RunConfig = field(default_factory=RunConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class Hub(BaseHTTPRequestHandler):
    """Creates the repositories of one owner, knows all others', and keeps what is committed."""

    created: list[dict]
    committed: dict[str, bytes]

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            if asked.get("organization") != "me":
                return self.answer({"error": "You don't have the rights"}, 403)
            self.created.append(asked)
            return self.answer({"url": f"{constants.ENDPOINT}/me/{asked['name']}"})
        if self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{constants.ENDPOINT}/me/x/commit/0", "commitOid": "0" * 40})
        return self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        if self.path.endswith("/auth-check/write") and "/me/" not in self.path:
            return self.answer({"error": "You don't have the rights"}, 403)
        return self.answer({"id": "me/x", "sha": "0" * 40, "siblings": [], "xetEnabled": False})

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    handler = type("Handler", (Hub,), {"created": [], "committed": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def made(**changes) -> Made:
    fields = {
        "title": "A model",
        "stage": "teacher learning (Chen et al. 2022, section 3.2)",
        "library": "transformers",
        "task": "zero-shot-image-classification",
        "data": EMOJI,
        "bases": {"teacher": "openai/clip-vit-large-patch14", "student": None},
        "languages": ("en", "th"),
        "figures": {"en": 0.5, "th": 0.25, "unseen": 0.125},
        "metric": "R@1",
    }
    return Made(**{**fields, **changes})


def written(tmp_path: Path, config: Config | None = None, **changes) -> tuple[dict, str]:
    """Front matter and text of the card."""
    (tmp_path / "model").mkdir(exist_ok=True)
    finish(config or Config(tmp_path), made(**changes))
    _, head, text = (tmp_path / "model/README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_says_data_languages_figures_base_and_licence(tmp_path):
    config = Config(tmp_path, RunConfig(licence="mit", max_train_steps=7))
    head, text = written(tmp_path, config)
    assert head["language"] == ["en", "th"] and head["license"] == "mit"
    assert head["base_model"] == ["openai/clip-vit-large-patch14"]
    assert head["library_name"] == "transformers"
    assert "- **Teacher:** openai/clip-vit-large-patch14\n" in text and "Student" not in text
    assert "Noto Color Emoji" in text and "English, Thai" in text and "7 steps" in text
    assert "| en | 0.500 |" in text and "| th | 0.250 |" in text and "- unseen: 0.125" in text
    assert text.endswith("mit.\n")


def test_figures_before_and_after_are_columns(tmp_path):
    _, text = written(
        tmp_path, figures={"before": {"en": 1.0, "th": 0.9}, "after": {"en": 0.1}}, languages=tuple(LANGUAGES)
    )
    assert "| language | before | after |\n|---|---|---|\n| en | 1.000 | 0.100 |\n| th | 0.900 |  |" in text
    assert all(language.name in text for language in LANGUAGES.values())


def test_the_licence_is_that_of_what_it_was_made_from(tmp_path):
    folders = {}
    for name, terms in (("a", "apache-2.0"), ("b", "mit")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {terms}\n---\n")
        folders[name] = tmp_path / name
    assert written(tmp_path, bases={"UNet": folders["a"] / "unet"})[0]["license"] == "apache-2.0"
    head, text = written(tmp_path, bases=folders)
    assert head["license"] == "other" and "a: apache-2.0; b: mit" in text
    assert str(tmp_path) not in text
    head, text = written(tmp_path, bases={"text tower": "BAAI/AltCLIP-m9"})
    assert head["license"] == cards.OPENRAIL and cards.TERMS in text
    head, text = written(tmp_path, bases={})
    assert "license" not in head and "Not stated" in text


def test_the_manifest_follows_the_card(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/README.md").write_text("old")
    bundled.write_manifest(tmp_path / "model")
    written(tmp_path)
    bundled.verify(tmp_path / "model")


def test_the_model_goes_to_the_hub_with_its_card(tmp_path, hub):
    config = Config(tmp_path, RunConfig(push_to_hub="me/emoji"))

    def train(config: Config) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/config.json").write_text("{}")
        finish(config, made())

    run_stage(config, train)
    assert hub.created == [{"name": "emoji", "organization": "me", "visibility": "private"}]
    assert hub.committed.keys() == {"README.md", "config.json", "manifest.json"}
    assert hub.committed["README.md"] == (tmp_path / "model/README.md").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("emoji", r"^push_to_hub: 'emoji' names no owner; allowed: owner/name$"),
        ("a/b/c", r"^push_to_hub: 'a/b/c' is no name of a repository; allowed: owner/name$"),
        ("you/emoji", r"^push_to_hub: 'you/emoji' cannot be written \(.*; allowed: a repository of yours"),
    ],
)
def test_a_repository_that_cannot_be_written_is_refused_before_training(tmp_path, hub, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(Config(tmp_path, RunConfig(push_to_hub=name)))
    assert "\n" not in str(caught.value)


def test_without_a_network_the_model_stays_and_the_message_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    config = Config(tmp_path, RunConfig(push_to_hub="me/emoji"))
    with pytest.raises(ValueError, match=r"^push_to_hub: 'me/emoji' did not take the model .* tries again$"):
        written(tmp_path, config)
    assert (tmp_path / "model/README.md").is_file()
