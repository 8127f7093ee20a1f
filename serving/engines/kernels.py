"""The engine's own inner loops on a CPU, in C: compiled when an engine's process makes its first engine, where there is a compiler.

Around a product of whole numbers torch passes over memory a dozen times, here once before and once after; attention within texts of
different lengths takes two thirds of the time. Without a compiler torch does it all, slower and alike. What was compiled is kept for this
user's next process, where nobody else could have written it. It does not know models.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from serving.engines.cache import cache_folder, find_shared, is_own, make_folder, processor

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.c")
# Not -ffast-math: what is no number has to stay none.
_OPTIONS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC")
_VECTORS = ("-mprefer-vector-width=512",)
# 2 s where nothing else is to be done. Replicas that start together on few cores need far longer, and without it are slow until they end.
_COMPILE_S = 150.0
_LANES, _ROWS = 16, 6
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class Kernels:
    """What `kernels.c` computes, over tensors: float32 unless said otherwise, contiguous, on the CPU, without gradients.

    Args:
        library: Compiled from it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._quantise, self._finish, self._attend = library.quantise, library.finish, library.attend
        for function in (self._quantise, self._finish, self._attend):
            function.restype = None
        self._quantise.argtypes = [_POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER]
        self._finish.argtypes = [_POINTER] * 6 + [_LONG, _LONG, _LONG, _POINTER]
        self._attend.argtypes = [_POINTER] * 4 + [_LONG, _LONG, _LONG, _FLOAT, _POINTER, _POINTER]

    def quantise(self, values: torch.Tensor, shrink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round rows to eight bits.

        Args:
            values: (rows, width).
            shrink: What columns are multiplied by first, (width,).

        Returns:
            Whole numbers, (rows, width), int8; and of each row its step and what 0 stands for, (2, rows).
        """
        rows, width = values.shape
        whole, steps = torch.empty(rows, width, dtype=torch.int8), torch.empty(2, rows)
        step, constant = steps.unbind()
        self._quantise(*map(_at, (values, shrink)), rows, width, *map(_at, (whole, step, constant)))
        return whole, steps

    def finish(
        self,
        product: torch.Tensor,
        steps: torch.Tensor,
        columns: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        gelu: bool,
        found: torch.Tensor,
    ) -> None:
        """Turn products of whole numbers back into what they stand for.

        Args:
            product: (rows, width), int32.
            steps: See `quantise`.
            columns: Scale of each column's weights, their scaled sum, and bias, (width,) each.
            gelu: Apply it, exactly.
            found: Where answers go, (rows, width).
        """
        rows, width = product.shape
        self._finish(_at(product), *map(_at, steps.unbind()), *map(_at, columns), rows, width, gelu, _at(found))

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begins: torch.Tensor, scale: float) -> torch.Tensor:
        """Compute attention within each text.

        Args:
            queries: (tokens of all texts, heads, width); see `can_attend` for the width.
            keys: The same.
            values: The same.
            begins: Where each text begins, and where the last one ends, (texts + 1,), int32.
            scale: Of the products.

        Returns:
            (tokens, heads, width).
        """
        _, heads, width = queries.shape
        longest = int(begins.diff().max())
        found, scratch = torch.empty_like(queries), torch.empty((2 * width + _ROWS) * -(-longest // _LANES) * _LANES)
        self._attend(*map(_at, (queries, keys, values, begins)), len(begins) - 1, heads, width, scale, _at(scratch), _at(found))
        return found

    @staticmethod
    def can_attend(width: int) -> bool:
        """Whether attention heads may be so wide."""
        return width % _LANES == 0


@cache
def compiled() -> Kernels | None:
    """Compile the kernels for this processor; nothing without a compiler that can."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        log.info("there is no C compiler: torch computes what the engine's own kernels would")
        return None
    try:
        with _library(compiler) as path:
            return _load(path)
    # A folder may forbid to run what is in it.
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s does not make the engine's own kernels, torch computes instead: %s", compiler, type(error).__name__)
        return None


@contextmanager
def _library(compiler: str) -> Iterator[Path]:
    """Give the compiled library: the one that is kept, a new one that is kept from now on, or one for the length of the block."""
    folder = cache_folder("kernels")
    if not _can_keep(folder):
        with tempfile.TemporaryDirectory() as scratch:
            # What is loaded stays, without its file.
            yield _compile(compiler, Path(scratch) / "kernels.so")
        return
    path = folder / f"{_digest(compiler)}.so"
    if not is_own(path):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # Whole or not at all: another replica may load it now.
            _compile(compiler, Path(scratch) / "kernels.so").replace(path)
    yield path


def _can_keep(folder: Path) -> bool:
    try:
        make_folder(folder)
    except OSError as error:
        log.info("%s: the engine's kernels are not kept: %s", folder, error.strerror)
        return False
    if shared := find_shared(folder):
        log.warning("%s: others than this user can write there, so that the engine's kernels are compiled at every start", shared)
        return False
    return os.access(folder, os.W_OK)


def _load(path: Path) -> Kernels:
    try:
        return Kernels(ctypes.CDLL(str(path)))
    except OSError:
        # The next process makes it anew.
        path.unlink(missing_ok=True)
        raise


def _digest(compiler: str) -> str:
    """Another source, compiler or processor makes another library."""
    made_by = Path(compiler).resolve()
    facts = [*_OPTIONS, *_VECTORS, processor(), str(made_by), str(made_by.stat().st_mtime_ns)]
    return hashlib.sha256(_SOURCE.read_bytes() + "\0".join(facts).encode()).hexdigest()[:32]


def _compile(compiler: str, target: Path) -> Path:
    def run(options: Sequence[str]) -> None:
        command = [compiler, *options, str(_SOURCE), "-o", str(target), "-lm"]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMPILE_S, check=True)

    try:
        run([*_OPTIONS, *_VECTORS])
    except subprocess.CalledProcessError:
        # Other processors know no such option.
        run(_OPTIONS)
    # The linker leaves it to the umask who may write to it, and what others may is not loaded again.
    target.chmod(0o700)
    return target


def _at(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()
