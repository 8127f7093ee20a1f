"""What holds whatever comes: traces of requests, damaged files, settings that nobody would write."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import SettingsError
from cluster.settings import load_settings
from serving.scheduling.scheduler import Scheduler
from serving.settings import load_settings as load_serving_settings
from tests.gated import LONG_S, GatedModel, settled
from training.errors import CheckpointError
from training.manifest import Manifest, parse_manifest
from training.settings import load_settings as load_training_settings

# Each of a request's texts, by its length; who asks; and whether the caller leaves before the engine is let through.
REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from(["", "a", "b"]), st.booleans()), max_size=12
)


def texts_of(number: int, lengths: list[int]) -> list[str]:
    """Make texts of these lengths and a few characters more, all of them different."""
    return [f"{number:02}{place}".ljust(length + 3, "x") for place, length in enumerate(lengths)]


def batch_cost(batch: list[str], *, pads: bool) -> int:
    return len(batch) * max(map(len, batch)) if pads else sum(map(len, batch))


@settings(max_examples=150, deadline=None)
@given(requests=REQUESTS, budget=st.integers(8, 90), pads=st.booleans())
def test_no_text_is_lost_or_computed_twice_and_no_batch_is_too_large(
    requests: list[tuple[list[int], str, bool]], budget: int, pads: bool
) -> None:
    async def main() -> None:
        scheduler, model = Scheduler(budget, 1e9, LONG_S), GatedModel(pads=pads)
        scheduler.start()
        asked = [texts_of(number, lengths) for number, (lengths, _, _) in enumerate(requests)]
        tasks = []
        for texts, (_, client, _) in zip(asked, requests, strict=True):
            tasks.append(asyncio.ensure_future(scheduler.submit(model, texts, LONG_S, client)))
            await settled()
        for task, (_, _, leaves) in zip(tasks, requests, strict=True):
            if leaves:
                task.cancel()
        await settled()
        model.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for texts, found, (_, _, leaves) in zip(asked, done, requests, strict=True):
            if leaves:
                assert isinstance(found, asyncio.CancelledError)
            else:
                assert not isinstance(found, BaseException)
                assert found.answers == [text.upper() for text in texts]
        computed = [text for batch in model.batches for text in batch]
        assert len(computed) == len(set(computed))
        assert {text for texts, (_, _, leaves) in zip(asked, requests, strict=True) if not leaves for text in texts} <= set(computed)
        assert scheduler.queued_texts == scheduler.queued_tokens == 0
        assert all(len(batch) == 1 or batch_cost(batch, pads=pads) <= budget for batch in model.batches)
        await scheduler.stop()

    asyncio.run(main())


def read(content: bytes) -> Manifest | None:
    try:
        return parse_manifest(content, "here")
    except CheckpointError:
        return None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    assert read(content) is None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_manifest_with_other_bytes_is_refused_and_nothing_else_is_raised(tiny_checkpoint: Path, data: st.DataObject) -> None:
    whole = (tiny_checkpoint / "manifest.json").read_bytes()
    begin = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(begin, min(len(whole), begin + 20)))
    changed = whole[:begin] + data.draw(st.binary(max_size=20)) + whole[end:]
    assert (read(changed) is None) == (changed != whole)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
Load = Callable[[Path, list[str]], object]
SECTIONS: dict[str, Load] = {"cluster": load_settings, "training": load_training_settings, "serving": load_serving_settings}


def refusal(load: Load, path: Path) -> str | None:
    """Return what is said against a settings file; nothing where it is taken."""
    try:
        load(path, [])
    except SettingsError as error:
        return error.message
    return None


@pytest.mark.parametrize("section", SECTIONS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_setting_is_it_is_taken_or_refused_in_our_words(tmp_path: Path, section: str, data: st.DataObject) -> None:
    known = {
        "cluster": ["storage", "num_cpus", "launcher", "trusted_keys", "kubernetes", "exclude"],
        "training": ["data", "heads", "encoder", "fit", "search_space", "tuning", "activations"],
        "serving": ["port", "host", "autoscaling", "canary", "shadow", "resources_per_replica", "max_queue_s"],
    }[section]
    content = data.draw(st.dictionaries(st.sampled_from(known), ANYTHING, max_size=3))
    path = tmp_path / "ray_config.yaml"
    # JSON is YAML; what it has no word for is refused as well.
    path.write_text(json.dumps({section: content}))
    said = refusal(SECTIONS[section], path)
    assert said is None or section in said or str(path) in said


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_the_settings_file_holds_is_taken_or_refused_in_our_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ray_config.yaml"
    path.write_bytes(content)
    said = refusal(load_settings, path)
    assert said is None or str(path) in said
