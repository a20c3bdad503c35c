"""What can be wrong before an agent runs. The docstring is the default message."""

from typing import ClassVar


class WorkersError(Exception):
    """A worker cannot be prepared."""

    code: ClassVar[str] = "workers_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class BadProfile(WorkersError):
    """The model's profile cannot be made into an engine."""

    code = "bad_profile"


class UnknownModel(WorkersError):
    """No such model in the catalogue."""

    code = "unknown_model"


class WeightsUnavailable(WorkersError):
    """The model's weights could not be fetched."""

    code = "weights_unavailable"


class WeightsCorrupt(WorkersError):
    """The model's weights are not the bytes that were named by their sha256."""

    code = "weights_corrupt"
