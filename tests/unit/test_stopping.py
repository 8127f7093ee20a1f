"""Signals during a search and its report, and what is left of the handlers afterwards."""

import os
import signal
import threading

import pytest

from training.search.stopping import ended_by_signals, is_stopped_by, report_goes_first

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers() -> object:
    """Every block leaves all handlers as they were, whoever changed them inside."""
    before = [signal.getsignal(number) for number in HEARD]
    yield
    assert [signal.getsignal(number) for number in HEARD] == before


def test_sigterm_ends_what_listens_to_ctrl_c() -> None:
    def train() -> None:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    with pytest.raises(KeyboardInterrupt):
        train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_report_of_a_whole_search_is_ended_by_the_second_signal_alone(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def report() -> None:
        with report_goes_first(is_whole=True):
            signal.raise_signal(number)
            done.append("went on")
            signal.raise_signal(number)
            done.append("not this")

    with pytest.raises(KeyboardInterrupt):
        report()
    assert done == ["went on"]
    assert capsys.readouterr().out == "report    is being made; once more ends the search without it\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_report_of_a_stopped_search_is_ended_at_once(number: int) -> None:
    done = []

    def report() -> None:
        with report_goes_first(is_whole=False):
            signal.raise_signal(number)
            done.append("not this")

    with pytest.raises(KeyboardInterrupt):
        report()
    assert done == []


def test_other_threads_hear_nothing_and_change_nothing() -> None:
    made = []

    def report() -> None:
        with ended_by_signals(), report_goes_first(is_whole=True):
            made.append([signal.getsignal(number) for number in HEARD])

    thread = threading.Thread(target=report)
    thread.start()
    thread.join()
    assert made == [[signal.getsignal(number) for number in HEARD]]


def test_rays_exit_on_sigterm_is_one_and_others_are_not() -> None:
    assert is_stopped_by(KeyboardInterrupt())
    assert is_stopped_by(SystemExit(15))
    assert not is_stopped_by(SystemExit(2))
    assert not is_stopped_by(SystemExit())
