"""Out of memory: tells it from other errors, and trains on in smaller parts.

It does not know Ray. The same batch in twice as many parts needs about half the memory for activations and makes the same step.
"""

import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from training.errors import TuningError
from training.fitting.fit import Epoch, Fit

_SAID = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MemoryExhausted(TuningError):
    """A training ran out of memory, and again with its batches in twice as many parts."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: a GPU's, torch's on the CPU, or Python's own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On the CPU torch has no class for it, nor on a GPU for what libraries and the driver allocate beside torch.
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def epochs_within_memory(make_fit: Callable[[int], Fit], restore: Callable[[Fit], None]) -> Iterator[tuple[Fit, Epoch]]:
    """Train; if memory runs out, train on once from the last saved epoch with each batch in twice as many parts.

    Args:
        make_fit: Builds the training; its argument is what to multiply `micro_batches` by, 1 or 2.
        restore: Puts a new fit where the last saved epoch ended, or leaves it as it is.

    Yields:
        The fit, to be saved, and its epoch.

    Raises:
        MemoryExhausted: Memory ran out again.
    """
    for factor in (1, 2):
        fit: Fit | None = None
        try:
            fit = make_fit(factor)
            restore(fit)
            for epoch in fit.epochs():
                yield fit, epoch
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return
        # Outside the except clause: the error holds the frames, and those the tensors.
        fit = None
        release_memory()
    raise MemoryExhausted(
        "out of memory, and again with each batch in twice as many parts",
        "a smaller training.fit.batch_tokens, encoder.max_tokens or more frozen_layers needs less",
    )


def release_memory() -> None:
    """Give unused memory back to the GPU and to the system, as far as this process can."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps what was freed: after a training of all layers that is two gigabytes which nobody uses.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def own_bytes() -> int:
    """Return the memory that is this process's alone: without mapped files, which all processes share; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
