"""Builds the small guest image from Debian packages, once, into a cache outside the checkout.

The image is a qcow2 disk that boots by itself through a PC BIOS. On the disk lie GRUB's first sector and its core
(below 1 MiB), the kernel and a small initramfs as plain runs of sectors, so that GRUB needs to know no file
system, and one ext4 partition. Nothing here needs a loop device, a mount or KVM.
"""

import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECIPE = [HERE / "build.py", HERE / "rootfs", HERE / "initramfs"]

SECTOR_BYTES = 512
MIB = 1024 * 1024
DISK_BYTES = 64 * MIB
ROOT_LABEL = "tinyroot"
# Why: a quicker boot under emulation (no mitigations, self tests or zeroing); the time stamp
# counter does not survive a migration.
# Address randomisation stays on: without it a second boot in the same QEMU process took twice as long.
KERNEL_ARGUMENTS = (
    f"root=LABEL={ROOT_LABEL} console=ttyS0 quiet loglevel=3 panic=5 "
    "mitigations=off cryptomgr.notests init_on_alloc=0 tsc=unstable"
)

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
# The programs of the guest; their libraries come by apt's own dependencies.
GUEST_PACKAGES = ("busybox-static", "dropbear-bin", "qemu-guest-agent", "e2fsprogs")
GUEST_PROGRAMS = ("usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/sbin/qemu-ga", "sbin/resize2fs")
# grub-mkimage runs on this machine, out of its package and with the packages' libraries, so it need not be installed.
BOOT_PACKAGES = ("grub-pc-bin", "grub-common")
INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix")
GUEST_MODULES = (
    *INITRAMFS_MODULES,
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio_rng",
    "virtio_mem",
    "sr_mod",
    "isofs",
    "nls_utf8",
    "nls_ascii",
    "button",
    "evdev",
    "pvpanic_pci",
)
INITRAMFS_APPLETS = ("sh", "mount", "umount", "modprobe", "findfs", "usleep", "blockdev", "dd", "printf", "switch_root")
EMPTY_FOLDERS = (
    *("dev", "proc", "sys", "run", "tmp", "mnt", "home", "bin", "sbin", "usr/bin", "usr/sbin", "lib64"),
    *("root/.ssh", "etc/dropbear", "var/lib", "var/log"),
)
PRIVATE = {"etc/shadow": 0o600, "root": 0o700, "root/.ssh": 0o700}


class BuildError(RuntimeError):
    """The image cannot be built; the message says what stood in the way and what to do."""


def _say(text: str) -> None:
    print(f"guest image: {text}", file=sys.stderr, flush=True)


def _run(*command: str | Path, cwd: Path | None = None, stdin: str | None = None) -> str:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(
            f"Failed to build the guest image: the program {words[0]} is missing. "
            f"Install the Debian packages listed in {HERE / 'packages.txt'}."
        ) from error
    if done.returncode:
        raise BuildError(
            f"Failed to build the guest image: {' '.join(words[:3])} ended with {done.returncode}: "
            f"{done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def recipe_hash() -> str:
    """Return the name of the image that these sources build: a hash of their names and content."""
    digest = hashlib.sha256()
    for source in RECIPE:
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file():
                digest.update(f"{file.relative_to(HERE)}\0{file.stat().st_size}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder of built images (`VIRTFLEET_CACHE`, else `~/.cache/virtfleet`)."""
    root = os.environ.get("VIRTFLEET_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "virtfleet") / "guest-image"


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure_image() -> Path:
    """Return the path of the small guest image (qcow2), built first if this recipe has not been built here yet.

    Safe to call from many processes at once. Raises BuildError when a package or program is missing.
    """
    cache = cache_folder()
    name = recipe_hash()
    image = cache / name / "tiny.qcow2"
    if image.is_file():
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{name}.lock"):
        if image.is_file():
            return image
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as work:
            made = _build(Path(work))
            finished = Path(work) / "finished"
            finished.mkdir()
            made.rename(finished / image.name)
            finished.rename(image.parent)
        _say(f"{image} made in {time.monotonic() - started:.0f} s, {image.stat().st_size / MIB:.0f} MiB")
    return image


def _build(work: Path) -> Path:
    packages = work / "packages"
    kernel = _kernel_package()
    _say(f"fetching Debian packages ({kernel} and what the guest runs)")
    _unpack([kernel, *GUEST_PACKAGES, *BOOT_PACKAGES, *_libraries()], packages)
    modules = _Modules(packages)

    _say("making the file systems")
    initramfs = work / "initramfs"
    shutil.copytree(HERE / "initramfs", initramfs)
    for folder in ("bin", "dev", "proc", "sys", "mnt"):
        (initramfs / folder).mkdir()
    shutil.copy2(packages / "bin/busybox", initramfs / "bin/busybox")
    for applet in INITRAMFS_APPLETS:
        (initramfs / "bin" / applet).symlink_to("busybox")
    (initramfs / "sbin").symlink_to("bin")  # the kernel asks for /sbin/modprobe
    modules.install(INITRAMFS_MODULES, initramfs)
    _set_modes(initramfs)

    root = work / "root"
    _make_root(packages, modules, root)

    _say("making the disk")
    return _make_disk(
        work,
        packages,
        kernel=next((packages / "boot").glob("vmlinuz-*")).read_bytes(),
        initramfs=gzip.compress(_cpio(initramfs), 9, mtime=0),
        root=root,
    )


# ---------------------------------------------------------------------------------------------------- packages


def _apt(*command: str, cwd: Path | None = None) -> str:
    try:
        return _run(*command, cwd=cwd)
    except BuildError as error:
        raise BuildError(
            f"{error}\nIf apt does not know a package: run `apt-get update` as root, then try again."
        ) from error


def _kernel_package() -> str:
    """Return the newest cloud kernel of this release: the one its meta package depends on."""
    found = re.search(
        r"Depends: (linux-image-\S+-cloud-amd64)$", _apt("apt-cache", "depends", KERNEL_META_PACKAGE), re.M
    )
    if not found:
        raise BuildError(
            f"Failed to build the guest image: apt knows no {KERNEL_META_PACKAGE}. "
            "Run `apt-get update` as root, then try again."
        )
    return found[1]


def _libraries() -> list[str]:
    """Return the packages that those of the guest and the boot loader depend on, directly or not."""
    only_needed = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    tree = _apt("apt-cache", "depends", "--recurse", *only_needed, *GUEST_PACKAGES, "grub-common")
    return sorted({line for line in tree.splitlines() if re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", line)})


def _unpack(names: Iterable[str], target: Path) -> None:
    target.mkdir()
    archives = target.with_name("archives")
    archives.mkdir()
    _apt("apt-get", "download", "-q", *sorted(set(names)), cwd=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run("dpkg-deb", "-x", archive, target)


# ---------------------------------------------------------------------------------------------------- kernel modules


class _Modules:
    """The kernel's modules by name, with what each one says of itself (dependencies, aliases)."""

    SIGNATURE_MARK = b"~Module signature appended~\n"

    def __init__(self, packages: Path) -> None:
        [folder] = list((packages / "lib/modules").iterdir())
        self.release = folder.name
        self._files = {self._name(file): file for file in folder.rglob("*.ko*")}

    @staticmethod
    def _name(file: Path) -> str:
        return file.name.split(".ko")[0].replace("-", "_")

    def _content(self, name: str) -> bytes:
        """Return the module without compression and signature (checking one costs time, and nothing here wants it)."""
        file = self._files[name]
        content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
        if content.endswith(self.SIGNATURE_MARK):
            (length,) = struct.unpack_from(">I", content, len(content) - len(self.SIGNATURE_MARK) - 4)
            content = content[: -(len(self.SIGNATURE_MARK) + 12 + length)]
        return content

    @staticmethod
    def _says(content: bytes, key: bytes) -> list[str]:
        return [value.decode() for value in re.findall(rb"\0" + key + rb"=([^\0]*)(?=\0)", content)]

    def install(self, wanted: Iterable[str], root: Path) -> None:
        """Copy the modules and all they depend on, with the two indexes that busybox modprobe reads."""
        folder = root / "lib/modules" / self.release
        folder.mkdir(parents=True)
        contents: dict[str, bytes] = {}
        depends: dict[str, list[str]] = {}
        todo = list(wanted)
        while todo:
            name = todo.pop()
            if (
                name in contents or name not in self._files
            ):  # what is missing may be built into another release's kernel
                continue
            contents[name] = self._content(name)
            depends[name] = [
                word
                for line in self._says(contents[name], b"depends")
                for word in line.replace("-", "_").split(",")
                if word
            ]
            todo += depends[name]

        def closure(name: str) -> list[str]:
            """Return all that must be loaded before it, the nearest first, as modules.dep has it."""
            found: list[str] = []
            for direct in depends.get(name, ()):
                for each in (direct, *closure(direct)):
                    if each in contents:
                        found = [other for other in found if other != each] + [each]
            return found

        aliases = []
        for name, content in sorted(contents.items()):
            (folder / f"{name}.ko").write_bytes(content)
            aliases += [f"alias {alias} {name}\n" for alias in self._says(content, b"alias")]
        (folder / "modules.alias").write_text("".join(aliases))
        (folder / "modules.dep").write_text(
            "".join(f"{name}.ko:{''.join(f' {other}.ko' for other in closure(name))}\n" for name in sorted(contents))
        )


# ---------------------------------------------------------------------------------------------------- file systems


def _make_root(packages: Path, modules: _Modules, root: Path) -> None:
    shutil.copytree(HERE / "rootfs", root)
    for folder in EMPTY_FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    busybox = root / "bin/busybox"
    shutil.copy2(packages / "bin/busybox", busybox)
    for applet in _run(busybox, "--list-full").split():
        link = root / applet
        if not (link.exists() or link.is_symlink()):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("/bin/busybox")
    for program in GUEST_PROGRAMS:
        shutil.copy2(packages / program, root / program)
    _copy_libraries(packages, root)
    (root / "sbin/init").unlink(missing_ok=True)
    (root / "sbin/init").symlink_to("/bin/busybox")
    modules.install(GUEST_MODULES, root)
    _set_modes(root)


def _copy_libraries(packages: Path, root: Path) -> None:
    """Copy the shared libraries that the guest's programs need, and those that these need."""
    folders = [packages / "lib/x86_64-linux-gnu", packages / "usr/lib/x86_64-linux-gnu"]
    target = root / "lib/x86_64-linux-gnu"
    target.mkdir(parents=True, exist_ok=True)
    todo = [root / program for program in GUEST_PROGRAMS]
    while todo:
        for name in re.findall(r"NEEDED\s+(\S+)", _run("objdump", "-p", todo.pop())):
            copy = target / name
            if copy.exists():
                continue
            source = next((folder / name for folder in folders if (folder / name).exists()), None)
            if source is None:
                raise BuildError(f"Failed to build the guest image: no package of the list brings the library {name}.")
            shutil.copyfile(source.resolve(), copy)
            todo.append(copy)
    shutil.copyfile(target / "ld-linux-x86-64.so.2", root / "lib64/ld-linux-x86-64.so.2")


def _set_modes(tree: Path) -> None:
    """Give files their modes, whatever the checkout made of them: programs 755, the rest 644, secrets as listed."""
    for path in tree.rglob("*"):
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(0o755)
        else:
            with path.open("rb") as handle:
                start = handle.read(4)
            program = start.startswith(b"#!") or (start == b"\x7fELF" and path.suffix != ".ko")
            path.chmod(0o755 if program else 0o644)
    for name, mode in PRIVATE.items():
        if (tree / name).exists():
            (tree / name).chmod(mode)


def _cpio(tree: Path) -> bytes:
    """Return the tree as an archive in the kernel's `newc` format, all owned by root."""
    archive = bytearray()

    def add(name: str, mode: int, content: bytes, number: int) -> None:
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        archive.extend(b"070701" + b"".join(b"%08X" % value for value in fields) + path)
        archive.extend(b"\0" * (-len(archive) % 4))
        archive.extend(content)
        archive.extend(b"\0" * (-len(archive) % 4))

    for number, path in enumerate(sorted(tree.rglob("*")), start=1):
        mode = path.lstat().st_mode
        content = b""
        if stat.S_ISLNK(mode):
            content = os.fsencode(path.readlink())
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        add(str(path.relative_to(tree)), mode, content, number)
    add("TRAILER!!!", 0, b"", 0)
    return bytes(archive)


# ---------------------------------------------------------------------------------------------------- disk


def _make_disk(work: Path, packages: Path, *, kernel: bytes, initramfs: bytes, root: Path) -> Path:
    def sectors(content: bytes) -> int:
        return -(-len(content) // SECTOR_BYTES)

    kernel_at = MIB // SECTOR_BYTES
    initramfs_at = kernel_at + sectors(kernel)
    end = (initramfs_at + sectors(initramfs)) * SECTOR_BYTES
    partition_bytes_at = -(-end // MIB) * MIB

    # linux16 and not linux: with the latter GRUB moves the kernel's whole 54 MiB of room byte by byte, two seconds
    # under emulation.
    commands = work / "grub.cfg"
    commands.write_text(
        f"linux16 (hd0){kernel_at}+{sectors(kernel)} {KERNEL_ARGUMENTS}\n"
        f"initrd16 (hd0){initramfs_at}+{sectors(initramfs)}\n"
        "boot\n"
    )
    core = work / "core.img"
    libraries = f"{packages / 'lib/x86_64-linux-gnu'}:{packages / 'usr/lib/x86_64-linux-gnu'}"
    grub = packages / "usr/lib/grub/i386-pc"
    _run(
        *(packages / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "--library-path", libraries),
        *(packages / "usr/bin/grub-mkimage", "-O", "i386-pc", "-d", grub, "-p", "(hd0)/", "-c", commands, "-o", core),
        *("biosdisk", "linux16"),
    )
    if core.stat().st_size > MIB - SECTOR_BYTES:
        raise BuildError("Failed to build the guest image: GRUB's core does not fit before the kernel.")

    file_system = work / "root.img"
    with file_system.open("wb") as handle:
        handle.truncate(DISK_BYTES - partition_bytes_at)
    # Blocks of 4 KiB so that growing to many GiB stays cheap. mke2fs takes owners from the files: a builder who is not
    # root must look like root.
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    _run(
        *as_root,
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-m",
        "0",
        "-N",
        "2048",
        "-L",
        ROOT_LABEL,
        "-d",
        root,
        file_system,
    )

    raw = work / "disk.raw"
    with raw.open("wb") as disk:
        disk.truncate(DISK_BYTES)
        first = bytearray((grub / "boot.img").read_bytes()[:SECTOR_BYTES])
        start, length = partition_bytes_at // SECTOR_BYTES, (DISK_BYTES - partition_bytes_at) // SECTOR_BYTES
        # One active Linux partition. Cylinder, head and sector, three bytes at both ends, say "too large".
        first[446:462] = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start, length)
        first[462:512] = bytes(48) + b"\x55\xaa"
        disk.write(first)
        disk.write(core.read_bytes())  # boot.img loads its core from sector 1
        disk.seek(kernel_at * SECTOR_BYTES)
        disk.write(kernel)
        disk.seek(initramfs_at * SECTOR_BYTES)
        disk.write(initramfs)
        disk.seek(partition_bytes_at)
        with file_system.open("rb") as source:
            shutil.copyfileobj(source, disk, MIB)
    image = work / "tiny.qcow2"
    _run("qemu-img", "convert", "-O", "qcow2", raw, image)
    return image


if __name__ == "__main__":
    try:
        print(ensure_image())
    except BuildError as problem:
        sys.exit(str(problem))
