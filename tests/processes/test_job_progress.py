"""How far a module is: a line that it keeps in a file of its attempt becomes events, and the file is nobody else's."""

from virtfleet.jobs import kinds

from tests.api.job_bench import Bench

TELLS = """
- name: Tell how far it is
  ansible.builtin.shell: |
    for part in 10 90; do printf '%s %% of 128 MiB\\n\\033[31m' "$part" > "$FILE"; sleep 3; done
  environment:
    FILE: "{{ file }}"
  changed_when: false
"""


def test_a_line_that_a_module_keeps_becomes_events_and_hostile_text_in_it_stays_one_line(bench: Bench) -> None:
    bench.kind("test.tells", TELLS)
    job = bench.run(bench.submit("test.tells", host_ids=["hst_1"], variables={"file": kinds.PROGRESS}))
    assert (job.state, job.error) == ("succeeded", None)
    told = [event.text for event in bench.events(job.id) if event.kind == "progress"]
    assert [text.partition(" of")[0] for text in told] == ["10 %", "90 %"]
    assert all("\n" not in text for text in told)


def test_a_module_that_says_nothing_tells_nothing(bench: Bench) -> None:
    bench.kind("test.silent", "- name: Be silent\n  ansible.builtin.debug:\n    msg: done\n")
    job = bench.run(bench.submit("test.silent", host_ids=["hst_1"], variables={"file": kinds.PROGRESS}))
    assert job.state == "succeeded"
    assert "progress" not in [event.kind for event in bench.events(job.id)]
