"""The API as one application for all tests of a process: it keeps nothing of a fleet, and making it takes its time."""

from functools import cache

from apiflask import APIFlask
from virtfleet import settings
from virtfleet.app import create_app


def application() -> APIFlask:
    """Return the application that the present settings ask for."""
    return _application(with_s1=settings.load().s1_enabled)


@cache
def _application(*, with_s1: bool) -> APIFlask:
    made = create_app()
    assert ("s1" in made.blueprints) == with_s1
    return made
