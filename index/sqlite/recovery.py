"""What opening a library puts right after a crash, and what it can only report.

Knows the database and the audio folder; changes nothing but files that the library itself wrote and no record names.
"""

from __future__ import annotations

from index.sqlite import store
from index.sqlite.audio_files import AudioFiles
from index.sqlite.store import Store

_LEFTOVERS = 100  # audio files without a record that an interrupted change can leave, and more
_NAMED = 100  # how many clips without audio are reported by name


def heal(database: Store, audio: AudioFiles) -> list[str]:
    """Removes leftovers of interrupted changes; one sentence for each thing done or found, none after a clean stop.

    Records whose audio is gone are kept: they can still be found, their metadata is somebody's work, and adding the
    file again restores the audio.
    """
    report = []
    leftovers = audio.clear_incoming()
    if leftovers:
        report.append(f"removed {_files(leftovers)} of interrupted uploads")
    with database.read() as view:
        named = {sha256: (clip_id, filename) for sha256, clip_id, filename in store.all_sha256(view)}
        vectors = store.count_vectors(view)
    there = set(audio.names())
    unnamed = there - set(named)
    if len(unnamed) > _LEFTOVERS:  # no crash leaves so many
        report.append(
            f"{len(unnamed)} audio files have no record and are kept: was the database replaced by an older one?"
        )
    elif unnamed:
        for sha256 in unnamed:
            audio.remove(sha256)
        report.append(f"removed {_files(len(unnamed))} that no record names")
    missing = [clip for sha256, clip in named.items() if sha256 not in there]
    for clip_id, filename in missing[:_NAMED]:
        report.append(f"the audio of clip {clip_id} ({filename}) is missing; add the file again to restore it")
    if len(missing) > _NAMED:
        report.append(f"the audio of {len(missing) - _NAMED} more clips is missing")
    if vectors != len(named):
        report.append(f"{len(named) - vectors} clips have no vector and cannot be found by search")
    return report


def _files(count: int) -> str:
    return "1 audio file" if count == 1 else f"{count} audio files"
