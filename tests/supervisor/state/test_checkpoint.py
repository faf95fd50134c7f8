from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.supervisor.state.checkpoint import (
    TEXT_LIMIT,
    Checkpoint,
    ExitRecord,
    FailureRecord,
    GatewayRecord,
    GpuFaultRecord,
    GpuRecord,
    InstanceRecord,
    ModelRecord,
    PoisonCaseRecord,
    PoisonListRecord,
    RevisionRecord,
    UpgradeRecord,
    VersionRecord,
    from_text,
    to_text,
)

UPGRADE = UpgradeRecord(
    ticket="t",
    force=True,
    started_s=1.5,
    stage="processes",
    keeper_generation=1,
    replaces_keeper=True,
    replaced=2,
    kept={},
    failure="",
    seconds=0.0,
    controllers=1,
)


def memory(models: int) -> Checkpoint:
    rng = random.Random(3)
    return Checkpoint(
        began_s=12.5,
        announced=True,
        next_instance=models + 1,
        models=tuple(model(number, rng) for number in range(models)),
        gateways=(GatewayRecord(0, 1, 2, 3.5, "serves"),),
        quarantine=(PoisonListRecord("model_0", "0f", (PoisonCaseRecord("ab12", "1", 2, 700.5),)),),
        devices=(GpuRecord("GPU-a", 0, "H", "3 faults", (GpuFaultRecord(3.5, "model_0"),)),),
        upgrade=replace(UPGRADE, kept={"worker 7 of a/1": "no room"}),
    )


def model(number: int, rng: random.Random) -> ModelRecord:
    name = f"model_{number}"
    tensors = tuple(TensorSpec(f"input_{each}", "FP32", (-1, rng.randrange(1000))) for each in range(4))
    spec = ModelSpec(name, "1", f"/srv/models/{name}/1", "model.onnx", "ort", "onnxruntime_onnx", inputs=tensors)
    instance = InstanceRecord(
        instance=number,
        generation=rng.randrange(100),
        wanted=True,
        state="ready",
        probe=False,
        retry_at_s=0.0,
        spawned_s=rng.random() * 1e6,
        ready_s=rng.random() * 1e6,
        trouble=FailureRecord("model_restarting", "worker died", of_load=False),
        condemned=None,
        failed=None,
        group=f"w{number}.1",
        visible_devices="",
    )
    release = VersionRecord(
        spec, Metadata("onnx", 8, tensors, tensors), (ExitRecord(1.0, 2.0, probe=True),), (instance,)
    )
    return ModelRecord(name, wanted=True, revisions=(RevisionRecord("current", "", f"{number:016x}", (release,)),))


def test_what_is_left_is_what_is_found() -> None:
    for models in (0, 1, 7):
        assert from_text(to_text(memory(models))) == memory(models)


def test_hundreds_of_models_fit_into_one_message() -> None:
    assert len(to_text(memory(500))) < TEXT_LIMIT / 2


@pytest.mark.parametrize("text", ["", "x", "not base 85 \n", "c-n=", to_text(memory(1))[:-9]])
def test_a_text_of_another_kind_is_no_memory(text: str) -> None:
    assert from_text(text) is None


def test_random_text_is_no_memory() -> None:
    rng = random.Random(5)
    for _ in range(500):
        assert from_text("".join(rng.choices("abcXYZ019{}~^_", k=rng.randrange(1, 60)))) is None
