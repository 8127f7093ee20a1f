"""The branch of the error tree that belongs to training.

TwoheadError
├── DataError             a table, its columns or its cells
├── EncoderError          the pretrained encoder is missing, unknown or not the expected one
├── CheckpointError       a checkpoint's files are missing, changed or contradict each other
├── RegistryError         a version or a name does not exist, or moved meanwhile
├── ExportError           a version cannot be written in another format
└── TuningError           a search cannot start, go on or name a winner
    └── FailedTrials      the search ended, but trials died or diverged (exit code 4)
"""

from cluster.errors import TwoheadError


class DataError(TwoheadError):
    """A table cannot be read or used.

    Args:
        message: All findings; several stand on lines of their own.
        hint: What to do about the first one.
    """


class EncoderError(TwoheadError):
    """The pretrained encoder cannot be found, verified or loaded."""


class CheckpointError(TwoheadError):
    """A checkpoint is incomplete, was changed or contradicts itself."""


class RegistryError(TwoheadError):
    """A version or name is unknown, or the name moved while it was being promoted."""


class ExportError(TwoheadError):
    """A version cannot be written in another format, or answers differently there."""


class TuningError(TwoheadError):
    """A search cannot start, be resumed or name a best trial."""


class FailedTrials(TuningError):
    """The search ended with a best trial, but more trials failed than were allowed."""

    exit_code = 4
