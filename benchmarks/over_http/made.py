"""A version with random weights, and texts whose tokens are counted: what answers are worth does not matter here."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertTokenizer

from training.checkpoint import write_checkpoint
from training.data.tokens import Tokenizer
from training.manifest import EncoderFacts, HeadFacts, ModelFacts
from training.network.model import TwoHeadBert, make_config

SHAPES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128},
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [first + second + third for first in "bcdfglmnprstvw" for second in "aeiou" for third in "bdglmnrst"]
MAX_TOKENS = 512


def write_version(folder: Path, shape: str, heads: int = 2) -> Path:
    """Write a checkpoint of a shape, every word one token."""
    parts = folder / "tokenizer"
    parts.mkdir(parents=True)
    (parts / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(parts / "vocab.txt")).save_pretrained(str(parts))
    torch.manual_seed(0)
    told = [{"name": f"head{number}", "classes": [f"class{one}" for one in range(10)]} for number in range(heads)]
    configuration = BertConfig(vocab_size=30_522, **SHAPES[shape])
    model = TwoHeadBert(make_config(configuration, "mean", [one | {"hidden_size": 0, "dropout": 0.1} for one in told])).eval()
    facts = ModelFacts(
        heads=tuple(HeadFacts(**one, hidden_size=0, dropout=0.1) for one in told),
        text_template="{text}",
        max_tokens=MAX_TOKENS,
        encoder=EncoderFacts(name=shape, model_type="bert", sha256="0" * 64, pooling="mean"),
        metrics={},
    )
    (folder / "version").mkdir()
    write_checkpoint(folder / "version", model, Tokenizer(parts, MAX_TOKENS), facts)
    return folder / "version"


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Make texts of log-normal length: median 50 tokens, sigma .8, at most 512, two of them special."""
    chance = np.random.default_rng(seed)
    lengths = np.clip(np.exp(chance.normal(np.log(50), 0.8, count)), 4, MAX_TOKENS).astype(int)
    return [" ".join(chance.choice(WORDS, length - 2)) for length in lengths]


def write_bodies(path: Path, texts: list[str], together: int) -> None:
    """Write bodies for `wire.py`, so many texts in each."""
    groups = [texts[first : first + together] for first in range(0, len(texts) - together + 1, together)]
    path.write_text("".join(json.dumps({"texts": group}) + "\n" for group in groups), encoding="utf-8")
