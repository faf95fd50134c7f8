"""`version_policy` of a model configuration: which versions of a model are served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """The `latest` versions, all, or specific ones."""

    latest: int = 1
    all_versions: bool = False
    specific: tuple[int, ...] = ()

    def select(self, available: Sequence[str]) -> tuple[str, ...]:
        ordered = sorted(available, key=int)
        if self.specific:
            return tuple(each for each in ordered if int(each) in self.specific)
        return tuple(ordered if self.all_versions else ordered[-self.latest :])

    def absent(self, available: Sequence[str]) -> tuple[int, ...]:
        """The specific versions that are not there."""
        return tuple(each for each in self.specific if str(each) not in available)


def parse_version_policy(raw: Mapping[str, Any]) -> tuple[VersionPolicy, list[tuple[str, str]]]:
    """The policy (the latest version if `raw` is empty), and problems as key and text."""
    if "all" in raw:
        return VersionPolicy(all_versions=True), []
    if "specific" in raw:
        versions = tuple(raw["specific"].get("versions", ()))
        is_valid = versions and all(each >= 1 for each in versions)
        problem = ("version_policy.specific", "lists positive versions, at least one")
        return VersionPolicy(specific=versions), [] if is_valid else [problem]
    latest = raw.get("latest", {}).get("num_versions", 1)
    problem = ("version_policy.latest", "num_versions is at least 1")
    return VersionPolicy(latest=max(latest, 1)), [] if latest >= 1 else [problem]
