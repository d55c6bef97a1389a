"""The parent's side of one host, with real children on libvirt's test driver and on nothing."""

import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from virtfleet.observer.watching import HostWatch

Until = Callable[[HostWatch, Callable[[], bool]], None]


@pytest.fixture
def until() -> Until:
    def wait(watch: HostWatch, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline, "it did not happen within 20 s"
            if watch.pipe is not None:
                select.select([watch.pipe], [], [], 0.2)
                watch.hear(time.monotonic())

    return wait


def watch_on(uri: str, timeout: float = 5.0, every: float = 0.2) -> HostWatch:
    watch = HostWatch("hst_1", "h1", uri, timeout=timeout, every=every)
    assert watch.is_due(time.monotonic())
    watch.start(time.monotonic())
    return watch


def test_a_host_that_answers_is_up_and_seen_again_and_again(until: Until) -> None:
    watch = watch_on("test:///default")
    try:
        until(watch, lambda: watch.view is not None and watch.view.earlier is not None)
        assert watch.status is not None
        assert (watch.status.state, watch.status.error) == ("up", None)
        assert watch.view is not None
        assert "machines" not in watch.view.info
        assert list(watch.view.states.values()) == ["running"]
    finally:
        watch.end()
    assert watch.pipe is None


def test_a_host_that_refuses_is_down_with_a_sentence_and_is_left_in_peace_for_a_while(until: Until) -> None:
    watch = watch_on("qemu+tcp://127.0.0.1:1/system")
    until(watch, lambda: watch.status is not None)
    assert watch.status is not None
    assert watch.status.state == "down"
    assert "qemu+tcp://127.0.0.1:1/system" in (watch.status.error or "")
    assert "Check that the host is up" in (watch.status.error or "")
    now = time.monotonic()
    assert not watch.is_due(now)
    assert watch.is_due(now + 1.0)


def test_pauses_grow_up_to_the_longest_and_start_anew_after_an_answer(until: Until) -> None:
    watch = HostWatch("hst_1", "h1", "test:///default", timeout=5.0, every=0.2)
    for longest in (1, 2, 4, 8, 16, 30, 30, 30):
        watch.give_up(0.0, "no")
        assert not watch.is_due(0.75 * longest - 0.01), "hosts behind one dead switch are not tried in step"
        assert watch.is_due(longest)
    watch.start(time.monotonic())
    until(watch, lambda: watch.view is not None)
    watch.give_up(0.0, "no")
    assert watch.is_due(1.0)


def test_a_child_that_says_nothing_is_killed_and_its_host_down(until: Until) -> None:
    watch = watch_on("test:///default", every=60.0)
    until(watch, lambda: watch.view is not None)
    assert not watch.is_overdue(time.monotonic())
    late = time.monotonic() + 66
    assert watch.is_overdue(late)
    news = watch.silence(late)
    assert news.urgent
    assert watch.status is not None
    assert (watch.status.state, watch.view) == ("down", None)
    assert "no answer within 5 s" in (watch.status.error or "")
    assert watch.status.answered_at is not None
    assert watch.pipe is None


def test_a_watcher_that_cannot_be_understood_makes_its_host_down_and_nothing_worse(
    until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('something that a library has to say', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    watch = watch_on("test:///default")
    until(watch, lambda: watch.status is not None)
    assert watch.status is not None
    assert watch.status.state == "down"
    assert "cannot be understood" in (watch.status.error or "")
    assert watch.pipe is None


def test_the_same_sentence_again_is_no_news() -> None:
    watch = HostWatch("hst_1", "h1", "test:///default", timeout=5.0, every=0.2)
    assert watch.give_up(0.0, "the first").urgent
    assert not watch.give_up(0.0, "the first").urgent
    assert watch.give_up(0.0, "another").urgent
