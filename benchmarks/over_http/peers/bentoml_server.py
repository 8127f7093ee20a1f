"""BentoML with a classifier and adaptive batching; `peers.py` starts it.

    bentoml serve bentoml_server:Service --host 127.0.0.1 --port PORT

The folder and the size of batches are in the environment, because BentoML reads the command line itself.
"""

import os

import bentoml
from classifier import Classifier


@bentoml.service(workers=1, traffic={"timeout": 60})
class Service:
    """One worker, which gets lists of texts."""

    def __init__(self) -> None:
        self._classifier = Classifier(os.environ["PEER_FOLDER"])

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["PEER_BATCH"]))
    def classify(self, texts: list[str]) -> list[list[float]]:
        """Answer a batch."""
        return self._classifier.classify(texts)
