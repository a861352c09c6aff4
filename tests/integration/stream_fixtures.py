"""One mesh with the algorithms of stream_algorithms.py, and files that its instances can write."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from tests.integration.up_fixtures import Up

KEY = "YOUR_API_KEY"
BEARER = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def streaming_mesh(folder: Path) -> Iterator[Up]:
    """`algomesh up` with them published."""
    shutil.copy(Path(__file__).with_name("stream_algorithms.py"), folder)
    with Up(folder / "state", "--key", KEY) as up:
        published = up.run("publish", str(folder / "stream_algorithms.py"))
        assert published.returncode == 0, published.stderr
        yield up


@contextmanager
def open_folder() -> Iterator[Path]:
    """Instances may be other users, and pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory(prefix="algomesh-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def form_of(fields: dict[str, tuple[bytes, str]]) -> aiohttp.MultipartWriter:
    """A form of named parts, each with its media type."""
    form = aiohttp.MultipartWriter("form-data")
    for name, (value, media) in fields.items():
        form.append(io.BytesIO(value), {"Content-Type": media}).set_content_disposition("form-data", name=name)
    return form
