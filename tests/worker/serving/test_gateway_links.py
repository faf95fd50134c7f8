"""A real worker process and its gateways: which are served, whose memory is mapped."""

from __future__ import annotations

import random
import select
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model, write_identity_onnx
from engines.real_worker import RealWorker, serving
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.transport.codec import pack_frame

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)
LARGE = np.arange(100_000, dtype=np.float32)


def test_an_identity_that_was_not_attached_is_not_served(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path, zeromq=True) as (worker, gateway):
        unattached = worker.gateway(5, attached=False)
        unattached.send(unattached.infer(mode("exit")))
        while "not attached" not in worker.log():
            assert unattached.reply_within(0) is None
            assert gateway.request({"x": X}).code == ""
        unattached.attach()
        assert unattached.request({"x": X}).code == ""


def test_malformed_frames_are_ignored_and_the_next_request_is_served(repository: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    with serving(write_fault_model(repository, "m"), tmp_path) as (worker, gateway):
        whole = pack_frame([gateway.infer({"x": X})])
        gateway.request({"x": X})
        for _ in range(200):
            cut = bytearray(whole[: chance.randrange(1, len(whole))])
            cut[chance.randrange(len(cut))] = chance.randrange(256)
            assert gateway.end.send(bytes(cut))
            assert gateway.end.send(chance.randbytes(chance.randrange(1, 60)))
        gateway.send(InferReply(1, "", ""))
        assert gateway.request({"x": X}).code == ""
        assert "that is not sent to workers" in worker.log() or "a malformed frame" in worker.log()


def test_a_gateway_attached_again_keeps_the_memory_it_has(repository: Path, tmp_path: Path) -> None:
    """As after a restart of the controller, when the gateway closes the pair that it does not need."""
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (_, gateway):
        buffer = gateway.slot(gateway.results, LARGE.nbytes)
        assert gateway.request({"x": LARGE}, buffer=buffer).code == ""
        second = gateway.attach_again(b"g0.1.again")
        reply = gateway.request({"x": LARGE}, buffer=buffer)
        assert (gateway.array(reply, "y") == LARGE).all()
        second.close()
        reply = gateway.request({"x": LARGE}, buffer=buffer)
        assert (gateway.array(reply, "y") == LARGE).all()


def test_a_gateway_linked_anew_numbers_its_memory_anew(repository: Path, tmp_path: Path) -> None:
    with RealWorker(write_identity_onnx(repository, "m"), tmp_path) as worker:
        worker.wait_ready()
        sockets = worker.sockets()
        old = worker.gateway()
        old.request({"x": LARGE}, buffer=old.slot(old.results, LARGE.nbytes))
        old.close()
        while worker.sockets() > sockets:  # two peers of one identity at a time are one too many for a ROUTER
            select.select([], [], [], 0.001)
        new = worker.gateway()
        reply = new.request({"x": LARGE + 1}, buffer=new.slot(new.results, LARGE.nbytes))
        assert (new.array(reply, "y") == LARGE + 1).all()


def test_requests_and_memory_of_a_gateway_that_is_gone_are_dropped(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (worker, gone):
        stays = worker.gateway(1)
        gone.request({"x": LARGE})
        gone.send(gone.infer(mode("sleep", 0.2)), *[gone.infer({"x": X}) for _ in range(5)])
        while worker.progress().activity is not Activity.BUSY:
            select.select([], [], [], 0.001)
        gone.close()
        assert stays.array(stays.request({"x": X}), "runs").tolist() == [3]
        maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
        assert "mmsup-arena" not in maps


def test_descriptors_and_mappings_do_not_grow_with_gateways(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (worker, stays):
        folder = Path(f"/proc/{worker.process.pid}/fd")

        def visit(place: int) -> None:
            guest = worker.gateway(place)
            guest.request({"x": LARGE}, buffer=guest.slot(guest.results, LARGE.nbytes))
            guest.close()

        visit(1)
        stays.request({"x": X})
        before = len(list(folder.iterdir()))
        for place in range(2, 12):
            visit(place)
        stays.request({"x": X})
        assert len(list(folder.iterdir())) <= before
