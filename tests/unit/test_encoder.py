"""Finding and verifying encoders."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.errors import EncoderError
from training.fit_settings import EncoderSettings
from training.network.encoder import find_encoder, load_encoder_weights


def find(name: object, **changes: object) -> object:
    return find_encoder(EncoderSettings(name=str(name), **{"max_tokens": None, **changes}))


def test_an_encoder_inside_a_package_is_found_without_importing_it(
    make_encoder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    make_encoder("bert").rename(package / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = find("package:carrier/model")
    assert source.folder == package / "model"
    assert "carrier" not in sys.modules
    with pytest.raises(EncoderError, match=r"has no folder '\.\./elsewhere'"):
        find("package:carrier/../elsewhere")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="package 'no_such_package' is not installed"):
        find("package:no_such_package/model")
    with pytest.raises(EncoderError, match="no such folder"):
        find(tmp_path / "nothing")


def test_without_a_model_hub_a_hub_name_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="nor to be had from the model hub") as caught:
        find("no-such-owner/no-such-encoder")
    assert "package:NAME/PATH" in caught.value.hint


def test_changed_weights_are_refused(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder("bert")
    digest = find(folder).sha256
    assert find(folder, sha256=digest).sha256 == digest
    with pytest.raises(EncoderError, match=f"has SHA-256 {digest}, but {'0' * 64} is expected"):
        find(folder, sha256="0" * 64)


def test_what_says_how_weights_are_put_together_has_a_digest_of_its_own(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder("bert")
    before = find(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    after = find(folder)
    assert (after.sha256, after.config_sha256 == before.config_sha256) == (before.sha256, False)


def test_pickled_weights_are_refused(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"holds pytorch_model.bin, but must hold model.safetensors"):
        find(folder)


def test_a_token_limit_beyond_the_encoders_is_refused(make_encoder: Callable[..., Path]) -> None:
    assert find(make_encoder("bert")).max_tokens == 70
    assert find(make_encoder("roberta")).max_tokens == 69
    with pytest.raises(EncoderError, match=r"max_tokens is 71, but encoder .* reads at most 70"):
        find(make_encoder("electra"), max_tokens=71)


def test_a_config_without_a_vocabulary_is_refused(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder("bert")
    config = json.loads((folder / "config.json").read_text())
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=r"its config\.json names no vocab_size"):
        find(folder)


def test_another_architecture_is_refused(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder("bert")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "bert"', '"model_type": "gpt2"'))
    with pytest.raises(EncoderError, match="is of type 'gpt2', but must be one of bert, "):
        find(folder)


def test_the_default_pooling_is_what_the_encoder_was_trained_with(make_encoder: Callable[..., Path]) -> None:
    bert = make_encoder("bert")
    assert find(bert).pooling == "pooler"
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}')
    assert find(bert).pooling == "mean"
    assert find(make_encoder("distilbert")).pooling == "cls"
    assert find(make_encoder("modernbert", classifier_pooling="mean")).pooling == "mean"
    with pytest.raises(EncoderError, match="has no trained pooler"):
        find(make_encoder("distilbert"), pooling="pooler")


EARLIER = {
    "word_embedding_dimension": 16,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}


def write_sentence_pooling(folder: Path, config: dict[str, object]) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        # As sentence-transformers 5.4 and later write it, and as earlier ones did.
        ({"embedding_dimension": 16, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"embedding_dimension": 16, "pooling_mode": ["cls"]}, "cls"),
        (EARLIER | {"pooling_mode_cls_token": True}, "cls"),
        (EARLIER | {"pooling_mode_mean_tokens": True}, "mean"),
        # There too the new key outweighs the old ones, and none at all is the mean.
        (EARLIER | {"pooling_mode_mean_tokens": True, "pooling_mode": "cls"}, "cls"),
        (EARLIER, "mean"),
    ],
)
def test_the_pooling_of_old_and_new_sentence_transformers_is_read(
    make_encoder: Callable[..., Path], config: dict[str, object], pooling: str
) -> None:
    folder = make_encoder("bert")
    write_sentence_pooling(folder, config)
    assert find(folder).pooling == pooling


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["cls", "mean"]}, "cls and mean"),
        ({"pooling_mode": "of tomorrow"}, "of tomorrow"),
        (EARLIER | {"pooling_mode_lasttoken": True}, "lasttoken"),
        (EARLIER | {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "max and mean"),
    ],
)
def test_a_pooling_that_is_not_ours_is_refused_unless_another_is_set(
    make_encoder: Callable[..., Path], config: dict[str, object], named: str
) -> None:
    folder = make_encoder("bert")
    write_sentence_pooling(folder, config)
    with pytest.raises(EncoderError, match=f"was trained to pool by {named}, but can pool here by cls or mean only") as caught:
        find(folder)
    assert "training.encoder.pooling" in caught.value.hint
    assert find(folder, pooling="mean").pooling == "mean"


def test_weights_that_are_missing_are_an_error(make_encoder: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    from training.network.encoder import build_encoder

    folder = make_encoder("bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = find(folder, pooling="mean")
    with pytest.raises(EncoderError, match=r"1 weights are missing, the first is 'encoder\.layer\.1\.attention\.self\.query\.weight'"):
        load_encoder_weights(build_encoder(AutoConfig.from_pretrained(str(folder)), "mean"), source)
