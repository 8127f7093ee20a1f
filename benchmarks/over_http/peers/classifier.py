"""What the peers' servers have in common: transformers' own classifier, as its documentation uses it."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_TOKENS = 512


class Classifier:
    """A model from a folder, with one thread.

    Args:
        folder: What `save_pretrained` wrote.
    """

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(1)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def tokenize(self, text: str) -> list[int]:
        """Return a text's token ids, special ones included."""
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids

    def compute(self, rows: list[list[int]]) -> list[list[float]]:
        """Return the probabilities of all classes for texts that are tokens already, in one padded batch."""
        batch = self._tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**batch).logits
        probabilities: list[list[float]] = logits.softmax(dim=-1).tolist()
        return probabilities

    def classify(self, texts: list[str]) -> list[list[float]]:
        """Return the probabilities of all classes for texts, in one padded batch."""
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**batch).logits
        probabilities: list[list[float]] = logits.softmax(dim=-1).tolist()
        return probabilities
