"""A key: what its owner holds, and what is kept of it.

Its secret has 256 random bits, which nobody can guess: a digest with a salt is enough, and a slow one for passwords would only let
strangers keep the server busy. It is found by its id, which is no secret, and compared in a time that tells nothing.
"""

import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from serving.keys.scopes import Scope

# What a client is called whom a key names, before the key's id.
KEY_CLIENT = "key "
_PREFIX = "th"
_SECRET_BYTES, _SALT_BYTES, _ID_BYTES = 32, 16, 6
_HELD = re.compile(rf"{_PREFIX}_([0-9a-f]{{{2 * _ID_BYTES}}})_([A-Za-z0-9_-]{{43}})", re.ASCII)


class Key(BaseModel):
    """What is kept of a key; never its secret.

    Attributes:
        id: Names it, in lists and to its owner.
        name: What it is for, in its maker's words.
        scopes: What it may do; `admin` may all.
        salt: Of the digest, in hexadecimal.
        digest: HMAC-SHA256 of the secret under the salt, in hexadecimal.
        created_at: UTC.
        expires_at: UTC; None never expires.
        rate_per_s: Requests that each replica answers it a second, on average; None is not limited.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=rf"^[0-9a-f]{{{2 * _ID_BYTES}}}$")
    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w .@-]+$")
    scopes: frozenset[Scope] = Field(min_length=1)
    salt: str
    digest: str
    created_at: datetime
    expires_at: datetime | None = None
    rate_per_s: float | None = Field(default=None, gt=0.0)

    @classmethod
    def make(cls, name: str, scopes: frozenset[Scope], days: float | None, rate_per_s: float | None) -> tuple[Self, str]:
        """Make a key; returns what is kept, and what its owner gets, which is told only now.

        Raises:
            ValidationError: The name has other characters than letters, digits, space and `.@_-`, …
        """
        identity, secret, salt = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES), secrets.token_bytes(_SALT_BYTES)
        now = datetime.now(UTC)
        made = cls(
            id=identity,
            name=name,
            scopes=scopes,
            salt=salt.hex(),
            digest=_digest(salt, secret),
            created_at=now,
            expires_at=None if days is None else now + timedelta(days=days),
            rate_per_s=rate_per_s,
        )
        return made, f"{_PREFIX}_{identity}_{secret}"

    def matches(self, secret: str) -> bool:
        """Tell whether a secret is this key's, in a time that does not depend on it."""
        return hmac.compare_digest(_digest(bytes.fromhex(self.salt), secret), self.digest)

    def allows(self, scope: str) -> bool:
        """Tell whether it may do what wants this scope."""
        return scope in self.scopes or "admin" in self.scopes

    def has_expired(self, at: datetime) -> bool:
        """Tell whether its time is over."""
        return self.expires_at is not None and at >= self.expires_at


def read_key(held: str) -> tuple[str, str] | None:
    """Return id and secret of what somebody holds; None where it is no key of ours."""
    found = _HELD.fullmatch(held)
    return (found[1], found[2]) if found else None


def _digest(salt: bytes, secret: str) -> str:
    return hmac.digest(salt, secret.encode(), "sha256").hex()
