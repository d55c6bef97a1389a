"""The observer process: `python -m virtfleet.observer`. It watches until SIGTERM or SIGINT comes."""

import logging
import signal
from typing import Any

from virtfleet import migrations, settings
from virtfleet.observer.fleet import FleetWatch


def main() -> None:
    """Run the observer in the foreground."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    migrations.upgrade()
    watch = FleetWatch(settings.load())

    def on_signal(_number: int, _frame: Any) -> None:
        watch.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    watch.run()


if __name__ == "__main__":
    main()
