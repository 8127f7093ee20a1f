"""The verb `promote`: watches a candidate until enough is known, and then lets it take over or ends its trial."""

import time

from cluster.connection import reach
from cluster.console import say
from cluster.errors import ClusterError, SettingsError
from cluster.settings import ClusterSettings
from serving.candidates.rule import Tally, decide, not_compared, parse_rule, read_tally
from serving.client import Client
from serving.errors import AnswerError
from serving.rollout import Rollout
from serving.settings import ServingSettings
from training.registry import Registry

# Figures reach the exporters some seconds after they were made.
EVERY_S = 2.0


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
        AnswerError: Nothing is served.
        RegistryError: The name moved meanwhile.
    """
    rule, tried = parse_rule(when), settings.canary or settings.shadow
    if tried is None:
        raise SettingsError("serving has neither a canary nor a shadow", "--set serving.canary.version=N, and deploy that first")
    registry = Registry.of(cluster)
    until, last = time.monotonic() + 60 * minutes, ""
    with Client(settings.url, retries=2) as client:
        served = client.version()
        if served.candidate is None or served.candidate.version != tried.version:
            raise AnswerError(
                f"version {tried.version} is not on trial at {settings.url}", hint="python -m serving deploy, with these settings"
            )
        about, heads = (tried.version, served.candidate.trial, served.version), [head.name for head in served.heads]
        while (decided := decide(tally := read_tally(client.metrics(), *about), rule, least, heads)) is None and time.monotonic() < until:
            if (told := _told(tally)) != last:
                say(f"version {tried.version}: {told}")
                last = told
            time.sleep(EVERY_S)
    say(f"version {tried.version}: {_told(tally)}")
    if decided:
        registry.promote(tried.version, settings.name, expected=served.version)
        say(f"{settings.name} points to version {tried.version}; take the candidate out of ray_config.yaml")
        return 0
    if decided is None:
        say(f"too little is known after {minutes:g} minutes: version {served.version} stays, and version {tried.version} on trial")
        return 1
    if tally.compared and (lacking := not_compared(tally, heads)):
        say(f"version {tried.version} answers nothing for {', '.join(lacking)}, which version {served.version} does")
    _end(cluster, settings)
    say(f"version {served.version} stays; take the candidate out of ray_config.yaml, or the next deploy tries it again")
    return 1


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
