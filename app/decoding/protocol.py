"""The messages of the decoding processes: what goes over their sockets, and which end says what.

Shared by the server's side (app.decoding.fork_server, app.decoding.conversation, app.decoding.pool) and the processes (app.decoding.worker), so that the
server need not load what decodes.

With the forking process, each a `CONTROL` (kind, pid, status):
    → FORK, with the new worker's end of a socket pair    ← BORN pid; 0 if it cannot be
    → KILL pid                                            ← DIED pid status, when a worker has ended, as waitpid says it
                                                          ← READY 0, once at the start; another number: workers
                                                            are not confined
With a worker:
    → `REQUEST` max_duration (seconds, inf for none) and CPU seconds allowed, with the file
    ← messages, each a `HEADER` (kind, bytes that follow): INFO {sample_rate, channels}, any number of AUDIO (float32,
      mono, 16 kHz), END {duration, decode_s, resample_s, tags}; or ERROR {reason, why, read} at any place.
After END the worker waits for its next file; after an ERROR, or when its socket closes, it ends.
"""

from __future__ import annotations

import struct

CONTROL = struct.Struct("<cIi")
FORK, KILL, BORN, DIED, READY = b"F", b"K", b"B", b"D", b"R"
REQUEST = struct.Struct("<dd")
HEADER = struct.Struct("<cI")
INFO, AUDIO, END, ERROR = b"i", b"a", b"e", b"x"
OUT_OF_MEMORY, UNEXPECTED = "memory", "unexpected"  # reasons of an ERROR that is no MediaError
