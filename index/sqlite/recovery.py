"""Recovery after a crash: removes leftover audio files and reports missing ones when a library is opened."""

from __future__ import annotations

from index.sqlite import queries
from index.sqlite.audio_files import AudioFiles
from index.sqlite.store import Store

_MAX_LEFTOVERS = 100  # audio files without a record; interrupted changes never leave this many
_MAX_REPORTED = 100  # clips without audio that are reported by name


def recover(database: Store, audio: AudioFiles) -> list[str]:
    """Removes leftovers of interrupted changes. Returns a message per repair or finding; none after a clean shutdown.

    Records without audio are kept: searches still find them, their metadata may be valuable, and adding the file again
    restores the audio. Only files that the library itself wrote are removed.
    """
    report = []
    leftovers = audio.clear_incoming()
    if leftovers:
        report.append(f"removed {_files(leftovers)} of interrupted uploads")
    orphans: set[str] = set()
    missing: list[str] = []
    with database.read() as view:
        prefixes = set(audio.prefixes())  # a bucket is asked once for each
        for prefix in sorted({f"{byte:02x}" for byte in range(256)} | prefixes):  # 256 small sets
            named = queries.sha256_of(view, prefix)
            excess, absent = audio.compare(prefix, named) if prefix in prefixes else (set(), named)
            orphans |= excess
            missing += sorted(absent)
        reported = [queries.named_by_sha256(view, sha256) for sha256 in missing[:_MAX_REPORTED]]
    if len(orphans) > _MAX_LEFTOVERS:
        report.append(f"kept {len(orphans)} audio files without a record: was the database replaced by an older one?")
    elif orphans:
        for sha256 in orphans:
            audio.remove(sha256)
        report.append(f"removed {_files(len(orphans))} without a record")
    for clip_id, filename in reported:
        report.append(f"the audio of clip {clip_id} ({filename}) is missing; add the file again to restore it")
    if len(missing) > _MAX_REPORTED:
        report.append(f"the audio of {len(missing) - _MAX_REPORTED} more clips is missing")
    return report


def _files(count: int) -> str:
    return "1 audio file" if count == 1 else f"{count} audio files"
