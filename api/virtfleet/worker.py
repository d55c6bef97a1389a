"""The worker process: `python -m virtfleet.worker`. It hears the bell and runs jobs until it is told to stop.

On SIGTERM or SIGINT it takes no more jobs, gives those that run a few seconds, then ends them and puts them back.
"""

import importlib
import logging
import os
import select
import signal
from typing import Any

from virtfleet import migrations, settings
from virtfleet.jobs import queue
from virtfleet.jobs.work import Worker

POLL_SECONDS = 0.02
GRACE_SECONDS = 5.0
"""What running jobs get to end by themselves when the worker is told to stop."""
HEALTH_SECONDS = 10.0

log = logging.getLogger("virtfleet.worker")


def serve(worker: Worker, grace_seconds: float = GRACE_SECONDS) -> None:
    """Hear the bell in as many threads as the settings say, until SIGTERM or SIGINT comes."""
    # A handler may do no more than this: the thread it interrupts may hold any lock.
    told_to_stop = os.eventfd(0, os.EFD_CLOEXEC)

    def on_signal(_number: int, _frame: Any) -> None:
        os.eventfd_write(told_to_stop, 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    bell = queue.bell()
    bell.answer_with(worker.work)
    consumer = bell.huey.create_consumer(
        workers=settings.load().workers,
        periodic=False,
        initial_delay=POLL_SECONDS,
        max_delay=POLL_SECONDS,
        backoff=1.0,
    )
    worker.start()
    # The consumer's own `start` and `run` would take the signals, and know nothing of jobs to put back.
    consumer.scheduler.start()
    for _, thread in consumer.worker_threads:
        thread.start()
    log.info("worker %s is ready, %d jobs at once", worker.id, len(consumer.worker_threads))
    while not select.select([told_to_stop], [], [], HEALTH_SECONDS)[0]:
        consumer.check_worker_health()
    log.info("worker %s is stopping", worker.id)
    consumer.stop_flag.set()
    worker.close(grace_seconds)


def main() -> None:
    """Run the worker in the foreground."""
    # Importing the services registers what they do at the end of their jobs, and how secrets are read.
    importlib.import_module("virtfleet.services")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("huey").setLevel(logging.WARNING)
    migrations.upgrade()
    serve(Worker())


if __name__ == "__main__":
    main()
