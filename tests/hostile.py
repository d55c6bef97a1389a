"""What nobody types by mistake, for every field that takes text. Whoever runs some of it makes a file: the canary."""

import os
from pathlib import Path
from typing import Any

CANARY = Path(f"/tmp/virtfleet-canary-{os.getpid()}")


def _texts() -> dict[str, str]:
    touch = f"touch {CANARY}"
    return {
        "jinja": f"{{{{ lookup('ansible.builtin.pipe', '{touch}') }}}}",
        "jinja statement": f"{{% set x = lookup('pipe', '{touch}') %}}",
        "jinja after a comment": f"#jinja2: variable_start_string:'[['\n[[ lookup('pipe', '{touch}') ]]",
        "yaml tag": f"!!python/object/apply:os.system ['{touch}']",
        "yaml": f"a: b\n- !unsafe {{{{ 7*7 }}}}\n&x *x {touch}",
        "xml": "</name><on_poweroff>destroy</on_poweroff><name>",
        "xml entity": '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        "shell": f"$({touch})`{touch}`; {touch} | {touch} && {touch} > {CANARY}",
        "quotes": f"'\"; {touch}; '\"\\",
        "path": "../../../../../../tmp/virtfleet",
        "absolute path": "/etc/passwd",
        "option": f"-oProxyCommand={touch}",
        "sql": "x'; DROP TABLE vms; --",
        "format": "%s%n{0.__class__}",
        "long": "x" * 5000,
        "NUL": "a\0b",
        "newline": "a\nansible_connection: ssh\r\nb",
        "control": "\x1b[2J\x07\x7f\x85",
        "emoji": "😀👩‍👩‍👧",
        "direction": "\u202eabc\u2066",
        "half a surrogate": "\ud800",
        "dots": "..",
        "dash": "-",
        "blank": " ",
        "nothing": "",
        "looks like a number": "1e999",
        "looks like a boolean": "yes",
    }


TEXTS = _texts()
"""Name → text."""
LISTED: list[Any] = [
    *({}, [], [[]], {"a": {}}, None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, 10**400, float("1e308")),
    *([None], [1], {"$secret": "sec_1"}, {"$attempt": True}, [{"$secret": "sec_1"}]),
]
"""Values of other kinds, for fields of any kind."""
