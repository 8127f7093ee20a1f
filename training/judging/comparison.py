"""Is it real? The searched model against its baselines, on the same texts, with paired bootstrap intervals.

It knows probabilities and labels, not who made them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from training.data.dataset import Examples
from training.data.labels import MISSING
from training.judging.bootstrap import paired_difference, score_of, selection_score_of
from training.judging.metrics import Probabilities, has_score
from training.settings import TrainingSettings

DEFAULT = "default"
EQUAL = "equal weights"
WORDS_ALONE = "words alone"
SINGLE = "one model per head"
WORD_COUNTS = "TF-IDF + logistic regression"
LIKELIHOOD = "exp(-log_loss)"

# Head → (texts, classes), of one training.
Answers = Mapping[str, Probabilities]


def compare(
    settings: TrainingSettings, examples: Examples, against: str, ours: Sequence[Answers], theirs: Sequence[Answers]
) -> list[dict[str, Any]]:
    """Compare two sides head by head and in the selection score.

    Args:
        settings: Metrics and weights of the heads.
        examples: The texts both answered.
        against: What theirs is called.
        ours: One answer a training.
        theirs: One answer a training.

    Returns:
        One entry a head that has a label among the texts and, with several of them, one for the selection score, head null, if any counts.
    """
    labelled = [head for head in settings.heads if (examples.labels[head] != MISSING).any()]
    metrics = {head: settings.tuning.score_metrics.get(head, "macro_f1") for head in labelled}
    sides = [
        [{head: score_of(examples.labels[head], one[head], metrics[head]) for head in metrics} for one in side] for side in (ours, theirs)
    ]
    found = []
    for head, metric in metrics.items():
        own = [[one[head] for one in side] for side in sides]
        # What is compared grows with quality, also where the metric does not.
        named = LIKELIHOOD if metric == "log_loss" else metric
        found.append({"against": against, "head": head, "metric": named} | _entry(own[0], own[1], examples, [head]))
    weights = settings.tuning.score_weights
    if len(metrics) > 1 and has_score(metrics, weights):
        whole = [[selection_score_of(one, weights) for one in side] for side in sides]
        counted = [head for head in metrics if has_score([head], weights)]
        found.append({"against": against, "head": None, "metric": "score"} | _entry(whole[0], whole[1], examples, counted))
    return found


def _entry(ours: Sequence[Any], theirs: Sequence[Any], examples: Examples, heads: Sequence[str]) -> dict[str, Any]:
    known = [examples.labels[head] != MISSING for head in heads]
    difference = paired_difference(ours, theirs, len(examples), groups=examples.groups, known=known)
    return difference.to_dict() | {"runs": [len(ours), len(theirs)]}


def headline(record: Mapping[str, Any], split: str) -> str:
    """Say in a sentence or two what the search found and whether it is real.

    Args:
        record: With `metrics`, `intervals`, `comparisons`, `best` and `trials`.
        split: The reported one.
    """
    score = record["metrics"][split]["score"]
    overall = {entry["against"]: entry for entry in record["comparisons"] if entry["head"] is None or len(record["heads"]) == 1}
    flatters = ", which chose it, so this flatters" if split == "validation" else ""
    sentences = [f"Trial {record['best']} has no score on the {split} texts: no head that counts has a label there."]
    if score is not None:
        low, high = record["intervals"]["score"]
        sentences = [f"Trial {record['best']} scores {score:.3f} [{low:.3f}, {high:.3f}] on the {split} texts{flatters}."]
    origin = next(trial["origin"] for trial in record["trials"] if trial["position"] == record["best"])
    if origin == DEFAULT:
        sentences.append(_about_the_default(record))
    if origin == WORDS_ALONE:
        is_alone = all(trial["score"] is None for trial in record["trials"] if trial["origin"] != WORDS_ALONE)
        why = "no training has come to a score" if is_alone else "nothing that trained was better"
        sentences.append(f"It is what words say by themselves: {why}.")
    said = [_said(overall[name], name) for name in (DEFAULT, EQUAL, SINGLE, WORD_COUNTS) if name in overall]
    if said:
        sentences.append(_sentence(said))
    # Word counts are the same each time.
    if any(1 in entry["runs"][: 1 if name == WORD_COUNTS else 2] for name, entry in overall.items()):
        sentences.append("Where a side has one training, the noise of seeds is not in these intervals.")
    return " ".join(sentences)


def _about_the_default(record: Mapping[str, Any]) -> str:
    if len(record["trials"]) == 1:
        return "It is the default configuration: nothing else was tried."
    if record["tuning"]["mode"] == "pareto":
        return "It is the default configuration: the rule picked it."
    return "It is the default configuration: the search found nothing better."


def _said(entry: Mapping[str, Any], name: str) -> str:
    named = {DEFAULT: "the default configuration", EQUAL: "equal loss weights"}.get(name, name)
    than = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}[entry["verdict"]]
    return f"{than} {named} ({entry['difference']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}])"


def _sentence(said: Sequence[str]) -> str:
    joined = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return f"It is {joined}."
