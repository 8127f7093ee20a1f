"""The verb `keys`: create, list, revoke. What it needs is imported when it is called."""

import argparse
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.console import say, table
from serving.keys.scopes import SCOPES

if TYPE_CHECKING:
    from cluster.settings import ClusterSettings
    from cluster.storage import Storage
    from serving.keys.key import Key
    from serving.settings import ServingSettings


def add_keys(verbs: Any, shared: argparse.ArgumentParser) -> None:
    """Describe the verb.

    Args:
        verbs: Where it is added.
        shared: Options of all verbs.
    """
    keys = verbs.add_parser("keys", help="make, list and revoke the keys of those who may ask")
    below = keys.add_subparsers(title="verbs", metavar="VERB", required=True)
    create = below.add_parser("create", parents=[shared], help="make a key, and print it this once")
    create.add_argument("--name", required=True, help="what it is for")
    scopes = "predict: ask about texts; read: see the version, figures and documents; admin: all (default: predict)"
    create.add_argument("--scope", nargs="+", choices=SCOPES, default=["predict"], help=scopes)
    create.add_argument("--days", type=_positive, metavar="N", help="it expires after so many (default: never)")
    create.add_argument("--rate", type=_positive, metavar="N", help="requests that each replica answers it a second (default: any number)")
    create.set_defaults(verb=_create)
    below.add_parser("list", parents=[shared], help="show all keys, but not what their owners hold").set_defaults(verb=_list)
    revoke = below.add_parser("revoke", parents=[shared], help="end a key for good")
    revoke.add_argument("key", metavar="KEY", help="as `list` names it")
    revoke.set_defaults(verb=_revoke)


def require_key(cluster: "ClusterSettings", settings: "ServingSettings", *, is_asked: bool = False) -> None:
    """See to it, where keys are asked for, that somebody can ask.

    Args:
        cluster: Where they are kept.
        settings: The section `serving`.
        is_asked: By this command itself.

    Raises:
        SettingsError: There is no good key, or none at hand.
    """
    if not settings.require_keys:
        return
    from cluster.errors import SettingsError
    from cluster.storage import Storage
    from serving.client import KEY_VARIABLE, key_headers
    from serving.keys.ring import usable
    from serving.keys.store import KeyStore

    if not usable(KeyStore(Storage(cluster.storage)), "predict"):
        raise SettingsError(
            "serving.require_keys is true, but there is no good key that may predict", "python -m serving keys create --name NAME"
        )
    if is_asked and not key_headers():
        raise SettingsError(f"--ask: wants a key in the environment variable {KEY_VARIABLE}, because serving.require_keys is true")


def _positive(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0.0 < found <= 1e6:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a number above 0 and at most a million")
    return found


def _storage(arguments: argparse.Namespace) -> "Storage":
    from cluster.settings import load_settings
    from cluster.storage import Storage

    return Storage(load_settings(arguments.config, arguments.overrides).storage)


def _create(arguments: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from cluster.errors import SettingsError
    from serving.keys.key import Key
    from serving.keys.store import KeyStore

    scopes: frozenset[Any] = frozenset(arguments.scope)
    try:
        key, held = Key.make(arguments.name, scopes, arguments.days, arguments.rate)
    except ValidationError:
        raise SettingsError(f"--name is {arguments.name!r}, but must be 1 to 64 letters, digits, spaces or any of .@_-") from None
    KeyStore(_storage(arguments)).add(key)
    # By itself, so that it can go into a file.
    say(held)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from serving.errors import KeyringError
    from serving.keys.store import KeyStore

    store = KeyStore(_storage(arguments))
    made, revoked = store.names()
    keys, damaged = [], []
    for identity in sorted(made):
        try:
            keys.append(store.read(identity))
        except KeyringError:
            # A key's file never changes and never goes: this one would hide the others for good.
            damaged.append([identity, *[None] * 5, "revoked" if identity in revoked else "damaged"])
    if not made:
        say("there are no keys: python -m serving keys create --name NAME")
        return 0
    header = ["key", "name", "scopes", "made", "expires", "a second", "state"]
    rows = [_row(key, is_revoked=key.id in revoked) for key in sorted(keys, key=lambda key: key.created_at)]
    say(table(header, [*rows, *damaged]))
    return 0


def _row(key: "Key", *, is_revoked: bool) -> list[object]:
    state = "revoked" if is_revoked else "expired" if key.has_expired(datetime.now(UTC)) else "good"
    expires = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}"
    rate = None if key.rate_per_s is None else f"{key.rate_per_s:g}"
    return [key.id, key.name, ", ".join(sorted(key.scopes)), f"{key.created_at:%Y-%m-%d %H:%M}", expires, rate, state]


def _revoke(arguments: argparse.Namespace) -> int:
    from serving.keys.store import KeyStore

    was_good = KeyStore(_storage(arguments)).revoke(arguments.key)
    say(f"key {arguments.key} is revoked" if was_good else f"key {arguments.key} was revoked before")
    return 0
