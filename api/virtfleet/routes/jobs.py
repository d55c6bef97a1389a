"""`/jobs` and `/changes`."""

import json
import threading
import time
from collections.abc import Iterator

from apiflask import APIBlueprint
from flask import Response, request
from pydantic import Field

from virtfleet import clock, database, settings
from virtfleet.errors import Problem
from virtfleet.jobs import events, queue
from virtfleet.models import UNFINISHED, Job
from virtfleet.routes import views
from virtfleet.routes.door import answer, caller, items, one, require
from virtfleet.schemas.base import Query
from virtfleet.schemas.jobs import EventOut, EventPage, EventQuery, JobOut, JobQuery, ReplayOut
from virtfleet.services import jobs, ledger
from virtfleet.services.auth import Principal
from virtfleet.services.paging import page

blueprint = APIBlueprint("jobs", __name__, tag="jobs")
LOOK_SECONDS = 0.05
"""How often a stream looks for new events, while there are some."""
SLOW_LOOK_SECONDS = 0.25
"""The same when nothing has happened for QUIET_SECONDS."""
QUIET_SECONDS = 3.0
SIGN_OF_LIFE_SECONDS = 10.0
_streams = threading.Semaphore(max(1, settings.load().api_threads - 4))
"""A stream holds a thread: some threads are kept for other requests."""


class ChangeQuery(Query):
    """Which changes."""

    since: int = Field(default=0, ge=0, description="Only changes with a larger number.")
    limit: int = Field(default=500, ge=1, le=1000)


@blueprint.get("/jobs")
@require("jobs:read")
@blueprint.input(JobQuery, location="query")
def list_jobs(query_data: JobQuery) -> Response:
    """List jobs, the newest first"""
    wanted = {"state": query_data.state, "kind": query_data.kind, "vm": query_data.vm}
    with database.read() as session:
        query = jobs.matching(session, caller(), **wanted)
        limits = {"limit": query_data.limit, "cursor": query_data.cursor}
        found = page(session, query, Job.number, newest_first=True, **limits)  # type: ignore[arg-type]
        return items(views.all_jobs(session, found.rows), found.next)


@blueprint.get("/jobs/<ref>")
@require("jobs:read")
@blueprint.output(JobOut)
def get_job(ref: str) -> Response:
    """Show a job"""
    with database.read() as session:
        return one(views.job(session, jobs.get(session, caller(), ref)))


@blueprint.get("/jobs/<ref>/events")
@require("jobs:read")
@blueprint.input(EventQuery, location="query")
@blueprint.output(EventPage)
def list_events(ref: str, query_data: EventQuery) -> Response:
    """Show what happened in a job

    With `Accept: text/event-stream` as a stream of server-sent events that goes on to the job's end; `Last-Event-ID`
    says after which event. The last one is called `end` and carries the job.
    """
    who = caller()
    if request.accept_mimetypes.best_match(["application/json", "text/event-stream"]) == "text/event-stream":
        return _stream(who, ref, _after(query_data.after))
    with database.read() as session:
        job = jobs.get(session, who, ref)
        found = events.page(session, job.id, query_data.after, query_data.limit)
        following = found[-1].seq if found else query_data.after
        shown = [EventOut.of(row) for row in found]
        return answer(EventPage(items=shown, next=following, job_state=job.state))


def _after(given: int) -> int:
    last = request.headers.get("Last-Event-ID", "")
    return int(last) if last.isascii() and last.isdigit() and len(last) < 10 else given


def _stream(who: Principal, ref: str, after: int) -> Response:
    with database.read() as session:
        job_id = jobs.get(session, who, ref).id
    if not _streams.acquire(blocking=False):
        raise Problem("unavailable", "Too many streams are open.", "Ask for pages of events (JSON) instead.")
    response = Response(_lines(job_id, after), mimetype="text/event-stream")
    response.call_on_close(_streams.release)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _lines(job_id: str, after: int) -> Iterator[str]:
    spoken = time.monotonic()
    yield "retry: 1000\n\n"
    while True:
        with database.read() as session:
            job = session.get(Job, job_id)
            if job is None:
                return
            ended = job.state not in UNFINISHED
            found = events.page(session, job_id, after, 500)
            shown = [EventOut.of(row) for row in found]
            last = views.job(session, job).model_dump(mode="json") if ended and len(found) < 500 else None
        for event in shown:
            if last is None or event.kind != "end":
                yield _line(event.kind, event.seq, event.model_dump(mode="json"))
            after, spoken = event.seq, time.monotonic()
        if last is not None:
            yield _line("end", after, last)
            return
        if time.monotonic() - spoken > SIGN_OF_LIFE_SECONDS:
            yield ": still here\n\n"
            spoken = time.monotonic()
        time.sleep(LOOK_SECONDS if time.monotonic() - spoken < QUIET_SECONDS else SLOW_LOOK_SECONDS)


def _line(kind: str, seq: int, data: object) -> str:
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


@blueprint.post("/jobs/<ref>/cancel")
@require("jobs:write")
@blueprint.doc(responses=[202])
def cancel_job(ref: str) -> Response:
    """Cancel a job

    One that runs is ended, and what it had made of new machines is removed.
    """
    with database.write() as session:
        job = jobs.get(session, caller(), ref)
        to_ring = jobs.cancel(session, caller(), job)
        session.flush()
        body = views.accepted(session, job)
    queue.ring(to_ring)
    return answer(body, 202, f"/api/v1/jobs/{body['job']['id']}")


@blueprint.get("/jobs/<ref>/replay")
@require("jobs:read")
@blueprint.output(ReplayOut)
def replay_job(ref: str) -> Response:
    """Show the command, inventory and variables that make the same run by hand"""
    with database.read() as session:
        return answer(jobs.replay(session, caller(), jobs.get(session, caller(), ref)))


@blueprint.get("/changes")
@require("jobs:read")
@blueprint.input(ChangeQuery, location="query")
def list_changes(query_data: ChangeQuery) -> Response:
    """Show what changed in the fleet, oldest first"""
    with database.read() as session:
        found = ledger.changes(session, caller(), query_data.since, query_data.limit)
        shown = [
            {
                "seq": row.seq,
                "time": clock.rfc3339(row.time),
                "type": row.type,
                "id": row.id,
                "action": row.action,
                "data": row.data,
            }
            for row in found
        ]
    return answer({"items": shown, "next": shown[-1]["seq"] if shown else query_data.since})
