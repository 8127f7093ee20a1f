"""A candidate takes over with all heads of the version beside it, or not at all."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.settings import ClusterSettings
from serving.candidates import command
from serving.candidates.rule import Rule, Tally, decide
from serving.errors import AnswerError
from serving.messages import HeadFacts
from serving.settings import ServingSettings, ShadowSettings

SERIES = 'twohead_{name}_total{{beside="1",candidate="2",head="{head}",replica="a",trial="ab"}} 500.0\n'


@pytest.mark.parametrize(
    ("compared", "expected"),
    [
        ({"job": 500.0}, False),
        ({"job": 499.0}, None),
        ({"job": 500.0, "level": 1.0}, None),
        ({"job": 500.0, "level": 500.0}, True),
        ({}, None),
    ],
)
def test_a_candidate_that_lacks_a_head_does_not_take_over(compared: dict[str, float], expected: bool | None) -> None:
    assert decide(Tally(compared, compared, 0), Rule(0.98, 0), 500, ["job", "level"]) is expected


def facts(version: int = 1, name: str | None = "production", candidate: int = 2, heads: tuple[str, ...] = ("job", "level")) -> Any:
    told = [HeadFacts(name=head, classes=["a", "b"], ordered=False) for head in heads]
    return SimpleNamespace(version=version, name=name, heads=told, candidate=SimpleNamespace(version=candidate, trial="ab"))


def page(beside: int = 1) -> str:
    series = [SERIES.format(name=name, head=head) for name in ("compared", "agreed") for head in ("job", "level")]
    return "".join(series).replace('beside="1"', f'beside="{beside}"')


class Trial:
    """A command that decides about version 2, with a server that says one thing after the other.

    Attributes:
        said: Answers to /v1/version and /metrics, or an error; the last one is said for ever.
        url: Where the server was asked.
        ended: Settings of the trials that were ended.
        moved: Version, name and expected version of each move.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[tuple[Any, str] | AnswerError] = []
        self.url = ""
        self.ended: list[ServingSettings] = []
        self.moved: list[tuple[int, str, int]] = []
        self.settings = ServingSettings(shadow=ShadowSettings(version=2))
        registry = SimpleNamespace(promote=lambda version, name, *, expected: self.moved.append((version, name, expected)))
        monkeypatch.setattr(command, "Client", self._asked)
        monkeypatch.setattr(command, "_end", lambda _, settings: self.ended.append(settings))
        monkeypatch.setattr(command, "Registry", SimpleNamespace(of=lambda _: registry))
        monkeypatch.setattr(command, "EVERY_S", 0.0)

    def _asked(self, url: str, retries: int) -> Any:
        self.url = url
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None: ...

    def version(self) -> Any:
        if isinstance(said := self.said[0], AnswerError):
            self.said.pop(0)
            raise said
        return said[0]

    def metrics(self) -> str:
        said = self.said[0] if len(self.said) == 1 else self.said.pop(0)
        assert not isinstance(said, AnswerError)
        return said[1]

    def conclude(self, minutes: float = 60.0) -> int:
        return command.conclude(ClusterSettings(), self.settings, "agreement>=0.5", 500, minutes)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(monkeypatch)


def test_the_head_that_a_candidate_lacks_is_told(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    trial.said = [(facts(heads=("job", "level", "salary")), page())]
    assert trial.conclude(1.0) == 1
    assert trial.ended == [trial.settings]
    assert "version 2 answers nothing for salary, which version 1 does" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "told"), [(None, "follows no name"), ("staging", "follows the name 'staging'")])
def test_no_name_is_moved_that_what_is_served_does_not_follow(trial: Trial, name: str | None, told: str) -> None:
    trial.said = [(facts(name=name), page())]
    with pytest.raises(AnswerError, match=told) as caught:
        trial.conclude()
    assert "serving.name: production" in caught.value.hint
    assert trial.moved == []


def test_a_version_that_comes_meanwhile_is_the_one_to_compare_with(trial: Trial) -> None:
    trial.said = [(facts(), ""), (facts(version=9), page(beside=9))]
    assert trial.conclude() == 0
    assert trial.moved == [(2, "production", 9)]


def test_a_candidate_that_somebody_else_promoted_is_not_waited_for(trial: Trial) -> None:
    trial.said = [(facts(), ""), (facts(version=2), "")]
    with pytest.raises(AnswerError, match=r"version 2 answers at .* already"):
        trial.conclude()
    assert trial.moved == []


@pytest.mark.parametrize("status", [0, 503])
def test_a_server_that_is_away_for_a_while_ends_no_trial(trial: Trial, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    trial.said = [(facts(), ""), AnswerError("nobody is there", status), AnswerError("nobody is there", status), (facts(), page())]
    assert trial.conclude() == 0
    assert trial.moved == [(2, "production", 1)]
    assert capsys.readouterr().out.count("not answered, and asked again: nobody is there") == 2


def test_a_server_that_is_away_at_first_and_a_key_that_is_refused_later_end_it(trial: Trial) -> None:
    for said in ([AnswerError("nobody is there")], [(facts(), ""), AnswerError("the key was revoked", 401)]):
        trial.said = said
        with pytest.raises(AnswerError, match=r"nobody|revoked"):
            trial.conclude()
    assert trial.moved == []


def test_what_listens_everywhere_is_asked_on_this_machine(trial: Trial) -> None:
    trial.settings = ServingSettings(host="0.0.0.0", require_keys=True, shadow=ShadowSettings(version=2))
    trial.said = [(facts(), page())]
    assert trial.conclude() == 0
    assert trial.url == "http://127.0.0.1:8000"
