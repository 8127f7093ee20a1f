"""One version of a checkpoint, ready to answer: text → tokens → logits → calibrated probabilities → answer.

Everything it knows about the model stands in the manifest; below its threshold a head names no class. It knows neither Ray nor HTTP nor
where versions come from, and is used from several threads at once: `tokenize` in one, `compute` in another.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serving.engines.calibration import FIRST_TOKENS, Trial, calibrate
from serving.engines.costs import enough, measure_costs
from serving.engines.engine import Engine, Logits, Maker
from serving.engines.kept import Found, Keep, Kept
from serving.engines.torch_engine import InProcess
from serving.errors import ServingError
from serving.messages import Answer, HeadAnswer, Pooling, Windows
from training.checkpoint import load_tokenizer
from training.data.tokens import SavedTokenizer
from training.golden import read_golden
from training.judging.abstention import PROBABILITY_DECIMALS
from training.judging.metrics import probabilities
from training.manifest import MANIFEST_FILE, HeadFacts, Manifest, read_manifest

log = logging.getLogger(__name__)

# Texts of the forward pass that proves a version works and gives the first measure of its speed.
_WARM_TEXTS = 4
_WARM_TOKENS = 32
_UNMEASURED_TOKENS = 1_024
_HERE = InProcess()


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of one text, as a version's own tokenizer made them.

    Attributes:
        ids: Token ids, special tokens included, (tokens,), int32.
        truncated: Whether the text was longer than the version reads.
    """

    ids: NDArray[np.int32]
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Window(TokenizedText):
    """A piece of a text: the logits of all of them make its answer."""


class Predictor:
    """Answers with one version.

    Args:
        version: Its number in the registry.
        manifest: Its facts.
        tokenizer: Its tokenizer, already limited to its `max_tokens`.
        engine: Its forward pass.
        calibration: How the engines did that were tried.
        typical: Token ids of some texts, to measure batches with.
        kept: What an earlier replica found out, and where to keep what this one does.

    Attributes:
        batch_tokens: A batch of so many tokens is as fast as any; measured by `warm`.
    """

    def __init__(
        self,
        version: int,
        manifest: Manifest,
        tokenizer: SavedTokenizer,
        engine: Engine,
        calibration: Sequence[Trial] = (),
        typical: Sequence[NDArray[np.int32]] = (),
        kept: Kept | None = None,
    ) -> None:
        self.version = version
        self.manifest = manifest
        self.engine = engine
        self.calibration = tuple(calibration)
        self.batch_tokens = _UNMEASURED_TOKENS
        self._typical = typical
        self._kept = kept
        self._tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        folder: Path,
        version: int,
        threads: int = 1,
        precision: str = "auto",
        keep: Keep | None = None,
        maker: Maker = _HERE,
    ) -> Self:
        """Load a verified checkpoint, as `Registry.fetch` gives it.

        Args:
            folder: Of the checkpoint.
            version: Its number.
            threads: Of one forward pass on the CPU.
            precision: The one to answer with; `auto` tries what this machine has and takes the fastest that answers alike.
            keep: Where to keep what was found out, for the next replica; nothing finds out by itself.
            maker: Where to compute.

        Raises:
            ServingError: See `calibrate` and `TorchEngine`.
        """
        manifest = read_manifest(folder)
        tokenizer = load_tokenizer(folder, manifest)
        golden = read_golden(folder)
        typical = golden.divide(FIRST_TOKENS)[0].rows if golden else ()

        def make(wanted: str) -> Engine:
            return maker.make(folder, tokenizer.pad_id, threads, wanted, typical)

        if golden is None:
            chosen = _unchecked(maker.precisions()) if precision == "auto" else precision
            log.info("version %d has no golden texts, so that nothing tells how %s answers", version, chosen)
            return cls(version, manifest, tokenizer, make(chosen))
        tried = maker.precisions() if precision == "auto" else [precision]
        kept = keep.open((folder / MANIFEST_FILE).read_bytes(), threads, precision, maker.hardware()) if keep else None
        if kept and (found := kept.read(tried)):
            log.info("%s answers, as an earlier replica found out here", found.precision)
            return cls(version, manifest, tokenizer, make(found.precision), found.trials, typical, kept)
        engine, trials = calibrate(make, tried, golden, {head.name: head.temperature for head in manifest.heads})
        return cls(version, manifest, tokenizer, engine, trials, typical, kept)

    @property
    def pads(self) -> bool:
        """Whether its engine computes padding like tokens."""
        return self.engine.pads

    @property
    def is_alive(self) -> bool:
        """Whether its engine can compute at all."""
        return self.engine.is_alive

    @property
    def known_good(self) -> list[TokenizedText]:
        """A short text of those that `warm` computes: an engine that fails on it is broken."""
        return self.tokenize(["a " * min(_WARM_TOKENS, self.manifest.max_tokens)])

    def end(self) -> None:
        """End its engine's process, if it has one, in the middle of whatever that does."""
        self.engine.end()

    def warm(self) -> float:
        """Compute real batches, check that every head answers about every class, and find out how large a batch should be.

        Returns:
            Tokens per second of a batch of that size.

        Raises:
            ServingError: A head is missing, has another number of classes, or answers something that is no number.
        """
        tokens = self.known_good * _WARM_TEXTS
        self.compute(tokens)
        if self._kept and (found := self._kept.read([self.engine.dtype])):
            self.batch_tokens = found.batch_tokens
            return found.tokens_per_s
        texts = [TokenizedText(ids, truncated=False) for ids in self._typical] or tokens
        best = enough(measure_costs(self.compute, texts, self.engine.clock))
        self.batch_tokens = best.tokens
        if self._kept:
            self._kept.write(Found(self.calibration, best.tokens, best.tokens_per_s))
        return best.tokens_per_s

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Turn texts into tokens, cut at the version's limit."""
        return [TokenizedText(ids, truncated) for ids, truncated in self._tokenizer.rows(texts)]

    def cut(self, text: str) -> list[Window]:
        """Turn all of a text into tokens, in windows as long as the version reads."""
        return [Window(ids, truncated=False) for ids in self._tokenizer.windows(text)]

    def readable(self, text: str) -> str:
        """Return the part of a text that is read."""
        return text[: self._tokenizer.reads(text)]

    def compute(self, texts: Sequence[TokenizedText]) -> list[Answer | Logits]:
        """Answer about tokenised texts, in one batch and in their order; of a window return the logits, each (classes,).

        Raises:
            ServingError: The engine answers something that is no number.
        """
        logits = self.engine.forward([text.ids for text in texts])
        self._check(logits, len(texts))
        scores = {head.name: probabilities(logits[head.name], head.temperature) for head in self.manifest.heads}
        return [
            {head: rows[row] for head, rows in logits.items()}
            if isinstance(text, Window)
            else self._answer({head: rows[row] for head, rows in scores.items()}, len(text), text.truncated)
            for row, text in enumerate(texts)
        ]

    def pool(self, windows: Sequence[Logits], how: Pooling, tokens: int) -> Answer:
        """Answer about a text that was read in windows.

        Args:
            windows: Logits of each, as `compute` returns them.
            how: What to take of them, class by class.
            tokens: Of the text.
        """
        take = np.mean if how == "mean" else np.max
        pooled = {head.name: take([one[head.name] for one in windows], axis=0) for head in self.manifest.heads}
        scores = {head.name: probabilities(pooled[head.name][None], head.temperature)[0] for head in self.manifest.heads}
        return self._answer(scores, tokens, truncated=False, windows=Windows(count=len(windows), pooled=how))

    def _answer(self, scores: Logits, tokens: int, truncated: bool, windows: Windows | None = None) -> Answer:
        heads = {head.name: _head_answer(head, scores[head.name]) for head in self.manifest.heads}
        return Answer.model_construct(heads=heads, tokens=tokens, truncated=truncated, windows=windows)

    def _check(self, logits: Logits, texts: int) -> None:
        for head in self.manifest.heads:
            found = logits.get(head.name)
            expected = (texts, len(head.classes))
            if found is None or found.shape != expected:
                shape = None if found is None else found.shape
                raise ServingError(f"version {self.version}: head {head.name!r} answers with shape {shape}, but must with {expected}")
            if not np.isfinite(found).all():
                raise ServingError(f"version {self.version}: head {head.name!r} answers something that is no number")


def _unchecked(precisions: Sequence[str]) -> str:
    """Return what to compute with where there is nothing to compare answers with: bf16 on a GPU that has it, as is usual there."""
    return "bfloat16" if "bfloat16" in precisions else "float32"


def _head_answer(head: HeadFacts, scores: NDArray[np.float32]) -> HeadAnswer:
    best = int(scores.argmax())
    values = [round(float(score), PROBABILITY_DECIMALS) for score in scores]
    abstained = None if head.threshold is None else values[best] < head.threshold
    return HeadAnswer.model_construct(
        class_=None if abstained else head.classes[best],
        probability=values[best],
        scores=dict(zip(head.classes, values, strict=True)),
        abstained=abstained,
    )
