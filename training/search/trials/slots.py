"""How many trials the cluster can train at once."""

from training.errors import TuningError
from training.search_settings import TuningSettings

_ROUNDING = 1e-6


def slots(tuning: TuningSettings) -> int:
    """Count the trials for which the cluster has room, or would have when it has grown as far as it may.

    Raises:
        TuningError: It has no room for a single one.
    """
    total = _resources()
    if (room := _room(tuning, total)) < 1:
        cpu, gpu = _wanted(tuning)
        raise TuningError(
            f"a trial reserves {cpu:g} CPUs and {gpu:g} GPUs, but the cluster has {total['CPU']:g} and {total['GPU']:g}",
            "lower training.tuning.resources_per_trial",
        )
    return room


def side_by_side(cpu: float, gpu: float) -> int:
    """Count the tasks that the cluster can run at once, each with so many CPUs and GPUs, when it has grown as far as it may; at least 1."""
    return max(1, _fitting(cpu, gpu, _resources()))


def most_concurrent(tuning: TuningSettings) -> int:
    """Return how many trials may be alive now; machines come and go while a search runs."""
    if tuning.scheduler == "pbt":
        # A population is alive together; those without resources wait their turn.
        return tuning.num_samples
    return tuning.max_concurrent_trials or _room_now(tuning)


def at_once(tuning: TuningSettings) -> int:
    """Return how many of the trials that may be alive train side by side; the others wait for their turn."""
    return min(most_concurrent(tuning), _room_now(tuning))


def _room_now(tuning: TuningSettings) -> int:
    # Where every machine is lost for a while, one trial waits for the next.
    return max(1, _room(tuning, _resources()))


def _wanted(tuning: TuningSettings) -> tuple[float, float]:
    each = tuning.resources_per_trial
    return each.cpu * tuning.workers_per_trial, each.gpu * tuning.workers_per_trial


def _room(tuning: TuningSettings, total: dict[str, float]) -> int:
    return _fitting(*_wanted(tuning), total)


def _fitting(cpu: float, gpu: float, total: dict[str, float]) -> int:
    # Five fifths are one, whatever floating point says.
    by_cpu = int(total["CPU"] / cpu + _ROUNDING)
    return min(by_cpu, int(total["GPU"] / gpu + _ROUNDING)) if gpu else by_cpu


def _resources() -> dict[str, float]:
    import ray
    from ray._private.state import state

    now: dict[str, float] = ray.cluster_resources()
    # Machines that come with work for them are not there yet when a search begins. An autoscaler tells how many may come.
    most = state.get_max_resources_from_cluster_config() or {}
    return {name: max(now.get(name, 0.0), most.get(name, 0.0)) for name in ("CPU", "GPU")}
