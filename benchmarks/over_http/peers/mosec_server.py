"""Mosec with a classifier in two stages, like its DistilBERT example: one process tokenises, one computes; `peers.py` starts it.

    python mosec_server.py --port PORT --address 127.0.0.1

The folder and the size of batches are in the environment, because Mosec reads the command line itself.
"""

import os
from typing import Any

from classifier import Classifier
from mosec import Server, Worker


class Preprocess(Worker):
    """Tokenises; one request at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._classifier = Classifier(os.environ["PEER_FOLDER"])

    def forward(self, data: dict[str, Any]) -> list[int]:
        """Turn a request into tokens."""
        return self._classifier.tokenize(data["text"])


class Inference(Worker):
    """Computes batches."""

    def __init__(self) -> None:
        super().__init__()
        self._classifier = Classifier(os.environ["PEER_FOLDER"])

    def forward(self, data: list[list[int]]) -> list[dict[str, list[float]]]:
        """Answer a batch."""
        return [{"probabilities": row} for row in self._classifier.compute(data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Preprocess, num=1)
    server.append_worker(Inference, num=1, max_batch_size=int(os.environ["PEER_BATCH"]))
    server.run()
