"""Messages between the server, the fork server and the decoding workers.

Kept apart from the worker so that the server does not load the decoders.

With the fork server, each message a `CONTROL` (kind, pid, status):
    → FORK, with the new worker's end of a socket pair    ← FORKED pid; 0 if the fork failed
    → KILL pid                                            ← EXITED pid status, when a worker has ended; from waitpid
                                                          ← READY status, once at the start; not 0 if workers cannot be
                                                            confined
With a worker:
    → `REQUEST` max_duration (seconds, inf for none), CPU seconds allowed, and the wanted audio track (UTF-8, empty for
      the default one), with the file's descriptor
    ← messages, each a `HEADER` (kind, payload bytes): INFO {sample_rate, channels, track}, any number of AUDIO
      (float32, mono, 16 kHz), END {duration, decode_s, resample_s, tags, notes}; or ERROR {reason, why, read} at any
      point.
After END the worker waits for its next file; it ends after an ERROR or when its socket closes.
"""

from __future__ import annotations

import struct

CONTROL = struct.Struct("<cIi")
FORK, KILL, FORKED, EXITED, READY = b"F", b"K", b"B", b"D", b"R"
REQUEST = struct.Struct("<dd64s")
HEADER = struct.Struct("<cI")
INFO, AUDIO, END, ERROR = b"i", b"a", b"e", b"x"
OUT_OF_MEMORY, UNEXPECTED = "memory", "unexpected"  # reasons of an ERROR other than those of a MediaError
