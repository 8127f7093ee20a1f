"""How many trials the cluster can train at once."""

from training.errors import TuningError
from training.search_settings import TuningSettings

_ROUNDING = 1e-6


def slots(tuning: TuningSettings) -> int:
    """Count the trials for which the cluster has room.

    Raises:
        TuningError: It has no room for a single one.
    """
    import ray

    total = ray.cluster_resources()
    cpu = tuning.resources_per_trial.cpu * tuning.workers_per_trial
    gpu = tuning.resources_per_trial.gpu * tuning.workers_per_trial
    # Five fifths are one, whatever floating point says.
    by_cpu = int(total.get("CPU", 0.0) / cpu + _ROUNDING)
    by_gpu = int(total.get("GPU", 0.0) / gpu + _ROUNDING) if gpu else by_cpu
    if min(by_cpu, by_gpu) < 1:
        raise TuningError(
            f"a trial reserves {cpu:g} CPUs and {gpu:g} GPUs, but the cluster has {total.get('CPU', 0):g} and {total.get('GPU', 0):g}",
            "lower training.tuning.resources_per_trial",
        )
    return min(by_cpu, by_gpu)


def most_concurrent(tuning: TuningSettings) -> int:
    """Return how many trials are alive at once."""
    room = slots(tuning)
    if tuning.scheduler == "pbt":
        # A population is alive together; those without resources wait their turn.
        return tuning.num_samples
    return tuning.max_concurrent_trials or room
