from __future__ import annotations

import pytest

from mmsup.supervisor.repository.config_pbtxt import read_pbtxt
from mmsup.supervisor.repository.model_config import interpret
from mmsup.supervisor.repository.version_policy import VersionPolicy


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (VersionPolicy(), ("10",)),
        (VersionPolicy(latest=2), ("9", "10")),
        (VersionPolicy(latest=9), ("1", "2", "9", "10")),
        (VersionPolicy(all_versions=True), ("1", "2", "9", "10")),
        (VersionPolicy(specific=(10, 1, 77)), ("1", "10")),
        (VersionPolicy(specific=(77,)), ()),
    ],
)
def test_versions_are_selected_by_number_and_not_by_spelling(policy: VersionPolicy, chosen: tuple[str, ...]) -> None:
    assert policy.select(("10", "9", "1", "2")) == chosen


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy { latest {} }", VersionPolicy()),
        ("version_policy { latest { num_versions: 3 } }", VersionPolicy(latest=3)),
        ("version_policy { all {} }", VersionPolicy(all_versions=True)),
        ("version_policy { specific { versions: [2, 1] } }", VersionPolicy(specific=(2, 1))),
    ],
)
def test_the_version_policy_is_parsed(text: str, policy: VersionPolicy) -> None:
    assert interpret(read_pbtxt(text, "m/config.pbtxt"), "m").version_policy == policy
