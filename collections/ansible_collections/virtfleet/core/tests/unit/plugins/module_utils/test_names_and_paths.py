# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, check_path

HOSTILE = [
    *(
        "",
        ".",
        "..",
        "../../etc/passwd",
        "a/b",
        "/a",
        "a..b",
        "-rf",
        ".hidden",
        " a",
        "a ",
        "a b",
        "a\nb",
        "a\0b",
        "\0",
    ),
    *("{{ lookup('pipe','touch x') }}", "<x/>", "a&b", "a'b", 'a"b', "$(id)", "a;b", "ä", "😀", "a" * 129, "a" * 5000),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(VirtfleetError) as caught:
        check_name(name, "volume")
    assert caught.value.code == "invalid"
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "web1", "project.web1", "Ubuntu-12.04-amd64", "_x", "1", "a+b", "a" * 128])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name(name, "volume") == name


@pytest.mark.parametrize("path", ["", "a", "/", "/a/", "//a", "/a/../b", "/a/./b", "/a\0b", "/a\nb", "/" + "a" * 1024])
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(VirtfleetError):
        check_path(path, "the path of a pool")


@pytest.mark.parametrize("path", ["/a", "/var/lib/libvirt/images", "/srv/my images", "/srv/größe"])
def test_plain_absolute_paths_are_taken(path: str) -> None:
    assert check_path(path, "the path of a pool") == path
