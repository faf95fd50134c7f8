"""Every example of docs/models.md and docs/triton-python.md is made, checked, served and asked as it is shown there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.server import Http, serving
from mmsup.ipc import exit_codes
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.cli.check.command import check
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.scanner import scan
from test_readme import ROOT

DOCUMENT = ROOT / "docs" / "models.md"
TEXT = DOCUMENT.read_text() + (ROOT / "docs" / "triton-python.md").read_text()
HEAD = re.compile(r"# ((?:make|models/\S+)\.(?:py|yaml|pbtxt|json))")


@dataclass(frozen=True)
class Example:
    """A block of the document: `path` is its first line, or empty for a command."""

    path: str
    text: str


def examples() -> Iterator[Example]:
    """Blocks of code, each file by itself."""
    path, lines = "", list[str]()
    for line in [*TEXT.splitlines(), "end"]:
        head = HEAD.fullmatch(line.strip()) if line.startswith("    ") else None
        is_end = bool(line) and not line.startswith("    ")
        if (head or is_end or line.startswith("    curl ")) and path:
            yield Example(path, "\n".join(lines) + "\n")
            path, lines = "", []
        if head:
            path, lines = head[1], []
        elif path:
            lines.append(line[4:])


def files() -> Iterator[Example]:
    """Those of models."""
    return (each for each in examples() if each.path.startswith("models/"))


def questions() -> list[tuple[str, str, list[list[float]]]]:
    """Path, body and the data of each output, of each `curl` in the document."""
    found = re.findall(r"^    (curl .*)\n    # (\[.*\])$", TEXT, re.MULTILINE)
    asked = []
    for command, answer in found:
        _, address, _, body = shlex.split(command)
        asked.append((address.partition("/")[2], body, json.loads(f"[{answer.replace('] [', '], [')}]")))
    return asked


def write(folder: Path, config: str, *, only_names: bool = False) -> Path:
    """All models of the documents, each declared by its file of this name if it has one; the repository. `only_names`:
    their files are empty, which a scan does not see."""
    folder.mkdir()
    shown = {each.path for each in examples()}
    for path, _, _ in questions():
        (folder / "models" / path.split("/")[2] / "1").mkdir(parents=True)
    for each in files():
        (folder / each.path).parent.mkdir(parents=True, exist_ok=True)
    for each in examples():
        if each.path == "make.py" and only_names:
            (folder / re.findall(r"models/\w+/1/[\w.]+", each.text)[0]).touch()
        elif each.path == "make.py":
            subprocess.run([sys.executable, "-W", "ignore", "-c", each.text], cwd=folder, check=True)
        elif _is_wanted(each.path, config, shown):
            text = each.text.strip() + "\n" if each.path.endswith(".json") else each.text
            (folder / each.path).write_text(text)
    return folder / "models"


def _is_wanted(path: str, config: str, shown: set[str]) -> bool:
    """Of a file: it is code, data, the declaration of this name, or the only one that its model has."""
    file = Path(path)
    is_declaration = file.name in ("mmsup.yaml", "config.pbtxt")
    return not is_declaration or file.name == config or str(file.with_name(config)) not in shown


def specs(repository: Path) -> dict[str, ModelSpec]:
    scanned = scan(Settings((str(repository),), "/x", "/y"))
    return {name: entry.specs[0] for name, entry in scanned.models.items()}


@pytest.mark.slow
def test_every_model_of_the_document_is_sound_and_answers_as_it_says(tmp_path: Path) -> None:
    repository = write(tmp_path / "yaml", "mmsup.yaml")
    checked = CliRunner().invoke(check, ["--model-repository", str(repository)])
    assert checked.exit_code == exit_codes.SUCCESS, checked.output
    assert "warning: " not in checked.output
    with serving(repository) as server:
        for path, _, _ in questions():
            server.await_state(path.split("/")[2], "ready")
        http = Http(server.address())
        for path, body, answers in questions():
            status, _, reply = http.send("POST", f"/{path}", body)
            assert status == 200, reply
            assert [each["data"] for each in json.loads(reply)["outputs"]] == answers
        server.await_state("counts", "ready")
        status, _, stream = http.send("POST", "/v2/models/counts/generate_stream", '{"n": 2}')
        assert (status, [json.loads(each)["i"] for each in stream.decode().split("data: ")[1:]]) == (200, [0, 1])
        http.close()


def test_both_files_declare_the_same(tmp_path: Path) -> None:
    by_yaml = specs(write(tmp_path / "yaml", "mmsup.yaml", only_names=True))
    by_pbtxt = specs(write(tmp_path / "pbtxt", "config.pbtxt", only_names=True))
    shown = {path.split("/")[2] for path, _, _ in questions()} | {Path(each.path).parts[1] for each in files()}
    assert by_yaml.keys() == by_pbtxt.keys() == shown
    for name, spec in by_yaml.items():
        other = by_pbtxt[name]
        for field in ("engine", "artefact", "inputs", "outputs", "max_batch_size", "parameters", "trusted"):
            assert getattr(spec, field) == getattr(other, field), (name, field)


def test_every_parameter_that_an_engine_reads_is_in_the_document() -> None:
    source = "".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))
    read = set(re.findall(r'(?:bool|int)_parameter\(\s*(?:self\.)?spec\.parameters, "(\w+)"', source))
    assert {"warmup", "read_only_inputs", "thread_count", "tensorrt"} <= read
    shown = set(re.findall(r"`(\w+)`", DOCUMENT.read_text().partition("## parameters")[2]))
    assert read <= shown
