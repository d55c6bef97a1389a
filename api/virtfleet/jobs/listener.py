"""What a run says: Ansible's events become those of the job, its published results and the reason of a failure."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from virtfleet import clock
from virtfleet.jobs.events import Event, one_line
from virtfleet.jobs.secret_files import Redaction

log = logging.getLogger(__name__)


def _merge(old: Any, new: Any) -> Any:
    """Join what two `set_stats` tasks published, as `aggregate` does: mappings by key, lists one after the other."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old[key], value) if key in old else value for key, value in new.items()}}
    return old + new if isinstance(old, list) and isinstance(new, list) else new


class Listener:
    """Turns Ansible's events into those of the job, and gathers results and errors."""

    def __init__(self, report: Callable[[Event], None], redaction: Redaction) -> None:
        self._report = report
        self._redaction = redaction
        self.task = ""
        self.result: dict[str, Any] = {}
        self.errors: dict[str, list[dict[str, str]]] = {}
        """What failed, by host, in order; of hosts in order of their first failure."""
        self.stats: dict[str, dict[str, int]] = {}
        self.output: list[str] = []
        """Text outside of tasks: what Ansible itself has to say."""

    def __call__(self, event: dict[str, Any]) -> bool:
        """Take one event of ansible-runner; never raises, and asks it to keep no file of its own."""
        try:
            handle = getattr(self, f"_on_{event.get('event', '')}", None)
            if handle is not None:
                handle(event, event.get("event_data") or {})
        except Exception:
            log.exception("an event of kind %r could not be used", event.get("event"))
        return False

    def _say(self, kind: str, event: dict[str, Any], text: Any = "", **more: Any) -> None:
        created = event.get("created")
        moment = datetime.fromisoformat(created) if isinstance(created, str) else clock.now()
        line = self._redaction.text(one_line(text))
        self._report(Event(kind=kind, text=line, time=moment, **more))

    def _on_verbose(self, event: dict[str, Any], _data: dict[str, Any]) -> None:
        line = str(event.get("stdout", "")).rstrip()
        if line:
            self.output = [*self.output[-50:], self._redaction.text(line)]

    _on_error = _on_verbose

    def _on_playbook_on_play_start(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        self._say("play", event, data.get("name") or data.get("play") or "")

    def _on_playbook_on_task_start(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        self.task = self._redaction.text(one_line(data.get("task") or data.get("name") or ""))
        self._say("task", event, self.task, task=self.task)

    def _on_playbook_on_no_hosts_matched(self, event: dict[str, Any], _data: dict[str, Any]) -> None:
        self._say("message", event, "No host matches the play.")

    def _on_runner_on_ok(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        result, where = self._result(data)
        published = result.get("ansible_stats")
        if isinstance(published, dict) and isinstance(published.get("data"), dict):
            self._publish(str(where["host"]), published["data"], published.get("aggregate", True))
        changed = bool(result.get("changed"))
        message = result.get("msg")
        if str(data.get("task_action", "")).removeprefix("ansible.builtin.") == "debug" and message is not None:
            for line in message if isinstance(message, list) else [message]:
                self._say("message", event, line, **where)
            return
        text = message if isinstance(message, str) else ""
        self._say("changed" if changed else "ok", event, text, changed=changed, **where)

    def _on_runner_on_failed(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        result, where = self._result(data)
        error = _error_of(result, "task_failed", f"The task {where['task']!r} failed.")
        ignored = bool(data.get("ignore_errors"))
        if not ignored:
            self._note(str(where["host"]), error)
        self._say("failed", event, f"ignored: {error['message']}" if ignored else error["message"], **where)

    def _on_runner_on_unreachable(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        result, where = self._result(data)
        error = _error_of(result, "host_unreachable", f"Ansible could not reach {where['host']}.")
        self._note(str(where["host"]), error)
        self._say("unreachable", event, error["message"], **where)

    def _on_runner_on_skipped(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        self._say("skipped", event, **self._result(data)[1])

    def _on_runner_retry(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        result, where = self._result(data)
        self._say("retried", event, f"retry {result.get('attempts', '')} of {result.get('retries', '')}", **where)

    def _on_runner_item_on_ok(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        self._item(event, data, "")

    def _on_runner_item_on_failed(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        self._item(event, data, "failed")

    def _on_runner_item_on_skipped(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        self._item(event, data, "skipped")

    def _on_playbook_on_stats(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        words = {"ok": "ok", "changed": "changed", "failures": "failed", "dark": "unreachable", "rescued": "rescued"}
        hosts = data.get("processed") or {}
        self.stats = {host: {word: (data.get(key) or {}).get(host, 0) for key, word in words.items()} for host in hosts}
        lines = (f"{host}: {', '.join(f'{word} {n}' for word, n in of.items())}" for host, of in self.stats.items())
        self._say("stats", event, "; ".join(lines), data=self.stats)

    def _item(self, event: dict[str, Any], data: dict[str, Any], word: str) -> None:
        result, where = self._result(data)
        label = result.get("_ansible_item_label", result.get("item"))
        # An item may be a whole machine with all its variables: only a plain word is shown.
        name = str(label) if isinstance(label, str | int) else ""
        message = result.get("msg") if word == "failed" and isinstance(result.get("msg"), str) else ""
        text = ": ".join(part for part in (name, word, message) if part)
        self._say("item", event, text, changed=bool(result.get("changed")), **where)

    def _result(self, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        result = data.get("res")
        task = self._redaction.text(one_line(data.get("task") or ""))
        return (result if isinstance(result, dict) else {}), {"host": data.get("host"), "task": task}

    def _note(self, host: str, error: dict[str, str]) -> None:
        self.errors.setdefault(host, []).append({key: self._redaction.text(text) for key, text in error.items()})

    def _publish(self, host: str, data: dict[str, Any], aggregate: bool) -> None:
        values = self._redaction.data(data.get("virtfleet"))
        if isinstance(values, dict):
            self.result[host] = _merge(self.result.get(host, {}), values) if aggregate else values

    # What it comes to, at the end.

    def failed_hosts(self) -> tuple[str, ...]:
        """Return the hosts on which the play ended early because a task failed."""
        return tuple(host for host, of in self.stats.items() if of["failed"])

    def unreachable_hosts(self) -> tuple[str, ...]:
        """Return the hosts that could not be reached."""
        return tuple(host for host, of in self.stats.items() if of["unreachable"])

    def host_errors(self) -> dict[str, dict[str, str]]:
        """Return, for each host that failed, why."""
        without_stats = not self.stats
        gone_wrong = {*self.failed_hosts(), *self.unreachable_hosts()}
        return {
            host: self._decisive(host, errors)
            for host, errors in self.errors.items()
            if without_stats or host in gone_wrong
        }

    def _decisive(self, host: str, errors: list[dict[str, str]]) -> dict[str, str]:
        if not self.stats.get(host, {}).get("rescued"):
            return errors[0]
        # The first failure was rescued: what counts is the last one. A playbook that fails again with the words of the
        # first gets back the code and hint that the module gave with them.
        last = errors[-1]
        for earlier in errors[:-1]:
            if last["code"] == "task_failed" and earlier["message"] in last["message"]:
                return {**earlier, "message": last["message"]}
        return last

    def own_error(self) -> str:
        """Return what Ansible itself complained about, in one line."""
        said = [line for line in self.output if line.startswith(("[ERROR]", "ERROR!"))] or self.output[-3:]
        return one_line(" ".join(said).replace("[ERROR]: ", "").replace("ERROR! ", ""))


def _error_of(result: Mapping[str, Any], code: str, otherwise: str) -> dict[str, str]:
    """Return {code, message, hint} of a failed task's result; modules of ours put code and hint into `error`."""
    items = result.get("results")
    if isinstance(items, list):
        failed = next((each for each in items if isinstance(each, dict) and each.get("failed")), None)
        if failed is not None and not isinstance(result.get("error"), dict):
            result = failed
    given = result.get("error")
    detail = given if isinstance(given, dict) else {}
    message = result.get("msg")
    return {
        "code": one_line(detail.get("code") or code),
        "message": one_line(message) if isinstance(message, str) and message.strip() else otherwise,
        "hint": one_line(detail.get("hint") or ""),
    }
