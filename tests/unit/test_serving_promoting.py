"""A candidate takes over with all heads of the version beside it, or not at all."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.settings import ClusterSettings
from serving.candidates import command
from serving.candidates.rule import Rule, Tally, decide
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


def test_the_head_that_a_candidate_lacks_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heads = [HeadFacts(name=name, classes=["a", "b"], ordered=False) for name in ("job", "level", "salary")]

    class Asked:
        def __init__(self, url: str, retries: int) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def version(self) -> Any:
            return SimpleNamespace(version=1, heads=heads, candidate=SimpleNamespace(version=2, trial="ab"))

        def metrics(self) -> str:
            return "".join(SERIES.format(name=name, head=head) for name in ("compared", "agreed") for head in ("job", "level"))

    ended: list[ServingSettings] = []
    monkeypatch.setattr(command, "Client", Asked)
    monkeypatch.setattr(command, "_end", lambda _, settings: ended.append(settings))
    settings = ServingSettings(shadow=ShadowSettings(version=2))
    assert command.conclude(ClusterSettings(), settings, "agreement>=0.5", 500, 1.0) == 1
    assert ended == [settings]
    assert "version 2 answers nothing for salary, which version 1 does" in capsys.readouterr().out
