"""PyTriton's side: one binding for each model."""

import os

import arithmetic
import numpy as np
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from settings import MAX_BATCH, MAX_DELAY_S, NAMES, PORT, SHAPE

MODEL = arithmetic.make()
OUT_SHAPE = (-1,) if MAX_BATCH or os.environ["MODEL"] == "mean" else SHAPE


def single(requests):
    return [{"y": MODEL(each["x"])} for each in requests]


def batched(requests):
    y = MODEL(np.concatenate([each["x"] for each in requests]))
    ends = np.cumsum([len(each["x"]) for each in requests])
    return [{"y": rows} for rows in np.split(y, ends[:-1])]


def config():
    if not MAX_BATCH:
        return ModelConfig(batching=False)
    batcher = DynamicBatcher(max_queue_delay_microseconds=int(MAX_DELAY_S * 1e6))
    return ModelConfig(max_batch_size=MAX_BATCH, batcher=batcher)


if __name__ == "__main__":
    shape = SHAPE[1:] if MAX_BATCH else SHAPE
    ports = {"http_port": PORT, "grpc_port": int(os.environ["GRPC_PORT"]), "allow_metrics": False}
    with Triton(config=TritonConfig(http_address="127.0.0.1", **ports)) as triton:
        for name in NAMES:
            triton.bind(
                model_name=name,
                infer_func=batched if MAX_BATCH else single,
                inputs=[Tensor(name="x", dtype=np.float32, shape=shape)],
                outputs=[Tensor(name="y", dtype=np.float32, shape=OUT_SHAPE)],
                config=config(),
            )
        triton.serve()
