from __future__ import annotations

import pytest

from mmsup.supervisor.gpu.health import MIN_FAULTS, PERIOD_S, GpuFault, cordon_reason, recent_faults

ECC = "NVML counts 2 memory errors there that nothing corrected"


def faults(*models: str, step_s: float = 1.0) -> list[GpuFault]:
    return [GpuFault(place * step_s, model) for place, model in enumerate(models)]


@pytest.mark.parametrize(
    ("models", "driver_says", "aside"),
    [
        ("a", "", False),
        ("ab", "", False),
        ("aaa", "", False),
        ("aaaaaaaaa", "", False),  # a model that is broken takes no device from its neighbours
        ("aab", "", True),
        ("abc", "", True),
        ("aa", ECC, False),
        ("aaa", ECC, True),
        ("baaaaaaaa", "", True),  # the loop of one hides no other
    ],
)
def test_three_faults_are_the_devices_if_more_than_one_model_or_the_driver_says_so(
    models: str, driver_says: str, aside: bool
) -> None:
    assert bool(cordon_reason(faults(*models), driver_says, 10.0)) is aside


def test_the_reason_names_models_period_and_what_the_driver_says() -> None:
    assert cordon_reason(faults(*"aba"), "", 3.0) == "3 GPU faults within 10 min, of workers of a, b"
    assert cordon_reason(faults(*"aaa"), ECC, 3.0) == f"3 GPU faults within 10 min, of workers of a; {ECC}"


def test_faults_count_for_the_period_only() -> None:
    told = faults(*"abb")
    assert cordon_reason(told, "", PERIOD_S - 0.1)
    assert not cordon_reason(told, "", PERIOD_S)
    assert not cordon_reason(faults(*"abb", step_s=PERIOD_S / 2), "", PERIOD_S)


def test_no_more_is_kept_than_counts() -> None:
    told = faults(*"b" * 50, *"a" * 2)
    assert recent_faults(told, 52.0) == tuple(told[-MIN_FAULTS - 2 :])
    assert recent_faults(told, 52.0 + PERIOD_S) == ()
