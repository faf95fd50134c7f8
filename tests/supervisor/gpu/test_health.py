from __future__ import annotations

import pytest

from mmsup.supervisor.gpu.health import MIN_FAULTS, PERIOD_S, GpuFault, cordon_reason, recent_faults

ECC = "NVML counts 2 memory errors there that nothing corrected"


def faults(*models: str, step_s: float = 1.0) -> list[GpuFault]:
    return [GpuFault(place * step_s, model) for place, model in enumerate(models)]


@pytest.mark.parametrize(
    ("models", "driver_errors", "cordoned"),
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
def test_three_faults_cordon_a_device_if_of_more_than_one_model_or_confirmed_by_the_driver(
    models: str, driver_errors: str, cordoned: bool
) -> None:
    assert bool(cordon_reason(faults(*models), driver_errors, 10.0)) is cordoned


def test_the_reason_names_models_period_and_driver_errors() -> None:
    assert cordon_reason(faults(*"aba"), "", 3.0) == "3 GPU faults within 10 min, of workers of a, b"
    assert cordon_reason(faults(*"aaa"), ECC, 3.0) == f"3 GPU faults within 10 min, of workers of a; {ECC}"


def test_faults_count_for_the_period_only() -> None:
    recorded = faults(*"abb")
    assert cordon_reason(recorded, "", PERIOD_S - 0.1)
    assert not cordon_reason(recorded, "", PERIOD_S)
    assert not cordon_reason(faults(*"abb", step_s=PERIOD_S / 2), "", PERIOD_S)


def test_no_more_faults_are_kept_than_count() -> None:
    recorded = faults(*"b" * 50, *"a" * 2)
    assert recent_faults(recorded, 52.0) == tuple(recorded[-MIN_FAULTS - 2 :])
    assert recent_faults(recorded, 52.0 + PERIOD_S) == ()
