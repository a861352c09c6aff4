"""Pipelines in this process, without a mesh: for trying out, for tests, and for machines that are offline.

Values convert between stages exactly as they do on the wire. Branches and items run one after the other.
"""

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from algomesh import content, inputs
from algomesh.content import Content
from algomesh.decorator import Algorithm, find_algorithm
from algomesh.errors import BadInput, MeshError, UnknownAlgorithm
from algomesh.pipeline import All, Chain, Each, Pipeline, Stage


def run_local(pipeline: Pipeline, value: Any) -> Any:
    """Run every stage here; see `Pipeline.local`."""
    given = inputs.encode_input(value)
    _check_known(pipeline)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_here(pipeline, given)
    return _in_a_thread(lambda: _run_here(pipeline, given))


def _run_here(pipeline: Pipeline, given: Content) -> Any:
    with asyncio.Runner() as runner:
        return content.decode(*_Run(runner).run(pipeline, given))


def _in_a_thread(work: Callable[[], Any]) -> Any:
    """A loop runs here already, so async stages need a thread of their own; this one waits for it."""
    with ThreadPoolExecutor(1, thread_name_prefix="algomesh-local") as thread:
        return thread.submit(contextvars.copy_context().run, work).result()


class _Run:
    """One run, with the loop that all its async stages share."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def run(self, node: Pipeline, given: Content) -> Content:
        match node:
            case Stage():
                return self._run_stage(node, given)
            case Chain():
                for part in node.stages:
                    given = self.run(part, given)
                return given
            case All():
                return content.join([self.run(branch, given) for branch in node.branches], list(node.names))
            case Each():
                return content.join([self.run(node.of, item) for item in content.split(given)], [])
        raise BadInput(f"{type(node).__name__} is no part of a pipeline")

    def _run_stage(self, stage: Stage, given: Content) -> Content:
        algorithm = _find(stage)
        try:
            value = algorithm.signature.read(*given)
            return content.encode(self._finished(algorithm.run_one(value)))
        except MeshError as error:
            error.stage = error.stage or str(algorithm.version_id)
            raise
        except Exception as error:
            error.add_note(f"in the stage {algorithm.version_id}")
            raise

    def _finished(self, result: Any) -> Any:
        """What an algorithm returned, once it is there; what it yields, as a list."""
        if inspect.iscoroutine(result):
            return self._runner.run(_entered(result))
        if isinstance(result, AsyncIterator):
            return self._runner.run(_collected(result))
        return list(result) if isinstance(result, Iterator) else result


async def _entered(work: Coroutine[Any, Any, Any]) -> Any:
    return await work


async def _collected(parts: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in parts]


def _check_known(pipeline: Pipeline) -> None:
    """Nothing runs before every stage is there."""
    match pipeline:
        case Stage():
            _find(pipeline)
        case Chain():
            for part in pipeline.stages:
                _check_known(part)
        case All():
            for part in pipeline.branches:
                _check_known(part)
        case Each():
            _check_known(pipeline.of)


def _find(stage: Stage) -> Algorithm[Any, Any]:
    found: Algorithm[Any, Any] | None = stage.algorithm or find_algorithm(stage.target)
    if found is None:
        raise UnknownAlgorithm(
            f"{stage.reference} is not in this process: import the module that defines it, or run the pipeline by "
            "client.algo(…).pipe(…)"
        )
    return found
