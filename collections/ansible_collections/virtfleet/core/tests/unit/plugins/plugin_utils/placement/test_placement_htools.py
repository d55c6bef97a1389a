# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""htools text files: what is read from each field, what is noted, what is refused."""

from __future__ import annotations

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import SchemaError, export_htools, import_htools
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import read_state
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 2**20

FILE = """group-01|uuid-1|preferred||

node-1|16384|1024|10240|409600|358400|16|N|uuid-1|1|power:a||0|2|1.0
node-2|16384|0|16384|409600|409600|8|Y|uuid-1|1|power:b
node-3|?|?|?|?|?|?|N|uuid-1|1

inst1|2048|51200|1|running|Y|node-1|node-2|drbd|service-group:dns,foo|1
inst2|3072|0|2|running|Y|node-1||ext|-|1
inst3|1|1|1|running|Y|nowhere||plain||1

htools:iextags:service-group
htools:nlocation:power

|128,1,1024,1,1,1|128,1,1024,1,1,1;32768,8,1048576,16,8,12|drbd,ext|8.0|32.0
group-01|128,1,1024,1,1,1|128,1,1024,1,1,1;32768,8,1048576,16,8,12|drbd,ext|4.0|32.0
"""


def test_every_field_lands_where_it_belongs() -> None:
    state, notes = import_htools(FILE)
    first, second, third = state["hosts"]
    assert first["zone"] == "group-01"
    assert first["rack"] == "power:a"
    assert first["vcpus"] == {"total": 16, "allocated": 3, "reserved": 2, "ratio": 4.0}
    assert first["memory"]["total_bytes"] == 16384 * MIB
    assert first["memory"]["reserved_bytes"] == 1024 * MIB
    assert first["memory"]["allocated_bytes"] == 5120 * MIB
    assert first["pools"]["local"]["allocated_bytes"] == 51200 * MIB
    assert (second["live"], second["error"]) == (False, "offline")
    assert (third["live"], third["error"]) == (False, "resources unknown")
    one, two = state["vms"]
    assert one["groups"] == ["service-group:dns"]
    assert one["disks"] == [{"pool": "local", "size_bytes": 51200 * MIB, "overlay": False}]
    assert (two["disks"], two["groups"], two["zone"]) == ([], [], "group-01")
    assert notes == ["line 9: inst3 stands on nowhere, which is not among the nodes; left out"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("node-1|16384", "node-1|many", "line 3"),
        ("node-1|16384", "node-1|-5", "line 3"),
        ("node-1|16384", "node-1|" + "9" * 30, "line 3"),
        ("inst1|2048|51200|1", "inst1|2048|51200|x", "line 7"),
        ("inst2|3072|0|2|running|Y|node-1||ext|-|1", "inst2|3072", "line 8"),
        ("|4.0|32.0", "|four|32.0", "line 15"),
        ("|4.0|32.0", "|nan|32.0", "line 15"),
        ("|4.0|32.0", "|1e9|32.0", "line 15"),
        ("node-2|", "node-1|", "line 4"),
        ("node-2|", "|", "line 4"),
        ("node-2|", "x" * 300 + "|", "line 4"),
        ("inst1|2048|51200|1", "inst1|9999999999|51200|1", "line 7"),
        ("inst1|", "a\tb|", "line 7"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(old: str, new: str, line: str) -> None:
    with pytest.raises(SchemaError) as caught:
        import_htools(FILE.replace(old, new))
    assert caught.value.path == line


def test_a_name_that_was_given_before_is_told_with_both_lines() -> None:
    with pytest.raises(SchemaError, match="line 4: name: 'node-1' was given before, at line 3"):
        import_htools(FILE.replace("node-2|", "node-1|"))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_file_it_is_read_or_refused_with_a_line(data: st.DataObject) -> None:
    rows = FILE.split("\n")
    at = data.draw(st.integers(0, len(rows) - 1))
    fields = rows[at].split("|")
    odd = st.sampled_from(["", "?", "-1", "1e9", "9" * 40, "²", "|", "\0", "node-1", "x" * 300, "\n", "M"]) | st.text(
        max_size=8
    )
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(odd)
    rows[at] = "|".join(fields)
    try:
        state, _notes = import_htools("\n".join(rows))
    except SchemaError as error:
        assert error.path.startswith("line ")
        assert error.problem
    else:
        assert read_state(state).hosts or not state["hosts"]


def test_what_is_written_reads_back_the_same() -> None:
    state, _notes = import_htools(FILE)
    again, notes = import_htools(export_htools(state))
    assert notes == []
    assert [host["memory"] for host in again["hosts"]] == [host["memory"] for host in state["hosts"]]
    assert [host["rack"] is None for host in again["hosts"]] == [host["rack"] is None for host in state["hosts"]]
    assert [(vm["id"], vm["host"], len(vm["groups"])) for vm in again["vms"]] == [
        ("inst1", "node-1", 1),
        ("inst2", "node-1", 0),
    ]


def test_a_name_the_format_cannot_hold_is_refused() -> None:
    state, _notes = import_htools(FILE)
    state["vms"][0]["id"] = "a|b"
    with pytest.raises(SchemaError, match="separates fields"):
        export_htools(state)
