"""Who runs a command, for owners of jobs and for promotions. It does not know what they may."""

import getpass
import os


def user_name() -> str:
    """Return the user's name; their number where nobody gave it a name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
