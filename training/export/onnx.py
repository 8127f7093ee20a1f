"""A version as one ONNX graph, in float32 and with 8-bit weights.

Inputs are `input_ids` and `attention_mask`, (texts, tokens), int64; each head is an output of its own name, (texts, classes), float32,
whose probabilities are softmax(logits / temperature) as everywhere. It does not know versions or which texts the graphs are tried on.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from training.errors import ExportError
from training.export.parity import Forward
from training.network.inputs import Batch

if TYPE_CHECKING:
    from training.network.model import TwoHeadBert

GRAPH_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
INPUTS = ("input_ids", "attention_mask")
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
# An ONNX file is one protobuf message, which ends at 2 GiB; larger weights stand in a file beside it.
MOST_GRAPH_BYTES = 1_900_000_000


class _Outputs(nn.Module):
    """The model with its heads' logits in a row, as a graph has its outputs."""

    def __init__(self, model: "TwoHeadBert") -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model(input_ids, attention_mask).logits.values())


def require_onnx() -> None:
    """Check that what writes and tries a graph is installed.

    Raises:
        ExportError: A package is missing.
    """
    from importlib.util import find_spec

    for name in LIBRARIES:
        if find_spec(name) is None:
            raise ExportError(
                f"--onnx needs the packages {', '.join(LIBRARIES)}, but {name!r} is not installed", "pip install 'twohead[onnx]'"
            )


def write_graph(model: "TwoHeadBert", path: Path) -> None:
    """Write the float32 graph.

    Args:
        model: In evaluation mode, on the CPU.
        path: The file; weights beyond 2 GB stand beside it in a file of the same name with `.data` after it.

    Raises:
        ExportError: Torch cannot write this encoder, or a head has the name of an input.
    """
    for name in model.head_names:
        if name in INPUTS:
            raise ExportError(f"head {name!r} has the name of an input of the graph", f"heads may have any name but {', '.join(INPUTS)}")
    # Two texts: the exporter takes a dimension of 1 for a constant.
    ids = torch.full((2, 7), 1, dtype=torch.int64)
    axes = {0: "texts", 1: "tokens"}
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                _Outputs(model).eval(),
                (ids, torch.ones_like(ids)),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=list(model.head_names),
                dynamic_shapes=(axes, axes),
                custom_translation_table={torch.ops.aten.log_sigmoid.default: _log_sigmoid},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        kind = model.config.encoder.model_type
        raise ExportError(f"encoder type {kind!r}: torch cannot write it as a graph ({str(error).splitlines()[0]})") from error
    _tidy(program.model)
    program.save(str(path), external_data=_is_large(model))


def write_int8(model: "TwoHeadBert", source: Path, path: Path) -> None:
    """Write the graph with 8-bit weights; activations are quantised while it computes, batch by batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            # Seven of the eight bits: where a processor has no VNNI, sums of two full products overflow 16 bits.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_is_large(model),
        )


def torch_forward(model: "TwoHeadBert") -> Forward:
    """Return the model's own forward pass."""

    def forward(batch: Batch) -> dict[str, Any]:
        with torch.inference_mode():
            return {head: logits.float().numpy() for head, logits in model(**batch).logits.items()}

    return forward


def graph_forward(path: Path) -> Forward:
    """Return the forward pass of a graph file, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def forward(batch: Batch) -> dict[str, Any]:
        found = session.run(names, {name: batch[name].numpy() for name in INPUTS})
        return {name: np.asarray(logits, np.float32) for name, logits in zip(names, found, strict=True)}

    return forward


def _log_sigmoid(steps: Any) -> Any:
    """Translate log_sigmoid so that it stays finite; the exporter's log(sigmoid(x)) is -inf below -88."""
    from onnxscript import opset20

    return opset20.Neg(opset20.Softplus(opset20.Neg(steps)))


def _tidy(graph_model: Any) -> None:
    """Drop traces of the exporting machine, and give inner values other names than the outputs."""
    graph = graph_model.graph
    taken = {value.name for value in [*graph.inputs, *graph.outputs]}
    outputs = {id(value) for value in graph.outputs}
    parts = [graph_model, graph, *graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        parts += [node, *node.outputs]
        for value in node.outputs:
            # A head may be called `linear` or `add_1`, which the exporter calls its own values too.
            if value.name in taken and id(value) not in outputs:
                value.name = f"{value.name}.inner"
    for part in parts:
        part.metadata_props.clear()
        part.doc_string = None


def _is_large(model: "TwoHeadBert") -> bool:
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return bool(size_bytes > MOST_GRAPH_BYTES)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep notes of torch's and onnxruntime's own machinery from the command's output; errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
