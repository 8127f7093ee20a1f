"""Log lines as JSON: Serve writes them, the version is ours, and nothing else changes."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from serving.app import render
from serving.observing.logs import log_with_serve, serve_logging
from serving.settings import Arguments, ServingSettings


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What Serve's own formatter makes of lines, with the handlers put back at the end."""
    from ray._common.formatters import JSONFormatter

    found: list[dict[str, Any]] = []
    formatter = JSONFormatter()
    formatter.set_additional_log_standard_attrs(serve_logging(ServingSettings(log_format="json"))["additional_log_standard_attrs"])

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(formatter.format(record)))

    serve, ours = logging.getLogger("ray.serve"), logging.getLogger("serving")
    before = (serve.handlers, serve.level, ours.handlers, ours.level, ours.propagate)
    serve.handlers = [Kept()]
    yield found
    serve.handlers, serves_level, ours.handlers, level, ours.propagate = before
    serve.setLevel(serves_level)
    ours.setLevel(level)


def test_a_line_tells_the_version_once_there_is_one(lines: list[dict[str, Any]]) -> None:
    versions: list[int | None] = [None]
    log_with_serve(lambda: versions[-1])
    log = logging.getLogger("serving.follower")
    log.info("version %d is loaded", 7)
    versions.append(7)
    log.warning("it answers")
    first, second = lines
    assert (first["message"], first["levelname"], first["name"]) == ("version 7 is loaded", "INFO", "serving.follower")
    assert "version" not in first
    assert (second["levelname"], second["version"]) == ("WARNING", 7)
    assert first["asctime"]


def test_serve_makes_no_line_about_a_request_but_warns(lines: list[dict[str, Any]]) -> None:
    log_with_serve()
    serve = logging.getLogger("ray.serve")
    serve.info("POST /v1/predict 200")
    serve.warning("a health check failed")
    assert [line["message"] for line in lines] == ["a health check failed"]


def test_lines_of_text_are_left_as_they_are(lines: list[dict[str, Any]]) -> None:
    log_with_serve()
    logging.getLogger("serving.scheduling.scheduler").error("the engine failed")
    assert "version" not in lines[0]


# Ray 2.60's own models do it.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
@pytest.mark.parametrize(("log_format", "encoding"), [("text", "TEXT"), ("json", "JSON")])
def test_serve_is_asked_for_the_format(log_format: str, encoding: str) -> None:
    from ray.serve.schema import LoggingConfig

    settings = ServingSettings(log_format=log_format)
    arguments = Arguments(storage="/x", settings=settings)
    told = LoggingConfig.model_validate(render(settings, arguments, {})["applications"][0]["logging_config"])
    assert (told.encoding, told.enable_access_log) == (encoding, False)
    # Replicas read it, so that a change replaces them.
    assert arguments.dump()["settings"]["log_format"] == log_format
