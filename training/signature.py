"""Signatures of versions: who holds the private key says that a manifest, and with it every file that it names, is theirs.

    openssl genpkey -algorithm ed25519 -out signing.pem
    openssl pkey -in signing.pem -pubout

The second command prints what `cluster.trusted_keys` takes, between its first line and its last. Digests alone tell of accidents: who can
write to the storage can write new digests too. It does not know where manifests and signatures are kept.

Source:
    RFC 8032, Edwards-Curve Digital Signature Algorithm (EdDSA).
"""

import base64
from collections.abc import Sequence
from pathlib import Path

from training.errors import CheckpointError

SIGNATURE_FILE = "manifest.sig"
_KEY_BYTES = 32


def sign(content: bytes, key_file: Path) -> bytes:
    """Sign a manifest's bytes.

    Args:
        content: Of `manifest.json`.
        key_file: An Ed25519 private key as PEM, without a passphrase.

    Returns:
        64 bytes.

    Raises:
        CheckpointError: The file holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    hint = "openssl genpkey -algorithm ed25519 -out signing.pem"
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except OSError as error:
        raise CheckpointError(f"{key_file}: {error.strerror}", hint) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # What the library says may show parts of the key.
        raise CheckpointError(f"{key_file}: is not a private key as PEM without a passphrase", hint) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CheckpointError(f"{key_file}: is another kind of key, but must be an Ed25519 one", hint)
    return key.sign(content)


def require_signature(content: bytes, signature: bytes | None, trusted: Sequence[str], where: str) -> None:
    """Check that one of the trusted keys signed a manifest's bytes.

    Args:
        content: Of `manifest.json`.
        signature: Of the file beside it; null where there is none.
        trusted: Public keys, as base64 of their SubjectPublicKeyInfo; without any, nothing is asked for.
        where: For the message.

    Raises:
        CheckpointError: There is no signature, or none of the keys made it.
    """
    if not trusted:
        return
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    hint = "publish it again, with --sign and the private key of one of cluster.trusted_keys"
    if signature is None:
        raise CheckpointError(f"{where}: is not signed, but cluster.trusted_keys asks for it", hint)
    for text in trusted:
        # What stands before the key's own bytes is the same for every Ed25519 key (RFC 8410); the settings ask for it.
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text)[-_KEY_BYTES:])
        try:
            key.verify(signature, content)
        except InvalidSignature:
            continue
        return
    raise CheckpointError(f"{where}: none of cluster.trusted_keys signed it as it is now", hint)
