"""Restricts a decoding worker to the system calls it needs: reading its input and writing its output.

A seccomp filter, run by the kernel at each system call, blocks the rest for good: network, programs, other processes,
and opening, creating, changing or removing files. It needs no privileges and supports Linux on x86-64 and AArch64;
elsewhere `confine` returns the reason why nothing is restricted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: load a word, jump if equal, jump if bits, return
_NUMBER, _ARCH, _FIRST_LOW = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x10000
_X32 = 0x4000_0000  # marks calls of the x32 ABI, which is unused

# call: its numbers on x86-64 and AArch64; None if the call does not exist
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # the network, and sockets of any kind
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # programs and other processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "kill": (62, 129),
    "tkill": (200, 130), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    # files by name
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "open_by_handle_at": (304, 265),
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None), "fchown": (93, 55),
    "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "chdir": (80, 49), "fchdir": (81, 50),
    # the system
    "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51), "pivot_root": (155, 41), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "memfd_create": (319, 279), "shmget": (29, 194),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262), "mq_open": (240, 180),
}  # fmt: skip
# reported as missing, so that glibc falls back to older calls
_UNKNOWN: dict[str, tuple[int, int]] = {"openat2": (437, 437), "clone3": (435, 435)}
_CLONE, _TGKILL, _PRLIMIT = (56, 220), (234, 131), (302, 261)
_ARCHES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}  # column above, AUDIT_ARCH constant


def confine() -> str | None:
    """Restricts this process for good. Returns None, or the reason why that is not possible.

    Blocked calls fail with EPERM. Call it last: afterwards no module can be imported.
    """
    if sys.platform != "linux" or platform.machine() not in _ARCHES:
        return f"no system call filter is available for {sys.platform} on {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    code = _filter(*_ARCHES[platform.machine()])
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(program, len(program)), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            return f"the system rejected the system call filter: {os.strerror(ctypes.get_errno())}"
    return None


def _filter(column: int, arch: int) -> bytes:
    """The BPF program, eight bytes per instruction."""
    refuse, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    program = [
        _step(_LOAD, _ARCH),
        _step(_EQUAL, arch, 1, 0),
        _step(_RETURN, refuse),
        _step(_LOAD, _NUMBER),
        _step(_ANY_BIT, _X32, 0, 1),
        _step(_RETURN, refuse),
    ]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, refuse)]
    for known in _UNKNOWN.values():
        program += [_step(_EQUAL, known[column], 0, 1), _step(_RETURN, unknown)]
    # allow threads, block processes
    program += [
        _step(_EQUAL, _CLONE[column], 0, 3),
        _step(_LOAD, _FIRST_LOW),
        _step(_ANY_BIT, _CLONE_THREAD, 1, 0),
        _step(_RETURN, refuse),
        _step(_LOAD, _NUMBER),
    ]
    # signals (for abort()) and limits only for itself
    for number, own in ((_TGKILL[column], os.getpid()), (_PRLIMIT[column], 0)):
        program += [
            _step(_EQUAL, number, 0, 4),
            _step(_LOAD, _FIRST_LOW),
            _step(_EQUAL, own, 1, 0),
            _step(_RETURN, refuse),
            _step(_LOAD, _NUMBER),
        ]
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no`: instructions to skip after a comparison."""
    return struct.pack("HBBI", code, yes, no, value)
