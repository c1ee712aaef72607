"""An interrupt that Python drops is heeded at the next progress."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator

import pytest

from lotlip_platform.interrupts import heed_interrupts, raise_interrupts
from lotlip_platform.progress import Bar


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run unattended
    yield
    raise_interrupts()  # forgets what came
    for number, handler in kept.items():
        signal.signal(number, handler)


class Thing:
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_a_callback_of_a_weak_reference_is_not_lost(number: signal.Signals):
    raise_interrupts()
    thing = Thing()
    kept = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing  # Python prints what the callback raised, and goes on
    assert kept() is None
    with pytest.raises(KeyboardInterrupt):
        Bar("work", "item").show(1, 2)


def test_an_interrupt_that_a_shell_has_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_interrupts()
    signal.raise_signal(signal.SIGINT)
    heed_interrupts()


def test_what_came_before_a_command_is_none_of_its_own():
    raise_interrupts()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    raise_interrupts()
    heed_interrupts()
