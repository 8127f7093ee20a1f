"""What word pieces, and letters within words, say by themselves: weights that are summed, beside what the encoder makes of a text.

Of a text an encoder keeps its sense and blurs its words; one that was trained on another language, or on few texts, blurs most. Where
single words decide, counting them is better, so a head may have both: its logits are the sum. The weights are a logistic regression over
TF-IDF, found before anything trains (`fitting.word_weights`); the encoder learns what they leave. It knows token ids, not texts.

Sources: Cheng et al. 2016, Wide & Deep Learning for Recommender Systems (arXiv 1606.07792), for a linear model over sparse features beside
a deep one; Salton and Buckley 1988, Term-weighting Approaches in Automatic Text Retrieval, for TF-IDF.
"""

import torch
from torch import nn

from training.network.letters import COLUMNS, ENDS, RUNS, crossing

# A text without any piece that has a weight gets the constants.
_LEAST = 1e-12


class WordPieces(nn.Module):
    """Sums the weights of a text's pieces, as if its TF-IDF vector had the length 1.

    Args:
        vocabulary: How many token ids there are.
        outputs: Classes of all heads that have weights, beside each other.
        letters: Runs of letters have weights as well; see `letters`. Those within a piece are among the weights of the piece.
    """

    weights: torch.Tensor
    constants: torch.Tensor
    spelling: torch.Tensor
    run_ends: torch.Tensor
    run_weights: torch.Tensor
    reads_letters: torch.Tensor

    def __init__(self, vocabulary: int, outputs: int, *, letters: bool = False) -> None:
        super().__init__()
        self.letters = letters
        # They do not train: no parameters. The last columns are the squares of each piece's rarity (IDF), and with letters of its runs'.
        columns = outputs + 2 if letters else outputs + 1
        self.register_buffer("weights", torch.zeros(vocabulary, columns))
        self.register_buffer("constants", torch.zeros(outputs))
        if letters:
            self.register_buffer("spelling", torch.zeros(vocabulary, COLUMNS, dtype=torch.int64))
            self.register_buffer("run_ends", torch.tensor(ENDS))
            self.register_buffer("run_weights", torch.zeros(RUNS, columns))
            # 1 for a class that weighs letters too.
            self.register_buffer("reads_letters", torch.zeros(outputs))

    def of_stream(self, ids: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """Score texts that stand one after the other.

        Args:
            ids: Token ids of all texts, (tokens,).
            begins: Where each text begins, and where the last one ends, (texts + 1,), int64.

        Returns:
            (texts, outputs), float32.
        """
        # A GPU need not look whether the ends are in order.
        return self._scores(torch.segment_reduce(self._rows(ids), "sum", offsets=begins, axis=0, unsafe=True))

    def of_padded(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Score padded texts.

        Args:
            ids: (texts, tokens).
            mask: 1 for a token, (texts, tokens); without it every place is one.

        Returns:
            (texts, outputs), float32.
        """
        rows = self._rows(ids)
        return self._scores((rows if mask is None else rows * mask.unsqueeze(-1)).sum(dim=1))

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.weights[ids]
        return rows + self.run_weights[crossing(ids, self.spelling, self.run_ends)].sum(dim=-2) if self.letters else rows

    def _scores(self, sums: torch.Tensor) -> torch.Tensor:
        outputs = len(self.constants)
        squares = sums[:, outputs : outputs + 1]
        if self.letters:
            squares = squares + sums[:, outputs + 1 :] * self.reads_letters
        return sums[:, :outputs] / squares.clamp(min=_LEAST).sqrt() + self.constants
