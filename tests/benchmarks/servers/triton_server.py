"""Triton with its Python backend and dynamic batching, through nvidia-pytriton."""

import argparse

import numpy as np
import xgboost
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

parser = argparse.ArgumentParser()
parser.add_argument("--model_file")
parser.add_argument("--http_port", type=int)
parser.add_argument("--grpc_port", type=int)
parser.add_argument("--metrics_port", type=int)
args = parser.parse_args()
booster = xgboost.Booster(params={"nthread": 1}, model_file=args.model_file)


@batch
def infer(**inputs):
    """One call a batch."""
    return {"output-0": booster.inplace_predict(inputs["input-0"]).astype(np.float32).reshape(-1, 1)}


config = TritonConfig(http_port=args.http_port, grpc_port=args.grpc_port, metrics_port=args.metrics_port, log_verbose=0)
with Triton(config=config) as triton:
    triton.bind(
        model_name="model",
        infer_func=infer,
        inputs=[Tensor(name="input-0", dtype=np.float32, shape=(30,))],
        outputs=[Tensor(name="output-0", dtype=np.float32, shape=(1,))],
        config=ModelConfig(max_batch_size=4096, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        strict=False,
    )
    triton.serve()
