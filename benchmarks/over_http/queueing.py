"""What waiting is left to a server that loses nothing: requests arrive at random, and one engine computes them in order of arrival.

Any server of one engine that computes whatever waits has the same work before it at every moment, so it can choose only who waits. At
80 % of what the engine can do that alone is several batches for one request in a hundred.

Source: Kleinrock 1976, Queueing Systems, volume 2 (the conservation law of work).
"""

from collections.abc import Sequence

import numpy as np

_READINGS = 200


def p99s_of_no_loss(
    lengths: Sequence[int], texts_per_s: float, share: float, batch_tokens: int, seconds: float, seed: int = 0
) -> list[float]:
    """Simulate readings of such a server, and return the 99th percentile of latency of each, sorted, in seconds.

    Args:
        lengths: Tokens of texts, taken in turn.
        texts_per_s: What the engine computes when it is never idle; its time goes by tokens.
        share: Of that arrives, at random (Poisson).
        batch_tokens: A batch ends before it has more; an engine that becomes free takes what waits.
        seconds: Length of a reading.
        seed: Of the arrivals.
    """
    chance = np.random.default_rng(seed)
    seconds_per_token = 1 / (texts_per_s * float(np.mean(lengths)))
    count = int(share * texts_per_s * seconds)
    found = []
    for _ in range(_READINGS):
        arrivals = np.cumsum(chance.exponential(1 / (share * texts_per_s), count))
        tokens = np.resize(np.roll(lengths, chance.integers(len(lengths))), count)
        found.append(float(np.quantile(_latencies(arrivals.tolist(), tokens.tolist(), batch_tokens, seconds_per_token), 0.99)))
    return sorted(found)


def _latencies(arrivals: list[float], tokens: list[int], batch_tokens: int, seconds_per_token: float) -> list[float]:
    latencies: list[float] = []
    now, first = 0.0, 0
    while first < len(arrivals):
        now = max(now, arrivals[first])
        last, inside = first + 1, tokens[first]
        while last < len(arrivals) and arrivals[last] <= now and inside + tokens[last] <= batch_tokens:
            inside += tokens[last]
            last += 1
        now += inside * seconds_per_token
        latencies += [now - arrival for arrival in arrivals[first:last]]
        first = last
    return latencies
