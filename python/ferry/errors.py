"""Errors: one exception for each ferry_status, each with the library's sentence (rank, value and limit)."""

from __future__ import annotations

from typing import Any, Callable, Dict, Type

from . import _c


class FerryError(Exception):
    """A call failed. `str()` is the library's sentence, `status` its name ("FERRY_TIMEOUT")."""

    code = -1

    @property
    def status(self) -> str:
        return _c.lib.ferry_status_name(self.code).decode()


class InvalidError(FerryError, ValueError):
    """FERRY_INVALID: an argument is wrong. The call had no effect, and may be made again with better ones."""

    code = _c.INVALID


class NoMemoryError(FerryError, MemoryError):
    """FERRY_NOMEM: memory, or room in the symmetric heap, is used up."""

    code = _c.NOMEM


class SystemCallError(FerryError, OSError):
    """FERRY_SYSTEM: the operating system refused a call; the sentence has its name and errno."""

    code = _c.SYSTEM


class DeadlineError(FerryError, TimeoutError):
    """FERRY_TIMEOUT: a rank did not arrive before the group's deadline; the sentence names it and the step."""

    code = _c.TIMEOUT


class AbortedError(FerryError):
    """FERRY_ABORTED: `Group.abort` was called on some rank, a rank asks for an agreement, or the group failed before."""

    code = _c.ABORTED


class MismatchError(FerryError):
    """FERRY_MISMATCH: ranks disagree. The sentence names the field, the rank and both values."""

    code = _c.MISMATCH


class CapacityError(FerryError, OverflowError):
    """FERRY_OVERFLOW: more rows than the stated capacity, with overflow="error"."""

    code = _c.OVERFLOW


class UnsupportedError(FerryError, NotImplementedError):
    """FERRY_UNSUPPORTED: a valid request that this build or machine cannot serve."""

    code = _c.UNSUPPORTED


class RefusedError(FerryError, PermissionError):
    """FERRY_REFUSED: the peer is not of this group (wrong secret in the unique id), or the others go on without this rank."""

    code = _c.REFUSED


_CLASSES = (
    InvalidError,
    NoMemoryError,
    SystemCallError,
    DeadlineError,
    AbortedError,
    MismatchError,
    CapacityError,
    UnsupportedError,
    RefusedError,
)
_BY_CODE: Dict[int, Type[FerryError]] = {c.code: c for c in _CLASSES}


def _check(status: int, function: Callable[..., Any], arguments: Any) -> int:
    if status == _c.OK:
        return status
    # The sentence is the calling thread's, and no other Ferry call of this thread came between.
    raise _BY_CODE.get(status, FerryError)(_c.lib.ferry_last_error().decode(errors="replace"))


for _name in _c.returns_status:
    setattr(getattr(_c.lib, _name), "errcheck", _check)
