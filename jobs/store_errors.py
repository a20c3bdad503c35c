"""obstore's errors, which are of several families, in the words of this room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import AlreadyExistsError, BaseError

from jobs.errors import ObjectExists, ObjectMissing, StoreFailed

LONGEST_MESSAGE = 500


@contextmanager
def told_as_ours(what: str, key: str) -> Iterator[None]:
    """Raises ObjectExists, ObjectMissing (builtins.FileNotFoundError in obstore), and StoreFailed for all else."""
    try:
        yield
    except AlreadyExistsError as error:
        raise ObjectExists(f"object {key} exists; objects are immutable") from error
    except FileNotFoundError as error:
        raise ObjectMissing(f"no object {key}") from error
    except BaseError as error:
        # The debug source that obstore appends repeats the request, signature and all.
        words = str(error).partition("\n\nDebug source")[0][:LONGEST_MESSAGE]
        raise StoreFailed(f"the object store could not {what} {key}: {words}") from error
