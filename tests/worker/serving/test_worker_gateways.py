"""A real worker process and its gateways: who is served, whose memory it holds."""

from __future__ import annotations

import random
import select
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model, write_identity_onnx
from engines.life import Life, serving
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.transport.codec import pack_frame

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)
LARGE = np.arange(100_000, dtype=np.float32)


def test_an_identity_that_was_not_attached_is_not_served(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path, zeromq=True) as (life, gateway):
        stranger = life.gateway(5, attached=False)
        stranger.send(stranger.infer(mode("exit")))
        while "not attached" not in life.printed():
            assert stranger.reply_within(0) is None
            assert gateway.ask({"x": X}).code == ""
        stranger.attach()
        assert stranger.ask({"x": X}).code == ""


def test_frames_that_are_none_are_ignored_and_the_next_request_is_served(repository: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        whole = pack_frame([gateway.infer({"x": X})])
        gateway.ask({"x": X})
        for _ in range(200):
            cut = bytearray(whole[: chance.randrange(1, len(whole))])
            cut[chance.randrange(len(cut))] = chance.randrange(256)
            assert gateway.end.send(bytes(cut))
            assert gateway.end.send(chance.randbytes(chance.randrange(1, 60)))
        gateway.send(InferReply(1, "", ""))
        assert gateway.ask({"x": X}).code == ""
        assert "a Reply that is not for a worker" in life.printed() or "a frame that is none" in life.printed()


def test_a_gateway_attached_again_goes_on_with_the_memory_it_has(repository: Path, tmp_path: Path) -> None:
    """As after a restart of the brain, when the gateway closes the pair that it does not need."""
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (_, gateway):
        grant = gateway.slot(gateway.results, LARGE.nbytes)
        assert gateway.ask({"x": LARGE}, grant=grant).code == ""
        second = gateway.attach_again(b"g0.1.again")
        reply = gateway.ask({"x": LARGE}, grant=grant)
        assert (gateway.array(reply, "y") == LARGE).all()
        second.close()
        reply = gateway.ask({"x": LARGE}, grant=grant)
        assert (gateway.array(reply, "y") == LARGE).all()


def test_a_gateway_linked_anew_counts_its_memory_anew(repository: Path, tmp_path: Path) -> None:
    with Life(write_identity_onnx(repository, "m"), tmp_path) as life:
        life.ready()
        sockets = life.sockets()
        old = life.gateway()
        old.ask({"x": LARGE}, grant=old.slot(old.results, LARGE.nbytes))
        old.close()
        while life.sockets() > sockets:  # two peers of one identity at a time are one too many for a ROUTER
            select.select([], [], [], 0.001)
        new = life.gateway()
        reply = new.ask({"x": LARGE + 1}, grant=new.slot(new.results, LARGE.nbytes))
        assert (new.array(reply, "y") == LARGE + 1).all()


def test_a_gateway_that_goes_takes_its_requests_and_its_memory_with_it(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gone):
        stays = life.gateway(1)
        gone.ask({"x": LARGE})
        gone.send(gone.infer(mode("sleep", 0.2)), *[gone.infer({"x": X}) for _ in range(5)])
        while life.progress().activity is not Activity.BUSY:
            select.select([], [], [], 0.001)
        gone.close()
        assert stays.array(stays.ask({"x": X}), "runs").tolist() == [3]
        maps = Path(f"/proc/{life.process.pid}/maps").read_text()
        assert "mmsup-arena" not in maps


def test_descriptors_and_mappings_do_not_grow_with_gateways(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, stays):
        folder = Path(f"/proc/{life.process.pid}/fd")

        def visit(place: int) -> None:
            guest = life.gateway(place)
            guest.ask({"x": LARGE}, grant=guest.slot(guest.results, LARGE.nbytes))
            guest.close()

        visit(1)
        stays.ask({"x": X})
        before = len(list(folder.iterdir()))
        for place in range(2, 12):
            visit(place)
        stays.ask({"x": X})
        assert len(list(folder.iterdir())) <= before
