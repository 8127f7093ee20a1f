"""Exported models answer as ours do: every encoder type, pooling and kind of head, as a graph and in plain transformers."""

import ast
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from cluster.storage import sha256_file
from training.checkpoint import ALLOWED_FILES, TOKENIZER_FILES, load_model, load_tokenizer, verify_checkpoint, write_checkpoint
from training.data.tokens import Tokenizer
from training.errors import CheckpointError, ExportError
from training.export.facts import ExportManifest
from training.export.folder import EXPORTED_TYPES, ParityTexts, write_export
from training.manifest import EncoderFacts, HeadFacts, ModelFacts, read_manifest
from training.network.encoder import SUPPORTED_TYPES
from training.network.inputs import TokenInputs
from training.network.letters import spell
from training.network.model import TwoHeadBert, make_config
from training.report.card import how_to_use, write_card

# The exporter calls its own values `linear` and `add_1` too.
HEADS: list[dict[str, Any]] = [
    {"name": "linear", "classes": ["driver", "nurse", "sales"], "hidden_size": 8, "dropout": 0.1, "word_pieces": True},
    {"name": "add_1", "classes": ["none", "school", "master", "phd"], "hidden_size": 0, "dropout": 0.1, "loss": "corn"},
]
TEXTS = ("nurse", "the driver and the teacher", "a " * 62, "sales master 1 2 3", "x y z " * 9)
POOLINGS = {"bert": "pooler", "deberta-v2": "cls", "roberta": "cls", "modernbert": "cls"}
# As in the published checkpoints: distances beyond a few tokens share buckets.
CHANGES: dict[str, dict[str, Any]] = {"deberta-v2": {"position_buckets": 16, "norm_rel_ebd": "layer_norm"}}
LOAD = r"""
import json, sys
sys.modules["training"] = sys.modules["cluster"] = None  # even where they are installed
import torch
from transformers import AutoModel, AutoTokenizer
texts, folders = json.loads(sys.argv[1]), sys.argv[2:]
found = {}
for folder in folders:
    try:
        AutoModel.from_pretrained(folder)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
    model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(batch["input_ids"], batch["attention_mask"]).logits
    issues = [str(key) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[name]]
    found[folder] = {"refusal": refusal, "issues": issues, "logits": {name: value.tolist() for name, value in logits.items()}}
print("\n" + json.dumps(found))  # the question whether to trust ends without a line break
"""

MakeVersion = Callable[..., Path]


@pytest.fixture
def make_version(make_encoder: Callable[..., Path], tmp_path: Path) -> MakeVersion:
    """Make a whole checkpoint over a tiny encoder of a type, with a softmax and a CORN head.

    One layer is exported in half the time; several matter where the layers of a type differ, or their errors add up.
    """

    def make(model_type: str, heads: list[dict[str, Any]] = HEADS, layers: int = 3) -> Path:
        pooling: Any = POOLINGS.get(model_type, "mean")
        depth = {"n_layers": layers, "num_hidden_layers": layers} if model_type == "distilbert" else {"num_hidden_layers": layers}
        encoder = make_encoder(model_type, **CHANGES.get(model_type, {}), **depth)
        torch.manual_seed(1)
        model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(encoder)), pooling, heads, letters=True))
        tokenizer = Tokenizer(encoder, 64)
        if (pieces := model.word_pieces) is not None:
            # Scores of a size at which the tolerances of the other logits hold.
            for weights in (pieces.weights, pieces.run_weights):
                torch.nn.init.uniform_(weights, -0.05, 0.05)
                torch.nn.init.uniform_(weights[:, -2:], 0.5, 1.0)
            pieces.spelling.copy_(torch.from_numpy(spell(tokenizer.spelled(len(pieces.weights))).table))
            pieces.reads_letters[1:] = 1.0
            pieces.run_weights[0] = 0.0
        facts = ModelFacts(
            heads=tuple(HeadFacts(**head, temperature=0.5) for head in heads),
            text_template="{text}",
            max_tokens=64,
            encoder=EncoderFacts(name="tiny", model_type=model_type, sha256="0" * 64, pooling=pooling),
        )
        folder = tmp_path / f"version-{model_type}"
        folder.mkdir()
        write_checkpoint(folder, model, tokenizer, facts)
        return folder

    return make


def test_every_encoder_that_trains_is_exported() -> None:
    assert set(EXPORTED_TYPES) == set(SUPPORTED_TYPES)
    plain = {"manifest.json", "manifest.sig", "weights.safetensors", "config.json", "README.md", "report.json", "golden.safetensors"}
    assert set(ALLOWED_FILES) - TOKENIZER_FILES <= plain


@pytest.mark.slow
@pytest.mark.parametrize("model_type", EXPORTED_TYPES)
def test_the_graphs_answer_as_the_version_does(
    model_type: str, make_version: MakeVersion, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    version, out = make_version(model_type), tmp_path / "out"
    capfd.readouterr()
    manifest = write_export(version, 3, out, ParityTexts("texts", TEXTS))
    # What a person sees is our table alone.
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0
    facts = manifest.export.onnx
    assert facts is not None
    assert facts.outputs == ("linear", "add_1")
    exact, rounded = facts.graphs["model.onnx"], facts.graphs["model.int8.onnx"]
    for head in facts.outputs:
        assert exact.parity[head].largest < 1e-5
        assert exact.parity[head].equal_answers == 1.0
        assert 0 < rounded.parity[head].largest < 0.2
    for file in ("model.onnx", "model.int8.onnx"):
        onnx.checker.check_model(str(out / file), full_check=True)
        content = (out / file).read_bytes()
        assert b"site-packages" not in content
        assert str(Path(__file__).parents[2]).encode() not in content
        session = onnxruntime.InferenceSession(out / file)
        assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
            (name, "tensor(int64)", ["texts", "tokens"]) for name in ("input_ids", "attention_mask")
        ]
        assert [(one.name, one.shape) for one in session.get_outputs()] == [("linear", ["texts", 3]), ("add_1", ["texts", 4])]
    assert {file.name for file in out.iterdir()} == {*manifest.files, "manifest.json"}
    assert {"model.onnx", "model.int8.onnx"} == {name for name in manifest.files if "token" not in name and "vocab" not in name}


@pytest.mark.slow
def test_a_graph_is_as_finite_as_the_model(make_version: MakeVersion, tmp_path: Path) -> None:
    from training.export.onnx import GRAPH_FILE, graph_forward, write_graph

    version = make_version("bert", layers=1)
    model = load_model(version)
    with torch.no_grad():
        model.heads[1].output.weight.mul_(20_000)
    write_graph(model, tmp_path / GRAPH_FILE)
    tokenizer = load_tokenizer(version, read_manifest(version))
    batch = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id).batch(np.arange(len(TEXTS)))
    with torch.inference_mode():
        expected = model(**batch).logits["add_1"].numpy()
    assert expected.min() < -300
    np.testing.assert_allclose(graph_forward(tmp_path / GRAPH_FILE)(batch)["add_1"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_weights_beyond_one_file_stand_beside_it(make_version: MakeVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.export.onnx.MOST_GRAPH_BYTES", 1000)
    manifest = write_export(make_version("bert", layers=1), 3, tmp_path / "out", ParityTexts("texts", TEXTS))
    assert {"model.onnx", "model.onnx.data", "model.int8.onnx", "model.int8.onnx.data"} <= set(manifest.files)


@pytest.mark.slow
def test_a_graph_that_answers_differently_is_not_left_behind(
    make_version: MakeVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.export import onnx as export_onnx

    whole = export_onnx.write_graph

    def changed(model: TwoHeadBert, path: Path) -> None:
        with torch.no_grad():
            model.heads[1].output.bias.add_(1.0)
        whole(model, path)

    monkeypatch.setattr(export_onnx, "write_graph", changed)
    version = make_version("distilbert", layers=1)
    before = set(tmp_path.iterdir())
    with pytest.raises(ExportError, match="head 'add_1': the float32 graph moves a probability by"):
        write_export(version, 3, tmp_path / "out", ParityTexts("texts", TEXTS))
    assert set(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_plain_transformers_answers_as_we_do_and_only_with_consent(make_version: MakeVersion, tmp_path: Path) -> None:
    folders = {}
    expected: dict[str, dict[str, np.ndarray]] = {}
    for model_type in EXPORTED_TYPES:
        version, out = make_version(model_type), tmp_path / f"hub-{model_type}"
        write_export(version, 3, out, None, with_hub_layout=True)
        folders[str(out)] = version
        tokenizer = load_tokenizer(version, read_manifest(version))
        batch = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id).batch(np.arange(len(TEXTS)))
        with torch.inference_mode():
            expected[str(out)] = {head: logits.numpy() for head, logits in load_model(version)(**batch).logits.items()}
    result = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, json.dumps(TEXTS), *folders],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found) == set(expected)
    for folder, answers in expected.items():
        assert "trust_remote_code=True" in found[folder]["refusal"]
        assert found[folder]["issues"] == []
        for head, logits in answers.items():
            np.testing.assert_allclose(np.array(found[folder]["logits"][head]), logits, rtol=0, atol=1e-6)


def test_the_hub_layout_is_the_version_and_our_loader_refuses_it(make_version: MakeVersion, tmp_path: Path) -> None:
    version, out = make_version("bert", layers=1), tmp_path / "out"
    (version / "README.md").write_text("# A card\n", encoding="utf-8")
    before = (version / "tokenizer_config.json").read_bytes()
    manifest = write_export(version, 3, out, None, with_hub_layout=True)
    assert (out / "model.safetensors").read_bytes() == (version / "weights.safetensors").read_bytes()
    assert (out / "README.md").read_text(encoding="utf-8") == f"# A card\n\n{how_to_use()}\n"
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {"AutoConfig": "configuration_twohead.TwoHeadConfig", "AutoModel": "modeling_twohead.TwoHeadBert"}
    assert str(tmp_path) not in (out / "config.json").read_text(encoding="utf-8")
    assert ExportManifest.model_validate_json((out / "manifest.json").read_bytes()) == manifest
    assert manifest.heads == read_manifest(version).heads
    assert manifest.export.version == 3
    assert manifest.export.formats == ("hub-layout",)
    assert manifest.export.weights_sha256 == sha256_file(version / "weights.safetensors")
    assert {name: facts.sha256 for name, facts in manifest.files.items()} == {
        file.name: sha256_file(file) for file in out.iterdir() if file.name != "manifest.json"
    }
    assert (version / "tokenizer_config.json").read_bytes() == before
    with pytest.raises(CheckpointError):
        verify_checkpoint(out)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_an_exported_tokenizer_cuts_where_the_version_does(make_version: MakeVersion, tmp_path: Path, model_type: str) -> None:
    from transformers import AutoTokenizer

    version, out = make_version(model_type, layers=1), tmp_path / "out"
    write_export(version, 3, out, None, with_hub_layout=True)
    # With it transformers asks whether to trust its code.
    (out / "config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    assert tokenizer.model_max_length == 64
    texts = ["nurse " * 200, "a text"]
    wanted = load_tokenizer(version, read_manifest(version)).encode(texts)
    found = tokenizer(texts, truncation=True)["input_ids"]
    assert [len(ids) for ids in found] == [64, 7]
    assert [list(ids) for ids in found] == [wanted[place].tolist() for place in range(2)]


def test_a_card_that_says_how_a_version_is_used_is_copied_as_it_is(
    make_version: MakeVersion, tmp_path: Path, make_record: Callable[..., dict[str, Any]]
) -> None:
    version, out = make_version("bert", layers=1), tmp_path / "out"
    card = write_card(make_record())
    assert card.count("## Use\n") == 1
    (version / "README.md").write_text(card, encoding="utf-8")
    write_export(version, 3, out, None, with_hub_layout=True)
    assert (out / "README.md").read_text(encoding="utf-8") == card


def run_in(folder: Path, code: str) -> str:
    """Run what a card shows in a process that has nothing of ours."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.modules['training'] = None\n{code}"],
        cwd=folder,
        env={"HF_HOME": str(folder.parent / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_what_the_card_shows_answers_as_the_version_does(make_version: MakeVersion, tmp_path: Path) -> None:
    version = make_version("bert", layers=1)
    manifest, model = read_manifest(version), load_model(version)
    (version / "README.md").write_text("# A card\n", encoding="utf-8")
    hub, graphs = tmp_path / "hub", tmp_path / "graphs"
    write_export(version, 3, hub, None, with_hub_layout=True)
    write_export(version, 3, graphs, ParityTexts("texts", TEXTS))
    texts = ["sales " * 300, "the driver"]
    tokenizer = load_tokenizer(version, manifest)
    with torch.inference_mode():
        logits = model(**TokenInputs(tokenizer.encode(texts), tokenizer.pad_id).batch(np.arange(2))).logits
    expected = {head.name: torch.softmax(logits[head.name] / head.temperature, dim=1).max(dim=1) for head in manifest.heads}
    card = (graphs / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    for folder, code in zip((hub, graphs), shown, strict=True):
        code = code.replace('["a text", "another text"]', json.dumps(texts))
        for head, line in zip(manifest.heads, run_in(folder, code).splitlines(), strict=True):
            best = expected[head.name]
            name, classes, values = re.fullmatch(r"(\S+) (\[.*\]) (\[.*\])", line).groups()  # type: ignore[union-attr]
            assert (name, ast.literal_eval(classes)) == (head.name, [head.classes[place] for place in best.indices])
            np.testing.assert_allclose(json.loads(values), best.values.numpy(), rtol=0, atol=1e-5)


def test_a_head_with_the_name_of_an_input_is_refused(make_version: MakeVersion, tmp_path: Path) -> None:
    version = make_version("bert", [HEADS[0] | {"name": "input_ids"}], layers=1)
    with pytest.raises(ExportError, match="head 'input_ids' has the name of an input"):
        write_export(version, 3, tmp_path / "out", ParityTexts("texts", TEXTS))
    assert not (tmp_path / "out").exists()
