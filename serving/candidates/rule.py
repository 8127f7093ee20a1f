"""Whether a candidate becomes the version that answers: a rule, and the figures of all replicas that it is held against.

It moves nothing and asks nobody.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import SettingsError
from serving.observing.names import METRICS

_TERM = re.compile(r"^(agreement|errors)(>=|<=|=)(\d+(?:\.\d+)?)$")
_SERIES = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_HINT = 'write it like "agreement>=0.98,errors=0"'


@dataclass(frozen=True)
class Rule:
    """When a candidate is good enough.

    Attributes:
        agreement: Least share of texts, for every head, for which both versions name the same class.
        errors: Most requests it may fail on.
    """

    agreement: float
    errors: int


@dataclass(frozen=True)
class Tally:
    """What all replicas counted about a candidate.

    Attributes:
        compared: Head → texts.
        agreed: Head → texts of these.
        errors: Requests it failed on.
    """

    compared: dict[str, float]
    agreed: dict[str, float]
    errors: float

    @property
    def agreement(self) -> dict[str, float]:
        """Return, by head, the share of texts that agree."""
        return {head: self.agreed.get(head, 0.0) / count for head, count in self.compared.items() if count}


def parse_rule(words: str) -> Rule:
    """Read a rule like `agreement>=0.98,errors=0`.

    Raises:
        SettingsError: It is not one.
    """
    found: dict[str, float] = {}
    for word in words.replace(" ", "").split(","):
        term = _TERM.match(word)
        name, sign, value = term.groups() if term else ("", "", "0")
        if name in found or (name, sign) not in {("agreement", ">="), ("errors", "="), ("errors", "<=")}:
            raise SettingsError(f"--when: {words!r} has {word!r}, but terms are agreement>=SHARE and errors<=COUNT, once each", _HINT)
        found[name] = float(value)
    if not 0 < found.get("agreement", 0.0) <= 1 or found.get("errors", 0.0) % 1:
        raise SettingsError(f"--when: {words!r} must ask for an agreement above 0 and of at most 1, and errors in whole numbers", _HINT)
    return Rule(found["agreement"], int(found.get("errors", 0)))


def read_tally(page: str, version: int, trial: str, beside: int) -> Tally:
    """Add up what a page of figures says about a candidate, over all replicas.

    Args:
        page: In Prometheus's words. What replicas counted stays on it when they are gone.
        version: The candidate.
        trial: Which trial of it; errors count in all of that.
        beside: What it must have been compared with.
    """
    wanted = {"candidate": str(version), "trial": trial}
    names = {METRICS[name].series[0]: name for name in ("compared", "agreed", "candidate_errors")}
    sums: dict[str, dict[str, float]] = {name: {} for name in names.values()}
    for line in page.splitlines():
        if (found := _SERIES.match(line)) and found[1] in names:
            labels = dict(_LABEL.findall(found[2]))
            if wanted.items() <= labels.items() and labels.get("beside", str(beside)) == str(beside):
                heads, head = sums[names[found[1]]], labels.get("head", "")
                heads[head] = heads.get(head, 0.0) + float(found[3])
    return Tally(sums["compared"], sums["agreed"], sum(sums["candidate_errors"].values()))


def not_compared(tally: Tally, heads: Sequence[str]) -> list[str]:
    """Return the heads about which nothing is known."""
    return [head for head in heads if not tally.compared.get(head)]


def decide(tally: Tally, rule: Rule, least: int, heads: Sequence[str]) -> bool | None:
    """Decide whether a candidate is good enough.

    Args:
        tally: What is known.
        rule: What is asked.
        least: Texts that must have been compared for every head.
        heads: Of the version beside it. Each text is compared for all that both have: one that is left behind is not the candidate's.

    Returns:
        None while too little is known.
    """
    if tally.errors > rule.errors:
        return False
    counts = [tally.compared.get(head, 0.0) for head in heads]
    if not tally.compared or max(counts) < least:
        return None
    if not_compared(tally, heads):
        return False
    if min(counts) < least:
        return None
    return min(tally.agreement[head] for head in heads) >= rule.agreement
