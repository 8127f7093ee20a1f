"""Freezes the encoder's lower layers, computes them once, and takes them out of the model that trains.

A frozen layer runs without dropout, so what it says of a text never changes: it is computed once for all epochs and trials. It does
not know heads, labels or Ray. The idea is old (see e.g. Brock et al. 2017, FreezeOut); the way to skip layers inside any
architecture, stand-ins that hand their input through, is ours.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training.data.tokens import TokenTable
from training.errors import EncoderError
from training.network.encoder import encoder_layers
from training.network.inputs import ActivationInputs, Inputs, PooledInputs, TokenInputs, plan_batches
from training.network.model import TwoHeadBert
from training.network.packed import pack

# Parts of an encoder that come after its layers, and so can train while lower layers are frozen.
_AFTER_LAYERS = ("pooler", "final_norm")
# Parts that are applied between the embeddings and the first layer, or to all layers alike.
_BEFORE_LAYERS = ("embeddings_project",)


class _Reached(Exception):
    """No error: ends a forward pass at the layer we wanted."""


class _SkippedEmbeddings(nn.Module):
    def forward(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor | None:
        return inputs_embeds


class _SkippedLayer(nn.Module):
    """Stands where a frozen layer stood; MPNet and DeBERTa expect a tuple back, ModernBERT reads `attention_type`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)
        self.answers_tuple = type(layer).__name__ in ("MPNetLayer", "DebertaV2Layer")

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, None) if self.answers_tuple else hidden_states


class _SkippedConvolution(nn.Module):
    """DeBERTa-v2's convolution joins the embeddings to the first layer's output, which is frozen here."""

    def forward(self, _: torch.Tensor, residual: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        return residual


def freeze(model: TwoHeadBert, depth: int) -> None:
    """Stop training of the embeddings and the lowest `depth` layers.

    Args:
        model: Changed in place.
        depth: 0 trains the whole encoder; the number of its layers trains only the heads.

    Raises:
        EncoderError: The encoder has fewer layers.
    """
    layers = encoder_layers(model.encoder)
    if depth > len(layers):
        raise EncoderError(f"training.fit.frozen_layers is {depth}, but the encoder has {len(layers)} layers")
    if depth == 0:
        return
    model.encoder.requires_grad_(False)
    if depth < len(layers):
        for layer in layers[depth:]:
            layer.requires_grad_(True)
        for name in _AFTER_LAYERS:
            part = getattr(model.encoder, name, None)
            if part is not None:
                part.requires_grad_(True)


def prefix_rows(
    model: TwoHeadBert, table: TokenTable, pad_id: int, depths: Sequence[int], batch_tokens: int = 4096
) -> dict[int, torch.Tensor]:
    """Encode every text once with the frozen lower layers.

    Args:
        model: With its encoder whole; used in evaluation mode.
        table: The texts.
        pad_id: Token that fills batches.
        depths: Numbers of frozen layers, each at least 1; one pass serves them all.
        batch_tokens: Most tokens at once, padding included.

    Returns:
        By depth: pooled vectors (texts, width) when all layers are frozen, else the input of layer `depth`, (tokens, width); float32, on
        the CPU.
    """
    tokens = TokenInputs(table, pad_id)
    device = next(model.parameters()).device
    model.eval()
    rows: dict[int, list[torch.Tensor]] = {depth: [torch.empty(0)] * len(table) for depth in depths}
    for indices in plan_batches(table.lengths, batch_tokens, batch_texts=512):
        batch = {name: tensor.to(device) for name, tensor in tokens.batch(indices).items()}
        with torch.no_grad():
            hidden = _at_depths(model, batch, depths)
        for depth in depths:
            for index, row in zip(indices, hidden[depth], strict=True):
                rows[depth][index] = row[None] if row.dim() == 1 else row[: table.lengths[index]]
    return {depth: torch.cat(every) for depth, every in rows.items()}


def compute_prefix(model: TwoHeadBert, table: TokenTable, pad_id: int, depth: int, batch_tokens: int = 4096) -> Inputs:
    """Encode every text once and return what the rest of the model reads; see `prefix_rows`."""
    rows = prefix_rows(model, table, pad_id, [depth], batch_tokens)[depth]
    return PooledInputs(rows, table.lengths) if depth == len(encoder_layers(model.encoder)) else ActivationInputs(rows, table.offsets)


def _at_depths(model: TwoHeadBert, batch: dict[str, torch.Tensor], depths: Sequence[int]) -> dict[int, list[torch.Tensor]]:
    """Return each text's input of each layer asked for, (tokens, width), and for the number of layers its pooled vector, (width,).

    In float32, on the CPU: brought there together, for a GPU answers a thousand small requests slower than it computes.
    """
    layers = encoder_layers(model.encoder)
    packing = pack(batch["attention_mask"]) if model.packs else None
    last, found = max(depths), dict[int, list[torch.Tensor]]()

    def hook_of(depth: int) -> Any:
        def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden: torch.Tensor = (arguments[0] if arguments else named["hidden_states"]).float().cpu()
            found[depth] = list(hidden) if packing is None else packing.split(hidden)
            if depth == last:
                raise _Reached

        return note

    with ExitStack() as hooks:
        for depth in set(depths) - {len(layers)}:
            hooks.callback(layers[depth].register_forward_pre_hook(hook_of(depth), with_kwargs=True).remove)
        with suppress(_Reached):
            # No head is asked, and no word counted.
            found[len(layers)] = list(model.read(**batch, packing=packing).float().cpu())
    missing = set(depths) - set(found)
    if missing:
        raise EncoderError(f"encoder {type(model.encoder).__name__}: layer {min(missing)} was never reached")
    return found


def remove_prefix(model: TwoHeadBert, depth: int) -> None:
    """Take the frozen layers out, so that the model reads what `compute_prefix` made.

    The names of all remaining parameters stay as they were. Changes the model in place, for good.
    """
    encoder = model.encoder
    layers = encoder_layers(encoder)
    encoder.embeddings = _SkippedEmbeddings()
    for index in range(depth):
        layers[index] = _SkippedLayer(layers[index])
    for name in _BEFORE_LAYERS:
        if hasattr(encoder, name):
            setattr(encoder, name, nn.Identity())
    stack: Any = getattr(encoder, "encoder", None)
    if getattr(stack, "conv", None) is not None:
        stack.conv = _SkippedConvolution()


def has_prefix(model: TwoHeadBert) -> bool:
    """Tell whether a model still has its frozen layers, and so reads token ids."""
    return not isinstance(model.encoder.embeddings, _SkippedEmbeddings)


def rest_frozen(model: TwoHeadBert) -> None:
    """Put every part of a training model that does not train into evaluation mode: no dropout where nothing learns."""
    for module in model.encoder.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def recompute_layers(model: TwoHeadBert) -> None:
    """Let the layers that train keep nothing but their input in a forward pass, and compute the rest once more in the backward pass.

    Less memory for more compute, and the same gradients: what dropout drew is drawn again. Layers that are frozen keep nothing anyway.
    transformers' own switch looks for embeddings, which may have been taken out, lets gradients into frozen layers, which then keep what
    they compute, and is not there for MPNet.

    Args:
        model: Already frozen as deep as it will be, with or without its frozen layers; changed in place.
    """
    trained = [layer for layer in encoder_layers(model.encoder) if any(parameter.requires_grad for parameter in layer.parameters())]
    kinds = {kind: _recomputing(kind) for kind in {type(layer) for layer in trained}}
    for layer in trained:
        # In place: another module would change the names of parameters, and a way forward kept in it would keep it alive.
        layer.__class__ = kinds[type(layer)]


def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """Make the kind of layer that is like another one, and recomputes; of one that does already, itself."""

    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *arguments, **named)
        hidden = arguments[0] if arguments else named.pop("hidden_states")
        # Given by itself: the random numbers that are drawn again are those of the devices of what is given, not of what it goes with.
        return checkpoint(lambda states: kind.forward(self, states, *arguments[1:], **named), hidden, use_reentrant=False)

    return kind if hasattr(kind, "recomputes") else type(kind.__name__, (kind,), {"forward": forward, "recomputes": True})


def trainable_state(model: TwoHeadBert) -> dict[str, torch.Tensor]:
    """Copy the parameters that train, by name; buffers and frozen layers are left out."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trainable_state(model: TwoHeadBert, state: dict[str, torch.Tensor]) -> None:
    """Put trained parameters back into a model, whole or without its prefix.

    Raises:
        EncoderError: A parameter is unknown to the model or of another shape.
    """
    parameters = dict(model.named_parameters())
    for name in state:
        if name not in parameters or parameters[name].shape != state[name].shape:
            raise EncoderError(f"trained parameter {name!r} does not fit the model")
        with torch.no_grad():
            parameters[name].copy_(state[name])
