"""Which files clients may register, and which parts of a region a tensor may be."""

from __future__ import annotations

import stat

import pytest

from mmsup.gateway.client_memory.region_file import is_tmpfs
from mmsup.gateway.client_memory.region_rules import (
    RESERVED_PREFIXES,
    Peer,
    RegionSpan,
    check_file,
    check_owner,
    check_range,
    check_span,
    file_name,
)
from mmsup.ipc.errors import CallerError

LOCAL = Peer(is_local=True)
REGULAR = stat.S_IFREG | 0o600


@pytest.mark.parametrize("key", ["input_simple", "/input_simple", "psm_4f3a", "A", "0", "a.b-c_d", "/" + "x" * 254])
def test_names_that_clients_use_are_keys(key: str) -> None:
    assert file_name(key) == key.removeprefix("/")


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "//a", "a/b", "/a/", "../a", "..", ".hidden", "-a", "_a", "a b", "a\0b", "a\n", "ä", "x" * 255),
        *(f"{prefix}x" for prefix in RESERVED_PREFIXES),
        *(f"/{prefix}x" for prefix in RESERVED_PREFIXES),
    ],
)
def test_other_keys_are_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(CallerError) as caught:
        file_name(key)
    assert caught.value.code == "bad_request"
    assert len(key) < 3 or key not in caught.value.text


@pytest.mark.parametrize(
    ("offset", "size", "file_bytes", "fits"),
    [
        (0, 64, 64, True),
        (32, 32, 64, True),
        (0, 65, 64, False),
        (64, 1, 64, False),
        (-1, 1, 64, False),
        (0, 0, 64, False),
        (0, -1, 64, False),
        ((1 << 64) - 1, 1, 64, False),
        (1, (1 << 64) - 1, 64, False),
        ((1 << 64) - 1, (1 << 64) - 1, 1 << 62, False),
        (0, 64, None, True),
    ],
)
def test_a_region_is_in_its_file(offset: int, size: int, file_bytes: int | None, fits: bool) -> None:
    if fits:
        check_range("r", offset, size, file_bytes)
        return
    with pytest.raises(CallerError, match="'r'"):
        check_range("r", offset, size, file_bytes)


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_a_region_has_a_name_of_bounded_length(name: str) -> None:
    with pytest.raises(CallerError, match="needs a name"):
        check_range(name, 0, 1)


@pytest.mark.parametrize(
    ("mode", "links", "is_on_shm", "is_memory"),
    [
        (REGULAR, 1, True, True),
        (REGULAR, 2, True, False),
        (REGULAR, 0, True, False),
        (REGULAR, 1, False, False),
        (stat.S_IFIFO | 0o600, 1, True, False),
        (stat.S_IFLNK | 0o777, 1, True, False),
        (stat.S_IFCHR | 0o666, 1, True, False),
        (stat.S_IFDIR | 0o700, 1, True, False),
        (stat.S_IFSOCK | 0o700, 1, True, False),
    ],
)
def test_only_a_regular_file_of_one_name_is_memory(mode: int, links: int, is_on_shm: bool, is_memory: bool) -> None:
    if is_memory:
        check_file("r", mode, links, is_on_shm=is_on_shm)
        return
    with pytest.raises(CallerError, match="names no shared memory"):
        check_file("r", mode, links, is_on_shm=is_on_shm)


@pytest.mark.parametrize(
    ("owner", "mode", "peer", "is_allowed"),
    [
        (1000, 0o600, LOCAL, True),  # the server's own user
        (1001, 0o600, LOCAL, True),  # a listed one
        (1002, 0o600, LOCAL, False),
        (1002, 0o666, LOCAL, True),
        (1002, 0o664, LOCAL, False),
        (1002, 0o662, LOCAL, False),
        (1002, 0o600, Peer(is_local=True, uid=1002), True),
        (1000, 0o600, Peer(is_local=True, uid=1002), False),  # not even the server's
        (1001, 0o666, Peer(is_local=True, uid=1002), False),
        (0, 0o600, Peer(is_local=True, uid=0), True),
    ],
)
def test_a_client_shares_memory_that_is_its_own(owner: int, mode: int, peer: Peer, is_allowed: bool) -> None:
    if is_allowed:
        check_owner("r", owner, stat.S_IFREG | mode, peer, {1000, 1001})
        return
    with pytest.raises(CallerError) as caught:
        check_owner("r", owner, stat.S_IFREG | mode, peer, {1000, 1001})
    assert caught.value.code == "forbidden"


def test_a_tensor_is_in_its_region() -> None:
    check_span(RegionSpan("r", 60, 4), 64, "input 'x'")
    for offset, size in ((60, 5), (64, 1), (1 << 64, 4), (0, 1 << 80)):
        with pytest.raises(CallerError, match="of shared memory region 'r', which has 64 bytes"):
            check_span(RegionSpan("r", offset, size), 64, "input 'x'")


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw", True),
        ("25 24 0:23 / /dev/shm rw shared:3 master:1 - tmpfs shm rw", True),
        ("25 24 0:23 / /dev/shm rw - ext4 /dev/sda rw", False),
        ("25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw\n30 25 0:9 / /dev/shm rw - fuse.x x rw", False),
        ("25 24 0:23 / /dev/shm2 rw - tmpfs tmpfs rw\n1 0 0:1 / / rw - tmpfs tmpfs rw", False),
        ("", False),
    ],
)
def test_the_last_mount_says_what_file_system_it_is(mounts: str, expected: bool) -> None:
    assert is_tmpfs(mounts, "/dev/shm") is expected
