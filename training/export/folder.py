"""A version in another format: a folder for onnxruntime, for plain transformers, or for both.

The folder has a manifest of its own: the version's, with the digests of the folder's files and a section `export` that says
which version it was, in which formats it is, and how far its answers are from the version's. Its tokenizer cuts at the version's
token limit, and the model card, if the version has one, says how it is used. The version is never changed. The folder appears when it is
whole. It does not know how a graph or the code for transformers is made.
"""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.storage import sha256_file
from training.checkpoint import CARD_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE, load_model, load_tokenizer
from training.errors import DataError, ExportError
from training.export.facts import ExportFacts, ExportManifest, Format, GraphFacts, OnnxFacts, Source, disagreements
from training.export.hub import write_hub_layout
from training.export.parity import HeadParity, answer_all, compare
from training.manifest import MANIFEST_FILE, FileFacts, Manifest, read_manifest
from training.network.inputs import TokenInputs
from training.report.card import USE, how_to_use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.settings import TrainingSettings

# Each is written in both formats and compared by the tests.
EXPORTED_TYPES = ("bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
MOST_FP32_SHIFT = 1e-4


@dataclass(frozen=True)
class ParityTexts:
    """Texts to compare answers on.

    Attributes:
        source: Where they come from.
        texts: As the version's template makes them.
    """

    source: Source
    texts: tuple[str, ...]


def validation_texts(settings: "TrainingSettings", manifest: Manifest) -> ParityTexts:
    """Take the validation texts of the data a version was trained on.

    Raises:
        ExportError: The settings name other data, or data that cannot be read.
    """
    from training.data.dataset import load_dataset

    hint = "set training.data to the version's own tables and split, or give --texts FILE with one text on each line"
    try:
        dataset = load_dataset(settings)
    except DataError as error:
        raise ExportError(f"the version's validation texts are needed to compare answers: {error.message}", hint) from error
    if dataset.digest != manifest.data_digest:
        raise ExportError(
            f"training.data has SHA-256 {dataset.digest[:12]}…, but the version was trained on {manifest.data_digest[:12] or 'unknown'}…, "
            "so its validation texts cannot be taken to compare answers",
            hint,
        )
    return ParityTexts("validation", dataset.validation.texts)


def file_texts(path: Path) -> ParityTexts:
    """Read texts from a file, one on each line; empty lines are skipped.

    Raises:
        ExportError: It cannot be read, or holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ExportError(f"--texts {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ExportError(f"--texts {path}: is not UTF-8 (byte {error.start})", "convert it") from None
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise ExportError(f"--texts {path}: holds no text", "one text on each line, as the version's template makes them")
    return ParityTexts("texts", texts)


def write_export(
    version_folder: Path, version: int, out: Path, compared_on: ParityTexts | None, *, with_hub_layout: bool = False
) -> ExportManifest:
    """Write a version in one format or both into a new folder.

    Args:
        version_folder: A verified version, as `Registry.fetch` gives it.
        version: Its number.
        out: The folder; must not exist, or be empty.
        compared_on: Asks for graphs: the texts to compare their answers on.
        with_hub_layout: Asks for what plain transformers loads.

    Raises:
        ExportError: The folder is taken, the encoder cannot be exported, or the float32 graph answers differently.
    """
    manifest = read_manifest(version_folder)
    if manifest.encoder.model_type not in EXPORTED_TYPES:
        raise ExportError(f"encoder type {manifest.encoder.model_type!r} cannot be exported; types: {', '.join(EXPORTED_TYPES)}")
    asked: dict[Format, bool] = {"onnx": compared_on is not None, "hub-layout": with_hub_layout}
    formats = tuple(name for name, is_asked in asked.items() if is_asked)
    with _appearing(out) as folder:
        # A report, which may hold texts, stays where it is.
        for name in TOKENIZER_FILES & set(manifest.files):
            shutil.copyfile(version_folder / name, folder / name)
        _limit_tokens(folder / TOKENIZER_CONFIG_FILE, manifest.max_tokens)
        _write_card(version_folder / CARD_FILE, folder / CARD_FILE)
        onnx = _write_onnx(version_folder, folder, manifest, compared_on) if compared_on is not None else None
        if with_hub_layout:
            write_hub_layout(version_folder, folder)
        files = {file.name: FileFacts(sha256=sha256_file(file), size_bytes=file.stat().st_size) for file in sorted(folder.iterdir())}
        export = ExportFacts(
            version=version,
            weights_sha256=manifest.files[WEIGHTS_FILE].sha256,
            exported=datetime.now(UTC).isoformat(timespec="seconds"),
            formats=formats,
            libraries=_libraries(formats),
            onnx=onnx,
        )
        written = ExportManifest(**dict(manifest) | {"files": files, "digest": None}, export=export)
        (folder / MANIFEST_FILE).write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return written


def _limit_tokens(config_file: Path, max_tokens: int) -> None:
    """Let the tokenizer cut where training did when it is asked to: we cut ourselves, and keep its own limit out of the way."""
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"model_max_length": max_tokens}
    config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_card(card: Path, out: Path) -> None:
    """Copy a version's card, if it has one, and add how it is used where that was written before cards said so."""
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        is_said = USE in text.splitlines()
        out.write_text(text if is_said else f"{text.rstrip()}\n\n{how_to_use()}\n", encoding="utf-8")


def _libraries(formats: Sequence[Format]) -> dict[str, str]:
    from training.export.onnx import LIBRARIES

    names = ("torch", "transformers", *(LIBRARIES if "onnx" in formats else ()))
    return {name: library_version(name) for name in names}


def _write_onnx(version_folder: Path, folder: Path, manifest: Manifest, compared_on: ParityTexts) -> OnnxFacts:
    from training.export.onnx import GRAPH_FILE, INPUTS, INT8_FILE, graph_forward, torch_forward, write_graph, write_int8

    model = load_model(version_folder)
    tokenizer = load_tokenizer(version_folder, manifest)
    inputs = TokenInputs(tokenizer.encode(compared_on.texts), tokenizer.pad_id)
    expected = answer_all(torch_forward(model), inputs, manifest.heads)
    write_graph(model, folder / GRAPH_FILE)
    exact = compare(expected, answer_all(graph_forward(folder / GRAPH_FILE), inputs, manifest.heads))
    require_equal(exact)
    write_int8(model, folder / GRAPH_FILE, folder / INT8_FILE)
    rounded = compare(expected, answer_all(graph_forward(folder / INT8_FILE), inputs, manifest.heads))
    return OnnxFacts(
        inputs=INPUTS,
        outputs=tuple(head.name for head in manifest.heads),
        compared_on=compared_on.source,
        texts=len(compared_on.texts),
        graphs={
            GRAPH_FILE: GraphFacts(precision="fp32", agrees=True, parity=exact),
            INT8_FILE: GraphFacts(precision="int8", agrees=not disagreements(rounded), parity=rounded),
        },
    )


def require_equal(parity: Mapping[str, HeadParity]) -> None:
    """Refuse a float32 graph whose answers are not the version's.

    Raises:
        ExportError: A probability moved too far, or an answer changed that was not a toss-up.
    """
    for head, found in parity.items():
        # Written so that NaN is refused as well.
        if not found.largest <= MOST_FP32_SHIFT or found.clear_changes:
            raise ExportError(
                f"head {head!r}: the float32 graph moves a probability by {found.largest:.1e} and changes {found.clear_changes} "
                f"clear answers, but may move one by at most {MOST_FP32_SHIFT:.0e} and change none",
                "nothing was written; please report this with the encoder's name",
            )


@contextmanager
def _appearing(out: Path) -> "Iterator[Path]":
    """Give a draft folder beside `out` that becomes `out` at the end, or vanishes after an error."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ExportError(f"--out {out}: exists already, but must be a new or an empty folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = out.parent / f".{out.name}-{uuid.uuid4().hex}"
        draft.mkdir()
        try:
            yield draft
            draft.replace(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"{error.filename or out}: {error.strerror or error}") from error
