"""What a run makes of a playbook: events, result, errors; and that hostile text and secrets stay where they belong."""

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from virtfleet import database, settings
from virtfleet.jobs import attempts, kinds, lifecycle, queue
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Host, Job

from tests.api.job_bench import Bench, crew, wait_until, worker

BOUND = 120.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""
MARKER = "MARKER-7f3a9c51-nobody-may-see-this"
USER_DATA = f"#cloud-config\npassword: {MARKER}\n"


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_run_is_logged_step_by_step_and_gives_its_result(bench: Bench) -> None:
    bench.kind(
        "test.steps",
        """
        - name: Say something
          ansible.builtin.debug:
            msg: [first line, second line]
        - name: Change something
          ansible.builtin.command: "true"
        - name: Skip something
          ansible.builtin.command: "false"
          when: false
        - name: Go over some
          ansible.builtin.command: "true"
          changed_when: false
          loop: [one, two]
        - name: Fail on purpose
          ansible.builtin.command: "false"
          ignore_errors: true
        - name: Publish what the next one replaces
          ansible.builtin.set_stats:
            per_host: true
            data: {virtfleet: {draft: true}}
        - name: Publish
          ansible.builtin.set_stats:
            per_host: true
            aggregate: false
            data: {virtfleet: {vms: [{name: "{{ name }}"}], uri: "{{ virtfleet_uri }}"}}
        - name: Publish more
          ansible.builtin.set_stats:
            per_host: true
            data: {virtfleet: {vms: [{name: other}]}}
        """,
    )
    job = bench.run(bench.submit("test.steps", host_ids=["hst_1", "hst_2"], variables={"name": "web"}))
    assert (job.state, job.error) == ("succeeded", None)
    assert job.result == {
        name: {"vms": [{"name": "web"}, {"name": "other"}], "uri": f"qemu+tcp://{name}/system"} for name in ("h1", "h2")
    }
    assert job.progress == {"task": "Publish more", "done": 7}
    assert job.started_at and job.first_task_at and job.ended_at
    assert job.started_at < job.first_task_at < job.ended_at

    events = bench.events(job.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {event.attempt for event in events} == {1}
    kinds_of = [event.kind for event in events]
    assert kinds_of[:3] == ["started", "play", "task"]
    assert kinds_of[-2:] == ["stats", "end"]
    assert [event.task for event in events if event.kind == "task"] == [
        *("Say something", "Change something", "Skip something", "Go over some"),
        *("Fail on purpose", "Publish what the next one replaces", "Publish", "Publish more"),
    ]
    of_h1 = [(event.kind, event.text) for event in events if event.host == "h1"]
    assert ("message", "first line") in of_h1
    assert ("message", "second line") in of_h1
    assert ("changed", "") in of_h1
    assert ("skipped", "") in of_h1
    assert ("item", "two") in of_h1
    assert ("failed", "ignored: non-zero return code") in of_h1
    assert events[0].text == "test.steps on h1, h2, attempt 1 of 3"


def test_a_failure_says_why_and_keeps_what_was_published(bench: Bench) -> None:
    bench.kind(
        "test.fails",
        """
        - name: Work
          block:
            - name: Break
              ansible.builtin.fail:
                msg: "Failed to make the machine on {{ inventory_hostname }}: the pool is full."
              when: inventory_hostname == 'h2'
          always:
            - name: Publish
              ansible.builtin.set_stats:
                per_host: true
                data: {virtfleet: {vms: [{host: "{{ inventory_hostname }}"}]}}
        """,
    )
    seen: list[Outcome] = []
    kinds.finisher("test.fails")(lambda _session, _job, outcome: seen.append(outcome))
    job = bench.run(bench.submit("test.fails", host_ids=["hst_1", "hst_2"]))
    message = "Failed to make the machine on h2: the pool is full."
    assert job.state == "failed"
    assert job.error == {"code": "task_failed", "message": f"h2: {message}", "hint": ""}
    assert job.result == {name: {"vms": [{"host": name}]} for name in ("h1", "h2")}
    (outcome,) = seen
    assert outcome.failed == ("h2",)
    assert outcome.errors == {"h2": {"code": "task_failed", "message": message, "hint": ""}}
    assert [event.text for event in bench.events(job.id) if event.kind == "failed"] == [message]
    assert bench.events(job.id)[-1].text == f"failed: h2: {message}"


def test_code_and_hint_of_a_module_reach_the_job_even_through_a_rescue(bench: Bench) -> None:
    library = bench.folder / "library"
    library.mkdir()
    (library / "breaks.py").write_text(
        "from ansible.module_utils.basic import AnsibleModule\n"
        "AnsibleModule({}).fail_json(msg='Failed to reach h1: it is frozen.',\n"
        "    error={'code': 'host_frozen', 'hint': 'Restart libvirtd.'})\n"
    )
    bench.kind("test.module", "- breaks:")
    bench.kind(
        "test.rescue",
        """
        - block:
            - breaks:
          rescue:
            - ansible.builtin.fail:
                msg: "{{ ansible_failed_result.msg }}"
        """,
    )
    bench.kind(
        "test.rescued",
        """
        - block:
            - breaks:
          rescue:
            - ansible.builtin.debug:
                msg: all is well
        """,
    )
    wanted = {"code": "host_frozen", "message": "Failed to reach h1: it is frozen.", "hint": "Restart libvirtd."}
    assert bench.run(bench.submit("test.module")).error == wanted
    assert bench.run(bench.submit("test.rescue")).error == wanted
    job = bench.run(bench.submit("test.rescued"))
    assert (job.state, job.error) == ("succeeded", None)


def test_errors_of_ansible_itself_are_told(bench: Bench) -> None:
    bench.kind("test.syntax", "- no_such_module_anywhere:")
    job = bench.run(bench.submit("test.syntax"))
    assert job.error is not None
    assert job.error["code"] == "playbook_error"
    assert "no_such_module_anywhere" in job.error["message"]
    kinds.KINDS["test.missing"] = kinds.Kind("test.missing", "vm/no-such-playbook.yml")
    job = bench.run(bench.submit("test.missing"))
    assert job.error is not None
    assert job.error["code"] == "playbook_missing"
    bench.kind("test.nobody", "- debug:")
    playbook = Path(kinds.KINDS["test.nobody"].playbook)
    playbook.write_text(playbook.read_text().replace("hosts: all", "hosts: nobody"))
    job = bench.run(bench.submit("test.nobody"))
    assert job.error is not None
    assert job.error["code"] == "no_hosts"


def test_what_a_job_needs_and_is_gone_is_named(bench: Bench) -> None:
    bench.kind("test.noop", "- debug:")
    gone = bench.run(bench.submit("test.noop", host_ids=["hst_1", "hst_9"]))
    assert gone.error is not None
    assert (gone.error["code"], "hst_9" in gone.error["message"]) == ("not_found", True)

    def no_secret(_session: Any, secret_id: str) -> bytes:
        raise LookupError(f"secret {secret_id} is gone")

    kinds.secret_reader(no_secret)
    gone = bench.run(bench.submit("test.noop", variables={"a": {"$secret": "sec_9"}}))
    assert gone.error is not None
    assert (gone.error["code"], "sec_9 is gone" in gone.error["message"]) == ("secret_missing", True)


def test_hostile_text_is_never_executed(bench: Bench) -> None:
    """In variables, their keys, host variables, URIs, even host and zone names (which registration refuses anyway)."""
    bait = bench.folder / "executed"
    jinja = f"{{{{ lookup('pipe', 'touch {bait}') }}}}"
    texts = [
        jinja,
        f"{{% if lookup('pipe', 'touch {bait}') %}}{{% endif %}}",
        f"$(touch {bait})",
        f"`touch {bait}`",
        f"'; touch {bait}; '",
        "!unsafe x",
        "&a *a",
        "<vm>&amp;</vm>",
        "\0\x1b[31m\u2028",
        "😀" * 100,
        "x" * 5000,
        *("yes", "null", "~", "", "0x10", "1e3", "1_000", "2024-01-01", "52:54:00:41:13:12", "<<", "=", "-1"),
    ]
    with database.write() as session:
        host = session.get(Host, "hst_1")
        assert host is not None
        host.name = f"h{jinja}"
        host.uri = f"qemu+tcp://{jinja}/system"
        host.variables = {"note": jinja, "ansible_python_interpreter": jinja, "ansible_user": jinja}
        host.zone.name = f"z{jinja}"
    bench.kind(
        "test.hostile",
        """
        - name: Use them in a task
          ansible.builtin.debug:
            msg: "{{ texts }} {{ nested }} {{ note }} {{ virtfleet_uri }} {{ virtfleet_zone }} {{ group_names }}"
        - name: Use one in a module and in a name {{ texts[0] }}
          ansible.builtin.command:
            argv: [echo, "{{ texts[0] }}"]
        - name: Publish
          ansible.builtin.set_stats:
            per_host: true
            data:
              virtfleet: {texts: "{{ texts }}", nested: "{{ nested }}", note: "{{ note }}", uri: "{{ virtfleet_uri }}"}
        """,
    )
    nested = {jinja: {"deep": [jinja]}}
    job = bench.run(bench.submit("test.hostile", variables={"texts": texts, "nested": nested}))
    assert not bait.exists()
    assert (job.state, job.error) == ("succeeded", None)
    assert job.result == {
        f"h{jinja}": {"texts": texts, "nested": nested, "note": jinja, "uri": f"qemu+tcp://{jinja}/system"}
    }


def test_a_secret_is_a_file_during_the_attempt_and_found_nowhere_after_it(
    bench: Bench, fleet_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.secrets["sec_1"] = USER_DATA.encode()
    bench.kind(
        "test.secret",
        """
        - name: Look at the file
          ansible.builtin.stat:
            path: "{{ machine.user_data_src }}"
          register: file
        - name: Publish what it is, but not what is in it
          ansible.builtin.set_stats:
            per_host: true
            data: {virtfleet: {mode: "{{ file.stat.mode }}", path: "{{ machine.user_data_src }}"}}
        - name: Give others time to look around
          ansible.builtin.command: sleep 1
        - name: Fail with what a careless module would say
          ansible.builtin.fail:
            msg: "bad user data {{ lookup('ansible.builtin.file', machine.user_data_src) }}"
        """,
    )
    job_id = bench.submit("test.secret", variables={"machine": {"user_data_src": {"$secret": "sec_1"}}})
    seen: list[str] = []
    running = threading.Event()

    def look_around() -> None:
        while not running.wait(0.05):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        content = (process / name).read_bytes()
                    except OSError:
                        continue
                    if MARKER.encode() in content:
                        seen.append(f"{process}/{name}")

    watcher = threading.Thread(target=look_around)
    watcher.start()
    job = bench.run(job_id)
    running.set()
    watcher.join()
    assert seen == []
    assert job.state == "failed"
    assert job.result is not None
    assert job.result["h1"]["mode"] == "0600"
    assert not Path(job.result["h1"]["path"]).exists()
    assert not Path(job.result["h1"]["path"]).parent.exists()
    assert job.error is not None
    assert "***" in job.error["message"]
    database.dispose()
    for path in files_below(fleet_home):
        assert MARKER.encode() not in path.read_bytes(), path
    assert MARKER not in caplog.text
    (folder,) = (settings.load().runs / job_id).iterdir()
    assert sorted(path.name for path in files_below(folder)) == [
        *("ansible.cfg", "hosts.yml", "output.txt", "variables.yml"),
    ]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files_below(folder)} == {0o600}


def test_a_run_ends_at_its_deadline_with_all_it_started(bench: Bench) -> None:
    notes = bench.folder / "pid"
    bench.kind(
        "test.slow",
        f"""
        - name: Sleep for long
          ansible.builtin.shell: setsid sh -c 'echo $$ > {notes}; exec sleep 600'
        """,
        timeout=6.0,
    )
    job = bench.run(bench.submit("test.slow"))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "timeout"
    assert "not done after 6 s, in the task 'Sleep for long'" in job.error["message"]
    assert not Path(f"/proc/{int(notes.read_text())}").exists()


def test_a_running_job_is_cancelled_with_all_it_started(bench: Bench) -> None:
    notes = bench.folder / "pid"
    bench.kind("test.slow", f"- ansible.builtin.shell: setsid sh -c 'echo $$ > {notes}; exec sleep 600'")
    told: list[str] = []
    kinds.finisher("test.slow")(lambda _session, _job, outcome: told.append(outcome.state))
    with crew():
        job_id = bench.submit("test.slow", ring=True, exclusive=("vm:a",))
        waiting = bench.submit("test.slow", exclusive=("vm:a",))
        bench.cancel(waiting)
        wait_until(notes.exists, BOUND, "the run to be on")
        bench.cancel(job_id)
        job = bench.ended(job_id)
    assert job.state == "cancelled"
    assert job.error is not None
    assert job.error["code"] == "cancelled"
    assert told == ["cancelled", "cancelled"]
    assert not Path(f"/proc/{int(notes.read_text())}").exists()


def test_jobs_ring_for_those_that_waited_for_them(bench: Bench) -> None:
    bench.kind("test.noop", "- debug:")
    with crew():
        first = bench.submit("test.noop", exclusive=("vm:a",))
        second = bench.submit("test.noop", exclusive=("vm:a",))
        third = bench.submit("test.noop", needs=(second,))
        queue.ring([first])
        assert bench.ended(third).state == "succeeded"
    one, two, three = (bench.job(job_id) for job_id in (first, second, third))
    assert one.ended_at and two.started_at and two.ended_at and three.started_at
    assert one.ended_at <= two.started_at
    assert two.ended_at <= three.started_at


def test_a_finisher_that_fails_leaves_a_failed_job(bench: Bench) -> None:
    bench.kind("test.noop", "- debug:")

    @kinds.finisher("test.noop")
    def _finish(_session: Any, _job: Job, _outcome: Outcome) -> None:
        raise ZeroDivisionError

    job = bench.run(bench.submit("test.noop"))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "internal"


def test_a_replay_does_the_same_again(bench: Bench, tmp_path: Path) -> None:
    bench.secrets["sec_1"] = USER_DATA.encode()
    text = 'braces {dir} \\{dir} {{ 1 + 1 }} "quoted"'
    bench.kind(
        "test.replay",
        """
        - ansible.builtin.debug:
            msg: "{{ text }} {{ lookup('ansible.builtin.file', user_data_src) | length }}"
        """,
    )
    job_id = bench.submit("test.replay", variables={"text": text, "user_data_src": {"$secret": "sec_1"}})
    first = bench.run(job_id)
    assert first.state == "succeeded"
    said = next(event.text for event in bench.events(job_id) if event.kind == "message")
    assert said == f"{text} {len(USER_DATA.strip())}"
    with database.read() as session:
        job, host = session.get(Job, job_id), session.get(Host, "hst_1")
        assert job is not None
        assert host is not None
        without = attempts.replay_files(job, [host], None)
        replay = attempts.replay_files(job, [host], {"sec_1": USER_DATA})
    assert without["secrets"] == {}
    assert MARKER not in json.dumps({**replay, "secrets": {}})
    folder = tmp_path / "replay"
    for name, content in {**replay["files"], **replay["secrets"]}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if name in replay["secrets"] else content.replace("{dir}", str(folder)))
    done = subprocess.run(
        [word.replace("{dir}", str(folder)) for word in replay["argv"]],
        env={**os.environ, **{k: v.replace("{dir}", str(folder)) for k, v in replay["environment"].items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.dumps(said)[1:-1] in done.stdout


def test_a_users_own_configuration_of_ansible_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    home = bench.folder / "user"
    (home / ".ansible/collections/ansible_collections/virtfleet/core/plugins/modules").mkdir(parents=True)
    (home / ".ansible.cfg").write_text("[defaults]\nstdout_callback = no_such\ncallbacks_enabled = no_such\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ANSIBLE_STRATEGY", "no_such_strategy")
    monkeypatch.setenv("VIRTFLEET_TOKEN", "very-secret-token")
    bench.kind(
        "test.environment",
        """
        - ansible.builtin.set_stats:
            per_host: true
            data:
              virtfleet:
                collections: "{{ lookup('ansible.builtin.config', 'COLLECTIONS_PATHS') }}"
                token: "{{ lookup('ansible.builtin.env', 'VIRTFLEET_TOKEN') | default('', true) }}"
                home: "{{ lookup('ansible.builtin.env', 'HOME') }}"
        """,
    )
    job = bench.run(bench.submit("test.environment"))
    assert job.state == "succeeded", job.error
    assert job.result is not None
    found = job.result["h1"]
    assert (found["token"], found["home"]) == ("", str(home))
    (path,) = found["collections"]
    assert (Path(path) / "ansible_collections/virtfleet/core").is_dir()


def test_a_run_adds_little_to_what_ansible_takes(bench: Bench) -> None:
    bench.kind("test.noop", "- debug:")
    with worker() as here:
        job_id = bench.submit("test.noop")
        here.work(job_id)
    job = bench.job(job_id)
    assert job.started_at and job.first_task_at
    # 0.53 s measured, of which ansible-playbook itself takes 0.5 s; the bound is for busy machines.
    assert (job.first_task_at - job.started_at).total_seconds() < 30


def test_a_worker_that_lost_its_lease_ends_its_run_and_writes_nothing(bench: Bench) -> None:
    notes = bench.folder / "pid"
    bench.kind("test.slow", f"- ansible.builtin.shell: setsid sh -c 'echo $$ > {notes}; exec sleep 600'")
    with crew():
        job_id = bench.submit("test.slow", ring=True)
        wait_until(notes.exists, BOUND, "the run to be on")
        with database.write() as session:
            job = session.get(Job, job_id)
            assert job is not None
            lifecycle.requeue(session, job, "Taken away by the test.", counts=True)
            job.attempt_id = "att_other"
            job.worker = "somebody/else"
            job.state = "running"
        wait_until(lambda: not Path(f"/proc/{int(notes.read_text())}").exists(), BOUND, "the run to be ended")
    job = bench.job(job_id)
    assert (job.state, job.worker, job.attempt_id) == ("running", "somebody/else", "att_other")
    assert bench.events(job_id)[-1].text == "Taken away by the test."
