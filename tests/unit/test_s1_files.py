"""S1's three files: what is accepted, and which line is named when it is not."""

from pathlib import Path

import pytest
from virtfleet import s1_files
from virtfleet.s1_files import S1FileError, S1Image, S1Type

DISK = b"\0" * 510 + b"\x55\xaa"
SAMPLE = '"types":[{"tid":1,"cpu":1,"ram":512,"disk":1},{"tid":2,"cpu":2,"ram":1024,"disk":2}]}'


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    image = tmp_path / "Ubuntu-12.04-amd64.qcow2"
    image.write_bytes(DISK)
    (tmp_path / "no image.qcow2").write_bytes(DISK)
    (tmp_path / "text.qcow2").write_text("no disk")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / image.name).write_bytes(DISK)
    written = {"pm": "10.0.0.1\n", "images": f"{image}\n", "types": "{" + SAMPLE}
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in written}


def read(files: dict[str, Path]) -> s1_files.S1Files:
    return s1_files.read(files["pm"], files["images"], files["types"])


def test_hosts_are_addresses_users_at_addresses_and_uris_with_comments_blank_lines_and_crlf(
    files: dict[str, Path],
) -> None:
    files["pm"].write_bytes(
        b"\xef\xbb\xbf# ours\r\n10.0.0.1\r\n\r\n  root@10.0.0.2  # the second\r\nqemu+tls://h3/system\r\n"
    )
    assert read(files).hosts == ("10.0.0.1", "root@10.0.0.2", "qemu+tls://h3/system")


def test_images_get_ids_from_100(files: dict[str, Path]) -> None:
    assert read(files).images == (S1Image(100, str(files["pm"].parent / "Ubuntu-12.04-amd64.qcow2")),)


@pytest.mark.parametrize("text", ["{" + SAMPLE, SAMPLE, "# broken sample\n" + SAMPLE + "\r\n"])
def test_types_are_json_also_without_the_opening_brace(files: dict[str, Path], text: str) -> None:
    files["types"].write_text(text)
    assert read(files).types == (S1Type(1, 1, 512, 1), S1Type(2, 2, 1024, 2))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("pm", "10.0.0.1\nbad host\n", "line 2"),
        ("pm", "10.0.0.1\n\n10.0.0.1\n", "line 3"),
        ("pm", "# nothing\n\n", "no line"),
        ("pm", "-oProxyCommand=x\n", "line 1"),
        ("pm", "10.0.0.1\nroot@10.0.0.1\n", "line 2.*in line 1"),
        ("pm", "# no program\nqemu+ssh://h1/system?command=/bin/sh\n", "line 2"),
        ("images", "relative.qcow2\n", "line 1"),
        ("images", "/no/such/file\n", "line 1"),
        ("images", "{folder}/no image.qcow2\n", "line 1: A.* cannot have the name"),
        ("images", "{folder}/text.qcow2\n", "line 1.*no disk image"),
        ("images", "{folder}/Ubuntu-12.04-amd64.qcow2\n{folder}/other/Ubuntu-12.04-amd64.qcow2", "line 2.*in line 1"),
        ("types", "{\n  nonsense\n}", "line 2"),
        ("types", '{"types": []}', "no types"),
        ("types", '{"types": [{"tid": 1, "cpu": 1, "ram": 512}]}', "type 1"),
        ("types", '{"types": [{"tid": 1, "cpu": 0, "ram": 512, "disk": 1}]}', "cpu"),
        ("types", '{"types": [{"tid": true, "cpu": 1, "ram": 512, "disk": 1}]}', "tid"),
        ("types", '{"types": [{"tid": 1, "cpu": 5000, "ram": 512, "disk": 1}]}', "cpu"),
    ],
)
def test_a_bad_line_is_named(files: dict[str, Path], name: str, text: str, said: str) -> None:
    files[name].write_text(text.replace("{folder}", str(files["pm"].parent)))
    with pytest.raises(S1FileError, match=said) as refused:
        read(files)
    assert str(files[name]) in str(refused.value)
