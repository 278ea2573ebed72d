"""Files on this machine and on a real S3 server: the same answers from both, and nothing ever outside its folder."""

import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from benchmarks.servers import SECRET
from warehouse import places
from warehouse.errors import LakeUnavailableError, PlaceError

FILES = {"a/one.txt": b"1", "a/b/two.txt": b"22", "a/b/ü + 20%.txt": b"", "c.txt": b"x" * 20_000_000}


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> tuple[str, Path]:
    """A location that holds `FILES`, and the folder behind it."""
    if request.param == "local":
        folder, location = tmp_path / "tree", str(tmp_path / "tree")
    else:
        s3 = request.getfixturevalue("s3")
        bucket = s3.new_bucket()
        folder, location = s3.folder / bucket / "tree", f"s3://{bucket}/tree"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    # As a server writes it, "…20.12Z": pyarrow cannot read that time.
    os.utime(folder / "c.txt", ns=(1_700_000_000_120_456_000,) * 2)
    return location, folder


def test_a_listing_names_every_file_with_size_and_time(root):
    location, folder = root
    found = places.listing(location)
    assert {entry.location: entry.size for entry in found} == {
        f"{location}/{name}": len(data) for name, data in FILES.items()
    }
    assert found == sorted(found)
    for entry in found:
        there = (folder / entry.location.removeprefix(f"{location}/")).stat().st_mtime
        assert entry.modified == (int(there) if places.is_remote(location) else there)
        assert places.entry(entry.location) == entry
    assert [entry.location for entry in places.listing(location, recursive=False)] == [f"{location}/c.txt"]
    assert places.listing(f"{location}/") == found
    assert places.folders(location) == [f"{location}/a"]
    assert places.folders(f"{location}/none") == []


def test_what_is_not_there(root):
    location, _ = root
    assert places.entry(f"{location}/none.txt") is None
    assert places.entry(f"{location}/a") is None
    assert places.listing(f"{location}/none", missing_ok=True) == []
    assert places.is_folder(f"{location}/a/b")
    assert not places.is_folder(f"{location}/c.txt")
    assert not places.is_folder(f"{location}/none")
    with pytest.raises(PlaceError, match=f"^{location}/none: there is no such folder, or no file in it"):
        places.listing(f"{location}/none")
    with pytest.raises(PlaceError, match=f"^{location}/none.txt: cannot be read"):
        places.read_bytes(f"{location}/none.txt")


def test_files_are_fetched_as_they_are(root, tmp_path):
    location, _ = root
    wanted = [f"{location}/{name}" for name in [*FILES, "none.txt"]]
    found = places.fetch(wanted, tmp_path / "here")
    assert {name: found[f"{location}/{name}"].read_bytes() for name in FILES} == FILES
    assert f"{location}/none.txt" not in found
    assert {name: places.read_bytes(f"{location}/{name}") for name in FILES} == FILES
    if places.is_remote(location):
        below = tmp_path / "here" / location.removeprefix("s3://")
        assert all(found[f"{location}/{name}"] == below / name for name in FILES)
        assert {path.name for path in below.rglob("*") if path.is_file()} == {Path(n).name for n in FILES}
        (below / "c.txt").write_bytes(b"older")
        assert places.fetch(wanted, tmp_path / "here") == found
        assert (below / "c.txt").read_bytes() == FILES["c.txt"]


def test_linked_folders_are_read_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "loop").symlink_to(tree)
    (tree / "nothing.txt").symlink_to(tree / "none")
    (tree / "twice").symlink_to(tmp_path / "elsewhere")
    assert [entry.location for entry in places.listing(tree)] == [f"{tree}/linked/x.txt"]


def test_names_are_put_together_safely():
    assert places.join("s3://bucket/a/", "b/c.txt") == "s3://bucket/a/b/c.txt"
    assert places.join("/", "b") == "/b"
    for name in ("../x", "a/../x", "/etc/passwd", "a//b", "", "a\\b", "a/\n", "./a"):
        with pytest.raises(PlaceError):
            places.join("/data", name)
    assert places.parent("s3://bucket/a/b") == "s3://bucket/a"
    assert places.parent("s3://bucket") == "s3://bucket"
    assert places.parent("/a") == "/"
    assert places.located("s3://bucket/a/") == "s3://bucket/a"
    assert places.located(Path("/a/b/../c")) == "/a/c"


@pytest.mark.parametrize(
    "location",
    ["s3://", "s3:///etc/passwd", "s3://../x", "s3://bucket/../../x", "s3://bucket//etc", "s3://bucket/a/./b",
     "s3://bucket/a\\..\\b", "s3://bucket/a\nb", "s3://bucket/\u202eb", "s3://key:secret@bucket/x"],
)  # fmt: skip
def test_hostile_addresses_are_refused(location, tmp_path):
    with pytest.raises(PlaceError):
        places.fetch([location], tmp_path / "here")
    with pytest.raises(PlaceError):
        places.entry(location)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ faults


def test_a_bucket_that_is_not_there_is_named(s3, tmp_path):
    for ask in (places.listing, lambda place: places.fetch([f"{place}/x", f"{place}/y"], tmp_path)):
        with pytest.raises(
            PlaceError, match="there is no bucket 'no-such-bucket': correct it, or AWS_ENDPOINT_URL"
        ):
            ask("s3://no-such-bucket")


def test_a_wrong_secret_is_told_and_not_shown(s3, tmp_path, monkeypatch):
    bucket = s3.new_bucket()
    (s3.folder / bucket / "x.txt").write_text("x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-still-a-secret")
    for ask in (places.listing, lambda place: places.fetch([f"{place}/x.txt"], tmp_path)):
        with pytest.raises(PlaceError, match=f"^s3://{bucket}.*: S3 refuses access") as caught:
            ask(f"s3://{bucket}")
        text = str(caught.value)
        assert "\n" not in text
        assert "wrong-and-still" not in text
        assert SECRET not in text


def test_a_server_that_is_down_is_another_kind_of_fault(s3, tmp_path):
    bucket = s3.new_bucket()
    (s3.folder / bucket / "x.txt").write_text("x")
    location, started = f"s3://{bucket}/x.txt", time.monotonic()
    asks = (places.listing, places.entry, places.read_bytes)
    with s3.stopped():
        for ask in (*asks, lambda place: places.fetch([place] * 50, tmp_path / "here")):
            with pytest.raises(LakeUnavailableError, match=r"^s3://.*127\.0\.0\.1:\d+ cannot be reached"):
                ask(location)
    assert time.monotonic() - started < 30
    assert not list((tmp_path / "here").rglob("*.part"))
    assert places.read_bytes(location) == b"x"


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up(monkeypatch, s3):
    """In the short form a silence counts as failed after a second, in the long form when it does for users."""
    assert places._TRIES * places._SILENT_SECONDS <= 30
    if not os.environ.get("WELLHOUSE_LONG"):
        monkeypatch.setattr(places, "_SILENT_SECONDS", 1)
    waited = places._TRIES * places._SILENT_SECONDS
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(50)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(LakeUnavailableError, match="cannot be reached"):
            places.listing("s3://bucket/x")
    assert waited <= time.monotonic() - started < waited + 30


def test_a_full_or_closed_folder_is_told(s3, tmp_path):
    bucket = s3.new_bucket()
    (s3.folder / bucket / "x.txt").write_text("x")
    (tmp_path / "here").write_text("a file where the folder should be")
    with pytest.raises(PlaceError, match=f"^{tmp_path}/here/{bucket}/x.txt: cannot be written"):
        places.fetch([f"s3://{bucket}/x.txt"], tmp_path / "here")


class _Hostile(BaseHTTPRequestHandler):
    """An S3 server whose keys no file system would hold; it gives `evil` for each."""

    keys = (
        "good.txt",
        "../../../up.txt",
        "/etc/cron.d/x",
        "a/../../b.txt",
        "line\nbreak.txt",
        "a\\..\\..\\c.txt",
    )
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if "list-type" in self.path:
            rows = "".join(
                f"<Contents><Key>{escape(key).replace(chr(10), '&#10;')}</Key><Size>4</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for key in self.keys
            )
            self._answer(
                f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()
            )
        else:
            self._answer(b"evil")

    def do_HEAD(self):
        self._answer(b"evil", body=False)

    def _answer(self, data, body=True):
        self.send_response(206 if self.headers.get("Range") else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_keys_of_a_hostile_bucket_never_leave_the_folder(tmp_path, s3, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        found = [entry.location for entry in places.listing("s3://bucket")]
        assert "s3://bucket/good.txt" in found
        assert len(found) > 1
        for location in found:
            if location == "s3://bucket/good.txt":
                assert places.fetch([location], tmp_path / "x" / "y")[location].read_bytes() == b"evil"
            else:
                with pytest.raises(PlaceError):
                    places.fetch([location], tmp_path / "x" / "y")
    finally:
        server.shutdown()
        server.server_close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [tmp_path / "x" / "y" / "bucket" / "good.txt"]


def test_nothing_of_s3_is_loaded_for_local_files(tmp_path):
    code = (
        "import sys; from warehouse import places, arrivals; places.listing(sys.argv[1]); "
        "places.entry(sys.argv[1]); assert 'pyarrow.fs' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parent.parent)


def test_many_files_are_listed_quickly(tmp_path):
    for number in range(20):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for name in range(500):
            os.close(os.open(folder / f"{name}.tif", os.O_CREAT))
    started = time.perf_counter()
    assert len(places.listing(tmp_path)) == 10_000
    assert time.perf_counter() - started < 2
