"""What can be wrong with a file, a batch, a lease or a commit. The docstring is the default message."""

from typing import ClassVar


class JobsError(Exception):
    """The request about a file or batch cannot be carried out."""

    code: ClassVar[str] = "jobs_error"

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])
        self.param = param


class FileNotFound(JobsError):
    """No such file in this project."""

    code = "file_not_found"


class BadCursor(JobsError):
    """The list cannot go on from here."""

    code = "invalid_cursor"


class FileGone(JobsError):
    """The file was deleted or has expired."""

    code = "file_gone"


class UploadTooLate(JobsError):
    """The upload took so long that the key of its bytes was destroyed as nobody's: they are lost, send them again."""

    code = "upload_too_late"


class FileTooLarge(JobsError):
    """The file is larger than this project's limit."""

    code = "file_too_large"


class UploadNotFound(JobsError):
    """No such upload in this project."""

    code = "upload_not_found"


class BadUpload(JobsError):
    """The parts do not make the file that was announced."""

    code = "invalid_upload"


class BatchNotFound(JobsError):
    """No such batch in this project."""

    code = "batch_not_found"


class BadBatch(JobsError):
    """The batch cannot be created from this request."""

    code = "invalid_batch"


class BadTransition(JobsError):
    """The batch is in a state in which this cannot be done."""

    code = "invalid_state"


class NothingToRetry(JobsError):
    """No line of the batch is to be done again."""

    code = "nothing_to_retry"


class InputGone(JobsError):
    """The input file was deleted or has expired, so its lines cannot be read again."""

    code = "input_gone"


class IdempotencyMismatch(JobsError):
    """This idempotency key was used with a different request; use a new key for a new request."""

    code = "idempotency_mismatch"


class LeaseUnknown(JobsError):
    """No such shard, or it was never leased to this placement."""

    code = "lease_unknown"


class LeaseLost(JobsError):
    """The lease was superseded, revoked or has expired; finish nothing more under it."""

    code = "lease_lost"


class ObjectExists(JobsError):
    """An object with this key exists; objects are immutable."""

    code = "object_exists"


class ObjectMissing(JobsError):
    """No object with this key."""

    code = "object_missing"


class ObjectCorrupt(JobsError):
    """The object's size or sha256 differs from what was committed."""

    code = "object_corrupt"


class KeyDestroyed(ObjectMissing):
    """The key of the object was destroyed: what it sealed is gone, wherever it still lies."""

    code = "key_destroyed"


class ObjectTampered(ObjectCorrupt):
    """A sealed object is not what was sealed under this name and key."""

    code = "object_tampered"


class StoreFailed(JobsError):
    """The object store did not answer, or refused us; nothing is known about the object. Asking again may help."""

    code = "store_failed"


class KeyUnreadable(StoreFailed):
    """The key of a stored object does not open: what wrapped it is not here. Nothing is lost; with that key it is read again."""

    code = "key_unreadable"


class StoreUnfit(JobsError):
    """The object store cannot do what correctness rests on."""

    code = "store_unfit"


class CountsDisagree(JobsError):
    """Completed, failed, expired and cancelled lines do not sum to the total; the batch stays in finalizing."""

    code = "counts_disagree"


class BadToken(JobsError):
    """This token does not permit the request on this object."""

    code = "bad_token"
