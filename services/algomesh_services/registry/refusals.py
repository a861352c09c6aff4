"""What the registry says no with: a code for programs and a sentence for people.

bad_manifest          a field is out of bounds, or does not fit the subject
name_reserved         the owner is one the mesh keeps for itself
version_exists        versions never change; the sentence says which to publish as
requirements_missing  the mesh's environment lacks packages; each is named
archive_missing       publish came before upload
digest_mismatch       the archive is not what its digest says
archive_too_large     over the limit
storage_failed        the disk is full, or cannot be written
permission_denied     the key may not grant what the version wants to call
unknown_algorithm, unknown_version, unknown_archive, unknown_key, unknown_verb
key_exists, bad_scope
unavailable           the database is away; nothing was changed
overloaded            too many requests at once
"""


class Refusal(Exception):
    """A request that cannot be granted. `code` goes on the wire beside the sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
