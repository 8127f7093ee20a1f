"""What reads bytes that somebody else wrote: it takes them, or refuses them in our own words."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.errors import TwoheadError
from cluster.settings import load_settings
from serving.settings import load_settings as load_serving_settings
from training.manifest import parse_manifest
from training.settings import load_settings as load_training_settings

CORPUS = Path(__file__).with_name("corpus")


def read_manifest(content: bytes) -> None:
    """Read a version's manifest."""
    with suppress(TwoheadError):
        parse_manifest(content, "here")


def read_settings(content: bytes) -> None:
    """Read all sections of a settings file."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        Path(file.name).write_bytes(content)
        for load in (load_settings, load_training_settings, load_serving_settings):
            with suppress(TwoheadError):
                load(Path(file.name), [])


READERS: dict[str, Callable[[bytes], None]] = {"manifest": read_manifest, "settings": read_settings}
