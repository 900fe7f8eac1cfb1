"""Pickles of arrays, sparse rows, lists and dictionaries, read without executing any.

A pickle is a program: it names functions and calls them. The Planetoid files are
pickles of Python 2, which need a handful of constructors and no function at all; only
those are admitted here, so whatever else a file names is refused before it is called.
The same constructors are admitted under the module names of today, as used when such
a file is written anew.

Not even NumPy and SciPy see the contents: bare stand-ins receive what describes an
array (NumPy's own restoring of an altered description can crash the process), and
the array is built from checked parts. Hence SciPy may drop its old names, too.
"""

import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

NUMBER = re.compile(r"[iu][1248]|f[48]|b1")  # dtypes of plain numbers


class StoredDtype:
    """Receives the description of a dtype, such as "f4" and the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        """The dtype, if it is one of numbers."""
        if not NUMBER.fullmatch(self.code) or self.order not in ("<", ">", "|"):
            raise ValueError(f"expected numbers, got dtype {self.order}{self.code}")
        return np.dtype(self.order + self.code)


class StoredArray:
    """Receives shape, dtype and bytes of an array."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array, after its bytes were found to fit its shape."""
        _, shape, stored, by_column, content = self.state
        if isinstance(content, str):  # of Python 2
            content = content.encode("latin1")
        values = np.frombuffer(content, dtype=stored.dtype())
        return values.reshape(shape, order="F" if by_column else "C")


class StoredRows:
    """Receives the attributes of a sparse matrix."""

    def array(self) -> np.ndarray:
        """The matrix, dense float32."""
        held = vars(self)
        parts = (held["data"].array(), held["indices"].array(), held["indptr"].array())
        rows = sp.csr_array(parts, shape=held["_shape"])
        rows.check_format(full_check=True)
        return rows.astype(np.float32).toarray()


ADMITTED: dict[str, Any] = {
    "__builtin__.list": list,
    "builtins.list": list,
    "collections.defaultdict": defaultdict,
    "numpy.ndarray": StoredArray,
    "numpy.dtype": StoredDtype,
    "numpy.core.multiarray._reconstruct": StoredArray,
    "numpy._core.multiarray._reconstruct": StoredArray,
    "scipy.sparse.csr.csr_matrix": StoredRows,
    "scipy.sparse._csr.csr_matrix": StoredRows,
}


def read_plain_pickle(path: str | Path) -> Any:
    """A dictionary of lists, or an array; sparse matrices come as dense arrays.

    Raises:
        ValueError: if the file names anything that is not admitted, or is damaged.
    """
    with Path(path).open("rb") as file:
        try:
            content = _PlainUnpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: {error}") from error
    return content.array() if isinstance(content, StoredArray | StoredRows) else content


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in ADMITTED:
            raise pickle.UnpicklingError(
                f"expected only {', '.join(ADMITTED)}, got {wanted}, which could "
                "execute code: the file is not the published one"
            )
        return ADMITTED[wanted]
