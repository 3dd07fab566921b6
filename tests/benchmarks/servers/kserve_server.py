"""KServe 0.21 as its documentation writes a custom predictor: the Booster behind `kserve.Model`."""

import argparse

import kserve
import numpy as np
import xgboost
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Predictor(Model):
    """The Booster, one thread, called on the request's array."""

    def __init__(self, name: str, file: str):
        super().__init__(name)
        self.booster = xgboost.Booster(params={"nthread": 1}, model_file=file)
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        rows = payload.inputs[0].as_numpy()
        result = self.booster.inplace_predict(rows).astype(np.float32)
        output = InferOutput(name="output-0", shape=list(result.shape), datatype="FP32")
        output.set_data_from_numpy(result, binary_data=False)
        return InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=[output])


parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
parser.add_argument("--model_file")
args, _ = parser.parse_known_args()
ModelServer().start([Predictor(args.model_name, args.model_file)])
