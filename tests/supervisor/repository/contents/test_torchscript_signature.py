"""The names that a TorchScript file tells, without torch."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.contents.torchscript_signature import READ_LIMIT_BYTES, TensorNames, torchscript_names
from mmsup.supervisor.repository.scanner import scan

SCRIPTED = """\
class Inner(Module):
  def forward(self: __torch__.net.Inner,
    other: Tensor) -> Tensor:
    return other

class Net(Module):
  __parameters__ = []
  training : bool
  inner : __torch__.net.Inner
  def helper(self: __torch__.net.Net,
    wrong: Tensor) -> Tensor:
    return wrong
  def forward(self: __torch__.net.Net,
    image: Tensor,
    mask: Optional[Tensor]=None,
    n: int=3) -> Dict[str, Tensor]:
    a = torch.add(image, n)
    return {"score": a, "mask": image}
"""
TRACED = """\
class Net(Module):
  def forward(self: __torch__.net.Net,
    image: Tensor,
    mask: Tensor) -> Tuple[Tensor, Tensor]:
    _0 = torch.mul(image, mask)
    return (_0, image)
"""


def archive(path: Path, source: str) -> Path:
    """As torch.jit.save lays it out, with a pickle of protocol 2 that begins with the class of the module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("model/data.pkl", b"\x80\x02c__torch__.net\nNet\n.")
        made.writestr("model/code/__torch__/net.py", source)
        made.writestr("model/constants.pkl", b"\x80\x02).")
    return path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (SCRIPTED, TensorNames(("image", "mask"), ("score", "mask"))),
        (TRACED, TensorNames(("image", "mask"), ("OUTPUT__0", "OUTPUT__1"))),
        ("class Other(Module):\n", TensorNames()),
        ("class Net(Module):\n  def forward(self, (((:\n", TensorNames()),
    ],
)
def test_the_names_of_forward_are_those_to_declare(source: str, names: TensorNames, tmp_path: Path) -> None:
    assert torchscript_names(str(archive(tmp_path / "model.pt", source))) == names


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_archive_has_no_names(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(data)
    assert torchscript_names(str(tmp_path / "model.pt")) == TensorNames()


def test_an_archive_of_very_many_files_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt", TRACED)
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<L", data, end + 16)[0]
    data[end:end] = bytes(READ_LIMIT_BYTES)
    struct.pack_into("<LL", data, end + READ_LIMIT_BYTES + 12, end + READ_LIMIT_BYTES - start, start)
    path.write_bytes(data)
    assert torchscript_names(str(path)) == TensorNames()


def test_a_torchscript_model_without_a_declaration_is_refused_with_the_lines_to_paste(tmp_path: Path) -> None:
    archive(tmp_path / "m" / "1" / "model.pt", SCRIPTED)
    entry = scan(Settings((str(tmp_path),), "/x", "/y")).models["m"]
    assert entry.reason == (
        "m/1: model.pt does not name its inputs and outputs: declare them in config.pbtxt or mmsup.yaml"
    )
    lines = entry.paste.splitlines()
    assert lines[1] == "    # m/mmsup.yaml, with the datatypes and shapes of the model"
    (tmp_path / "m" / "mmsup.yaml").write_text("\n".join(line[4:] for line in lines))
    (spec,) = scan(Settings((str(tmp_path),), "/x", "/y")).models["m"].specs
    assert [each.name for each in spec.inputs] == ["image", "mask"]
    assert [each.name for each in spec.outputs] == ["score", "mask"]
