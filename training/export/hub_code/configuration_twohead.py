"""Configuration of a twohead model: one pretrained encoder and several classification heads.

It stands alone: it needs transformers and nothing else.
"""

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class TwoHeadConfig(PretrainedConfig):
    """What the network is: its encoder, how it pools, and its heads.

    Args:
        encoder: The encoder's own configuration, or its dictionary.
        heads: One dictionary a head: `name`, `classes` (in order), `hidden_size` (0 = linear), `dropout`, `loss` if it is `corn`, and
            `word_pieces` if weights of the text's pieces are added to its logits.
        pooling: `cls` (first token), `pooler` (the encoder's own layer on it) or `mean` (of real tokens).
        letters: Beside pieces runs of letters have weights.
    """

    model_type = "twohead"
    sub_configs = {"encoder": AutoConfig}

    def __init__(self, encoder: Any = None, heads: Any = None, pooling: str = "mean", letters: bool = False, **kwargs: Any) -> None:
        # transformers makes an empty configuration when it prints only what differs from the defaults.
        values = {"model_type": "bert"} if encoder is None else encoder
        self.encoder = AutoConfig.for_model(**values) if isinstance(values, dict) else values
        self.heads = [dict(head) for head in heads or ()]
        self.pooling = pooling
        self.letters = letters
        super().__init__(**kwargs)
