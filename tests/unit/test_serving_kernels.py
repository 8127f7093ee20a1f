"""The engine's own loops compute what torch does, for any shape, and hide nothing that is no number."""

import logging
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from serving.engines import kernels as module
from serving.engines.cache import is_own
from serving.engines.int8 import Int8Linear, is_exact
from serving.engines.kernels import Kernels, compiled
from serving.engines.linear import ExactLinear, can_lay_out, replace_linear


@pytest.fixture
def kernels() -> Kernels:
    found = compiled()
    if found is None:
        pytest.skip("this machine has no C compiler, and serving does without the kernels there")
    return found


@pytest.mark.skipif(not is_exact(), reason="this processor's products of whole numbers are not exact")
@pytest.mark.parametrize("has_gelu", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 16, 8), (7, 48, 33), (600, 20, 100), (256, 384, 16)])
def test_a_rounded_layer_is_the_same_as_torch_computes_it(kernels: Kernels, rows: int, inputs: int, outputs: int, has_gelu: bool) -> None:
    torch.manual_seed(rows)
    linear, values = nn.Linear(inputs, outputs), torch.randn(rows, inputs) * 3
    largest = values.abs().amax(dim=0)
    layers = [Int8Linear(linear, largest, has_gelu, one) for one in (kernels, None)]
    ours, theirs = (layer(values) for layer in layers)
    # A value between two steps may fall to either side.
    shrunk = values * layers[0].shrink
    step = (shrunk.amax(dim=1) - shrunk.amin(dim=1)).max() / 255 * layers[0].step.max() * 127
    assert (ours - theirs).abs().max() < 2 * step
    assert (ours - theirs).abs().mean() < 1e-5


def test_gelu_is_exact_everywhere(kernels: Kernels) -> None:
    products = torch.arange(-1_000, 1_001, dtype=torch.int32)[None].contiguous()
    ones, zeros, found = torch.ones(products.shape[1]), torch.zeros(products.shape[1]), torch.empty(products.shape)
    kernels.finish(products, torch.tensor([[0.01], [0.0]]), (ones, zeros, zeros), True, found)
    torch.testing.assert_close(found, nn.functional.gelu(products * 0.01), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_with_what_is_no_number_answers_none_and_spares_the_others(kernels: Kernels, bad: float) -> None:
    torch.manual_seed(1)
    layer, values = Int8Linear(nn.Linear(32, 5), kernels=kernels), torch.randn(4, 32)
    expected = layer(values)
    values[2, 9] = bad
    found = layer(values)
    assert not torch.isfinite(found[2]).any()
    assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80])
def test_attention_is_what_torch_computes(kernels: Kernels, width: int) -> None:
    torch.manual_seed(width)
    lengths = [1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33, 50, 200]
    assert kernels.can_attend(width)
    queries, keys, values = (torch.randn(sum(lengths), 3, width) * 2 for _ in range(3))
    begins = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    found = kernels.attend(queries, keys, values, begins, width**-0.5)
    parts = [[part.transpose(0, 1)[None] for part in one.split(lengths)] for one in (queries, keys, values)]
    texts = list(zip(*parts, strict=True))
    exact, theirs = (
        torch.cat([scaled_dot_product_attention(*(one.to(dtype) for one in text))[0].transpose(0, 1) for text in texts])
        for dtype in (torch.float64, torch.float32)
    )
    assert (found - exact).abs().max() < 2 * (theirs - exact).abs().max()


def test_attention_survives_scores_beyond_what_exp_can_tell(kernels: Kernels) -> None:
    queries, begins = torch.full((20, 1, 16), 30.0), torch.tensor([0, 20], dtype=torch.int32)
    keys, values = torch.full((20, 1, 16), -30.0), torch.randn(20, 1, 16)
    keys[4] = 30.0
    torch.testing.assert_close(kernels.attend(queries, keys, values, begins, 1.0), values[4].expand(20, 1, 16))


def test_attention_among_what_is_no_number_is_none_and_spares_the_other_text(kernels: Kernels) -> None:
    queries = torch.randn(30, 2, 16)
    begins = torch.tensor([0, 10, 30], dtype=torch.int32)
    expected = kernels.attend(queries, queries, queries, begins, 0.25)
    keys = queries.clone()
    keys[3, 1, 7] = float("nan")
    found = kernels.attend(queries, keys, queries, begins, 0.25)
    assert torch.isnan(found[:10, 1]).all()
    assert torch.equal(found[10:], expected[10:])
    assert torch.equal(found[:10, 0], expected[:10, 0])


def test_heads_of_other_widths_are_left_to_torch(kernels: Kernels) -> None:
    assert [width for width in range(1, 70) if kernels.can_attend(width)] == [16, 32, 48, 64]


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_without_a_compiler_that_can_torch_computes(
    compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO, "serving"):
        assert compiled.__wrapped__() is None
    assert "torch computes" in caplog.text


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for what is compiled."""
    if not is_own(tmp_path):
        pytest.skip("others may write above this machine's folder for temporary files, and nothing is kept there")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "twohead/kernels"


def test_what_was_compiled_is_kept_for_this_processor(kernels: Kernels, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.__wrapped__() is not None
    (kept,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        # No compiler is called.
        assert compiled.__wrapped__() is not None
    with monkeypatch.context() as patch:
        patch.setattr(module, "processor", lambda: "another")
        assert compiled.__wrapped__() is not None
    assert len([*cache.iterdir()]) == 2
    assert kept in cache.iterdir()


def test_it_is_kept_where_the_umask_lets_the_group_write(kernels: Kernels, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "home/.cache"))
    before = os.umask(0o002)
    try:
        assert compiled.__wrapped__() is not None
    finally:
        os.umask(before)
    made = [cache / "home", *(cache / "home").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
    monkeypatch.setattr(subprocess, "run", None)
    # No compiler is called.
    assert compiled.__wrapped__() is not None


def test_what_others_may_have_written_is_not_loaded(kernels: Kernels, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True)
    (cache / f"{module._digest(shutil.which('cc'))}.so").write_text("a stranger's")
    cache.chmod(0o777)
    assert compiled.__wrapped__() is not None
    assert [file.read_text() for file in cache.iterdir()] == ["a stranger's"]
    assert [message.partition(": others")[0] for message in caplog.messages] == [str(cache)]


def test_what_is_damaged_is_made_anew_by_the_next(kernels: Kernels, cache: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    (cache / f"{module._digest(shutil.which('cc'))}.so").write_text("no library")
    assert compiled.__wrapped__() is None
    assert compiled.__wrapped__() is not None


def test_where_nothing_may_be_loaded_torch_computes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nonsense(command: list[str], **_: object) -> None:
        Path(command[command.index("-o") + 1]).write_text("no library")

    monkeypatch.setattr(subprocess, "run", write_nonsense)
    monkeypatch.setattr(module.shutil, "which", lambda _: "cc")
    assert compiled.__wrapped__() is None


@pytest.mark.skipif(not can_lay_out(), reason="this build of torch has no oneDNN, and serving uses torch's own product there")
@pytest.mark.parametrize("bias", [True, False])
def test_weights_laid_out_once_give_the_same(bias: bool) -> None:
    torch.manual_seed(2)
    linear, values = nn.Linear(70, 33, bias=bias), torch.randn(3, 5, 70)
    with torch.inference_mode():
        torch.testing.assert_close(ExactLinear(linear)(values), linear(values), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ExactLinear(linear, has_gelu=True)(values), nn.functional.gelu(linear(values)), atol=1e-6, rtol=1e-5)


def test_gelu_that_follows_is_told_and_taken_out_and_anything_else_stays() -> None:
    class Half(nn.Module):
        def __init__(self, after: nn.Module) -> None:
            super().__init__()
            self.dense, self.intermediate_act_fn = nn.Linear(2, 2), after

    layers = nn.ModuleList([Half(nn.GELU()), Half(nn.GELU(approximate="tanh")), Half(nn.ReLU())])
    told = dict[str, bool]()
    replace_linear(layers, lambda name, layer, has_gelu: told.update({name: has_gelu}) or layer)
    assert told == {"0.dense": True, "1.dense": False, "2.dense": False}
    assert [type(half.intermediate_act_fn) for half in layers] == [nn.Identity, nn.GELU, nn.ReLU]
