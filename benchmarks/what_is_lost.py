"""Why do word counts beat the encoder? Takes from them, one by one, what the encoder does not get.

    python benchmarks/what_is_lost.py benchmarks/configs/onet.yaml --data FOLDER

FOLDER holds the tables the configuration names. Prints macro-F1 of each head on the validation split for TF-IDF with logistic regression
over the whole text; over the part within the token limit; over the encoder's word pieces of that part. Then for a logistic regression over
what the frozen encoder makes of these pieces. The step that costs most is the reason. The test split stays unseen.
"""

import argparse
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from real_data import table_overrides
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoConfig, AutoTokenizer

from training.data.dataset import Dataset, load_dataset
from training.data.labels import MISSING
from training.data.tokens import Tokenizer, TokenTable
from training.judging.metrics import confusion, macro_f1
from training.judging.word_counts import WordCounts
from training.network.encoder import EncoderSource, encoder_layers, find_encoder, load_encoder_weights
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import compute_prefix
from training.settings import load_settings

SPLITS = ("training", "validation")
Answers = dict[str, NDArray[np.int64]]
PENALTIES = (0.003, 0.01, 0.03, 0.1, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = load_settings(options.config, [*table_overrides(options.config, options.data), *options.overrides])
    dataset, source = load_dataset(settings), find_encoder(settings.encoder)
    tokenizer = Tokenizer(source.folder, source.max_tokens)
    tables = [tokenizer.encode(dataset.splits()[split].texts) for split in SPLITS]
    words = sum(len(text.split()) for text in dataset.training.texts)
    pieces = int(tables[0].full_lengths.sum()) - 2 * len(tables[0])
    cut = int(tables[0].truncated.sum())
    print(f"{pieces / words:.2f} word pieces a word; {cut} of {len(tables[0])} training texts cut at {tokenizer.max_tokens} tokens")
    print(f"| what a linear model reads | {' | '.join(dataset.classes)} |\n|{'---|' * (1 + len(dataset.classes))}")
    kept = [pieces_within(table, source) for table in tables]
    whole = [list(dataset.splits()[split].texts) for split in SPLITS]
    row("words and letters, whole text", dataset, counted(dataset, whole))
    row("words and letters, within the token limit", dataset, counted(dataset, [[joined(text) for text in split] for split in kept]))
    row("word pieces, within the token limit", dataset, learned(dataset, *piece_counts(kept), scaled=False))
    row("frozen encoder, mean over tokens", dataset, learned(dataset, *pooled(tables, source, tokenizer.pad_id), scaled=True))


def pieces_within(table: TokenTable, source: EncoderSource) -> list[list[str]]:
    words = AutoTokenizer.from_pretrained(str(source.folder), local_files_only=True)
    return [list(words.convert_ids_to_tokens(table[index].tolist()))[1:-1] for index in range(len(table))]


def joined(pieces: Sequence[str]) -> str:
    return " ".join(pieces).replace(" ##", "")


def piece_counts(kept: Sequence[Sequence[list[str]]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    counter = TfidfVectorizer(analyzer=lambda text: [*text, *map(" ".join, pairwise(text))], sublinear_tf=True, min_df=2)
    return counter.fit_transform(kept[0]), counter.transform(kept[1])


def pooled(tables: Sequence[TokenTable], source: EncoderSource, pad_id: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    config = AutoConfig.from_pretrained(str(source.folder), local_files_only=True)
    model = TwoHeadBert(make_config(config, source.pooling, [{"name": "any", "classes": ["a", "b"], "hidden_size": 0, "dropout": 0.0}]))
    load_encoder_weights(model.encoder, source)
    depth = len(encoder_layers(model.encoder))
    training, validation = (compute_prefix(model, table, pad_id, depth) for table in tables)
    every = [inputs.batch(np.arange(len(inputs.lengths)))["pooled"].numpy() for inputs in (training, validation)]
    return every[0], every[1]


def counted(dataset: Dataset, texts: Sequence[Sequence[str]]) -> Answers:
    counts = WordCounts(texts[0], [texts[1]])
    labels = dataset.training.labels
    return {head: counts.probabilities(labels[head], len(classes))[0].argmax(axis=1) for head, classes in dataset.classes.items()}


def learned(dataset: Dataset, training: NDArray[np.float32], validation: NDArray[np.float32], *, scaled: bool) -> Answers:
    """Fit each head, with the penalty that serves it best: this says what is in the features, not what a search would find."""
    return {head: best_of(dataset, head, training, validation, scaled=scaled) for head in dataset.classes}


def best_of(
    dataset: Dataset, head: str, training: NDArray[np.float32], validation: NDArray[np.float32], *, scaled: bool
) -> NDArray[np.int64]:
    labels = dataset.training.labels[head]
    known = np.flatnonzero(labels != MISSING)
    found = []
    for penalty in PENALTIES if scaled else (1.0, 10.0, 100.0):
        model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=300)
        steps = make_pipeline(*([StandardScaler()] if scaled else []), model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            steps.fit(training[known], labels[known])
        found.append(steps.predict(validation))
    return max(found, key=lambda answers: score(dataset, head, answers))


def score(dataset: Dataset, head: str, answers: NDArray[np.int64]) -> float:
    return macro_f1(confusion(dataset.validation.labels[head], answers, len(dataset.classes[head])))


def row(name: str, dataset: Dataset, answers: Answers) -> None:
    print(f"| {name} | {' | '.join(f'{score(dataset, head, answers[head]):.3f}' for head in dataset.classes)} |", flush=True)


if __name__ == "__main__":
    main()
