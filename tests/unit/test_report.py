"""The report of a search."""

from typing import Any

from training.report import write_report


def record(**changes: Any) -> dict[str, Any]:
    head = {"macro_f1": 0.71, "accuracy": 0.8, "majority_macro_f1": 0.1, "majority_accuracy": 0.3, "count": 10}
    trial = {
        "position": 0, "state": "finished", "score": 0.7, "epoch": 3, "best_epoch": 2, "metrics": {"job": head},
        "point": {"encoder_learning_rate": 2e-5, "heads/job/hidden_size": 0}, "seconds": 12.3, "error": "",
    }  # fmt: skip
    died = trial | {"position": 1, "state": "died", "score": None, "metrics": {}, "error": "OutOfMemoryError"}
    split = {"job": head, "joint_accuracy": 0.6, "score": 0.71}
    return {
        "name": "ads", "best": 0, "trials": [died, trial], "metrics": {"validation": split, "test": split},
        "classes": {"job": ["<b>nurse</b>", "driver"]}, "confusion": {"job": [[5, 1], [0, 4]]},
        "splits": {"training": 50, "validation": 10, "test": 10}, "notes": ["2 rows without labels"], "data_digest": "ab" * 32,
        "encoder": {"name": "tiny", "model_type": "bert", "pooling": "mean", "sha256": "cd" * 32},
    } | changes  # fmt: skip


def test_it_shows_scores_beside_the_baseline_and_every_trial() -> None:
    page = write_report(record())
    shown = ("0.710", "majority 0.100", "0 (default)", "2.0e-05", "died", "10 test texts that no choice has seen", "2 rows without labels")
    for expected in shown:
        assert expected in page


def test_it_needs_nothing_from_elsewhere_and_escapes_what_it_shows() -> None:
    page = write_report(record())
    assert "http" not in page
    assert "<script" not in page
    assert "<b>nurse</b>" not in page
    assert "&lt;b&gt;nurse&lt;/b&gt;" in page


def test_without_a_test_split_it_says_that_the_figures_flatter() -> None:
    page = write_report(record(metrics={"validation": record()["metrics"]["validation"]}))
    assert "they flatter" in page
