"""Writes the models that the public example clients of Triton ask, as classes of a few lines.

    python examples/triton_client_models.py DIRECTORY
    mmsup serve --model-repository DIRECTORY

The clients are at https://github.com/triton-inference-server/client, in `src/python/examples`; docs/grpc.md says which
of them were run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

EXAMPLES = Path(__file__).parent

SUMS = """\
class Model:
    def infer(self, inputs):
        first, second = inputs["INPUT0"], inputs["INPUT1"]
        return {"OUTPUT0": first + second, "OUTPUT1": first - second}
"""
SELF_DESCRIBED_SUMS = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        for name in ("INPUT0", "INPUT1"):
            config.add_input({"name": name, "data_type": "TYPE_INT32", "dims": [16]})
        for name in ("OUTPUT0", "OUTPUT1"):
            config.add_output({"name": name, "data_type": "TYPE_INT32", "dims": [16]})
        if not config.as_dict()["max_batch_size"]:
            config.set_max_batch_size(8)
        return config

    def execute(self, requests):
        return [self.answer(each) for each in requests]

    def answer(self, request):
        first, second = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "INPUT1"))
        tensors = [pb_utils.Tensor("OUTPUT0", first + second), pb_utils.Tensor("OUTPUT1", first - second)]
        return pb_utils.InferenceResponse(tensors)
"""
STRING_SUMS = """\
import numpy as np


def texts(numbers):
    return np.array([str(each).encode() for each in numbers.flat], np.object_).reshape(numbers.shape)


class Model:
    def infer(self, inputs):
        first, second = (inputs[name].astype(np.int32) for name in ("INPUT0", "INPUT1"))
        return {"OUTPUT0": texts(first + second), "OUTPUT1": texts(first - second)}
"""
IDENTITY = """\
class Model:
    def infer(self, inputs):
        return {"OUTPUT0": inputs["INPUT0"]}
"""
SEQUENCE_VALUES = """\
import numpy as np


class Model:
    def infer(self, inputs, sequences):
        values = np.copy(inputs["INPUT"])
        for row, sequence in enumerate(sequences):
            if sequence is not None:  # a free slot
                values[row, 0] += sequence.start
        return {"OUTPUT": values}
"""
VALUES_AND_ID = """\
import numpy as np


class Model:
    def infer(self, inputs, sequences):
        values = np.copy(inputs["INPUT"])
        for row, sequence in enumerate(sequences):
            values[row, 0] += sequence.start + (int(sequence.id) if sequence.end else 0)
        return {"OUTPUT": values}
"""
RUNNING_SUM = """\
import numpy as np


class Model:
    def infer(self, inputs, sequences):
        sums = np.zeros_like(inputs["INPUT"])
        for row, sequence in enumerate(sequences):
            sequence.state["sum"] = sequence.state.get("sum", 0) + inputs["INPUT"][row, 0]
            sums[row, 0] = sequence.state["sum"] + (int(sequence.id) if sequence.end else 0)
        return {"OUTPUT": sums}
"""
PAIR = """\
max_batch_size: 8
input [{{ name: "INPUT0" data_type: {0} dims: [ 16 ] }}, {{ name: "INPUT1" data_type: {0} dims: [ 16 ] }}]
output [{{ name: "OUTPUT0" data_type: {0} dims: [ 16 ] }}, {{ name: "OUTPUT1" data_type: {0} dims: [ 16 ] }}]
"""
SAME = """\
max_batch_size: 8
input [{{ name: "INPUT0" data_type: {0} dims: [ {1} ] }}]
output [{{ name: "OUTPUT0" data_type: {0} dims: [ {1} ] }}]
"""
SEQUENCE = """\
max_batch_size: 8
sequence_batching {{ max_sequence_idle_microseconds: 5000000 {0} }}
input [{{ name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }}]
output [{{ name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] }}]
"""
OLDEST = "oldest { max_candidate_sequences: 64 }"
MODELS = {
    "simple": (SELF_DESCRIBED_SUMS, ""),  # so that it can be loaded with a part of a configuration
    "simple_int8": (SUMS, PAIR.format("TYPE_INT8")),
    "simple_string": (STRING_SUMS, PAIR.format("TYPE_STRING")),
    "simple_identity": (IDENTITY, SAME.format("TYPE_STRING", -1)),
    "custom_identity_int32": (IDENTITY, SAME.format("TYPE_INT32", -1)),
    "simple_sequence": (SEQUENCE_VALUES, SEQUENCE.format("direct { }")),
    "simple_dyna_sequence": (VALUES_AND_ID, SEQUENCE.format(OLDEST)),
}
STRING_IDS = "simple_string_dyna_sequence"


def write_models(repository: Path, *, string_ids: bool = False) -> None:
    """Eight models, which is the number that one of the clients expects; `string_ids`: a ninth."""
    models = dict(MODELS)
    if string_ids:
        models[STRING_IDS] = RUNNING_SUM, SEQUENCE.format(OLDEST)
    for name, (code, config) in models.items():
        folder = repository / name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "1" / "model.py").write_text(code)
        (folder / "config.pbtxt").write_text(f'backend: "python"\n{config}')
    shutil.copytree(EXAMPLES / "streaming_model" / "repeat_int32", repository / "repeat_int32", dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--string-ids", action="store_true", help=f"also {STRING_IDS}")
    options = parser.parse_args()
    write_models(options.directory, string_ids=options.string_ids)


if __name__ == "__main__":
    main()
