from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engines.build import write_python
from engines.in_process_worker import InProcessWorker
from mmsup.ipc.errors import ModelError
from mmsup.ipc.memory.status_page import StatusPageWriter, make_status_page
from mmsup.ipc.messages.data import Infer, InferSignature
from mmsup.ipc.python_models import TRITON_MODULE
from mmsup.ipc.specs import TRITON_PYTHON, Batching, ModelSpec, TensorSpec
from mmsup.ipc.transport.codec import pack_frame, pack_signature
from mmsup.worker.engines.triton_python.engine import TritonPythonEngine
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import as_streaming_engine, completed_spec
from mmsup.worker.execution.executor import Executor, Result
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.execution.request_parameters import PARAMETERS
from mmsup.worker.execution.sequence_view import SequenceView, as_sequence_aware

X = (TensorSpec("x", "FP32", (-1,)),)
Y = (TensorSpec("y", "FP32", (-1,)),)
HEAD = "import json\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\nclass TritonPythonModel:\n"
DOUBLE = """
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("y", x * 2)]))
        return responses
"""
Loader = Callable[..., Executor]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Loader]:
    """Loads a class with these methods."""
    engines: list[TritonPythonEngine] = []

    def loaded(
        methods: str,
        inputs: tuple[TensorSpec, ...] = X,
        outputs: tuple[TensorSpec, ...] = Y,
        max_batch: int = 0,
        **options: Any,  # of ModelSpec
    ) -> Executor:
        spec = spec_of(tmp_path / str(len(engines)), methods, inputs, outputs, max_batch, **options)
        engines.append(TritonPythonEngine())
        metadata = engines[-1].load(spec)
        fd = make_status_page()
        page = StatusPageWriter(fd)
        os.close(fd)
        return Executor(engines[-1], completed_spec(engines[-1], spec), metadata, page)

    yield loaded
    for each in engines:
        each.unload()


def spec_of(
    folder: Path,
    methods: str,
    inputs: tuple[TensorSpec, ...] = X,
    outputs: tuple[TensorSpec, ...] = Y,
    max_batch: int = 0,
    **options: Any,  # of ModelSpec
) -> ModelSpec:
    spec = write_python(
        folder, "m", HEAD + textwrap.indent(textwrap.dedent(methods), "    "), inputs, outputs, max_batch
    )
    return replace(spec, interface=TRITON_PYTHON, **options)


def x(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, np.float32)}


def outputs_of(result: Result) -> dict[str, list[Any]]:
    assert not isinstance(result, ModelFailure), result.text
    return {name: array.tolist() for name, array in result.items()}


def awaited(executor: Executor) -> dict[str, list[Any]]:
    """The answer of an asynchronous class."""
    engine = as_streaming_engine(executor.engine)
    assert engine is not None
    assert not executor.metadata.decoupled

    async def answer() -> Arrays:
        return dict(await cast("Coroutine[Any, Any, Arrays]", engine.respond(x(1), ("y",))))

    return outputs_of(asyncio.run(answer()))


def failure(result: Result) -> ModelFailure:
    assert isinstance(result, ModelFailure), result
    return result


def test_a_class_answers_each_request_of_a_batch_by_its_own_response(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            seen = len(requests)
            return [
                pb_utils.InferenceResponse([pb_utils.Tensor("y", request.inputs()[0].as_numpy() * seen)])
                for request in requests
            ]
        """
    executor = load(methods, max_batch=8, config={"dynamic_batching": {}})
    jobs = [{"x": np.full((rows, 1), rows, np.float32)} for rows in (1, 2)]
    assert [outputs_of(each) for each in executor.run(jobs, ())] == [{"y": [[2.0]]}, {"y": [[4.0], [4.0]]}]


def test_an_error_response_is_that_of_its_request_alone(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            made = []
            for request in requests:
                x = request.inputs()[0].as_numpy()
                if x[0, 0] < 0:
                    error = pb_utils.TritonError("below zero", pb_utils.TritonError.INVALID_ARG)
                    made.append(pb_utils.InferenceResponse(error=error))
                else:
                    made.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
            return made
        """
    executor = load(methods, max_batch=8)
    good, bad = executor.run([{"x": np.ones((1, 1), np.float32)}, {"x": -np.ones((1, 1), np.float32)}], ())
    assert outputs_of(good) == {"y": [[1.0]]}
    assert (failure(bad).code, failure(bad).text) == ("bad_request", "below zero")
    assert failure(executor.run_one({"x": -np.ones((1, 1), np.float32)})).code == "bad_request"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UNKNOWN", "inference_failed"),
        ("INTERNAL", "inference_failed"),
        ("NOT_FOUND", "not_found"),
        ("INVALID_ARG", "bad_request"),
        ("UNAVAILABLE", "model_unavailable"),
        ("UNSUPPORTED", "unsupported"),
        ("ALREADY_EXISTS", "already_exists"),
        ("CANCELLED", "cancelled"),
    ],
)
def test_each_code_of_an_error_has_a_code_for_clients(name: str, code: str, load: Loader) -> None:
    methods = f"""
        def execute(self, requests):
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError("no", pb_utils.TritonError.{name}))]
        """
    assert failure(load(methods).run_one(x(1))).code == code


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ("None", "execute returned None, and no response sender was asked for"),
        ("[]", "execute returned 0 responses for 1 requests"),
        ("[None]", "execute returned a NoneType in the place of an InferenceResponse"),
        ("()", "execute returned a tuple instead of a list of responses"),
        ("[pb_utils.InferenceResponse()]", "output 'y' is declared, but was not given"),
        (
            "[pb_utils.InferenceResponse([pb_utils.Tensor('y', np.zeros(1, np.int32))])]",
            "declared as FP32, but is INT32",
        ),
        ("[pb_utils.Tensor('y', [1.0])]", "made of a numpy array, not of a list"),
        ("pb_utils.nothing", "triton_python_backend_utils has no 'nothing' in this version"),
        ("pb_utils.load_model('other')", "a model does not load, unload or ask for other models here"),
    ],
)
def test_an_execute_that_gives_no_responses_says_what_is_wrong(returned: str, text: str, load: Loader) -> None:
    executor = load(f"\ndef execute(self, requests):\n    return {returned}\n")
    found = failure(executor.run_one(x(1)))
    assert found.code == "inference_failed"
    assert text in found.text


@pytest.mark.fault("F78")
def test_an_execute_that_answers_too_few_of_a_batch_or_raises_harms_no_other_request(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            made = []
            for request in requests:
                x = request.inputs()[0].as_numpy()
                if x[0, 0] < 0:
                    raise ValueError("below zero")
                if x[0, 0] > 0:
                    made.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
            return made
        """
    executor = load(methods, max_batch=8)
    results = executor.run([{"x": np.full((1, 1), each, np.float32)} for each in (1, -1, 0)], ())
    assert outputs_of(results[0]) == {"y": [[1.0]]}
    assert failure(results[1]).text == "model 'm' failed: below zero"
    assert "0 responses for 1 requests" in failure(results[2]).text


def test_initialize_gets_what_triton_gives(load: Loader, tmp_path: Path) -> None:
    methods = """
        def initialize(self, args):
            config = json.loads(args.pop("model_config"))
            self.dtype = pb_utils.triton_string_to_numpy(pb_utils.get_output_config_by_name(config, "y")["data_type"])
            self.told = json.dumps([args, config["parameters"], config["max_batch_size"], config["backend"]])
            assert pb_utils.get_input_config_by_name(config, "x")["dims"] == [-1]
            assert pb_utils.get_input_config_by_name(config, "z") is None
            assert not pb_utils.using_decoupled_model_transaction_policy(config)
            assert pb_utils.get_model_dir() == args["model_repository"] + "/1"

        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([self.told.encode()], self.dtype))])]
        """
    outputs = (TensorSpec("y", "BYTES", (1,)),)
    config = {"parameters": {"a": {"string_value": "1"}, "mmsup_memory": {"string_value": "1GiB"}}}
    executor = load(methods, outputs=outputs, parameters={"b": "2"}, config=config)
    (text,) = outputs_of(executor.run_one(x(1)))["y"]
    told = json.loads(text)
    assert told[0] == {
        "model_instance_kind": "CPU",
        "model_instance_name": "m_0",
        "model_instance_device_id": "0",
        "model_repository": str(tmp_path / "0" / "m"),
        "model_version": "1",
        "model_name": "m",
    }
    assert told[1:] == [{"a": {"string_value": "1"}, "b": {"string_value": "2"}}, 0, "python"]


COMPLETES = """
    @staticmethod
    def auto_complete_config(config):
        names = [each["name"] for each in config.as_dict()["input"]]
        if "x" not in names:
            config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [1]})
        config.add_input({"name": "z", "data_type": "TYPE_INT32", "dims": [1], "optional": True})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [1]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        return config
"""


def test_a_class_declares_what_its_configuration_leaves_out(load: Loader) -> None:
    executor = load(COMPLETES + DOUBLE, (), ())
    metadata = executor.metadata
    assert metadata.inputs == (TensorSpec("x", "FP32", (1,)), TensorSpec("z", "INT32", (1,), optional=True))
    assert metadata.outputs == (TensorSpec("y", "FP32", (1,)),)
    assert (metadata.max_batch_size, executor.spec.max_batch_size, executor.spec.batching.max_rows) == (4, 4, 0)
    assert metadata.dynamic_batching
    jobs = [{"x": np.full((1, 1), each, np.float32)} for each in (1, 2)]
    assert [outputs_of(each) for each in executor.run(jobs, ())] == [{"y": [[2.0]]}, {"y": [[4.0]]}]


def test_requests_run_one_by_one_unless_the_configuration_batches_them(load: Loader) -> None:
    assert load(DOUBLE, max_batch=8).spec.batching.max_rows == 1
    assert load(DOUBLE, max_batch=8, config={"dynamic_batching": {}}).spec.batching.max_rows == 0
    assert load(DOUBLE, max_batch=8, batching=Batching(delay_s=0.1)).spec.batching.max_rows == 0


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        (
            "config.add_input({'name': 'x', 'data_type': 'TYPE_INT32', 'dims': [-1]})",
            "has data_type TYPE_FP32 in the conf",
        ),
        (
            "config.add_input({'name': 'x', 'data_type': 'TYPE_FP32', 'dims': [2]})",
            r"has dims \[-1\] in the configuration",
        ),
        (
            "config.add_output({'name': 'q', 'data_type': 'TYPE_FP32'})",
            "output 'q' of auto_complete_config lacks 'dims'",
        ),
        ("config.add_output({'name': 'q', 'data_type': 'FP32', 'dims': [1]})", "'FP32' is no data_type"),
        ("config.add_output({'name': 'q', 'data_type': 'TYPE_FP32', 'dims': [1], 'optional': True})", "has 'optional'"),
        ("config.set_max_batch_size(2)", "sets max_batch_size to 2, and the configuration has 8"),
        ("config.set_model_transaction_policy({'coupled': True})", "has no 'coupled', only 'decoupled'"),
        ("return None", "auto_complete_config returns the pb_utils.ModelConfig that it was given, not a NoneType"),
    ],
)
def test_a_class_that_contradicts_its_configuration_is_not_loaded(statement: str, text: str, load: Loader) -> None:
    head = "\n    @staticmethod\n    def auto_complete_config(config):\n"
    methods = f"{head}        {statement}\n        return config\n"
    with pytest.raises((ValueError, ModelError), match=text):
        load(methods + DOUBLE, max_batch=8)


def test_a_class_that_declares_nothing_says_what_is_missing(load: Loader) -> None:
    with pytest.raises(ModelError, match=r"nothing declares its inputs: .* or add them in auto_complete_config"):
        load(DOUBLE, (), ())


def test_a_file_without_the_class_is_not_loaded(load: Loader) -> None:
    with pytest.raises(ModelError, match=r"no class TritonPythonModel with a method execute\(self, requests\)"):
        load("\ndef infer(self, inputs):\n    return {}\n")


def test_an_asynchronous_execute_goes_on_between_requests(load: Loader) -> None:
    methods = """
        count = 0

        async def count_on(self, first):
            import asyncio
            self.count += 1
            first.set()

        async def execute(self, requests):
            import asyncio
            first = asyncio.Event()
            task = asyncio.create_task(self.count_on(first))
            await first.wait()
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([self.count], np.float32))])]
        """
    executor = load(methods)
    assert [awaited(executor) for _ in range(2)] == [{"y": [1.0]}, {"y": [2.0]}]


def test_an_asynchronous_execute_that_ends_its_process_is_heard(load: Loader) -> None:
    executor = load("\nasync def execute(self, requests):\n    raise SystemExit(3)\n")
    with pytest.raises(SystemExit):
        awaited(executor)


def test_a_response_may_be_sent_by_a_thread(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            import threading
            for request in requests:
                threading.Thread(target=self.answer, args=(request.get_response_sender(), request)).start()

        def answer(self, sender, request):
            y = pb_utils.Tensor("y", request.inputs()[0].as_numpy() * 2)
            sender.send(pb_utils.InferenceResponse([y]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        """
    assert outputs_of(load(methods).run_one(x(1, 2))) == {"y": [2.0, 4.0]}


@pytest.mark.fault("F78")
def test_a_sender_that_is_used_after_its_request_is_refused(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            self.sender = getattr(self, "sender", None) or requests[0].get_response_sender()
            try:
                self.sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.zeros(1, np.float32))]), 1)
                text = "sent"
            except pb_utils.TritonModelException as error:
                text = str(error)
            if text == "sent":
                return None
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([len(text)], np.float32))])]
        """
    executor = load(methods)
    assert outputs_of(executor.run_one(x(1))) == {"y": [0.0]}
    assert outputs_of(executor.run_one(x(1)))["y"][0] > 0


def test_an_output_of_the_declared_kind_is_converted_and_a_number_that_does_not_fit_is_not(
    load: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    methods = """
        def execute(self, requests):
            y = requests[0].inputs()[0].as_numpy().astype(np.int64)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])]
        """
    outputs = (TensorSpec("y", "INT32", (-1,)),)
    executor = load(methods, outputs=outputs)
    assert outputs_of(executor.run_one(x(3))) == {"y": [3]}
    assert "output 'y' is made as int64 and converted to the declared int32" in caplog.text
    assert "declared as INT32, but is INT64" in failure(executor.run_one(x(1e12))).text


def test_inputs_belong_to_the_model(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            x = requests[0].inputs()[0].as_numpy()
            x += 1
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)])]
        """
    given = x(1)
    assert outputs_of(load(methods).run_one(given)) == {"y": [2.0]}
    assert given["x"].tolist() == [1.0]


def test_other_files_of_the_folder_are_imported_relatively_too(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "\ndef execute(self, requests):\n    return answers(requests) + above.NONE\n")
    file = Path(spec.directory, "model.py")
    file.write_text("from .helper import answers\nimport above\n" + file.read_text())
    Path(spec.directory, "helper.py").write_text(
        "import triton_python_backend_utils as pb_utils\n\n\ndef answers(requests):\n"
        "    (only,) = requests\n    y = pb_utils.Tensor('y', only.inputs()[0].as_numpy())\n"
        "    return [pb_utils.InferenceResponse([y])]\n"
    )
    Path(spec.directory).parent.joinpath("above.py").write_text("NONE = []\n")
    engine = TritonPythonEngine()
    before = set(sys.path)
    engine.load(spec)
    try:
        assert engine.infer(x(1), ("y",))["y"].tolist() == [1.0]
    finally:
        engine.unload()
        for name in ("above", "1.helper"):
            sys.modules.pop(name, None)
    assert set(sys.path) == before
    assert "1" not in sys.modules


def test_finalize_is_called_once_when_the_model_is_unloaded(load: Loader, capfd: pytest.CaptureFixture[str]) -> None:
    executor = load(DOUBLE + "\n    def finalize(self):\n        print('cleaned up')\n")
    executor.engine.unload()
    executor.engine.unload()
    assert capfd.readouterr().out == "cleaned up\n"


def test_what_a_model_logs_and_counts_is_in_its_output(load: Loader, caplog: pytest.LogCaptureFixture) -> None:
    methods = """
        def initialize(self, args):
            family = pb_utils.MetricFamily("hits", "How often it was asked.", pb_utils.MetricFamily.COUNTER)
            self.hits = family.Metric(labels={"model": args["model_name"]})

        def execute(self, requests):
            self.hits.increment(1)
            pb_utils.Logger.log_info(f"hits: {self.hits.value()}")
            pb_utils.Logger.log("quiet", pb_utils.Logger.VERBOSE)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.zeros(1, np.float32))])]
        """
    load(methods).run_one(x(1))
    assert "hits: 1.0" in caplog.text
    assert "quiet" not in caplog.text
    assert "the metric 'hits' is kept in the model's process alone" in caplog.text


def test_the_module_is_there_for_a_model_and_on_no_disk(load: Loader) -> None:
    load(DOUBLE)
    assert TRITON_MODULE in sys.modules
    assert not hasattr(sys.modules[TRITON_MODULE], "__file__")


def test_a_model_sees_the_parameters_of_its_request(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            made = []
            for request in requests:
                words = json.loads(request.parameters()), request.correlation_id(), request.flags()
                text = np.array([json.dumps(words)], np.object_)
                made.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", text)]))
            return made
        """
    executor = load(methods, outputs=(TensorSpec("y", "BYTES", (1,)),))
    PARAMETERS.set({"top": 0.5, "word": "a", "sequence_id": 7, "sequence_start": True})
    (text,) = outputs_of(executor.run_one(x(1)))["y"]
    PARAMETERS.set({})
    assert json.loads(text) == [{"top": 0.5, "word": "a"}, 7, 1]
    (text,) = outputs_of(executor.run_one(x(1)))["y"]
    assert json.loads(text) == [{}, 0, 0]


def test_each_request_runs_with_its_own_parameters() -> None:
    seen: list[dict[str, Any]] = []

    def infer(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        seen.append(dict(PARAMETERS.get()))
        return {"y": inputs["x"]}

    with InProcessWorker(infer, X, Y, interface=TRITON_PYTHON) as worker:
        for number, parameters in enumerate(({"a": 1}, {}, {"a": 2}, {"a": 2}), start=1):
            signature = pack_signature(InferSignature((TensorSpec("x", "FP32", (1,)),), (), parameters))
            end = worker.ends[0]
            assert end is not None
            end.send(pack_frame([Infer(number, signature, 1 << 62, None, (b"\0\0\0\0",))]))
            worker.run()
    assert seen == [{"a": 1}, {}, {"a": 2}, {"a": 2}]


def test_each_row_of_a_run_of_sequences_is_a_request_with_its_own_id(load: Loader) -> None:
    methods = """
        def execute(self, requests):
            words = [(each.correlation_id(), each.flags(), each.inputs()[0].shape()) for each in requests]
            texts = [np.array([[json.dumps(each)]], np.object_) for each in words]
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each)]) for each in texts]
        """
    executor = load(methods, outputs=(TensorSpec("y", "BYTES", (1,)),), max_batch=4, config={"sequence_batching": {}})
    assert executor.spec.batching.max_rows == 0
    engine = as_sequence_aware(executor.engine)
    assert engine is not None
    first = SequenceView(7, start=True, end=False, state={})
    last = SequenceView("s", start=False, end=True, state={})
    engine.sequences = [first, None, last]
    rows = outputs_of(executor.run_one({"x": np.zeros((3, 1), np.float32)}))["y"]
    assert [json.loads(each) for (each,) in rows] == [[7, 1, [1, 1]], [0, 0, [1, 1]], ["s", 2, [1, 1]]]
