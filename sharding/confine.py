"""What a child process gives up before it touches a file: environment, privileges, network, programs, other files.

All of it is Linux's own and needs no rights: no_new_privs, Landlock (files, since 5.13) and seccomp (system calls).
What a kernel lacks is missing from `Confinement`, and `us-jepa doctor` prints it. It is no virtual machine: the child
runs on the same kernel under the same user id, and a fault of the kernel opens all.
"""

import ctypes
import os
import platform
import posix
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEPT = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "PATH", "LD_LIBRARY_PATH")  # of the environment; none is a secret
_KEPT_PREFIXES = ("PYTHON", "OMP_", "OPENBLAS_", "OPENCV_", "DECORD_")  # how interpreter and decoders work

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_CAPABILITIES_V3 = 0x20080522
_READ_ANY = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root reads files of others, as before

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by version of Landlock; 16 from 5 on
_NET_VERSION, _SCOPE_VERSION = 4, 6
_SYSTEM_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64")  # libraries that are loaded late
_SYSTEM_FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo")
_CORES = "/sys/devices/system/cpu"

_ERRNO_EPERM, _ALLOW = 0x00050001, 0x7FFF0000  # what a filter answers
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF
_X32 = 0x40000000
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# socket, socketpair, connect, ptrace, process_vm_readv/writev, execve/at, io_uring_setup, bpf, perf_event_open, keyctl,
# add_key, request_key, unshare, setns, pidfd_getfd, pidfd_send_signal, kill, mount, userfaultfd
_FORBIDDEN = {
    "x86_64": (41, 53, 42, 101, 310, 311, 59, 322, 425, 321, 298, 250, 248, 249, 272, 308, 438, 424, 62, 165, 323),
    "aarch64": (198, 199, 203, 117, 270, 271, 221, 281, 425, 280, 241, 219, 217, 218, 97, 268, 438, 424, 129, 40, 282),
}


@dataclass(frozen=True)
class Confinement:
    """What the kernel took from a child.

    Attributes:
        no_new_privileges: programs with set-user-id give it nothing.
        system_calls: it opens no socket, starts no program, looks into no other process.
        landlock: version that limits its files to those given, 0 where there is none.

    """

    no_new_privileges: bool = False
    system_calls: bool = False
    landlock: int = 0

    def missing(self) -> list[str]:
        """What the child can still do, in words."""
        gaps = [] if self.no_new_privileges else ["gain privileges from set-user-id programs"]
        gaps += [] if self.system_calls else ["open network connections and start programs"]
        return gaps + ([] if self.landlock else ["read every file of this user, the key and the listing included"])


def confine(readable: Iterable[Path], writable: Iterable[Path]) -> Confinement:
    """Give up, for good, all that a decoder does not need. The process must have one thread.

    Args:
        readable: files, and folders with all below, besides the libraries of this interpreter.
        writable: folders in which files may be made, too.

    """
    empty_environment()
    if not sys.platform.startswith("linux"):
        return Confinement()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    _drop_capabilities(libc)
    no_new_privileges = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    version = _limit_files(libc, readable, writable)
    return Confinement(no_new_privileges, _forbid_calls(libc), version)


def is_kept(name: str) -> bool:
    """Whether a variable of the environment is one that decoders need."""
    return name in KEPT or name.startswith(_KEPT_PREFIXES)


def empty_environment() -> None:
    """Keep only what decoders need, for Python and for C."""
    for name in [name for name in os.environ if not is_kept(name)]:
        del os.environ[name]  # unsetenv, too
    for raw in [raw for raw in posix.environ if not is_kept(os.fsdecode(raw))]:
        del posix.environ[raw]  # the copy that Python starts with


@contextmanager
def bare_environment() -> Iterator[None]:
    """Hide the environment while a process is started, so that it never holds what is hidden."""
    hidden = {name: value for name, value in os.environ.items() if not is_kept(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Of root in a container, above all; others have none."""
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITIES_V3, 0), 8)
    sets = ctypes.create_string_buffer(24)
    if libc.capget(header, sets) == 0:
        permitted = struct.unpack("<6I", sets.raw)[1] & _READ_ANY
        libc.capset(header, ctypes.create_string_buffer(struct.pack("<6I", permitted, permitted, 0, 0, 0, 0), 24))


def _limit_files(libc: ctypes.CDLL, readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """Landlock; returns its version, 0 where the kernel has none or refuses."""
    version = int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))
    if version < 1:
        return 0
    handled = (1 << _NUM_RIGHTS.get(version, 16)) - 1
    fields = [handled, 0b11, 0b11][: 1 + (version >= _NET_VERSION) + (version >= _SCOPE_VERSION)]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return 0
    read = _READ_FILE | _READ_DIR
    for path in (*readable, *_library_paths()):
        _allow(libc, rules, path, read & handled)
    for path in writable:
        _allow(libc, rules, path, (read | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE) & handled)
    is_limited = libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return version if is_limited else 0


def _library_paths() -> set[Path]:
    """Interpreter, packages, system libraries: codecs are loaded when the first file needs them."""
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed |= {place for place in sys.path if place.endswith(("site-packages", "dist-packages", "lib-dynload"))}
    installed |= {f"{prefix}/lib" for prefix in (sys.prefix, sys.base_prefix)}
    late = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return {Path(place) for place in (*installed, *late, *_SYSTEM_FOLDERS, *_SYSTEM_FILES, _CORES) if place} | {
        Path(__file__).parent
    }


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    """Nothing where the path is not there: whoever opens it will be told."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not path.is_dir():
        rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
    libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    os.close(place)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _forbid_calls(libc: ctypes.CDLL) -> bool:
    """Seccomp; false where the kernel or this architecture has no filter."""
    machine = platform.machine()
    if machine not in _FORBIDDEN:
        return False
    calls = _FORBIDDEN[machine]
    tests = [(_AT_LEAST, _X32), *((_EQUAL, call) for call in calls)]
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 0, len(tests) + 2, _AUDIT_ARCH[machine]), (_LOAD, 0, 0, 0)]
    lines += [(code, len(tests) - number, 0, value) for number, (code, value) in enumerate(tests)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO_EPERM)]
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    program = _Program(len(lines), code)
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
