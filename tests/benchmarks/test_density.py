"""What density.py counts as failed, as cold, as a load, and as memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import memory_curve
import numpy as np
import pytest
from client_eviction import ClientEviction
from density_client import VARIANTS, DensityClient, Reply
from density_file import Starts, read_density, read_starts, together, write_density, write_starts
from density_report import Density, StreamRun, loads, quantile, report, result
from memory_curve import MemorySample
from small_models import INPUTS, SmallModel, write_models

from mmsup.supervisor.linux.cgroup_backend import top_name

MIB = 1 << 20


@pytest.fixture
def models(tmp_path: Path) -> list[SmallModel]:
    return write_models(tmp_path, 10, 1)


def test_models_are_of_every_kind_and_each_gives_another_answer(models: list[SmallModel]) -> None:
    assert {each.kind for each in models} == {"numpy", "onnx", "torch"}
    x = np.ones((1, INPUTS), np.float32)
    answers = [each.answers(x) for each in models]
    assert min(np.abs(a - b).max() for i, a in enumerate(answers) for b in answers[:i]) > 0.1


def test_the_same_seed_writes_the_same_models(models: list[SmallModel], tmp_path: Path) -> None:
    again = write_models(tmp_path / "again", 10, 1)
    other = write_models(tmp_path / "other", 10, 2)
    assert all(np.array_equal(a.weights["a"], b.weights["a"]) for a, b in zip(models, again, strict=True))
    assert not np.array_equal(models[0].weights["b"][:9], other[0].weights["b"][:9])


async def double(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, models: dict[str, SmallModel]) -> None:
    """A server for one connection: a right answer, a cold one to onnx models, that of another model to torch models."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        fields = dict(line.split(b": ") for line in head.split(b"\r\n")[1:-2])
        body = await reader.readexactly(int(fields[b"Content-Length"]))
        model = models[head.split(b"/")[3].decode()]
        answering = model if model.kind != "torch" else models["numpy-000"]
        x = np.frombuffer(body[-4 * INPUTS :], np.float32).reshape(1, INPUTS)
        y, cold = b"{}" + answering.answers(x).tobytes(), b"X-Mmsup-Cold: 1\r\n" * (model.kind == "onnx")
        status = b"503 Service Unavailable" if model.name == "numpy-001" else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, cold, len(y), y))


def test_wrong_refused_and_lost_requests_are_faults_and_right_ones_are_none(models: list[SmallModel]) -> None:
    by_name = {each.name: each for each in models}

    async def run() -> tuple[list[Reply], list[str]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await double(reader, writer, by_name)
            except asyncio.IncompleteReadError:
                writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            client = DensityClient(server.sockets[0].getsockname()[:2], models, 1)
            replies = await client.open_loop([*range(10)] * 3, [0.001 * place for place in range(30)])
            replies += await client.closed_loop([0, 5], 2, 0.05)
            faults = list(client.faults(replies))
            client.close()
            server.close()
            lost = await client.ask(0, 0.0)
            return replies, [*faults, *client.faults([lost])]

    replies, faults = asyncio.run(run())
    assert len(faults) == 7
    assert [fault.partition(":")[0] for fault in faults] == ["numpy-001"] * 3 + ["torch-009"] * 3 + ["numpy-000"]
    assert "wrong answer" in faults[3]
    assert {each.model for each in replies if each.is_cold} == {5, 6, 7, 8}
    assert len({each.variant for each in replies[:30]}) == 30 < VARIANTS


def reply(model: int, due_s: float, took_s: float, *, cold: bool = True) -> Reply:
    return Reply(model, 0, due_s, took_s, 200, cold, b"")


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([], 0),
        ([reply(1, 0, 1, cold=False)], 0),
        ([reply(1, 0, 1), reply(1, 0.5, 0.6)], 1),  # the second waited for the load of the first
        ([reply(1, 0, 1), reply(1, 2, 1)], 2),
        ([reply(1, 0, 5), reply(1, 1, 1), reply(1, 3, 2)], 1),
        ([reply(1, 0, 1), reply(2, 0, 1)], 2),
    ],
)
def test_cold_replies_that_waited_together_count_as_one_load(replies: list[Reply], expected: int) -> None:
    assert loads(replies) == expected


def test_the_figures_of_a_stream_count_cold_replies_by_their_own_models_start() -> None:
    replies = [reply(0, 0, 0.2), reply(0, 1, 0.001, cold=False), reply(1, 2, 3.0), reply(1, 9, 0.003, cold=False)]
    samples = [MemorySample(float(at), held * MIB, 2 * MIB, 1) for at, held in enumerate((5, 9, 7))]
    found = result(StreamRun("zipf", 10, 6, [1], replies, [], samples), {0: 0.1, 1: 1.0})
    assert (found.cold, found.loads, found.cold_p99_s, found.own_p99) == (2, 2, 3.0, 3.0)
    assert found.warm_p99_s == 0.003
    assert (found.counted_peak, found.whole_peak) == (9 * MIB, 11 * MIB)
    assert (found.hits.fitting, found.hits.server, found.hits.lru, found.hits.belady) == (1, 0.5, 0.5, 0.5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 6), (0.99, 10), (1.0, 10)])
def test_quantiles(share: float, expected: int) -> None:
    assert quantile([*range(10, 0, -1)], share) == expected


def test_memory_is_that_of_workers_and_zygotes_and_what_they_started() -> None:
    parents = {2: 1, 3: 1, 4: 1, 5: 3, 6: 5, 7: 2}
    kinds = {2: "", 3: memory_curve.WORKER, 4: memory_curve.ZYGOTE}
    assert memory_curve.roles(parents, kinds, 1) == {
        3: memory_curve.WORKER,
        4: memory_curve.ZYGOTE,
        5: memory_curve.CHILD,
        6: memory_curve.CHILD,
    }


def test_anonymous_and_shared_memory_count_apart_from_files() -> None:
    text = "55-7f ---p 0 [rollup]\nRss: 99 kB\nPss: 60 kB\nPss_Anon: 30 kB\nPss_File: 20 kB\nPss_Shmem: 10 kB\n"
    assert memory_curve.rollup_bytes(text) == (40 << 10, 20 << 10)


def test_where_there_are_control_groups_the_kernel_adds_memory_up(tmp_path: Path) -> None:
    assert memory_curve.grouped_bytes(tmp_path, tmp_path / "none") is None
    top = top_name(str(tmp_path))
    v1, v2 = tmp_path / "v1" / "memory" / top, tmp_path / "v2" / "some.slice" / top
    v1.mkdir(parents=True)
    (v1 / "memory.stat").write_text("rss 1\ntotal_rss 70\ntotal_shmem 5\ntotal_mapped_file 9\n")
    assert memory_curve.grouped_bytes(tmp_path, tmp_path / "v1") == (75, 9)
    for name, held in (("core", 1000), ("w1", 30), ("w2", 40)):
        (v2 / name).mkdir(parents=True)
        (v2 / name / "memory.stat").write_text(f"anon {held}\nshmem 2\nfile_mapped 3\n")
    assert memory_curve.grouped_bytes(tmp_path, tmp_path / "v2") == (74, 6)


def test_parts_that_were_measured_at_different_times_are_one_report(tmp_path: Path) -> None:
    runs = []
    for number, stream in enumerate(("uniform", "zipf")):
        replies = [reply(0, 0, 0.2), reply(0, 1, 0.001, cold=False)]
        samples = [MemorySample(100.0 * number + at, 5 * MIB, MIB, 1) for at in range(3)]
        found = result(StreamRun(stream, 10, 6, [1], replies, [], samples, ["numpy"], "stages"), {0: 0.1})
        span = {stream: (100.0 * number + 1, 100.0 * number + 2)}
        runs.append(Density({"CPU": "x", "command": stream}, 9 * MIB, [], [found], samples, span))
        write_density(runs[-1], tmp_path / stream)
        assert read_density(tmp_path / stream) == runs[-1]
    both = together(runs)
    assert [each.at_s for each in both.samples] == [0, 1, 2, 12, 13, 14]
    assert both.spans == {"uniform": (1, 2), "zipf": (13, 14)}
    text = report(both)
    assert text.index("uniform, numpy") < text.index("zipf, numpy") < text.index("stages")
    starts = Starts({0: 0.5}, samples[0], None, ["fault"])
    write_starts(starts, tmp_path / "starts")
    assert read_starts(tmp_path / "starts") == starts


def test_from_outside_the_model_that_was_asked_longest_ago_and_has_no_request_open_is_put_to_sleep() -> None:
    slept: list[int] = []
    with ClientEviction(2, slept.append) as evicting:
        for model in (1, 2, 1):
            evicting.begin(model)
            evicting.end(model)
        evicting.begin(3)
        evicting.begin(4)  # 3 has a request open, 1 has none
        evicting.begin(5)  # all have
        evicting.end(4)
    assert sorted(slept) == [1, 2, 4]


def test_a_sleep_that_is_refused_is_told() -> None:
    def refuse(_: int) -> None:
        raise OSError("no")

    with ClientEviction(1, refuse) as evicting:
        for model in (1, 2):
            evicting.begin(model)
            evicting.end(model)
    assert evicting.faults == ["sleep of model 1: OSError no"]
