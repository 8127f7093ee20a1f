"""The seam to Ray Data: an actor is one worker with an engine of its own, and takes block after block.

Only what says where a block is goes through Ray, and a count comes back: a worker reads its block itself, and writes its part. So a worker
holds one block, whatever the size of the table.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import TwoheadError
from cluster.storage import Storage
from serving.app import replica_environment
from serving.engines.cache import cache_folder
from serving.engines.kept import Keep
from serving.errors import ScoringError, without_words
from serving.predictor import Predictor
from serving.scoring.answers import Scorer, answer_schema, answered, make_texts
from serving.scoring.cells import BlockReader
from serving.scoring.files import Block
from serving.scoring.parts import Scoring, Wanted, needed_columns, write_part
from serving.settings import CODE_VARIABLE, ServingSettings
from training.registry import Registry

log = logging.getLogger(__name__)

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Work:
    """What every worker is told.

    Attributes:
        registry: Storage with the version.
        trusted_keys: Of the section `cluster`.
        out: Folder of the parts.
        scoring: What they are.
        wanted: What was asked.
        settings: The section `serving`.
    """

    registry: str
    trusted_keys: tuple[str, ...]
    out: str
    scoring: Scoring
    wanted: Wanted
    settings: ServingSettings


@dataclass(frozen=True)
class Done:
    """A part that was written.

    Attributes:
        number: Of the block.
        rows: Of it.
        errors: Rows without an answer.
        failure: Why there is no part after all, of which nothing else is told then.
        hint: What to do about it.
    """

    number: int = 0
    rows: int = 0
    errors: int = 0
    failure: str = ""
    hint: str = ""


class BlockScorer:
    """Scores blocks with an engine of its own."""

    def __init__(self, work: Work) -> None:
        settings = work.settings
        keep = Keep(cache_folder("calibration"), os.environ.get(CODE_VARIABLE, "")) if settings.keep_calibration else None
        version = work.scoring.version
        with tempfile.TemporaryDirectory(prefix="twohead-version-") as scratch:
            folder = Registry(Storage(work.registry), work.trusted_keys).fetch(version, Path(scratch) / "checkpoint")
            predictor = Predictor.load(folder, version, settings.threads, settings.precision, keep)
        predictor.warm()
        self._template = predictor.manifest.text_template
        needed = needed_columns(work.wanted, self._template)
        self._reader = BlockReader(list(dict.fromkeys([*work.scoring.columns, *needed])))
        self._scorer = Scorer(predictor, settings.max_characters, settings.batch_tokens)
        self._schema = answer_schema(work.scoring.heads, with_scores=work.wanted.scores)
        self._work = work

    def score(self, block: Block) -> Done:
        """Read a block, answer about its rows and write its part."""
        rows = self._reader.read(block)
        found = self._scorer.score(make_texts(rows, self._work.wanted.text, self._template))
        table = answered(rows.select(list(self._work.scoring.columns)), found, self._work.scoring.version, self._schema)
        write_part(Storage(self._work.out), block.number, table)
        return Done(block.number, block.rows, table.num_rows - table.column("error").null_count)


class Worker:
    """The actor: a thread of its own loads and scores, so that whatever is raised there is looked at before Ray prints it."""

    def __init__(self, work: Work) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._loaded = self._thread.submit(BlockScorer, work)

    def __call__(self, blocks: pa.Table) -> pa.Table:
        """Score what Ray Data hands over, one block a row."""
        found = [self._score(Block(**row | {"columns": tuple(row["columns"])})) for row in blocks.to_pylist()]
        return pa.Table.from_pylist([asdict(one) for one in found])

    def _score(self, block: Block) -> Done:
        done = self._thread.submit(lambda: self._loaded.result().score(block))
        wait([done])
        error = done.exception()
        if error is None:
            return done.result()
        if isinstance(error, TwoheadError):
            return Done(failure=error.message, hint=error.hint)
        log.error("%s", without_words(error))
        return Done(failure=f"a worker failed: {type(error).__name__}", hint="score again: what is done is kept")


def score_blocks(blocks: Sequence[Block], work: Work, workers: int | None = None) -> Iterator[Done]:
    """Score blocks side by side, and tell of each as it is done; Ray must be connected.

    Args:
        blocks: What is to be scored.
        work: How.
        workers: How many; None: as many as the cluster has room for.

    Raises:
        ScoringError: There is no room, or a worker failed on more than a row.
    """
    import ray.data

    _hush()
    resources = work.settings.resources_per_replica
    count = min(_room(work.settings, workers), len(blocks))
    # A block of Ray's for each of ours, so that whoever is free takes the next one.
    listed = ray.data.from_items([asdict(block) for block in blocks], override_num_blocks=len(blocks))
    scored = listed.map_batches(
        Worker,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=resources.cpu,
        num_gpus=resources.gpu,
        runtime_env={"env_vars": replica_environment(work.settings)},
    )
    try:
        for row in scored.iter_rows():
            done = Done(**row)
            if done.failure:
                raise ScoringError(done.failure, done.hint)
            yield done
    except ray.exceptions.RayError as error:
        raise ScoringError(f"Ray Data: {type(error).__name__}", "score again: what is done is kept") from error


def _room(settings: ServingSettings, workers: int | None) -> int:
    """Return how many workers there will be.

    Raises:
        ScoringError: The cluster has no room for them.
    """
    import ray

    total = ray.cluster_resources()
    wants = {"CPU": settings.resources_per_replica.cpu, "GPU": settings.resources_per_replica.gpu}
    rooms = [int(total.get(name, 0.0) / want + _ROUNDING) for name, want in wants.items() if want]
    room = min(rooms, default=1)
    if room < (workers or 1):
        shown = " and ".join(f"{total.get(name, 0):g} {name}s" for name in wants)
        raise ScoringError(
            f"the cluster has {shown}, which is room for {room} workers, but {workers or 1} are wanted",
            "lower --workers or serving.resources_per_replica",
        )
    return workers or room


def _hush() -> None:
    """Keep Ray Data's bars and notes out of our lines; what matters to us comes back as an error."""
    from ray.data import DataContext

    context: Any = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
