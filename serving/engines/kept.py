"""What a replica found out about precisions and batches, kept for the next one: a small file a version, machine and set of libraries.

A replica is added when it is needed most, and finding out takes seconds, with BERT-base on a CPU half a minute. What is kept counts for a
week; a file that cannot be read counts for nothing. It does not know how anything is found out.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serving.engines.cache import make_folder, processor
from serving.engines.calibration import Trial

log = logging.getLogger(__name__)

KEPT_FOR_S = 7 * 24 * 3600.0
_LIBRARIES = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Found:
    """What was found out.

    Attributes:
        trials: How each precision did; one is chosen.
        batch_tokens: A batch of so many is as fast as any.
        tokens_per_s: Of such a batch.
    """

    trials: tuple[Trial, ...]
    batch_tokens: int
    tokens_per_s: float

    @property
    def precision(self) -> str:
        """The one that answers; "" where none is chosen."""
        return next((trial.precision for trial in self.trials if trial.is_chosen), "")


@dataclass(frozen=True)
class Keep:
    """Where things are kept.

    Attributes:
        folder: Of all that is kept.
        code: Digest of our own code.
    """

    folder: Path
    code: str

    def open(self, manifest: bytes, *asked: object) -> "Kept":
        """Return the place of one version: another version, machine, library or question has another.

        Args:
            manifest: Of the version; it has the digests of all its files.
            asked: What else decides, like threads and the GPU.
        """
        facts = [processor(), os.cpu_count(), *map(version, _LIBRARIES), self.code, *map(str, asked)]
        return Kept(self.folder / f"{hashlib.sha256(manifest + json.dumps(facts).encode()).hexdigest()[:32]}.json")


@dataclass(frozen=True)
class Kept:
    """The place of one version, on this machine, with these libraries."""

    path: Path

    def read(self, precisions: Sequence[str]) -> Found | None:
        """Return what was found out, if that is known, not too old, and chose one of these precisions."""
        try:
            if time.time() - self.path.stat().st_mtime > KEPT_FOR_S:
                return None
            found = TypeAdapter(Found).validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("%s is not used: %s", self.path, type(error).__name__)
            return None
        return found if found.precision in precisions and found.batch_tokens > 0 and found.tokens_per_s > 0 else None

    def write(self, found: Found) -> None:
        """Keep what was found out; where that cannot be written, the next replica finds out itself."""
        try:
            make_folder(self.path.parent)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as draft:
                json.dump(asdict(found), draft)
            # Whole or not at all: another replica may read it now.
            Path(draft.name).replace(self.path)
        except OSError as error:
            log.warning("%s: what was found out is not kept: %s", self.path, error.strerror)
