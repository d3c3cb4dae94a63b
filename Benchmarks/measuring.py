# SPDX-License-Identifier: Apache-2.0
"""What the measuring scripts share: running commands with the time of every line they write, and packing initramfs images."""
import os
import pathlib
import stat
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Unmeasurable(Exception):
    """Something that the measurement needs is absent."""


def say(text):
    print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def output(*command):
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unmeasurable(f"{command[0]} fails: {error}") from error


def pack(path, tree):
    """Writes a newc archive: tree maps a name to its contents, None for a directory, a Path for a file or link."""
    data = bytearray()

    def entry(name, mode, contents, number):
        fields = (number, mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(name) + 1, 0)
        data.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        data.extend(b"\0" * (-len(data) % 4))
        data.extend(contents)
        data.extend(b"\0" * (-len(data) % 4))

    for number, (name, contents) in enumerate(tree.items(), 1):
        if contents is None:
            entry(name, stat.S_IFDIR | 0o755, b"", number)
        elif isinstance(contents, pathlib.Path) and contents.is_symlink():
            entry(name, stat.S_IFLNK | 0o777, os.readlink(contents).encode(), number)
        elif isinstance(contents, pathlib.Path):
            entry(name, stat.S_IFREG | 0o755, contents.read_bytes(), number)
        else:
            entry(name, stat.S_IFREG | 0o755, contents, number)
    entry("TRAILER!!!", 0, b"", 0)
    path.write_bytes(data)



def files_below(directory):
    """The directory's contents for pack, named from its parent on."""
    result = {directory.name: None}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory.parent))
        if path.is_symlink() or path.is_file():
            result[name] = path
        elif path.is_dir():
            result[name] = None
    return result


class Run:
    """One run of a command: its lines, each with the seconds since the start, and how it ended."""

    def __init__(self, command, limit):
        self.lines = []
        start = time.monotonic()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        ) as process:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            for line in process.stdout:
                self.lines.append((time.monotonic() - start, line.decode(errors="replace").strip()))
            self.status = process.wait()
            self.seconds = time.monotonic() - start
            timer.cancel()

    def when(self, text):
        return next((seconds for seconds, line in self.lines if text in line), None)

    def tail(self):
        return "\n".join("    " + line for _, line in self.lines[-12:])
