"""A model whose code calls other models, in the way that `way` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.build import write_python
from mmsup.ipc.specs import ModelSpec, TensorSpec

CODE = """
import asyncio, json, os, time

import numpy as np


class Model:
    def load(self, context):
        self.context = context

    def infer(self, inputs):
        job = json.loads(inputs["job"][0])
        x = inputs["x"]
        try:
            y = getattr(self, job["way"])(x, job)
        except self.context.CallError as error:
            if not job.get("catches", True):
                raise
            told = {"code": error.code, "text": error.text, "model": error.model, "retryable": error.retryable}
            return {"y": x[:0], "told": np.array([json.dumps(told)], dtype=object)}
        return {"y": y, "told": np.array([""], dtype=object)}

    def call(self, x, job):
        options = {key: job[key] for key in ("version", "parameters", "timeout_s") if key in job}
        return self.context.infer(job["model"], inputs_of(x, job), **options)["y"]

    def twice(self, x, job):
        return self.call(self.call(x, job), job)

    def together(self, x, job):
        async def one():
            found = await self.context.infer_async(job["model"], inputs_of(x, job))
            return found["y"]

        async def all_of_them():
            return sum(await asyncio.gather(*[one() for _ in range(job["count"])]))

        return asyncio.run(all_of_them())

    def first_of_two(self, x, job):
        async def both():
            slow = asyncio.create_task(self.context.infer_async(job["slow"]["model"], inputs_of(x, job["slow"])))
            quick = await self.context.infer_async(job["model"], inputs_of(x, job))
            slow.cancel()
            return quick["y"]

        return asyncio.run(both())

    def chain(self, x, job):
        if not job["models"]:
            return x + 1
        then = dict(job, models=job["models"][1:])
        made = self.context.infer(job["models"][0], {"x": x, "job": [json.dumps(then)]})
        told = json.loads(made["told"][0] or "null")
        if told:
            raise self.context.CallError(told["code"], told["text"], model=told["model"])
        return made["y"] + 1

    def spin(self, x, job):
        end = time.monotonic() + job["for_s"]
        while time.monotonic() < end:
            pass
        return self.call(x, job)


class Awaiting(Model):
    async def infer(self, inputs):
        job = json.loads(inputs["job"][0])
        asked = dict(inputs_of(inputs["x"], job))
        if job.get("then"):
            asked["job"] = [json.dumps({"model": job["then"]})]
        calls = [self.context.infer_async(job["model"], asked) for _ in range(job.get("count", 1))]
        made = await asyncio.gather(*calls)
        return {"y": sum(each["y"] for each in made), "told": np.array([""], dtype=object)}


class Yielding(Model):
    def infer(self, inputs):
        job = json.loads(inputs["job"][0])
        for _ in range(job["count"]):
            yield {"y": self.call(inputs["x"], job), "told": np.array([""], dtype=object)}


def inputs_of(x, job):
    if "mode" not in job:
        return {"x": x}
    return {"x": x, "mode": [job["mode"]], "amount": np.array([float(job.get("amount", 0.0))])}
"""


def write_caller(repository: Path, name: str, kind: str = "Model", **settings: Any) -> ModelSpec:  # of a YAML file
    """`y` of the model that was called, or in `told` why there is none. `kind`: the class."""
    code = CODE if kind == "Model" else f"{CODE}\n\nModel = {kind}\n"
    inputs = (TensorSpec("x", "FP32", (-1,)), TensorSpec("job", "BYTES", (1,)))
    outputs = (TensorSpec("y", "FP32", (-1,)), TensorSpec("told", "BYTES", (1,)))
    return write_python(
        repository, name, code, inputs, outputs, settings={"parameters": {"strings": "text"}} | settings
    )
