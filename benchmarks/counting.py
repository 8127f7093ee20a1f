"""What counting costs: microseconds a request, a batch and a publication, without Ray's part of the last.

    python benchmarks/counting.py

Answers have two heads of ten classes, whose spread on validation texts is known, so that drift is looked at too.
"""

from time import perf_counter
from types import SimpleNamespace
from typing import Any

from serving.messages import Answer, HeadAnswer
from serving.observing.seen import Seen
from serving.scheduling.counted import Counters
from training.manifest import AnswerShares, HeadFacts

CLASSES = tuple(f"class{number}" for number in range(10))
SHARES = AnswerShares(count=100, classes=(0.1,) * 10, confidence=(0.1,) * 10)
ROUNDS, TIMES = 5, 20_000


def microseconds(call: Any, times: int = TIMES) -> float:
    """Return what a call takes, the fastest of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = perf_counter()
        for _ in range(times):
            call()
        best = min(best, perf_counter() - started)
    return best / times * 1e6


def main() -> None:
    heads = [HeadFacts(name=name, classes=CLASSES, validation_answers=SHARES) for name in ("head0", "head1")]
    version: Any = SimpleNamespace(version=1, manifest=SimpleNamespace(heads=heads))
    told = HeadAnswer(class_="class3", probability=0.87, scores=dict.fromkeys(CLASSES, 0.1))
    answer = Answer(heads={"head0": told, "head1": told}, tokens=50, truncated=False)
    seen, counters = Seen(), Counters()
    for texts in (1, 32):
        print(f"a request with {texts} texts: {microseconds(lambda texts=texts: seen.note(version, [answer] * texts)):.2f} us")
    print(f"its wait: {microseconds(lambda: counters.queue_seconds.note(0.004)):.2f} us")
    print(f"a batch: {microseconds(lambda: counters.note_batch(4, 200, 0.004)):.2f} us")
    print(f"drift, once a second: {microseconds(lambda: seen.drift(1), 100):.0f} us")


if __name__ == "__main__":
    main()
