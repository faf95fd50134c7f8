"""Trains a few small models on scikit-learn's digits and writes them as a model repository.

    python examples/make_models.py DIRECTORY

writes DIRECTORY/models, which `mmsup serve --model-repository DIRECTORY/models` serves, and
DIRECTORY/held_out.npz: samples that no model was trained on. Seconds each, on the CPU. The two torch models are made
only if torch is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PYTHON_MODEL = Path(__file__).parent / "python_model" / "model.py"

TENSORS = """\
input [{ name: "x" data_type: TYPE_FP32 dims: [ -1, 64 ] }]
"""

# The ONNX file describes its tensors; this enables batching.
BATCHING = """\
max_batch_size: 64
"""

CAPPED = """\
memory: 512MiB
hang_limit: 1s
"""

PYTHON = (
    'backend: "python"\n'
    + TENSORS
    + """\
output [
  { name: "label" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "probabilities" data_type: TYPE_FP32 dims: [ -1, 10 ] }
]
parameters { key: "k" value { string_value: "5" } }
"""
)

TORCH = (
    'platform: "pytorch_libtorch"\n'
    + TENSORS
    + """\
output [{ name: "probabilities" data_type: TYPE_FP32 dims: [ -1, 10 ] }]
"""
)


class Digits:
    """Images of digits as rows of 64 numbers, split into training and held-out samples."""

    def __init__(self) -> None:
        x, y = load_digits(return_X_y=True)
        split: list[Any] = train_test_split(x.astype(np.float32), y, test_size=0.25, random_state=0, stratify=y)
        self.x, self.held_out_x, self.y, self.held_out_y = split


def onnx_model(fitted: Any) -> bytes:
    """A fitted scikit-learn model as ONNX: `x` in, `label` and `probabilities` out."""
    options = {id(fitted): {"zipmap": False}}
    exported = to_onnx(fitted, initial_types=[("x", FloatTensorType([None, 64]))], options=options, target_opset=17)
    return bytes(exported.SerializeToString())


def make_onnx(models: Path, digits: Digits) -> None:
    """Three classifiers: one without any configuration, one that batches, one with a cap on its memory."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    network = make_pipeline(StandardScaler(), MLPClassifier((96,), max_iter=120, early_stopping=True, random_state=0))
    forest = RandomForestClassifier(80, max_depth=12, random_state=0)
    for name, model, files in (
        ("digits_linear", linear, {}),
        ("digits_mlp", network, {"config.pbtxt": BATCHING}),
        ("digits_forest", forest, {"mmsup.yaml": CAPPED}),
    ):
        model.fit(digits.x, digits.y)
        lay_out(models / name, files)
        (models / name / "1" / "model.onnx").write_bytes(onnx_model(model))


def make_python(models: Path, digits: Digits) -> None:
    """One model that is a Python class, with its data beside it."""
    folder = models / "digits_neighbours"
    lay_out(folder, {"config.pbtxt": PYTHON})
    shutil.copy(PYTHON_MODEL, folder / "1" / "model.py")
    np.savez(folder / "1" / "train.npz", x=digits.x, y=digits.y)


def make_torch(models: Path, digits: Digits) -> None:
    """One small convolutional network in the two formats that torch exports."""
    import torch  # noqa: PLC0415 - made only if torch is installed
    from torch import nn  # noqa: PLC0415

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(1),
        nn.Linear(512, 10),
    )
    x, y = torch.from_numpy(digits.x) / 16, torch.from_numpy(digits.y)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()

    class Served(nn.Module):
        """The network as clients see it: raw pixels in, probabilities out."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.net(x / 16), dim=1)

    served, sample = Served().eval(), torch.zeros(4, 64)
    lay_out(models / "digits_torchscript", {"config.pbtxt": TORCH})
    torch.jit.save(torch.jit.trace(served, sample), models / "digits_torchscript" / "1" / "model.pt")
    lay_out(models / "digits_export", {"config.pbtxt": TORCH})
    exported = torch.export.export(served, (sample,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.export.save(exported, models / "digits_export" / "1" / "model.pt2")


def lay_out(folder: Path, files: dict[str, str]) -> None:
    """Create a model's folder with an empty version 1 and these files."""
    (folder / "1").mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def make(directory: Path) -> list[str]:
    """Write everything below the directory; returns the names of the models."""
    models = directory / "models"
    models.mkdir(parents=True)
    digits = Digits()
    np.savez(directory / "held_out.npz", x=digits.held_out_x, y=digits.held_out_y)
    make_onnx(models, digits)
    make_python(models, digits)
    if importlib.util.find_spec("torch") is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit warns of its deprecation at each use
            make_torch(models, digits)
    return sorted(each.name for each in models.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a few small models and write them as a model repository.")
    parser.add_argument("directory", type=Path, help="gets models/ and held_out.npz; is made if it is not there")
    directory = parser.parse_args().directory
    if (directory / "models").exists():
        parser.error(f"{directory / 'models'} is there already")
    began = time.monotonic()
    names = make(directory)
    print(f"made {', '.join(names)} in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
