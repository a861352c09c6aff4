"""What the word of an instance means for the call that waits for it, and the record of a call that nobody ended."""

import time

from algomesh import errors
from algomesh.pending import Pending
from algomesh_broker import messages


def hear(pending: Pending, reply: messages.Reply, now: float) -> None:
    """Take in what an instance says of a call; `now` is the loop's time."""
    match reply:
        case messages.Result():
            if pending.parked_at:
                pending.taken(reply.instance, reply.ready_ms, now, reply.at)
            if not pending.future.done():
                pending.future.set_result(reply)
        case messages.Failure():
            stage = reply.stage or str(pending.version)
            failure = errors.of_code(reply.code, reply.message, stage=stage, error_type=reply.error_type)
            failure.branch = reply.branch
            pending.fail(failure)
        case messages.Running():
            pending.taken(reply.instance, reply.ready_ms, now, reply.at)
            if pending.on_progress is not None:
                pending.on_progress(reply)
        case messages.Part():
            if pending.on_part is not None and reply.attempt == pending.call.attempt:
                pending.taken(reply.instance, 0, now, reply.at)
                pending.parts += 1
                pending.on_part(reply)
        case messages.Parked():
            pending.waits(reply.at, now)
        case messages.HandedOver():
            pending.moved(reply.at)


def record_of(pending: Pending, caller: str, state: messages.RunState, error: str) -> messages.RunEvent:
    """What the ledger should know of a run of `caller` that ended without an instance's word."""
    call, version = pending.call, pending.version
    return messages.RunEvent(
        run=call.run,
        attempt=call.attempt,
        root=call.root,
        parent=call.parent,
        algorithm=version.algorithm,
        version=str(version.version),
        caller=caller,
        root_caller=call.root_caller,
        instance=pending.instance,
        state=state,
        ended_at=time.time(),
        error=error,
    )
