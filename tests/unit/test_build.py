"""What a trial reads: activations of frozen layers where they fit into memory, else token ids."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.network.encoder import find_encoder
from training.network.inputs import ActivationInputs, PooledInputs, TokenInputs
from training.search import reading
from training.search.build import prepare_fit
from training.search.prepared import make_assignment
from training.search.search_space import trial_settings
from training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("frozen_layers", "most_bytes", "expected"),
    [(0, 10**9, TokenInputs), (2, 10**9, ActivationInputs), (2, 1000, TokenInputs), (3, 10**9, PooledInputs), (3, 0, TokenInputs)],
)
def test_what_does_not_fit_is_computed_anew(
    frozen_layers: int, most_bytes: int, expected: type, make_encoder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What this process has mapped already needs no room.
    monkeypatch.setattr(reading, "_mapped", {})
    lines = ["text,job", *(f"the {'nurse' if row % 2 else 'driver'} {row},{'nurse' if row % 2 else 'driver'}" for row in range(60))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    settings = TrainingSettings.model_validate(
        {
            "data": {"files": [str(tmp_path / "table.csv")]},
            "heads": {"job": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "fit": {"epochs": 1, "frozen_layers": frozen_layers},
            "activations": {"most_bytes": most_bytes, "folder": str(tmp_path / "activations")},
        }
    )
    source = find_encoder(settings.encoder)
    assignment = make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, 16))
    fit = prepare_fit(assignment, trial_settings(settings, {}))
    assert type(fit._training.inputs) is type(fit._validation.inputs) is expected
    assert next(iter(fit.epochs())).is_last
