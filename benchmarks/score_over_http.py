"""Scores a served version on the test split of its data, through HTTP, and compares it with `from_pretrained`.

    python benchmarks/score_over_http.py --config ray_config.yaml

The version must be served (`python -m serving run --config ...`) from the storage of the same settings. Prints accuracy and
macro-F1 of each head beside those of TF-IDF with logistic regression where scikit-learn is installed, the largest difference between the
answers and the softmax of `TwoHeadBert.from_pretrained`'s logits, and the largest between a text alone and in a batch.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cluster.settings import load_settings as load_cluster_settings
from cluster.storage import Storage
from serving.client import Client
from serving.settings import load_settings as load_serving_settings
from training.checkpoint import load_model, load_tokenizer
from training.data.dataset import Dataset, load_dataset
from training.fitting.predict import predict_logits
from training.judging.metrics import confusion, macro_f1, probabilities
from training.network.inputs import TokenInputs
from training.registry import Registry
from training.settings import load_settings

BATCH_TEXTS = 32
ALONE_TEXTS = 50


def ask(client: Client, texts: list[str], heads: list[str]) -> dict[str, np.ndarray]:
    answers = [
        answer for start in range(0, len(texts), BATCH_TEXTS) for answer in client.predict(texts[start : start + BATCH_TEXTS]).answers
    ]
    return {head: np.array([list((answer.heads[head].scores or {}).values()) for answer in answers]) for head in heads}


def softmax_of(folder: Path, texts: list[str], registry: Registry, version: int) -> dict[str, np.ndarray]:
    manifest = registry.manifest(version)
    tokenizer, model = load_tokenizer(folder, manifest), load_model(folder)
    logits = predict_logits(model, TokenInputs(tokenizer.encode(texts), tokenizer.pad_id), 1024)
    return {head.name: probabilities(logits[head.name], head.temperature) for head in manifest.heads}


def tfidf(dataset: Dataset, head: str) -> np.ndarray | None:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union
    except ImportError:
        return None
    words, letters = (
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    known = dataset.training.labels[head] >= 0
    texts = [text for text, is_known in zip(dataset.training.texts, known, strict=True) if is_known]
    floor = make_pipeline(make_union(words, letters), LogisticRegression(C=10, max_iter=2000, class_weight="balanced"))
    floor.fit(texts, dataset.training.labels[head][known])
    return np.asarray(floor.predict(dataset.test.texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("ray_config.yaml"))
    options = parser.parse_args()
    dataset = load_dataset(load_settings(options.config, []))
    registry = Registry(Storage(load_cluster_settings(options.config).storage))
    heads, texts = list(dataset.classes), list(dataset.test.texts)
    with Client(load_serving_settings(options.config, []).url) as client:
        version = client.version().version
        scores = ask(client, texts, heads)
        alone = [ask(client, [text], heads) for text in texts[:ALONE_TEXTS]]
    with tempfile.TemporaryDirectory() as scratch:
        saved = softmax_of(registry.fetch(version, Path(scratch) / "version"), texts, registry, version)
    for head in heads:
        truth, size = dataset.test.labels[head], len(dataset.classes[head])
        rows = {"served": scores[head].argmax(axis=1)}
        if (floor := tfidf(dataset, head)) is not None:
            rows["TF-IDF"] = floor
        for name, predicted in rows.items():
            counts = confusion(truth, predicted, size)
            accuracy = np.trace(counts) / counts.sum()
            print(f"{head:<12} {name:<7} accuracy {accuracy:.3f}  macro-F1 {macro_f1(counts):.3f}  ({counts.sum()} texts)")
    print(f"answers against from_pretrained: at most {max(np.abs(scores[head] - saved[head]).max() for head in heads):.1e} apart")
    apart = max(np.abs(one[head][0] - scores[head][index]).max() for index, one in enumerate(alone) for head in heads)
    print(f"{len(alone)} texts alone against in a batch: at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
