"""Fixtures for all tests: tiny random encoders and checkpoints, made on the spot."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The tests never reach for a model hub, and two busy torch threads on two busy cores only spin.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a whole checkpoint with random weights and two heads."""
    import torch
    from transformers import AutoConfig

    from training.checkpoint import EncoderFacts, HeadFacts, ModelFacts, write_checkpoint
    from training.model import TwoHeadBert, make_config
    from training.tokens import Tokenizer

    encoder = write_encoder(folder.parent / f"{folder.name}-encoder")
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


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint with random weights: heads `category` (3 classes) and `education` (4)."""
    return write_tiny_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[[int], Path]:
    """Make several checkpoints that answer differently: `make_checkpoint(seed)`."""
    return lambda seed: write_tiny_checkpoint(tmp_path / f"checkpoint-{seed}", seed)
