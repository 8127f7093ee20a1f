"""LitServe with a classifier, batched as its own BERT benchmark does it; `peers.py` starts it.

python litserve_server.py FOLDER PORT BATCH
"""

import sys
from typing import Any

import litserve
from classifier import Classifier


class Api(litserve.LitAPI):
    """One worker, which gets lists of texts."""

    def setup(self, device: str) -> None:
        """Load the model, in the worker's process."""
        self.classifier = Classifier(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> str:
        """Take the text out of a request."""
        text: str = request["text"]
        return text

    def predict(self, texts: list[str]) -> list[list[float]]:
        """Answer a batch."""
        return self.classifier.classify(texts)

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """Make an answer."""
        return {"probabilities": output}


if __name__ == "__main__":
    api = Api(max_batch_size=int(sys.argv[3]), batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, timeout_keep_alive=60)
