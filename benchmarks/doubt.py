"""How often does the ladder doubt a rung that tells something, and one that tells nothing?

    python benchmarks/doubt.py --rounds 2000

Simulated: pairs of scores with a known correlation (bivariate normal), of which the higher one is known only for configurations that were
let through: the better half, as for a climb, or those whose heads are not below the median of the ones before. A row is a rule, a cell the
share of rounds in which it doubts the rung, at so many pairs.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.search.deciding.ladder import Agreement, agreement_of

Let = Callable[[NDArray[np.float64], int], tuple[int, list[int]]]


def better_half(scores: NDArray[np.float64], pairs: int) -> tuple[int, list[int]]:
    """Return how many have a lower score, twice as many as pairs, and which of them are let through."""
    return 2 * pairs, [int(one) for one in np.argsort(-scores[: 2 * pairs])[:pairs]]


def not_passed_over(scores: NDArray[np.float64], pairs: int) -> tuple[int, list[int]]:
    """Return how many had been proposed when so many had been let through, and which these are."""
    let: list[int] = []
    place = 0
    while len(let) < pairs:
        if place < 2 or scores[place] >= np.median(scores[:place]):
            let.append(place)
        place += 1
    return place, let


def end_of(found: Agreement, deviations: float) -> float:
    """Return the upper end of an interval around the measured correlation, by Fisher's z."""
    return math.tanh(math.atanh(np.clip(found.correlation or 0.0, -0.999999, 0.999999)) + deviations / math.sqrt(found.pairs - 3))


RULES: dict[str, Callable[[Agreement], bool]] = {
    "below .2 (until 2026-11-29)": lambda found: (found.correlation or 0.0) < 0.2,
    "upper end of 80 % below .4": lambda found: end_of(found, 0.84) < 0.4,
    "upper end of 90 % below .6": lambda found: end_of(found, 1.28) < 0.6,
    "the ladder's": lambda found: found.is_doubtful,
}
CASES = [(0.8, 5), (0.8, 10), (0.6, 5), (0.6, 7), (0.6, 10), (0.6, 20), (0.0, 5), (0.0, 10), (0.0, 15), (0.0, 20), (-0.3, 15), (-0.3, 20)]


def simulate(correlation: float, pairs: int, let: Let, rounds: int, generator: np.random.Generator) -> list[Agreement]:
    """Draw scores and measure how the rungs agree, so many times."""
    found = []
    for _ in range(rounds):
        # Of more than this nobody has been passed over so often.
        below, noise = generator.standard_normal((2, 40 * pairs))
        above = correlation * below + math.sqrt(1.0 - correlation**2) * noise
        known, through = let(below, pairs)
        found.append(agreement_of("lower", "higher", dict(enumerate(below[:known])), {one: above[one] for one in through}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lets: dict[str, Let] = {"the better half": better_half, "not passed over": not_passed_over}
    for name, let in lets.items():
        generator = np.random.default_rng(options.seed)
        drawn = [simulate(*case, let, options.rounds, generator) for case in CASES]
        print(f"{name:30}" + "".join(f"{f'{correlation:+.1f}, {pairs}':>10}" for correlation, pairs in CASES))
        for rule, doubts in RULES.items():
            print(f"{rule:30}" + "".join(f"{np.mean([doubts(one) for one in found]):10.2f}" for found in drawn))


if __name__ == "__main__":
    main()
