"""The command `python -m training`: sample, check, tune, publish, promote, versions.

Everything heavy is imported inside the verbs, so that `--help` answers at once.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.console import run_command, say, settings_options, table

if TYPE_CHECKING:
    from training.registry import Registry
    from training.winner import SearchResult


def sample(options: argparse.Namespace) -> int:
    """Write a sample table."""
    from training.sample import write_sample

    summary = write_sample(options.out, options.rows, options.seed)
    say(f"{options.out}: {summary.rows} job ads, {summary.missing['education']} without an education label")
    return 0


def check(options: argparse.Namespace) -> int:
    """Check settings, encoder and data before anything starts."""
    from training.doctor import examine, render
    from training.encoder import find_encoder
    from training.search_space import check_space
    from training.settings import load_settings
    from training.tokens import Tokenizer

    settings = load_settings(options.config, options.overrides)
    check_space(settings)
    source = find_encoder(settings.encoder)
    examination = examine(settings, Tokenizer(source.folder, source.max_tokens).count, source.max_tokens)
    say(render(examination))
    return 2 if examination.errors else 0


def tune(options: argparse.Namespace) -> int:
    """Search for the best configuration."""
    from cluster.settings import load_settings as load_cluster_settings
    from training.settings import load_settings
    from training.tuning import resume, search

    cluster = load_cluster_settings(options.config, options.overrides)
    result = (
        resume(options.resume, cluster)
        if options.resume
        else search(load_settings(options.config, options.overrides), cluster, options.name)
    )
    _print_result(result)
    return _judge_failures(result, options.allow_failed)


def _print_result(result: "SearchResult") -> None:
    split = "test" if "test" in result.metrics else "validation"
    figures = result.metrics[split]
    heads = [head for head in figures if head not in ("joint_accuracy", "score")]
    rows = [
        [head, figures[head]["macro_f1"], figures[head]["majority_macro_f1"], figures[head]["accuracy"], figures[head]["majority_accuracy"]]
        for head in heads
    ]
    say()
    best = result.best
    say(f"best      trial {best.position} of {len(result.outcomes)}, validation score {best.score or 0.0:.3f}, epoch {best.best_epoch}")
    say(f"\non the {split} split:")
    say(table(["head", "macro-F1", "majority", "accuracy", "majority"], rows, right=(1, 2, 3, 4)))
    say(f"all heads right: {figures['joint_accuracy']:.3f}")
    say()
    say(f"checkpoint {result.checkpoint}")
    say(f"report     {result.report}")


def _judge_failures(result: "SearchResult", allowed: int) -> int:
    from training.errors import FailedTrials

    if len(result.failed) > allowed:
        causes = ", ".join(f"trial {outcome.position} {outcome.state} {outcome.error}".rstrip() for outcome in result.failed)
        raise FailedTrials(
            f"{len(result.failed)} of {len(result.outcomes)} trials failed, but at most {allowed} may: {causes}",
            "the best of the others is saved all the same; --allow-failed N accepts this",
        )
    return 0


def publish(options: argparse.Namespace) -> int:
    """Store a checkpoint as the next version."""
    from training.plan import BEST_FOLDER, read_plan, search_path

    registry = _registry(options)
    if options.checkpoint:
        version = registry.publish(options.checkpoint)
    else:
        storage = registry.storage
        name = read_plan(storage, options.search).name
        version = registry.publish_from(search_path(name, BEST_FOLDER))
    say(f"version {version}  {registry.place(version)}")
    if options.promote:
        registry.promote(version, options.promote)
        say(f"{options.promote} → version {version}")
    return 0


def promote(options: argparse.Namespace) -> int:
    """Point a name to a version; to an older one, that is a rollback."""
    registry = _registry(options)
    version = max(registry.versions(), default=0) if options.version == "latest" else registry.resolve(options.version)
    registry.promote(version, options.name, expected=options.expected)
    say(f"{options.name} → version {version}")
    return 0


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
        scores = ", ".join(
            f"{head.name} {manifest.metrics.get(split, {}).get(head.name, {}).get('macro_f1', 0.0):.3f}" for head in manifest.heads
        )
        rows.append([version, ", ".join(names.get(version, [])), scores, split, manifest.search.get("name", ""), manifest.created])
    say(
        table(["version", "names", "macro-F1", "on", "search", "created"], rows)
        if rows
        else f"no version is published in {registry.storage.uri} yet"
    )
    return 0


def _registry(options: argparse.Namespace) -> "Registry":
    from cluster.settings import load_settings
    from cluster.storage import Storage
    from training.registry import Registry

    return Registry(Storage(load_settings(options.config, options.overrides).storage))


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description="From a table of texts to a published checkpoint.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    shared = [settings_options()]

    verb = verbs.add_parser("sample", help="write a sample table of job ads", parents=shared)
    verb.add_argument("--out", type=Path, default=Path("ads.csv"), help="table to write (default: %(default)s)")
    verb.add_argument("--rows", type=int, default=600, help="job ads (default: %(default)s)")
    verb.add_argument("--seed", type=int, default=7, help="the same seed writes the same table (default: %(default)s)")
    verb.set_defaults(verb=sample)

    verb = verbs.add_parser("check", help="check settings, encoder and data before anything starts", parents=shared)
    verb.set_defaults(verb=check)

    verb = verbs.add_parser("tune", help="search for the best configuration", parents=shared)
    verb.add_argument("--name", help="of the search (default: made from heads and time)")
    verb.add_argument("--resume", metavar="NAME", help="go on with an interrupted search; `latest` is the one begun last")
    verb.add_argument(
        "--allow-failed", type=int, default=0, metavar="N", help="exit with 0 although N trials died or diverged (default: %(default)s)"
    )
    verb.set_defaults(verb=tune)

    verb = verbs.add_parser("publish", help="store a checkpoint as the next version", parents=shared)
    verb.add_argument(
        "--search", default="latest", metavar="NAME", help="publish the best checkpoint of this search (default: %(default)s)"
    )
    verb.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="publish this checkpoint instead")
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
    return parser


if __name__ == "__main__":
    sys.exit(run_command(make_parser()))
