"""LitServe with its own API: a JSON list of rows in, a list of scores out."""

import argparse

import litserve
import numpy as np
import xgboost

parser = argparse.ArgumentParser()
parser.add_argument("--model_file")
parser.add_argument("--http_port", type=int)
args = parser.parse_args()


class Api(litserve.LitAPI):
    """One worker, no batching: batching is measured to be slower for this model."""

    def setup(self, device):
        self.booster = xgboost.Booster(params={"nthread": 1}, model_file=args.model_file)

    def decode_request(self, request):
        return np.asarray(request["data"], dtype=np.float32)

    def predict(self, rows):
        return self.booster.inplace_predict(rows)

    def encode_response(self, output):
        return {"data": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(port=args.http_port, host="127.0.0.1", generate_client_file=False, log_level="warning")
