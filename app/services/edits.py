"""Changing clips: one, many at once, and collections, which are names in the clips' metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.state import AppState
from index import COLLECTIONS, Clip, ClipEdit, ClipNotFound, Facet

_CHUNK = 500  # clips changed in a transaction
MAX_COLLECTIONS = 10_000  # that are listed


async def edit_clip(state: AppState, clip_id: str, edit: ClipEdit) -> Clip:
    """The changed clip. Raises ClipNotFound, InvalidMetadata."""
    changed = await state.write(state.library.edit, [clip_id], edit)
    if clip_id not in changed:
        raise ClipNotFound(clip_id)
    return changed[clip_id]


async def edit_clips(state: AppState, clip_ids: Sequence[str], edit: ClipEdit) -> set[str]:
    """The ids of the changed clips, those of the given ones that exist. Raises InvalidMetadata."""
    changed: set[str] = set()
    for start in range(0, len(clip_ids), _CHUNK):
        changed.update(await state.write(state.library.edit, clip_ids[start : start + _CHUNK], edit))
    return changed


async def edit_matching(state: AppState, filter: Mapping[str, Any], edit: ClipEdit) -> int:
    """Changes the clips that pass a filter now and returns their number. Raises InvalidFilter, InvalidMetadata."""
    clip_ids: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = await state.read(state.library.list, 1000, cursor, filter)
        clip_ids += [clip.id for clip in page]
        if cursor is None:
            return len(await edit_clips(state, clip_ids, edit))


async def list_collections(state: AppState) -> Facet:
    """The collections and their numbers of clips, by name."""
    found = await state.read(state.library.facets, [COLLECTIONS], None, MAX_COLLECTIONS)
    return sorted(found[COLLECTIONS], key=lambda pair: str(pair[0]).casefold())


async def rename_collection(state: AppState, name: str, new: str) -> int:
    """Renames a collection, or adds its clips to the one of that name. Returns their number, 0 if there is none."""
    edit = ClipEdit(remove={COLLECTIONS: [name]}, add={COLLECTIONS: [new]})
    return await edit_matching(state, {COLLECTIONS: name}, edit)


async def delete_collection(state: AppState, name: str) -> int:
    """Takes all clips out of a collection, without deleting them. Returns their number, 0 if there is none."""
    return await edit_matching(state, {COLLECTIONS: name}, ClipEdit(remove={COLLECTIONS: [name]}))
