"""Ray Serve with a classifier and `@serve.batch`, as its guide to batching shows it; `peers.py` starts it.

python ray_server.py FOLDER PORT BATCH
"""

import signal
import sys

import ray
from classifier import Classifier
from ray import serve
from starlette.requests import Request

BATCH = int(sys.argv[3])


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=1000)
class Model:
    """One replica.

    Args:
        folder: Of the classifier.
    """

    def __init__(self, folder: str) -> None:
        self._classifier = Classifier(folder)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def classify(self, texts: list[str]) -> list[list[float]]:
        """Answer a batch."""
        return self._classifier.classify(texts)

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """Answer a request."""
        return {"probabilities": await self.classify((await request.json())["text"])}


if __name__ == "__main__":
    ray.init("local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Model.bind(sys.argv[1]))
    try:
        # Ray's handler of SIGTERM raises SystemExit.
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
