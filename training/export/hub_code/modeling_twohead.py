"""A twohead model: one pretrained encoder, pooled once, and classification heads side by side on the pooled vector.

It stands alone: it needs torch and transformers and nothing else. Probabilities of a head are softmax(logits / temperature), with the
temperature that `manifest.json` names for it.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from .configuration_twohead import TwoHeadConfig


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
    """Dropout and one linear layer, or with a hidden size a hidden layer with GELU between two.

    Args:
        width: Size of the pooled vector.
        facts: The head's dictionary in the configuration.
    """

    def __init__(self, width: int, facts: dict[str, Any]) -> None:
        super().__init__()
        hidden_size, classes = int(facts["hidden_size"]), len(facts["classes"])
        self.is_chain = facts.get("loss", "softmax") == "corn"
        self.dropout = nn.Dropout(facts["dropout"])
        self.hidden = nn.Linear(width, hidden_size) if hidden_size else None
        self.output = nn.Linear(hidden_size or width, classes - 1 if self.is_chain else classes)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map pooled vectors (texts, width) to logits (texts, classes); those of a CORN head are log-probabilities."""
        if self.hidden is not None:
            pooled = functional.gelu(self.hidden(self.dropout(pooled)))
        logits: torch.Tensor = self.output(self.dropout(pooled))
        if not self.is_chain:
            return logits
        # "Above class k, given above class k-1" (Shi, Cao and Raschka 2021): climb to a class, then stay.
        steps = logits.float()
        climbed = functional.pad(functional.logsigmoid(steps).cumsum(dim=-1), (1, 0))
        stayed = functional.pad(functional.logsigmoid(-steps), (0, 1))
        return climbed + stayed


# The prime that numbers runs of letters.
PRIME = 65_521


def letters_before(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last letters, four at most, of the word before each piece, as digits to the base 256, and how many they are."""
    tokens, earlier = rows.shape[-2], functional.pad(rows, (0, 0, 4, 0))
    last, length = earlier[..., :tokens, 4], earlier[..., :tokens, 5]
    for step in (1, 2, 3):
        own, count, room, goes_on = earlier[..., step : step + tokens, 4:].unbind(-1)
        last = (last * room + own) % 256**4
        length = (length * goes_on + count).clamp(max=4)
    return last, length


def crossing_runs(rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the runs of letters that end in each piece and begin before it, (texts, tokens, 10), 0 for none.

    Args:
        rows: Of each piece its first one to four letters, its last four, how many these are, what letters before them are multiplied by,
            and whether it goes on a word.
        ends: With how many letters of the piece a run ends, with how many before it it begins, and 256 to their powers, (4, 10).
    """
    before, length = letters_before(rows)
    goes_on, after_blank = rows[..., 7] > 0, before % 256 == 32
    own, count, shift, room = ends
    first = rows[..., own - 1]
    is_one_word = goes_on.unsqueeze(-1) | ((own == 1) & ~after_blank.unsqueeze(-1))
    number = before.unsqueeze(-1) % room * shift + first
    return torch.where(is_one_word & (first > 0) & (length.unsqueeze(-1) >= count), number % PRIME + 1, 0)


class WordPieces(nn.Module):
    """Weights of a text's word pieces, and of letters within its words, summed as if its TF-IDF vector had the length 1.

    Args:
        vocabulary: How many token ids there are.
        outputs: Classes of all heads that have weights, beside each other.
        letters: Runs of letters that cross the borders of pieces have weights too.
    """

    weights: torch.Tensor
    constants: torch.Tensor
    spelling: torch.Tensor
    run_ends: torch.Tensor
    run_weights: torch.Tensor
    reads_letters: torch.Tensor

    def __init__(self, vocabulary: int, outputs: int, letters: bool) -> None:
        super().__init__()
        self.letters = letters
        # The last columns are the squares of rarities: of each piece, and of its runs.
        columns = outputs + 2 if letters else outputs + 1
        self.register_buffer("weights", torch.zeros(vocabulary, columns))
        self.register_buffer("constants", torch.zeros(outputs))
        if letters:
            self.register_buffer("spelling", torch.zeros(vocabulary, 8, dtype=torch.int64))
            self.register_buffer("run_ends", torch.zeros(4, 10, dtype=torch.int64))
            self.register_buffer("run_weights", torch.zeros(PRIME + 1, columns))
            self.register_buffer("reads_letters", torch.zeros(outputs))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Map token ids (texts, tokens) to scores (texts, outputs)."""
        rows, outputs = self.weights[ids], len(self.constants)
        if self.letters:
            rows = rows + self.run_weights[crossing_runs(self.spelling[ids], self.run_ends)].sum(dim=-2)
        sums = (rows if mask is None else rows * mask.unsqueeze(-1)).sum(dim=1)
        squares = sums[:, outputs : outputs + 1]
        if self.letters:
            squares = squares + sums[:, outputs + 1 :] * self.reads_letters
        return sums[:, :outputs] / squares.clamp(min=1e-12).sqrt() + self.constants


class TwoHeadBert(PreTrainedModel):
    """A BERT-family encoder with classification heads side by side."""

    config_class = TwoHeadConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: TwoHeadConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder)
        if config.pooling != "pooler" and hasattr(self.encoder, "pooler"):
            # A pooler that nothing reads was not stored.
            self.encoder.pooler = None
        self.head_names = tuple(str(head["name"]) for head in config.heads)
        self.heads = nn.ModuleList(Head(int(config.encoder.hidden_size), head) for head in config.heads)
        scored = [(str(head["name"]), len(head["classes"])) for head in config.heads if head.get("word_pieces")]
        ends = [0, *accumulate(classes for _, classes in scored)]
        self.scored = {name: slice(*place) for (name, _), place in zip(scored, pairwise(ends), strict=True)}
        self.word_pieces = WordPieces(int(config.encoder.vocab_size), ends[-1], config.letters) if scored else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leave each part as its own class made it."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        **_: Any,
    ) -> TwoHeadOutput:
        """Answer every head's question with one pass through the encoder.

        Args:
            input_ids: Token ids, (texts, tokens).
            attention_mask: 1 for a real token, (texts, tokens).
            inputs_embeds: Instead of `input_ids`: (texts, tokens, width); not where heads read word pieces too.

        Raises:
            ValueError: They do.
        """
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)
        pooled = self._pool(output, attention_mask)
        logits = {name: head(pooled) for name, head in zip(self.head_names, self.heads, strict=True)}
        if self.word_pieces is not None:
            if input_ids is None:
                raise ValueError(f"heads {', '.join(self.scored)} read word pieces too: give input_ids")
            scores = self.word_pieces(input_ids, attention_mask)
            logits |= {name: logits[name] + scores[:, place] for name, place in self.scored.items()}
        return TwoHeadOutput(logits=logits, pooled=pooled)

    def _pool(self, output: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
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
