"""The model: one encoder, pooled once, and heads side by side on the pooled vector.

Each head reads the pooled vector and none reads another, so the number of heads costs almost nothing and one
backward pass trains them all. What the text's word pieces say by themselves may be added to a head's logits. It does not know texts,
losses or the search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from training.fit_settings import HeadLoss
from training.network.encoder import build_encoder
from training.network.ordinal import class_log_probabilities
from training.network.packed import ATTENTION, HALVES, PACKED_TYPES, Packing, has_kernel, pack
from training.network.word_pieces import WordPieces

MODEL_TYPE = "twohead"


class TwoHeadConfig(PreTrainedConfig):
    """What the network is: its encoder, how it pools, and its heads.

    Args:
        encoder: The encoder's own configuration, or its dictionary.
        heads: One dictionary a head: `name`, `classes` (in order), `hidden_size` (0 = linear), `dropout`, `loss` if it is `corn`, and
            `word_pieces` if weights of the text's pieces are added to its logits.
        pooling: `cls` (first token), `pooler` (the encoder's own layer on it) or `mean` (of real tokens).
        letters: Beside pieces runs of letters have weights.
    """

    model_type = MODEL_TYPE
    sub_configs = {"encoder": AutoConfig}

    encoder: Any = None
    heads: Any = None
    pooling: str = "mean"
    letters: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder, Mapping):
            self.encoder = AutoConfig.for_model(**dict(self.encoder))
        elif self.encoder is None:
            # transformers makes an empty configuration when it prints only what differs from the defaults.
            self.encoder = AutoConfig.for_model("bert")
        self.heads = [dict(head) for head in self.heads or ()]
        super().__post_init__(**kwargs)


@dataclass
class TwoHeadOutput(ModelOutput):
    """What the model answers.

    Attributes:
        logits: Head name → (texts, classes of that head).
        pooled: The vector every head read, (texts, width).
    """

    logits: dict[str, torch.Tensor] | None = None
    pooled: torch.Tensor | None = None


class Head(nn.Module):
    """Dropout and one linear layer, or with `hidden_size` a hidden layer with GELU between two.

    Args:
        width: Size of the pooled vector.
        classes: Number of classes.
        hidden_size: Units of the hidden layer; 0 for none.
        dropout: Before each linear layer.
        loss: With `corn` the logits are the log-probabilities that its chain gives the classes.
    """

    def __init__(self, width: int, classes: int, hidden_size: int, dropout: float, loss: HeadLoss = "softmax") -> None:
        super().__init__()
        self.loss = loss
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, hidden_size) if hidden_size else None
        self.output = nn.Linear(hidden_size or width, classes - 1 if loss == "corn" else classes)

    def say_nothing(self) -> None:
        """Find all classes alike until something is learned: a head that scores are added to begins with them alone.

        Source: Zhang, Dauphin and Ma 2019, Fixup Initialization (arXiv 1901.09321), for branches that begin at 0.
        """
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if self.loss == "corn":
            # Of the classes from k - 1 on, all but one are above it.
            with torch.no_grad():
                self.output.bias.copy_(torch.arange(len(self.output.bias), 0, -1).log())

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map pooled vectors (texts, width) to logits (texts, classes)."""
        # An encoder may compute more coarsely than its heads.
        pooled = pooled.to(self.output.weight.dtype)
        if self.hidden is not None:
            pooled = nn.functional.gelu(self.hidden(self.dropout(pooled)))
        logits: torch.Tensor = self.output(self.dropout(pooled))
        return class_log_probabilities(logits.float()) if self.loss == "corn" else logits


class TwoHeadBert(PreTrainedModel):
    """Any BERT-family encoder with classification heads side by side.

    `save_pretrained` and `from_pretrained` round-trip bit for bit; `from_pretrained` also reads a published version.
    """

    config_class = TwoHeadConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: TwoHeadConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config.encoder, config.pooling)
        width = int(config.encoder.hidden_size)
        # A list, not a ModuleDict: that refuses names like "type" or "values", which are fine names for a head.
        self.head_names = tuple(str(head["name"]) for head in config.heads)
        self.heads = nn.ModuleList(
            Head(width, len(head["classes"]), head["hidden_size"], head["dropout"], head.get("loss", "softmax")) for head in config.heads
        )
        scored = [(str(head["name"]), len(head["classes"])) for head in config.heads if head.get("word_pieces")]
        ends = [0, *accumulate(classes for _, classes in scored)]
        #: Head → its columns among those of `word_pieces`.
        self.scored: dict[str, slice] = {name: slice(*place) for (name, _), place in zip(scored, pairwise(ends), strict=True)}
        self.word_pieces = WordPieces(int(config.encoder.vocab_size), ends[-1], letters=config.letters) if scored else None
        self.post_init()

    def begin_with_scores(self) -> None:
        """Let the heads that word pieces speak for begin with what these say."""
        for name, head in zip(self.head_names, self.heads, strict=True):
            if name in self.scored and isinstance(head, Head):
                head.say_nothing()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leave each part as its own class made it: the encoder and torch's linear layers know best."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
        packing: Packing | None = None,
        piece_scores: torch.Tensor | None = None,
        **_: Any,
    ) -> TwoHeadOutput:
        """Answer every head's question with one pass through the encoder.

        Args:
            input_ids: Token ids, (texts, tokens); with a packing that says so a stream, (1, tokens of all texts).
            attention_mask: 1 for a real token, (texts, tokens).
            inputs_embeds: Instead of `input_ids`: what the encoder's first layer reads, (texts, tokens, width).
            pooled: Instead of both: vectors pooled earlier, (texts, width); the encoder is skipped.
            packing: Of `attention_mask` or of the stream, where it is known already.
            piece_scores: What `word_pieces` said earlier, (texts, classes of all heads that have weights); needed where there are such
                heads and no `input_ids`.

        Raises:
            ValueError: They are missing.
        """
        packing = packing or (pack(attention_mask) if pooled is None and self.packs and attention_mask is not None else None)
        if pooled is None:
            pooled = self.read(input_ids, attention_mask, inputs_embeds, packing)
        logits = {name: head(pooled) for name, head in zip(self.head_names, self.heads, strict=True)}
        if self.word_pieces is not None:
            scores = self._scores(input_ids, attention_mask, packing) if piece_scores is None else piece_scores
            logits |= {name: logits[name] + scores[:, place] for name, place in self.scored.items()}
        return TwoHeadOutput(logits=logits, pooled=pooled)

    def read(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """Return each text's pooled vector, (texts, width), for whoever asks no head; see `forward`."""
        if packing is not None:
            return self._pooled_without_padding(input_ids, inputs_embeds, packing)
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)
        return self.pool(output, attention_mask)

    def _scores(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, packing: Packing | None) -> torch.Tensor:
        pieces: Any = self.word_pieces
        if input_ids is None:
            raise ValueError(f"heads {', '.join(self.scored)} read word pieces too: give input_ids, or piece_scores")
        found: torch.Tensor
        if packing is None:
            found = pieces.of_padded(input_ids, attention_mask)
        else:
            found = pieces.of_stream(packing.stream(input_ids)[0], packing.begins.long())[packing.places]
        return found

    @property
    def packs(self) -> bool:
        """Whether padding is left out on the way through the encoder; see `packed`. An exporter follows every step, and gets it padded."""
        encoder: Any = self.encoder
        # Any other implementation of attention would take the stream for one long text.
        is_able = encoder.config._attn_implementation == ATTENTION and self.config.encoder.model_type in PACKED_TYPES
        is_followed = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]  # it is in its documentation
        weight = next(self.parameters())
        # Without its kernel a GPU would compute attention length by length, and wait for each.
        is_half = torch.is_autocast_enabled("cuda") or weight.dtype in HALVES
        is_fast = weight.device.type == "cpu" or (not self.training and is_half and has_kernel(weight.device))
        return is_able and is_fast and not is_followed

    def _pooled_without_padding(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, packing: Packing) -> torch.Tensor:
        ids = None if input_ids is None else packing.stream(input_ids)
        config = self.config.encoder
        output = self.encoder(
            input_ids=ids,
            inputs_embeds=None if inputs_embeds is None else packing.stream(inputs_embeds),
            position_ids=packing.positions(ids, config.model_type, int(config.pad_token_id or 0)),
            packing=packing,
        )
        hidden: torch.Tensor = output.last_hidden_state
        if self.config.pooling == "mean":
            return packing.means(hidden)
        firsts = packing.firsts(hidden)
        pooler: Any = self.encoder.pooler if self.config.pooling == "pooler" else None
        return firsts if pooler is None else pooler(firsts[:, None])

    def pool(self, output: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Turn the encoder's output (texts, tokens, width) into one vector a text, (texts, width)."""
        if self.config.pooling == "pooler":
            pooled: torch.Tensor = output.pooler_output
            return pooled
        hidden: torch.Tensor = output.last_hidden_state
        if self.config.pooling == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(dim=1)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


def make_config(encoder_config: Any, pooling: str, heads: Sequence[Mapping[str, Any]], *, letters: bool = False) -> TwoHeadConfig:
    """Describe a model over an encoder; see `TwoHeadConfig` for the heads' keys and for letters."""
    encoder = encoder_config.to_dict()
    # Where the encoder lay on the training machine is nobody's business.
    encoder.pop("_name_or_path", None)
    # Saved in half precision or not, it is trained in float32: updates of half weights round to nothing. What is computed in less decides
    # `fit.precision`.
    if encoder.get("dtype"):
        encoder["dtype"] = "float32"
    return TwoHeadConfig(encoder=encoder, heads=[dict(head) for head in heads], pooling=pooling, letters=letters)


AutoConfig.register(MODEL_TYPE, TwoHeadConfig, exist_ok=True)
AutoModel.register(TwoHeadConfig, TwoHeadBert, exist_ok=True)
