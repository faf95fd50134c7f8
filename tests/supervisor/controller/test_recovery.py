"""The checkpoint of a whole controller: what is written is what the next one reads."""

from __future__ import annotations

from mmsup.ipc.poison_policy import PoisonEntry
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.supervisor.controller.recovery import (
    GATEWAYS_KEY,
    GPUS_KEY,
    SERVER_KEY,
    Checkpoint,
    CheckpointRecord,
    GpuRecords,
    ServerRecord,
    model_key,
    read_checkpoint,
)
from mmsup.supervisor.controller.upgrade_record import UpgradeRecord
from mmsup.supervisor.gateways.poison_requests import PoisonRecord, poison_key
from mmsup.supervisor.gateways.pool import GatewayRecord, GatewayRecords
from mmsup.supervisor.gpu.health import GpuFault, GpuRecord
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.models.model_records import (
    InstanceRecord,
    KnownMetadata,
    ModelRecord,
    RevisionRecord,
    SleepRecord,
    VersionRecord,
)
from mmsup.supervisor.models.sleep_state import FailedMove
from mmsup.supervisor.models.use_rate import UseRate
from mmsup.supervisor.processes.backoff import Exit
from mmsup.supervisor.state.checkpoint import to_text

TENSORS = (TensorSpec("x", "FP32", (-1, 3)),)
INSTANCE = InstanceRecord(
    instance=7,
    generation=2,
    wanted=True,
    state="ready",
    is_probe=False,
    retry_at_s=0.0,
    spawned_s=1.5,
    ready_s=2.5,
    failure=WorkerFailure("model_restarting", "worker died", retryable=False),
    condemned=None,
    load_failure=WorkerFailure("load_failed", "no", of_load=True),
    cgroup="w7.2",
    visible_devices="GPU-a",
    offloaded_bytes=1 << 30,
)
MODEL = ModelRecord(
    "m",
    wanted=True,
    sleep=SleepRecord(
        "asleep",
        "evicted",
        3.5,
        "{}",
        "0f",
        (KnownMetadata("1", Metadata("onnx", 8, TENSORS, TENSORS)),),
        0.5,
        2.5,
        UseRate(0.25, 0.5, 2.5),
        "for another",
        "no",
        FailedMove("0f", "no"),
    ),
    revisions=(
        RevisionRecord(
            "current",
            '{"name": "m"}',
            "0f",
            (
                VersionRecord(
                    ModelSpec("m", "1", "/srv/m/1", "model.onnx", "ort", "onnxruntime_onnx", inputs=TENSORS),
                    Metadata("onnx", 8, TENSORS, TENSORS),
                    can_offload=True,
                    restored_s=4.5,
                    exits=(Exit(1.0, 2.0, was_probe=True),),
                    instances=(INSTANCE,),
                ),
            ),
        ),
    ),
)
RECORDS: dict[str, CheckpointRecord] = {
    SERVER_KEY: ServerRecord(12.5, is_announced=True, next_instance_id=8),
    model_key("m"): MODEL,
    poison_key("m"): PoisonRecord("m", "0f", (PoisonEntry(b"\xab\xff", "1", 2, blocked=True, until_s=700.5),)),
    GATEWAYS_KEY: GatewayRecords((GatewayRecord(0, 1, 2, 3.5, "serving"),)),
    GPUS_KEY: GpuRecords((GpuRecord("GPU-a", 0, "H", "3 faults", (GpuFault(3.5, "m"),)),)),
    "upgrade": UpgradeRecord("t", True, 1.0, 1, kept={"worker 7 of m/1": "no room"}),  # noqa: FBT003 - a record
}
TEXTS = {key: to_text(each) for key, each in RECORDS.items()}


def test_what_is_written_is_what_is_read() -> None:
    found = read_checkpoint(TEXTS)
    assert found is not None
    assert found.records == RECORDS
    assert found.server == RECORDS[SERVER_KEY]
    assert found.all_of(ModelRecord) == (MODEL,)
    assert [each.ticket for each in found.all_of(UpgradeRecord)] == ["t"]


def test_without_a_server_record_or_with_one_of_another_version_there_is_no_checkpoint() -> None:
    assert read_checkpoint({}) is None
    assert read_checkpoint({model_key("m"): TEXTS[model_key("m")]}) is None
    assert read_checkpoint(TEXTS | {model_key("m"): "of another version"}) is None
    assert isinstance(read_checkpoint({SERVER_KEY: TEXTS[SERVER_KEY]}), Checkpoint)
