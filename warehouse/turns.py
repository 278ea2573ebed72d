"""Writers of a lake in a folder take turns: SQLite lets one commit at a time, and a loser would do its work again.

Correctness does not hang on this: `write_gate` holds that, also where locks do not reach (some network disks).
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: the retry of `Lake.transaction` alone
    fcntl = None  # type: ignore[assignment]

#: Locks that this process holds: its second connection to a lake must not wait for its first.
_MINE: set[Path] = set()


@contextmanager
def turn(lock: Path | None, seconds: float) -> Iterator[bool]:
    """Hold a lock inside the block; the system takes it back from a process that dies.

    Args:
        lock: the file to lock, which stays; None for a lake that needs no turns.
        seconds: how long to wait; after that the block runs without the lock.

    Yields:
        False where another process holds the lock still.
    """
    if lock is None or fcntl is None or lock in _MINE:
        yield True
        return
    try:
        file = lock.open("ab")
    except OSError:  # the write will tell better why
        yield True
        return
    with file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = True
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError) or time.monotonic() > deadline:
                    is_held = not isinstance(error, BlockingIOError)  # a disk without locks
                    break
            time.sleep(random.uniform(0.001, 0.005))
        _MINE.add(lock)
        try:
            yield is_held
        finally:
            _MINE.discard(lock)
