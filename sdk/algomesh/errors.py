"""What a call can end in, other than a result.

    MeshError
    ├── BadReference        400  bad_reference       the name is not of the form owner/name[/version]
    ├── BadInput            400  bad_input           the input does not fit what the algorithm takes
    ├── Unauthenticated     401  unauthenticated     the mesh does not know this key
    ├── PermissionDenied    403  permission_denied   this key or algorithm may not do that
    ├── UnknownAlgorithm    404  unknown_algorithm
    ├── UnknownVersion      404  unknown_version
    ├── Cancelled           409  cancelled           somebody stopped the run
    ├── VersionExists       409  version_exists      published before, with other content
    ├── PayloadTooLarge     413  payload_too_large
    ├── AlgorithmError      422  algorithm_error     the algorithm's own code raised
    ├── BadOutput           422  bad_output          what the algorithm returned cannot travel
    ├── LoadFailed          422  load_failed         the algorithm cannot be started
    ├── MemoryExceeded      422  memory_exceeded     it took more memory than its version declares
    ├── DepthExceeded       422  depth_exceeded      algorithms call one another too deeply
    ├── BadProject          422  bad_project         what was to be published is not an algorithm
    ├── BudgetExceeded      422  budget_exceeded     one call led to too many others
    ├── ClaimGone           410  claim_gone          a payload that was put aside has expired
    ├── Overloaded          429  overloaded          too many calls wait already
    ├── InstanceLost        503  instance_lost       the instance died, and the run may not be repeated
    ├── NoCapacity          503  no_capacity         no machine has room for an instance
    ├── Unreachable         503  unreachable         no mesh at this address
    ├── DeadlineExceeded    504  deadline_exceeded   the caller's time was over
    └── RunTimeout          504  timeout             the algorithm took longer than its own timeout

`code` is the word on the wire, `status` the HTTP status, `stage` the `owner/name/version` that failed, `branch` the
branches of a fan-out and the items of an `each` that it failed in, outermost first.
`str()` is a sentence.
"""

from typing import ClassVar


class MeshError(Exception):
    """The root of everything a call can raise."""

    code: ClassVar[str] = "mesh_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, stage: str = "", error_type: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.error_type = error_type or type(self).__name__
        self.branch: list[str] = []

    def __str__(self) -> str:
        text = f"{self.stage}: {self.message}" if self.stage and self.stage not in self.message else self.message
        return f"{' › '.join(self.branch)} › {text}" if self.branch else text


class BadReference(MeshError, ValueError):
    """A name is not of the form `owner/name[/version]`."""

    code, status = "bad_reference", 400


class BadInput(MeshError, ValueError):
    """The input does not fit what the algorithm takes; the message has the path of the offending field."""

    code, status = "bad_input", 400


class Unauthenticated(MeshError):
    """The mesh does not know this key."""

    code, status = "unauthenticated", 401


class PermissionDenied(MeshError):
    """This key, or this algorithm, may not do what it tried."""

    code, status = "permission_denied", 403


class UnknownAlgorithm(MeshError, LookupError):
    """No algorithm has this name; the message has the nearest ones."""

    code, status = "unknown_algorithm", 404


class UnknownVersion(MeshError, LookupError):
    """The algorithm has no such version; the message has those it has."""

    code, status = "unknown_version", 404


class Cancelled(MeshError):
    """The run was stopped."""

    code, status = "cancelled", 409


class VersionExists(MeshError):
    """This version was published before with other content; versions never change."""

    code, status = "version_exists", 409


class PayloadTooLarge(MeshError, ValueError):
    """Input or output is larger than a message may be."""

    code, status = "payload_too_large", 413


class AlgorithmError(MeshError):
    """The algorithm's own code failed. Raise it in an algorithm to choose message and `error_type` yourself."""

    code, status = "algorithm_error", 422


class BadOutput(MeshError):
    """What the algorithm returned cannot travel."""

    code, status = "bad_output", 422


class LoadFailed(MeshError):
    """The algorithm could not be imported or its `load()` raised."""

    code, status = "load_failed", 422


class MemoryExceeded(MeshError):
    """The instance took more memory than its version declares, and was ended."""

    code, status = "memory_exceeded", 422


class DepthExceeded(MeshError):
    """Algorithms call one another more deeply, or more often, than a request may."""

    code, status = "depth_exceeded", 422


class BadProject(MeshError):
    """A folder or file that was to be published holds no algorithm, or describes it wrongly."""

    code, status = "bad_project", 422


class BudgetExceeded(MeshError):
    """One call has led to more runs than a root run may: a recursion that does not end, most likely."""

    code, status = "budget_exceeded", 422


class ClaimGone(MeshError):
    """A payload that was too large for a message has expired, or was deleted, before it was read."""

    code, status = "claim_gone", 410


class Overloaded(MeshError):
    """Too many calls wait already; try again later."""

    code, status = "overloaded", 429


class InstanceLost(MeshError):
    """The instance that ran this died, and the run may not, or not again, be repeated."""

    code, status = "instance_lost", 503


class NoCapacity(MeshError):
    """No machine has room for an instance of this algorithm."""

    code, status = "no_capacity", 503


class Unreachable(MeshError, ConnectionError):
    """No mesh answers at this address."""

    code, status = "unreachable", 503


class DeadlineExceeded(MeshError, TimeoutError):
    """The caller's own time was over before the answer came."""

    code, status = "deadline_exceeded", 504


class RunTimeout(MeshError, TimeoutError):
    """The algorithm took longer than its version's `timeout`."""

    code, status = "timeout", 504


def _tree(root: type[MeshError]) -> dict[str, type[MeshError]]:
    return {root.code: root} | {code: kind for child in root.__subclasses__() for code, kind in _tree(child).items()}


BY_CODE = _tree(MeshError)


def of_code(code: str, message: str, *, stage: str = "", error_type: str = "") -> MeshError:
    """The error that `code` stands for; an unknown code gives a plain MeshError."""
    return BY_CODE.get(code, MeshError)(message, stage=stage, error_type=error_type)
