"""What to install for a module that a model imports and its interpreter lacks."""

from __future__ import annotations

import sys

import pytest

from mmsup.supervisor.repository.contents.interpreter import Interpreter

PIP = f"{sys.executable} -m pip install"


@pytest.mark.parametrize(
    ("module", "package"),
    [("cv2", "opencv-python"), ("sklearn", "scikit-learn"), ("PIL", "pillow"), ("yaml", "pyyaml"), ("scipy", "scipy")],
)
def test_the_package_of_a_well_known_module_is_named(module: str, package: str) -> None:
    assert Interpreter("").install(module) == f"{PIP} {package}"


def test_the_name_of_an_unknown_module_is_not_taken_for_the_name_of_a_package() -> None:
    assert Interpreter("").install("house_rules") == (
        f"install the package that has it, by {PIP} (its name may be another)"
    )
