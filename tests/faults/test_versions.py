"""Versions that are whole but not what they were: made by nobody who is trusted, or answering otherwise than when they were made."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from cluster.settings import ClusterSettings
from tests.small_searches import training_here
from training.checkpoint import load_model, write_checkpoint
from training.data.tokens import Tokenizer, make_token_table
from training.errors import CheckpointError
from training.fitting.predict import predict_logits
from training.golden import Golden
from training.manifest import ModelFacts, read_manifest
from training.network.inputs import TokenInputs
from training.registry import Registry

TEXTS = ["the nurse", "a driver and the sales teacher", "school"]


def write_key(path: Path) -> tuple[Path, str]:
    """Write a private key as openssl does; returns its file, and what `cluster.trusted_keys` takes."""
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*pem))
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return path, base64.b64encode(public).decode()


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., ClusterSettings]:
    return lambda *trusted: ClusterSettings(storage=str(tmp_path / "storage"), trusted_keys=trusted)


def test_c18_what_a_trusted_key_signed_is_promoted_and_loaded(
    place: Callable[..., ClusterSettings], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (other, old), (key, new) = write_key(tmp_path / "old.pem"), write_key(tmp_path / "new.pem")
    registry = Registry.of(place(old, new))
    version = registry.publish(tiny_checkpoint, key)
    registry.promote(version)
    fetched = registry.fetch(version, tmp_path / "fetched")
    # What was fetched keeps its signature, or gets that of whoever publishes it again.
    assert registry.publish(fetched) == version + 1
    assert registry.publish(fetched, other) == version + 2
    registry.promote(version + 1)
    for trusted, good in ((new, version + 1), (old, version + 2)):
        Registry.of(place(trusted)).promote(good)
    with pytest.raises(CheckpointError, match="none of"):
        Registry.of(place(new)).promote(version + 2)


def test_c18_what_nobody_signed_is_refused(place: Callable[..., ClusterSettings], tiny_checkpoint: Path, tmp_path: Path) -> None:
    version = Registry.of(place()).publish(tiny_checkpoint)
    registry = Registry.of(place(write_key(tmp_path / "key.pem")[1]))
    for action in (lambda: registry.promote(version), lambda: registry.fetch(version, tmp_path / "fetched")):
        with pytest.raises(CheckpointError, match=r"version 1: is not signed, but cluster\.trusted_keys asks for it"):
            action()
    assert registry.history("production") == []


def test_c18_what_a_stranger_signed_or_changed_is_refused(
    place: Callable[..., ClusterSettings], make_checkpoint: Callable[[int], Path], tmp_path: Path
) -> None:
    (key, trusted), (strange, _) = write_key(tmp_path / "key.pem"), write_key(tmp_path / "strange.pem")
    registry = Registry.of(place(trusted))
    registry.publish(make_checkpoint(0), strange)
    registry.publish(make_checkpoint(1), key)
    registry.publish(make_checkpoint(2), key)
    # A whole version, its digests right, with the signature of another.
    folders = [Path(registry.place(version)) for version in (2, 3)]
    (folders[1] / "manifest.sig").write_bytes((folders[0] / "manifest.sig").read_bytes())
    for version in (1, 3):
        with pytest.raises(CheckpointError, match=rf"version {version}: none of cluster\.trusted_keys signed it as it is now"):
            registry.fetch(version, tmp_path / f"fetched-{version}")
    registry.fetch(2, tmp_path / "fetched")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n"])
def test_c18_a_file_without_a_key_signs_nothing(
    place: Callable[..., ClusterSettings], tiny_checkpoint: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    registry = Registry.of(place())
    with pytest.raises(CheckpointError, match=r"key\.pem: is not a private key"):
        registry.publish(tiny_checkpoint, tmp_path / "key.pem")
    assert registry.versions() == []


def test_c18_another_kind_of_key_signs_nothing(place: Callable[..., ClusterSettings], tiny_checkpoint: Path, tmp_path: Path) -> None:
    key, none = generate_private_key(65_537, 2_048), serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none)
    (tmp_path / "key.pem").write_bytes(pem)
    with pytest.raises(CheckpointError, match="is another kind of key"):
        Registry.of(place()).publish(tiny_checkpoint, tmp_path / "key.pem")


@pytest.fixture
def with_golden(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[float], Path]:
    """Write the checkpoint again with golden texts, one stored logit so far from what the model answers."""

    def write(shift: float) -> Path:
        manifest, model = read_manifest(tiny_checkpoint), load_model(tiny_checkpoint)
        tokenizer = Tokenizer(tiny_checkpoint, manifest.max_tokens)
        rows = [ids for ids, _ in tokenizer.rows(TEXTS)]
        table = make_token_table(rows, [len(row) for row in rows])
        logits = {head: np.array(values) for head, values in predict_logits(model, TokenInputs(table, tokenizer.pad_id), 64).items()}
        logits["education"][1, 2] += shift
        folder = tmp_path / f"golden-{shift}"
        folder.mkdir()
        facts: dict[str, Any] = {name: getattr(manifest, name) for name in ModelFacts.model_fields}
        write_checkpoint(folder, model, tokenizer, ModelFacts(**facts), golden=Golden(rows, logits))
        return folder

    return write


def test_c17_a_version_that_answers_otherwise_than_it_did_is_not_promoted(
    place: Callable[..., ClusterSettings], with_golden: Callable[[float], Path], tmp_path: Path
) -> None:
    settings, registry = tmp_path / "ray_config.yaml", Registry.of(place())
    settings.write_text(f"cluster: {{storage: {tmp_path / 'storage'}}}\n")
    registry.publish(with_golden(0.0))
    registry.publish(with_golden(0.002))
    promoted = training_here(settings, "promote", "1")
    assert promoted.stdout.splitlines() == ["version 1 answers 3 golden texts as it did when it was made", "production → version 1"]
    refused = training_here(settings, "promote", "2")
    assert refused.returncode == 2, refused.stderr
    assert "version 2: does not answer its golden texts as it did when it was made: a probability of head 'education' is" in refused.stderr
    assert registry.names() == {"production": 1}
