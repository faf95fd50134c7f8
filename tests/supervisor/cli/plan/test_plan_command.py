from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engines.build import write_fault_model
from mmsup.ipc import exit_codes
from mmsup.supervisor.capacity.footprint import Footprint, footprint_key
from mmsup.supervisor.capacity.footprint_store import FILE_NAME, FootprintStore
from mmsup.supervisor.cli.main import main
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.scanner import scan

MIB = 1 << 20
ON_DEMAND = ("--model-control-mode", "on-demand")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A repository of two models, and a state directory in which `measured` has a footprint."""
    repository = tmp_path / "models"
    write_fault_model(repository, "measured")
    write_fault_model(repository, "other")
    entry = scan(Settings((str(repository),), "", "")).models["measured"]
    store = FootprintStore(tmp_path / "state" / FILE_NAME)
    store.put(footprint_key(entry.specs[0]), entry.file_digest, Footprint(40 * MIB, 30 * MIB, load_s=1.25))
    store.write(store.contents())
    return tmp_path


def planned(home: Path, *flags: str) -> tuple[int, str]:
    places = {"--model-repository": home / "models", "--state-dir": home / "state", "--runtime-dir": home}
    given = [str(each) for pair in places.items() for each in pair]
    found = CliRunner().invoke(main, ["plan", *given, *flags])
    return found.exit_code, found.output


def test_what_was_measured_is_planned_with_and_the_rest_is_a_guess(home: Path) -> None:
    code, text = planned(home, "--memory-budget", "64MiB", "--json")
    result: Any = json.loads(text)
    measured, other = result["models"]
    assert (code, result["ok"]) == (0, True)
    assert (measured["host_bytes"], measured["cold_start_s"], measured["measured"]) == (40 * MIB, 1.25, True)
    assert (other["measured"], other["cold_start_s"], other["fits"]) == (False, None, True)
    assert result["memory"][0]["budget_bytes"] == 64 * MIB


def test_the_table_says_what_fits_and_who_would_go(home: Path) -> None:
    code, text = planned(home, "--memory-budget", "45MiB", *ON_DEMAND)
    rows = {line.split()[1]: line for line in text.splitlines()[1:3]}
    assert code == 0
    assert rows["measured"].endswith("fits")
    assert rows["other"].endswith("evicts measured/1")
    assert "versions: 1 of 2 fit together" in text
    assert "host memory: 30MiB of 45MiB by the models that fit" in text


def test_the_table_names_two_of_those_that_would_go_and_counts_the_rest(home: Path) -> None:
    names = [f"a{number}" for number in range(4)]
    for name in names:
        write_fault_model(home / "models", name)
    (home / "models" / "other" / "1" / "weights.bin").write_bytes(bytes(40 * MIB))
    _, text = planned(home, "--memory-budget", "125MiB", *ON_DEMAND)
    assert next(line for line in text.splitlines() if " other " in line).endswith("evicts a0/1, a1/1 and 2 more"), text
    _, text = planned(home, "--memory-budget", "125MiB", "--json", *ON_DEMAND)
    assert [len(each["evicts"]) for each in json.loads(text)["models"] if each["name"] == "other"] == [4]


def test_models_that_are_loaded_at_the_start_go_for_nobody(home: Path) -> None:
    code, text = planned(home, "--memory-budget", "45MiB", "--json")
    assert code == 0
    assert [each["evicts"] for each in json.loads(text)["models"]] == [[], []]
    assert [each["fits"] for each in json.loads(text)["models"]] == [True, False]


def test_a_faulty_model_is_named_instead_of_left_out_in_silence(home: Path) -> None:
    (home / "models" / "other" / "mmsup.yaml").write_text("memory: much\n")
    _, text = planned(home)
    assert "other has faults" in text
    assert "mmsup.yaml" in text.splitlines()[-1]
    assert [each["name"] for each in json.loads(planned(home, "--json")[1])["faulty"]] == ["other"]


def test_a_pinned_model_that_does_not_fit_is_exit_1_and_a_faulty_configuration_exit_2(
    home: Path,
) -> None:
    (home / "models" / "measured" / "mmsup.yaml").write_text("pin: true\n")
    code, text = planned(home, "--memory-budget", "16MiB")
    assert (code, "measured/1 is pinned and does not fit" in text) == (1, True), text
    assert planned(home, "--memory-budget", "much")[0] == 2


def test_contexts_are_those_that_were_measured_on_their_gpu_and_the_table_says_which_are_guesses(home: Path) -> None:
    for name in ("gpu0", "gpu1"):
        write_fault_model(home / "models", name, device=f"cuda:{name[-1]}")
    store = FootprintStore(home / "state" / FILE_NAME)
    store.contexts.note(("cuda:0", "GPU-a"), 700 * MIB, 88 * MIB)
    store.write(store.contents())
    budgets = [word for number in range(2) for word in ("--gpu-memory-budget", f"cuda:{number}:4GiB")]
    result: Any = json.loads(planned(home, *budgets, "--json")[1])
    contexts = result["cuda_contexts"]
    assert contexts["by_device"] == {
        "cuda:0": {"bytes": 612 * MIB, "measured": True},
        "cuda:1": {"bytes": 512 * MIB, "measured": False},
    }
    assert (contexts["count"], contexts["bytes"]) == (2, 1124 * MIB)
    needs = {each["name"]: each["gpu_bytes"] // MIB for each in result["models"]}
    assert (needs["gpu0"], needs["gpu1"]) == (612, 612), "the larger one where none was measured"
    _, text = planned(home, *budgets)
    assert "each takes 612MiB on cuda:0 (measured), 512MiB on cuda:1 (a guess)" in text


def test_a_repository_that_cannot_be_read_is_no_empty_plan(home: Path) -> None:
    code, text = planned(home, "--model-repository", str(home / "missing"))
    assert code == exit_codes.USAGE
    assert f"{home / 'missing'}: cannot be read: No such file or directory" in text
