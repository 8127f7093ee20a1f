"""What the manifest of an exported version says, and how a person reads it.

It does not know how an export is made.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.console import table
from training.export.parity import HeadParity
from training.manifest import Manifest

MOST_INT8_SHIFT = 0.02
LEAST_INT8_AGREEMENT = 0.995

Format = Literal["onnx", "hub-layout"]
Source = Literal["validation", "texts"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GraphFacts(_Facts):
    """One graph file.

    Attributes:
        precision: Of its weights.
        agrees: Its answers may stand for the version's.
        parity: Head → its differences from the version's answers in PyTorch.
    """

    precision: Literal["fp32", "int8"]
    agrees: bool
    parity: dict[str, HeadParity]


class OnnxFacts(_Facts):
    """The graphs of an export.

    Attributes:
        inputs: Names of the graphs' inputs, (texts, tokens), int64.
        outputs: Names of the outputs: the heads.
        compared_on: The version's validation split, or other texts that were given.
        texts: How many.
        graphs: File name → its facts.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compared_on: Source
    texts: int
    graphs: dict[str, GraphFacts]


class ExportFacts(_Facts):
    """The section `export` of the folder's manifest.

    Attributes:
        version: Its number in the registry.
        weights_sha256: Digest of that version's weights file.
        exported: When, ISO 8601 in UTC.
        formats: What the folder can be loaded as.
        libraries: What wrote it.
        onnx: Facts of the graphs, if there are any.
    """

    version: int
    weights_sha256: str
    exported: str
    formats: tuple[Format, ...]
    libraries: dict[str, str]
    onnx: OnnxFacts | None = None


class ExportManifest(Manifest):
    """`manifest.json` of an export: the version's facts, this folder's files, and how it was made."""

    export: ExportFacts


def disagreements(parity: Mapping[str, HeadParity]) -> list[str]:
    """Say of which heads an 8-bit graph's answers must not stand for the version's, and why."""
    return [
        f"head {head!r} answers {100 * found.equal_answers:.2f} % of the texts alike and moves a probability by up to {found.largest:.3f}"
        for head, found in parity.items()
        # Written so that NaN disagrees as well.
        if not (found.equal_answers >= LEAST_INT8_AGREEMENT and found.largest <= MOST_INT8_SHIFT)
    ]


def describe(manifest: ExportManifest) -> str:
    """Lay out how far the graphs' answers are from the version's, with a warning for each head that disagrees."""
    export = manifest.export
    lines = [f"version {export.version} as {' and '.join(export.formats)}: {', '.join(manifest.files)}"]
    if export.onnx is None:
        return lines[0]
    source = "validation texts" if export.onnx.compared_on == "validation" else "texts"
    lines.append(f"\nanswers compared with PyTorch's on {export.onnx.texts} {source}:")
    rows = [
        [file, head, f"{found.largest:.1e}", f"{found.mean:.1e}", f"{100 * found.equal_answers:.2f} %"]
        for file, graph in export.onnx.graphs.items()
        for head, found in graph.parity.items()
    ]
    lines.append(table(["graph", "head", "largest shift", "mean shift", "equal answers"], rows, right=(2, 3, 4)))
    for file, graph in export.onnx.graphs.items():
        if not graph.agrees:
            lines += [f"warning: {file} disagrees: {found}" for found in disagreements(graph.parity)]
            lines.append(
                f"         an 8-bit graph agrees with {100 * LEAST_INT8_AGREEMENT} % equal answers and shifts of at most {MOST_INT8_SHIFT}"
            )
    return "\n".join(lines)
