"""The command `python -m training`: sample, check, tune, publish, promote, versions, report, export.

Everything heavy is imported inside the verbs, so that `--help` answers at once.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.console import run_command, say, settings_options, table

if TYPE_CHECKING:
    from training.manifest import Manifest
    from training.registry import Registry
    from training.search.plan import Start
    from training.search.winner import SearchResult
    from training.settings import TrainingSettings

# What a shell reports of a command that Ctrl-C ended.
_INTERRUPTED = 130
# With a limit on time, no limit on trials that anybody would reach.
_UNCOUNTED_TRIALS = 1000


def sample(options: argparse.Namespace) -> int:
    """Write a sample table."""
    from training.data.sample import write_sample

    summary = write_sample(options.out, options.rows, options.seed, overwrite=options.overwrite)
    say(f"{options.out}: {summary.rows} job ads, {summary.missing['education']} without an education label")
    return 0


def check(options: argparse.Namespace) -> int:
    """Check settings, encoder and data before anything starts."""
    from training.data.doctor import examine, render
    from training.data.tokens import Tokenizer
    from training.network.encoder import find_encoder
    from training.search.deciding.pareto import parse_pick
    from training.search.proposing.search_space import check_depth, check_space
    from training.settings import load_settings

    settings = load_settings(options.config, options.overrides)
    check_space(settings)
    parse_pick(settings.tuning.pick, list(settings.heads))
    source = find_encoder(settings.encoder)
    check_depth(settings, source.layers)
    examination = examine(settings, Tokenizer(source.folder, source.max_tokens).count, source.max_tokens)
    say(render(examination))
    return 2 if examination.errors else 0


def tune(options: argparse.Namespace) -> int:
    """Search for the best configuration."""
    from cluster.settings import load_settings as load_cluster_settings
    from training.search.terminal import describe_record
    from training.search.tuning import resume, search
    from training.settings import load_settings

    cluster = load_cluster_settings(options.config, options.overrides)
    budget = _budget(options)
    if options.resume:
        _refuse_beside_resume(options)
        result = resume(options.resume, cluster, budget)
    else:
        overrides = [*options.overrides, *(["training.tuning.compare_single=true"] if options.compare_single else [])]
        overrides += [f"training.tuning.{name}={value}" for name, value in budget.items()]
        settings = load_settings(options.config, overrides)
        result = search(settings, cluster, options.name, _start(options, settings))
    say(f"\n{describe_record(result.record)}\n")
    say(f"checkpoint {result.checkpoint}")
    say(f"report     {result.report}")
    if early := result.record.get("early"):
        say(f"\n{early}\npublish what is best so far: python -m training publish --search {result.name}")
        return _INTERRUPTED
    return _judge_failures(result, options.allow_failed)


def _budget(options: argparse.Namespace) -> dict[str, float]:
    """Return the limits given on the command line, under the names of their settings."""
    found: dict[str, float] = {}
    if options.minutes is not None:
        found["time_budget_s"] = options.minutes * 60
    if options.cpu_hours is not None:
        found["cpu_budget_s"] = options.cpu_hours * 3600
    if options.trials is not None:
        found["num_samples"] = options.trials
    elif found:
        found["num_samples"] = _UNCOUNTED_TRIALS
    return found


def _refuse_beside_resume(options: argparse.Namespace) -> None:
    from training.errors import TuningError

    given = {"--name": options.name, "--compare-single": options.compare_single, "--from-version": options.from_version}
    named = [option for option, value in given.items() if value] + [one for one in options.overrides if one.startswith("training.")]
    if named:
        raise TuningError(f"--resume goes on with the settings the search began with, but {named[0]} is given too", "leave it out")


def _start(options: argparse.Namespace, settings: "TrainingSettings") -> "Start | None":
    from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE
    from training.errors import TuningError
    from training.search.plan import Start
    from training.search.proposing.search_space import point_of

    if options.from_version is None:
        if options.with_weights:
            raise TuningError("--with-weights is given without --from-version", "name the version whose weights to start from")
        return None
    registry = _registry(options)
    version = registry.resolve(options.from_version)
    weights = registry.path(version) if options.with_weights else ""
    manifest = _verified(registry, version) if weights else registry.manifest(version)
    point = point_of(settings, manifest.settings.get("fit", {}), manifest.settings.get("heads", {}))
    of_weights, of_config = (manifest.files[name].sha256 if weights else "" for name in (WEIGHTS_FILE, CONFIG_FILE))
    return Start(version, point, weights, manifest.data_digest, of_weights, of_config, manifest.search.get("trial", ""))


def _verified(registry: "Registry", version: int) -> "Manifest":
    """Return the manifest of a version whose files are as they were published, and signed where that is asked for."""
    from training.manifest import read_manifest

    with tempfile.TemporaryDirectory() as folder:
        return read_manifest(registry.fetch(version, Path(folder) / "version"))


def _judge_failures(result: "SearchResult", allowed: int) -> int:
    from training.errors import FailedTrials

    if len(result.failed) > allowed:
        causes = ", ".join(f"{one.name} {one.state} {one.error}".rstrip() for one in result.failed)
        raise FailedTrials(
            f"{len(result.failed)} trials failed, but at most {allowed} may: {causes}",
            "the best of the others is saved all the same; --allow-failed N accepts this",
        )
    return 0


def publish(options: argparse.Namespace) -> int:
    """Store a checkpoint as the next version."""
    from training.search.plan import BEST_FOLDER, read_plan, search_path

    registry = _registry(options)
    if options.checkpoint:
        version = registry.publish(options.checkpoint, options.sign)
    else:
        storage = registry.storage
        name = read_plan(storage, options.search).name
        version = registry.publish_from(search_path(name, BEST_FOLDER), options.sign)
    say(f"version {version}  {registry.place(version)}")
    if options.promote:
        _promote(registry, version, options.promote, None)
    return 0


def promote(options: argparse.Namespace) -> int:
    """Point a name to a version; to an older one, that is a rollback."""
    registry = _registry(options)
    version = max(registry.versions(), default=0) if options.version == "latest" else registry.resolve(options.version)
    _promote(registry, version, options.name, options.expected)
    return 0


def _promote(registry: "Registry", version: int, name: str, expected: int | None) -> None:
    from tempfile import TemporaryDirectory

    from training.fitting.golden_answers import check_golden_answers

    with TemporaryDirectory(prefix="twohead-") as scratch:
        folder = registry.fetch(version, Path(scratch) / "version")
        if texts := check_golden_answers(folder, f"version {version}"):
            say(f"version {version} answers {texts} golden texts as it did when it was made")
    registry.promote(version, name, expected=expected)
    say(f"{name} → version {version}")


def versions(options: argparse.Namespace) -> int:
    """List versions and the names that point to them."""
    registry = _registry(options)
    names: dict[int, list[str]] = {}
    for name, version in registry.names().items():
        names.setdefault(version, []).append(name)
    rows = []
    for version in registry.versions():
        manifest = registry.manifest(version)
        split = "test" if "test" in manifest.metrics else "validation"
        scores = ", ".join(f"{head.name} {_figure(manifest.metrics.get(split, {}).get(head.name, {}))}" for head in manifest.heads)
        rows.append([version, ", ".join(names.get(version, [])), scores, split, manifest.search.get("name", ""), manifest.created])
    say(
        table(["version", "names", "macro-F1", "on", "search", "created"], rows)
        if rows
        else f"no version is published in {registry.storage.uri} yet"
    )
    return 0


def _figure(metrics: Mapping[str, Any]) -> str:
    # A head without a label in the split has no figures.
    found = metrics.get("macro_f1")
    return "–" if found is None else f"{found:.3f}"


def report(options: argparse.Namespace) -> int:
    """Judge a version again and write its report and its model card."""
    from training.checkpoint import CARD_FILE
    from training.report.card import write_card
    from training.report.folder import make_folder, write_pages
    from training.report.page import write_report
    from training.search.plan import REPORT_FILE
    from training.search.review import review

    registry = _registry(options)
    version = registry.resolve(options.version)
    make_folder(options.out)
    record = review(registry, version, with_texts=options.texts)
    write_pages(options.out, {REPORT_FILE: write_report(record), CARD_FILE: write_card(record)})
    say(f"{record['headline']}\n\n{options.out / REPORT_FILE}\n{options.out / CARD_FILE}")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a version in another format."""
    from tempfile import TemporaryDirectory

    from training.errors import ExportError
    from training.export.facts import describe
    from training.export.folder import file_texts, validation_texts, write_export
    from training.export.onnx import require_onnx
    from training.settings import load_settings

    if not (options.onnx or options.hub_layout):
        raise ExportError("neither --onnx nor --hub-layout is given", "give one of them, or both")
    registry = _registry(options)
    version = registry.resolve(options.version)
    texts = None
    if options.onnx:
        require_onnx()
        settings = load_settings(options.config, options.overrides)
        texts = file_texts(options.texts) if options.texts else validation_texts(settings, registry.manifest(version))
    with TemporaryDirectory(prefix="twohead-") as scratch:
        folder = registry.fetch(version, Path(scratch) / "version")
        manifest = write_export(folder, version, options.out, texts, with_hub_layout=options.hub_layout)
    say(describe(manifest))
    say(f"\n{options.out}")
    return 0


def _registry(options: argparse.Namespace) -> "Registry":
    from cluster.settings import load_settings
    from training.registry import Registry

    return Registry.of(load_settings(options.config, options.overrides))


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description="From a table of texts to a published checkpoint.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    shared = [settings_options()]

    verb = verbs.add_parser("sample", help="write a sample table of job ads", parents=shared)
    verb.add_argument("--out", type=Path, default=Path("ads.csv"), help="table to write (default: %(default)s)")
    verb.add_argument("--rows", type=int, default=600, help="job ads (default: %(default)s)")
    verb.add_argument("--seed", type=int, default=7, help="the same seed writes the same table (default: %(default)s)")
    verb.add_argument("--overwrite", action="store_true", help="also where the file is there and holds something else")
    verb.set_defaults(verb=sample)

    verb = verbs.add_parser("check", help="check settings, encoder and data before anything starts", parents=shared)
    verb.set_defaults(verb=check)

    verb = verbs.add_parser("tune", help="search for the best configuration", parents=shared)
    verb.add_argument("--name", help="of the search (default: made from heads and time)")
    verb.add_argument("--resume", metavar="NAME", help="go on with an interrupted search; `latest` is the one begun last")
    verb.add_argument(
        "--allow-failed", type=int, default=0, metavar="N", help="exit with 0 although N trials died or diverged (default: %(default)s)"
    )
    verb.add_argument("--minutes", type=_positive, metavar="N", help="explore and confirm for at most so long; with --resume from now on")
    verb.add_argument("--cpu-hours", type=_positive, metavar="N", help="use at most so many CPU hours; with --resume from now on")
    verb.add_argument(
        "--trials", type=_count, metavar="N", help="try so many configurations (default: as many as fit, or tuning.num_samples)"
    )
    verb.add_argument("--compare-single", action="store_true", help="also search one model per head, with as many trials each")
    verb.add_argument("--from-version", metavar="VERSION", help="try this version's configuration among the first")
    verb.add_argument("--with-weights", action="store_true", help="with --from-version: start every trial from its weights too")
    verb.set_defaults(verb=tune)
    _add_version_verbs(verbs, shared)
    return parser


def _add_version_verbs(verbs: Any, shared: list[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("publish", help="store a checkpoint as the next version", parents=shared)
    verb.add_argument(
        "--search", default="latest", metavar="NAME", help="publish the best checkpoint of this search (default: %(default)s)"
    )
    verb.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="publish this checkpoint instead")
    verb.add_argument("--sign", type=Path, metavar="FILE", help="sign it with this Ed25519 private key (PEM); see cluster.trusted_keys")
    verb.add_argument(
        "--promote", metavar="NAME", nargs="?", const="production", help="point NAME to it at once (production, if no name is given)"
    )
    verb.set_defaults(verb=publish)

    verb = verbs.add_parser("promote", help="point a name to a version, atomically", parents=shared)
    verb.add_argument("version", help="number of the version, or `latest`")
    verb.add_argument("--name", default="production", help="(default: %(default)s)")
    verb.add_argument("--expected", type=int, metavar="VERSION", help="refuse unless the name points to this version now (0: to none)")
    verb.set_defaults(verb=promote)

    verb = verbs.add_parser("versions", help="list versions and names", parents=shared)
    verb.set_defaults(verb=versions)

    verb = verbs.add_parser("report", help="judge a version again: its report and its model card", parents=shared)
    verb.add_argument("version", help="number of the version, or a name like production")
    verb.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write report.html and README.md")
    verb.add_argument("--texts", action="store_true", help="show the texts of the most confident errors, not only their rows")
    verb.set_defaults(verb=report)

    verb = verbs.add_parser("export", help="write a version for onnxruntime or for plain transformers", parents=shared)
    verb.add_argument("version", help="number of the version, or a name like production")
    verb.add_argument("--onnx", action="store_true", help="as ONNX graphs in fp32 and int8, compared with the version's own answers")
    verb.add_argument("--hub-layout", action="store_true", help="as a folder that transformers loads with trust_remote_code=True")
    verb.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder to write")
    verb.add_argument("--texts", type=Path, metavar="FILE", help="compare on these texts, one a line, not on the validation split")
    verb.set_defaults(verb=export)


if __name__ == "__main__":
    sys.exit(run_command(make_parser()))
