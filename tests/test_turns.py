"""Writers of a lake in a folder take turns, and none waits for ever."""

import time

import pytest
from writers import SPAWN

from warehouse import turns
from warehouse.turns import turn


def hold(lock, is_held):
    with turn(lock, 10):
        is_held.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock, and the lock."""
    is_held = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path / "lock", is_held))
    process.start()
    assert is_held.wait(60)
    yield process, tmp_path / "lock"
    process.kill()
    process.join(60)


def test_a_turn_that_does_not_come_is_not_waited_for_for_ever(holder):
    _, lock = holder
    started = time.monotonic()
    with turn(lock, 0.2):
        waited = time.monotonic() - started
    assert 0.2 <= waited < 5


def test_the_turn_of_a_process_that_was_killed_is_free(holder):
    process, lock = holder
    process.kill()
    process.join(60)
    started = time.monotonic()
    with turn(lock, 60), turn(lock, 60):  # and a second one in this process does not wait for the first
        assert lock in turns._MINE
        assert time.monotonic() - started < 10
    assert not turns._MINE


def test_no_lock_and_a_lock_that_cannot_be_made_stop_nothing(tmp_path):
    ran = []
    for lock in (None, tmp_path / "nowhere" / "lock"):
        with turn(lock, 60):
            ran.append(lock)
    assert len(ran) == 2
