"""Messages between the server, the fork server and the decoding workers.

Kept apart from the worker so that the server does not load the decoders.

With the fork server, each message a `CONTROL` (kind, pid, status):
    → FORK, with the new worker's end of a socket pair    ← FORKED pid; 0 if the fork failed
    → KILL pid                                            ← EXITED pid status, when a worker has ended; from waitpid
                                                          ← READY status, once at the start; not 0 if workers cannot be
                                                            confined
With a worker:
    → `REQUEST` kind, max_duration (seconds, inf for none), CPU seconds allowed and bytes of the options that follow as
      JSON, with the file's descriptor. Of a DECODE, the options are {track, rate}, the wanted audio track and sample
      rate (Hz):
    ← messages, each a `HEADER` (kind, payload bytes): INFO {sample_rate, channels, track}, any number of AUDIO
      (float32, mono, at that rate), END {duration, decode_s, resample_s, tags, notes}; or ERROR {reason, why, read} at
      any point.
    Of a LIVE, the descriptor is that of a socket at which audio arrives, and there are no options and no tags.
    Of an EXCERPT, the options are those of app.audio.excerpt:
    ← INFO {length, first, last}, any number of DATA (bytes of the excerpt's file), END {}; or ERROR.
After END the worker waits for its next file; it ends after an ERROR or when its socket closes.
"""

from __future__ import annotations

import struct

CONTROL = struct.Struct("<cIi")
FORK, KILL, FORKED, EXITED, READY = b"F", b"K", b"B", b"D", b"R"
REQUEST = struct.Struct("<cddI")
DECODE, LIVE, EXCERPT = b"d", b"l", b"c"
HEADER = struct.Struct("<cI")
INFO, AUDIO, DATA, END, ERROR = b"i", b"a", b"b", b"e", b"x"
OUT_OF_MEMORY, UNEXPECTED = "memory", "unexpected"  # reasons of an ERROR other than those of a MediaError
