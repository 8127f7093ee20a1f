"""The errors a person sees, drawn as a tree.

    TwoheadError              exit code 2: where, what was found, what is allowed
    ├── SettingsError         ray_config.yaml or --set is wrong
    ├── StorageError          a file or object could not be read or written
    │   └── ConflictError     somebody else wrote the name first (compare-and-set)
    └── ClusterError          Ray could not be reached, started or stopped
        └── JobError          a submitted job is unknown or ended badly

`training.errors` and `serving.errors` hang their own branches under `TwoheadError`.
"""


class TwoheadError(Exception):
    """Anything a user can put right.

    Args:
        message: Where it happened, what was found and what is allowed, in one sentence.
        hint: What to do about it; printed on a line of its own.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["TwoheadError"], tuple[str, str]]:
        # Ray sends exceptions between processes; the default would lose the hint.
        return type(self), (self.message, self.hint)


class SettingsError(TwoheadError):
    """A setting is unknown, has the wrong type or contradicts another one."""


class StorageError(TwoheadError):
    """A path in storage is missing, unreadable or cannot be written."""


class ConflictError(StorageError):
    """A compare-and-set lost: the stored value is not the expected one."""


class ClusterError(TwoheadError):
    """Ray could not be reached, started or stopped."""


class JobError(ClusterError):
    """A submitted job is unknown or did not succeed."""
