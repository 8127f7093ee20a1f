"""Fixtures for all tests: tiny random encoders and checkpoints, made on the spot."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The tests never reach for a model hub, and two busy torch threads on two busy cores only spin.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray makes its workers polite (niceness 15): beside the busy process of other tests a replica took minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")

# What a shell starts in the background is deaf to Ctrl-C, and so would be all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    *LETTERS,
    *"0123456789",
    *(f"##{letter}" for letter in LETTERS),
    *["nurse", "sales", "driver", "teacher", "school", "master", "the", "and"],
]
HEADS = [
    {"name": "category", "classes": ["driver", "nurse", "sales"], "hidden_size": 0, "dropout": 0.1},
    {"name": "education", "classes": ["none", "school", "master", "phd"], "hidden_size": 8, "dropout": 0.1},
]


def write_tokenizer(folder: Path) -> None:
    """Write a small WordPiece tokenizer in BERT's format."""
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(vocabulary)).save_pretrained(str(folder))


def write_encoder(folder: Path, model_type: str = "bert", **changes: Any) -> Path:
    """Write a tiny random encoder of any supported type, as `save_pretrained` does."""
    import torch
    from transformers import AutoConfig, AutoModel

    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 70,
        "pad_token_id": 0,
    }
    if model_type == "distilbert":
        sizes |= {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
    if model_type == "deberta-v2":
        sizes |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
        sizes |= {"conv_kernel_size": 3, "conv_act": "gelu"}
    if model_type == "electra":
        sizes |= {"embedding_size": 12}
    if model_type == "modernbert":
        sizes |= {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    write_tokenizer(folder)
    AutoModel.from_config(AutoConfig.for_model(model_type, **(sizes | changes))).save_pretrained(str(folder))
    return folder


@pytest.fixture
def make_encoder(tmp_path: Path) -> Callable[..., Path]:
    """Make a tiny random encoder: `make_encoder("roberta")` returns its folder."""
    return lambda model_type="bert", **changes: write_encoder(tmp_path / f"encoder-{model_type}", model_type, **changes)


@pytest.fixture(scope="session")
def make_encoder_in() -> Callable[..., Path]:
    """Make a tiny random encoder in a folder: for fixtures that live longer than a test."""
    return write_encoder


def write_tiny_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a whole checkpoint with random weights and two heads; `changes` are of its encoder."""
    import torch
    from transformers import AutoConfig

    from training.checkpoint import write_checkpoint
    from training.data.tokens import Tokenizer
    from training.manifest import EncoderFacts, HeadFacts, ModelFacts
    from training.network.model import TwoHeadBert, make_config

    encoder = write_encoder(folder.parent / f"{folder.name}-encoder", **changes)
    torch.manual_seed(seed)
    model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(encoder)), "mean", HEADS))
    facts = ModelFacts(
        heads=tuple(HeadFacts(**head) for head in HEADS),
        text_template="{title}: {text}",
        max_tokens=64,
        encoder=EncoderFacts(name="tiny", model_type="bert", sha256="0" * 64, pooling="mean"),
        metrics={"validation": {"category": {"macro_f1": 0.5}}},
    )
    folder.mkdir(parents=True)
    write_checkpoint(folder, model, Tokenizer(encoder, 64), facts)
    return folder


@pytest.fixture(scope="session")
def make_checkpoint_in() -> Callable[..., Path]:
    """Make a tiny checkpoint in a folder: for fixtures that live longer than a test."""
    return write_tiny_checkpoint


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint with random weights: heads `category` (3 classes) and `education` (4)."""
    return write_tiny_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[[int], Path]:
    """Make several checkpoints that answer differently: `make_checkpoint(seed)`."""
    return lambda seed: write_tiny_checkpoint(tmp_path / f"checkpoint-{seed}", seed)


@pytest.fixture(scope="session")
def write_checkpoint_in() -> Callable[[Path], Path]:
    """Write such a checkpoint into a folder: for fixtures that live longer than a test."""
    return write_tiny_checkpoint


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a bucket on a server that speaks S3, which this process and those that it starts find."""
    # Few tests need it, and it brings a client of S3 along.
    from tests.s3 import s3_server

    with s3_server() as found:
        yield found


METRICS = ("accuracy", "macro_f1", "weighted_f1", "log_loss", "majority_accuracy", "majority_macro_f1")
AGAINST = ("default", "equal weights", "one model per head", "TF-IDF + logistic regression", "majority")


def make_record_of_search(heads: dict[str, list[str]] | None = None, trials: int = 12, epochs: int = 6, **changes: Any) -> dict[str, Any]:
    """Make the record of an invented search, with every part filled; `changes` replace parts."""
    import random

    chance = random.Random(7)
    classes = heads or {"category": ["driver", "nurse", "sales", "teacher"], "education": ["none", "school", "bachelor", "master", "phd"]}
    measured = {head: _figures(chance, names) for head, names in classes.items()}
    split = measured | {"joint_accuracy": 0.61, "score": 0.702}
    listed = [_trial(chance, position, list(classes), epochs) for position in range(trials)]
    scored = sorted((one for one in listed if one["score"] is not None), key=lambda one: one["score"], reverse=True)
    confirmed = sorted((_confirmed(chance, one, list(classes)) for one in scored[:3]), key=lambda one: -one["mean"])
    return {
        "name": "job-ads", "created": "2026-11-23T12:00:00+00:00", "seconds": 4210.0, "cpu_seconds": 7921.5, "version": 8,
        "heads": {head: _head(chance, names, number) for number, (head, names) in enumerate(classes.items())},
        "tuning": {"mode": "score", "pick": "knee", "sampler": "tpe", "scheduler": "asha", "num_samples": trials, "seed": 7},
        "best": confirmed[0]["position"], "trials": listed,
        "confirmed": confirmed,
        "front": _front(scored, list(classes)),
        "importance": {"head_learning_rate": 0.45, "encoder_learning_rate": 0.3, f"heads/{list(classes)[-1]}/dropout": 0.15, "loss": 0.1},
        "splits": {"training": 4200, "validation": 900, "test": 900}, "metrics": {"validation": split, "test": split},
        "intervals": {head: {"macro_f1": [0.66, 0.79], "accuracy": [0.7, 0.83]} for head in classes}
        | {"joint_accuracy": [0.57, 0.65], "score": [0.671, 0.733]},
        "comparisons": _comparisons(chance, list(classes)),
        "headline": "The searched model scores .702 on unseen texts, .038 [.012, .064] above the default configuration; "
        "it is not distinguishable from one model per head.",
        "confusion": {"test": {head: _counts(chance, len(names)) for head, names in classes.items()}},
        "calibration": {head: _calibration(chance) for head in classes},
        "abstention": {head: _abstention(chance, number) for number, head in enumerate(classes)},
        "errors": {
            head: [_error(118 + 7 * n, names, 0.99 - n / 90) for n in range(5)] for head, names in classes.items()
        },
        "notes": ["12 texts occur twice or more; all copies are in one split", "head 'education' has no label in 214 rows"],
        "data_digest": "ab" * 32, "encoder": {"name": "bert-base-uncased", "model_type": "bert", "sha256": "cd" * 32, "pooling": "mean"},
        "settings": {"data": {"files": ["ads.csv"], "text": "{title}: {text}"}, "fit": {"epochs": epochs, "frozen_layers": 5}},
        "libraries": {"torch": "2.13.0", "transformers": "5.23.0", "ray": "2.60.0", "optuna": "5.0.0"}, "code_revision": "20320f2",
    } | changes  # fmt: skip


def _error(row: int, names: list[str], probability: float) -> dict[str, Any]:
    return {"row": f"ads.csv, row {row}", "text": None, "truth": names[0], "answer": names[-1], "probability": probability}


def _front(trials: list[dict[str, Any]], heads: list[str]) -> list[int]:
    scores = {one["position"]: [one["metrics"][head]["macro_f1"] for head in heads] for one in trials}
    beaten = {
        one
        for one, own in scores.items()
        for other in scores.values()
        if other != own and all(a >= b for a, b in zip(other, own, strict=True))
    }
    return sorted(set(scores) - beaten)


def _figures(chance: Any, names: list[str]) -> dict[str, Any]:
    values = (0.78, 0.74, 0.77, 0.8, 0.3, 1 / len(names))
    measured = {metric: round(value + chance.uniform(-0.06, 0.04), 4) for metric, value in zip(METRICS, values, strict=True)}
    return {"count": 870, "quadratic_weighted_kappa": None} | measured


def _head(chance: Any, names: list[str], number: int) -> dict[str, Any]:
    return {
        "classes": names, "ordered": number == 1, "loss": "corn" if number == 1 else "softmax", "metric": "macro_f1", "weight": 1.0,
        "class_weighting": ("none", "balanced")[number % 2],
        "hidden_size": 128 * number, "dropout": 0.1, "temperature": 1.31 + number / 10, "threshold": 0.62 if number != 1 else None,
        "target": ({"precision": 0.9}, None, {"coverage": 0.8}, {"precision": 0.95})[number % 4],
    }  # fmt: skip


def _trial(chance: Any, position: int, heads: list[str], epochs: int) -> dict[str, Any]:
    states = {5: "diverged", 9: "out of memory", 40: "died"}
    state = states.get(position, "stopped" if position % 3 == 1 else "finished")
    trained = max(1, epochs // 3) if state == "stopped" else epochs
    top, speed = 0.55 + 0.2 * chance.random() ** 0.6, chance.uniform(0.5, 1.6)
    gaps = {head: chance.uniform(-0.12, 0.12) for head in heads}
    levels = [top * (1 - 2.7 ** (-speed * number)) + chance.uniform(-0.012, 0.012) for number in range(1, trained + 1)]
    is_lost = state in ("diverged", "out of memory", "died")
    point = {
        "encoder_learning_rate": 10 ** chance.uniform(-5, -3.3), "head_learning_rate": 10 ** chance.uniform(-3.6, -1.9),
        "layer_decay": chance.uniform(0.7, 1.0), "batch_tokens": chance.choice([1024, 2048, 4096]),
        "balancing": chance.choice(["fixed", "uncertainty", "famo"]),
    }  # fmt: skip
    for head in heads:
        point |= {f"heads/{head}/hidden_size": chance.choice([0, 128, 256]), f"heads/{head}/dropout": chance.uniform(0, 0.4)}
    if len(heads) > 1:
        point[f"heads/{heads[1]}/loss"] = chance.choice(["softmax", "corn"])
    return {
        "position": position, "state": state, "score": None if is_lost else max(levels),
        "epoch": 0 if state == "out of memory" else trained, "best_epoch": 0 if is_lost else levels.index(max(levels)) + 1,
        "seconds": 31.2 * trained, "cpu_seconds": 30.1 * trained,
        "error": "CUDA out of memory" if state == "out of memory" else "", "point": point,
        "origin": {0: "default", 1: "equal weights"}.get(position, "sampler"),
        "metrics": {} if is_lost else {head: {"macro_f1": max(levels) + gaps[head], "accuracy": 0.7} for head in heads},
        "epochs": [
            {"number": number, "loss": 2.7**-number, "score": level, "heads": {head: level + gaps[head] for head in heads}}
            for number, level in enumerate(levels[:2] if is_lost else levels, start=1)
        ] if state != "out of memory" else [],
    }  # fmt: skip


def _confirmed(chance: Any, trial: dict[str, Any], heads: list[str]) -> dict[str, Any]:
    scores = [
        {"seed": seed, "score": trial["score"] + chance.uniform(-0.02, 0.01), "heads": dict.fromkeys(heads, 0.7)} for seed in (7, 8, 9)
    ]
    return {"position": trial["position"], "scores": scores, "mean": sum(one["score"] for one in scores) / 3}


def _comparisons(chance: Any, heads: list[str]) -> list[dict[str, Any]]:
    made = []
    for number, against in enumerate(AGAINST):
        for head in [*heads, None]:
            gap = (0.038, 0.002, -0.012, 0.07, 0.6)[number] + chance.uniform(-0.02, 0.02)
            half = chance.uniform(0.015, 0.035)
            verdict = "better" if gap > half else "worse" if gap < -half else "not distinguishable"
            made.append({"against": against, "head": head, "metric": "macro_f1" if head else "score", "ours": 0.74, "theirs": 0.74 - gap,
                         "difference": gap, "low": gap - half, "high": gap + half, "runs": [3, 3], "verdict": verdict})  # fmt: skip
    return made


def _counts(chance: Any, classes: int) -> list[list[int]]:
    sizes = [max(2, int(300 * 0.8**number)) for number in range(classes)]
    return [
        [int(size * 0.76) if true == answer else int(chance.expovariate(classes / (0.24 * size * 1.4))) for answer in range(classes)]
        for true, size in enumerate(sizes)
    ]


def _calibration(chance: Any) -> dict[str, Any]:
    edges = [(number / 10, number / 10 + 0.1, int(8 + 300 * (number / 10) ** 4)) for number in range(2, 10)]
    before = [
        {"low": a, "high": b, "count": n, "confidence": a + 0.05, "accuracy": max(0, (a + 0.05) * 0.88 - chance.uniform(0, 0.1))}
        for a, b, n in edges
    ]
    after = [
        {"low": a, "high": b, "count": n, "confidence": a + 0.05, "accuracy": min(1, a + 0.05 + chance.uniform(-0.05, 0.05))}
        for a, b, n in edges
    ]
    errors = {"ece_before": 0.094, "ece_after": 0.031}
    return {"temperature": 1.31, "validation": errors, "test": errors, "bins_before": before, "bins_after": after}


def _abstention(chance: Any, number: int) -> dict[str, Any]:
    power = chance.uniform(1.5, 3)
    curve = [{"coverage": n / 100, "risk": 0.24 * (n / 100) ** power + 0.01 / (n + 1), "threshold": 1 - n / 130} for n in range(1, 101)]
    target = ({"precision": 0.9}, None, {"coverage": 0.8}, {"precision": 0.95})[number % 4]
    reached = {"coverage": 0.66, "precision": 1 - 0.24 * 0.66**power, "answered": 574}
    full = {"coverage": 1.0, "precision": 0.76, "answered": 870}
    figures = reached if target else full
    return {"target": target, "threshold": 0.62 if target else None, "validation": figures, "test": figures, "curve": curve}


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    """Make the record of an invented search: `make_record(heads={"job": ["a", "b"]}, trials=1)`."""
    return make_record_of_search
