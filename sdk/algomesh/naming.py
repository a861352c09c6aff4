"""Pipelines with a name and a version, as `algomesh publish` publishes them: from then on called like an algorithm.

    JUDGE = algomesh.named("text/judge", clean | sentiment, version="1.0.0")

In Python it composes as what it is made of; by its reference, `algomesh.stage("text/judge")`, it is whatever is
published under it when it is called. It has no instance, no options and no rights of its own: who calls it needs
the right to call every stage.
"""

from typing import Any

import msgspec
from msgspec import Struct

from algomesh.composing import Composable
from algomesh.errors import BadInput, BadReference
from algomesh.pipeline import Operand, Pipeline, value_of
from algomesh_broker.errors import BadName
from algomesh_broker.names import Reference, Version, VersionId
from algomesh_broker.platform import Manifest


class Named(Composable):
    """A pipeline under `version_id`; made by `named`, never changed."""

    def __init__(self, version_id: VersionId, pipeline: Pipeline, description: str = "") -> None:
        self.version_id = version_id
        self.description = description
        self._pipeline = pipeline

    @property
    def pipeline(self) -> Pipeline:
        """What it is made of."""
        return self._pipeline

    def local(self, value: Any) -> Any:
        """Run it in this process, without a mesh; see `Pipeline.local`."""
        return self._pipeline.local(value)

    def manifest(self) -> Manifest:
        """What the registry keeps of this version."""
        face = self._pipeline.face
        return Manifest(
            owner=self.version_id.owner,
            name=self.version_id.name,
            version=str(self.version_id.version),
            entry="",
            description=self.description,
            takes=face.takes[0].notation if len(face.takes) == 1 else "",
            gives=face.gives.notation,
            pipeline=self._pipeline.to_json(),
        )

    def __str__(self) -> str:
        return f"{self.version_id}\n{self._pipeline}"

    def __repr__(self) -> str:
        return f"<pipeline {self.version_id}: {self._pipeline!r}>"


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON form of a named pipeline."""

    name: str
    version: str
    pipeline: msgspec.Raw
    description: str = ""


def named(name: str, pipeline: Operand, *, version: str, description: str = "") -> Named:
    """A pipeline that can be published.

    name: `owner/name`. version: `1.2.0`; what is published under it never changes.
    pipeline: what it is made of; stages by reference mean what is published when it is called.
    Raises BadReference, BadInput.
    """
    try:
        reference = Reference.parse(name)
        if reference.version:
            raise BadReference(f"{name!r} has a version in it; write named({reference.algorithm!r}, …, version=…)")
        version_id = VersionId(reference.owner, reference.name, Version.parse(version))
    except BadName as error:
        raise BadReference(str(error)) from error
    return Named(version_id, value_of(pipeline), description.strip())


def read_named(data: bytes) -> Named:
    """A named pipeline from JSON: `{"name": "owner/name", "version": "1.0.0", "pipeline": {…}}`.

    `description` may be there too. Raises BadInput, BadReference.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadInput(
            f'this is not a named pipeline, {{"name": "owner/name", "version": "1.0.0", "pipeline": {{…}}}}: {error}'
        ) from error
    return named(
        file.name, Pipeline.from_json(bytes(file.pipeline)), version=file.version, description=file.description
    )
