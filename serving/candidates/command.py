"""The verb `promote`: watches a candidate until enough is known, and then lets it take over or ends its trial."""

import time
from dataclasses import dataclass

from cluster.connection import reach
from cluster.console import say
from cluster.errors import ClusterError, SettingsError
from cluster.settings import ClusterSettings
from serving.candidates.rule import Tally, decide, not_compared, parse_rule, read_tally
from serving.client import Client
from serving.errors import AnswerError
from serving.messages import VersionFacts
from serving.rollout import Rollout
from serving.settings import ServingSettings
from training.registry import Registry

# Figures reach the exporters some seconds after they were made.
EVERY_S = 2.0
# No later request of the same key would be answered otherwise.
_REFUSED = (401, 403)


def conclude(cluster: ClusterSettings, settings: ServingSettings, when: str, least: int, minutes: float) -> int:
    """Wait until enough is known about the candidate, and move the name or end the trial.

    Args:
        cluster: Where its registry is.
        settings: With a canary or a shadow, as it was deployed.
        when: A rule; see `parse_rule`.
        least: Texts that must have been compared for every head.
        minutes: How long to wait for that.

    Returns:
        0 where it took over, 1 where it did not.

    Raises:
        SettingsError: There is no candidate, or no such rule.
        AnswerError: Nothing is served; or what is served tries no such version, follows another name or none, or has that version already.
        RegistryError: The name moved at the same moment.
    """
    rule, tried = parse_rule(when), settings.canary or settings.shadow
    if tried is None:
        raise SettingsError("serving has neither a canary nor a shadow", "--set serving.canary.version=N, and deploy that first")
    registry = Registry.of(cluster)
    until, last = time.monotonic() + 60 * minutes, ""
    with Client(settings.url_from_here, retries=2) as client:
        # What is wrong the first time is told at once.
        found = _look(client.version(), client.metrics(), settings, tried.version)
        while (decided := decide(found.tally, rule, least, found.heads)) is None and time.monotonic() < until:
            if (told := _told(found.tally)) != last:
                say(f"version {tried.version}: {told}")
                last = told
            time.sleep(EVERY_S)
            if (asked := _ask(client)) is not None:
                found = _look(*asked, settings, tried.version)
    say(f"version {tried.version}: {_told(found.tally)}")
    if decided:
        registry.promote(tried.version, settings.name, expected=found.beside)
        say(f"{settings.name} points to version {tried.version}; take the candidate out of ray_config.yaml")
        return 0
    if decided is None:
        say(f"too little is known after {minutes:g} minutes: version {found.beside} stays, and version {tried.version} on trial")
        return 1
    if found.tally.compared and (lacking := not_compared(found.tally, found.heads)):
        say(f"version {tried.version} answers nothing for {', '.join(lacking)}, which version {found.beside} does")
    _end(cluster, settings)
    say(f"version {found.beside} stays; take the candidate out of ray_config.yaml, or the next deploy tries it again")
    return 1


@dataclass(frozen=True)
class _Found:
    """How a trial stands.

    Attributes:
        beside: The version that answers now.
        heads: Its heads.
        tally: What was counted beside it.
    """

    beside: int
    heads: list[str]
    tally: Tally


def _ask(client: Client) -> tuple[VersionFacts, str] | None:
    """Return the facts and the figures of what is served; None where nobody answers, which the next time somebody may.

    Raises:
        AnswerError: A key is refused.
    """
    try:
        return client.version(), client.metrics()
    except AnswerError as error:
        if error.status in _REFUSED:
            raise
        say(f"not answered, and asked again: {error.message}")
        return None


def _look(served: VersionFacts, page: str, settings: ServingSettings, tried: int) -> _Found:
    """Read how a trial stands.

    Raises:
        AnswerError: There is none, or the name that would move is not followed.
    """
    url = settings.url_from_here
    if served.candidate is None or served.candidate.version != tried:
        raise AnswerError(f"version {tried} is not on trial at {url}", hint="python -m serving deploy, with these settings")
    if served.name != settings.name:
        follows = "no name" if served.name is None else f"the name {served.name!r}"
        raise AnswerError(
            f"what is served at {url} follows {follows}, so that moving {settings.name!r} would not let version {tried} take over",
            hint=f"python -m serving deploy, without --version and with serving.name: {settings.name}",
        )
    if served.version == tried:
        raise AnswerError(f"version {tried} answers at {url} already", hint="take the candidate out of ray_config.yaml")
    return _Found(served.version, [head.name for head in served.heads], read_tally(page, tried, served.candidate.trial, served.version))


def _end(cluster: ClusterSettings, settings: ServingSettings) -> None:
    """Serve on without the candidate."""
    try:
        with reach(cluster) as dashboard_url:
            Rollout.at(dashboard_url, cluster, say).end_trial(settings)
    except ClusterError as error:
        raise ClusterError(f"the trial goes on, because its deployment cannot be changed: {error.message}", error.hint) from error


def _told(tally: Tally) -> str:
    if not tally.compared:
        return f"nothing compared yet, {tally.errors:.0f} errors"
    heads = (f"{head} {share:.3f} of {tally.compared[head]:.0f}" for head, share in tally.agreement.items())
    return f"agreement {', '.join(heads)}; {tally.errors:.0f} errors"
