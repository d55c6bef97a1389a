"""What tests of jobs need: owners, hosts, kinds with small playbooks, and workers to run them."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from virtfleet import database
from virtfleet.jobs import events, kinds, lifecycle, queue
from virtfleet.jobs.kinds import Kind
from virtfleet.jobs.work import Worker
from virtfleet.models import Host, Job, JobEvent, Project, User, Zone

FINAL = ("succeeded", "failed", "cancelled")
FLEET = """
- name: Test
  hosts: all
  gather_facts: false
  tasks:
"""


class Bench:
    """A fleet's database with one project, one owner, two hosts, and kinds made of tasks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets: dict[str, bytes] = {}
        with database.write() as session:
            session.add(Project(id="prj_1", name="default"))
            session.flush()
            session.add(User(id="usr_1", name="admin", project_id="prj_1"))
            session.add(Zone(id="zon_1", name="zone-a"))
            session.flush()
            for number, name in enumerate(("h1", "h2"), start=1):
                uri = f"qemu+tcp://{name}/system"
                session.add(Host(id=f"hst_{number}", number=number, name=name, uri=uri, zone_id="zon_1"))
        kinds.secret_reader(lambda _session, secret_id: self.secrets[secret_id])

    def kind(self, name: str, tasks: str, **settings: Any) -> Kind:
        """Make a kind whose playbook has these tasks (YAML, from column 0)."""
        playbook = self.folder / f"{name}.yml"
        playbook.write_text(FLEET + textwrap.indent(textwrap.dedent(tasks).strip("\n"), "    ") + "\n")
        kinds.KINDS[name] = Kind(name, str(playbook), **settings)
        return kinds.KINDS[name]

    def submit(self, kind: str, *, ring: bool = False, **more: Any) -> str:
        """Submit a job in a transaction of its own; return its id."""
        given = {"host_ids": ["hst_1"], "variables": {}, "subjects": []} | more
        with database.write() as session:
            job = lifecycle.submit(session, kind, project_id="prj_1", owner_id="usr_1", **given)
        if ring:
            queue.ring([job.id])
        return job.id

    def job(self, job_id: str) -> Job:
        """Read a job."""
        with database.read() as session:
            found = session.get(Job, job_id)
            assert found is not None
            session.expunge_all()
            return found

    def events(self, job_id: str) -> list[JobEvent]:
        """Read all events of a job."""
        with database.read() as session:
            found = events.page(session, job_id, 0, 10_000)
            session.expunge_all()
            return found

    def cancel(self, job_id: str) -> None:
        """Cancel a job as the API does."""
        with database.write() as session:
            job = session.get(Job, job_id)
            assert job is not None
            to_ring = lifecycle.cancel(session, job)
        queue.ring(to_ring)

    def ended(self, job_id: str, seconds: float = 120) -> Job:
        """Wait for the end of a job."""
        wait_until(lambda: self.job(job_id).state in FINAL, seconds, f"{job_id} to end")
        return self.job(job_id)

    def run(self, job_id: str) -> Job:
        """Run one job here, in this thread."""
        with worker() as here:
            here.work(job_id)
        return self.job(job_id)


def wait_until(holds: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait until something holds; fail the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def worker(grace_seconds: float = 0.0) -> Iterator[Worker]:
    """A worker in this process, whose `work` the test calls itself."""
    here = Worker()
    here.start()
    try:
        yield here
    finally:
        here.close(grace_seconds)


@contextlib.contextmanager
def crew(threads: int = 4) -> Iterator[Worker]:
    """A worker that hears the bell in some threads of this process."""
    with worker() as here:
        bell = queue.bell()
        bell.answer_with(here.work)
        consumer = bell.huey.create_consumer(
            workers=threads, periodic=False, initial_delay=0.02, max_delay=0.02, backoff=1.0
        )
        for _, thread in consumer.worker_threads:
            thread.start()
        try:
            yield here
        finally:
            consumer.stop_flag.set()
            here.close(0.0)
            for _, thread in consumer.worker_threads:
                thread.join()


WORKER_PROCESS = """
import json, sys
from virtfleet.jobs import kinds
for name, path in json.loads(sys.argv[1]).items():
    kinds.KINDS[name] = kinds.Kind(name, path)
kinds.secret_reader(lambda session, secret_id: b"a secret of the worker process")
from virtfleet import migrations, worker
from virtfleet.jobs.work import Worker
migrations.upgrade()
worker.serve(Worker(), grace_seconds=0.5)
"""


def worker_process(bench: Bench, **environment: str) -> subprocess.Popen[bytes]:
    """Start a worker as a process of its own, in its own session, that knows the bench's kinds."""
    import json

    known = {name: kind.playbook for name, kind in kinds.KINDS.items() if kind.playbook.startswith(str(bench.folder))}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER_PROCESS, json.dumps(known)],
        env={**os.environ, **environment},
        start_new_session=True,
        stderr=(bench.folder / "worker.log").open("ab"),
    )


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Do something in many threads at once."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
