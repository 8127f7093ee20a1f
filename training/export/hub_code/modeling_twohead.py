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


# Runs of two to five letters that end with so many letters of a piece and begin with so many before it; a prime that numbers them.
RUN_ENDS = [(own, length - own) for own in range(1, 5) for length in range(own + 1, 6)]
PRIME = 65_521


def letters_before(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last letters, four at most, of the word before each piece, as digits to the base 256, and how many they are."""

    def earlier(column: int, steps: int) -> torch.Tensor:
        return functional.pad(rows[..., column], (steps, 0))[..., : rows.shape[-2]]

    last, length = earlier(4, 4), earlier(5, 4)
    for steps in (3, 2, 1):
        own, count, begins = (earlier(column, steps) for column in (4, 5, 6))
        last = (last * torch.where((begins > 0) | (count >= 4), 0, 256**count) + own) % 256**4
        length = torch.where(begins > 0, count, (length + count).clamp(max=4))
    return last, length


def crossing_runs(rows: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the runs that end in each piece and begin before it, (texts, tokens, 10), 0 for none.

    Args:
        rows: Of each piece its first one to four letters, its last four, how many these are, and whether it begins a word.
    """
    before, length = letters_before(rows)
    begins, after_blank = rows[..., 6] > 0, before % 256 == 32
    found = []
    for own, count in RUN_ENDS:
        first = rows[..., own - 1]
        is_run = (first > 0) & (length >= count) & ~(begins & after_blank if own == 1 else begins)
        found.append(torch.where(is_run, ((before % 256**count) * 256**own + first) % PRIME + 1, 0))
    return torch.stack(found, dim=-1)


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
            self.register_buffer("spelling", torch.zeros(vocabulary, 7, dtype=torch.int64))
            self.register_buffer("run_weights", torch.zeros(PRIME + 1, columns))
            self.register_buffer("reads_letters", torch.zeros(outputs))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Map token ids (texts, tokens) to scores (texts, outputs)."""
        rows, outputs = self.weights[ids], len(self.constants)
        if self.letters:
            rows = rows + self.run_weights[crossing_runs(self.spelling[ids])].sum(dim=-2)
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
