"""UCS file names: the convention's examples, similar names, and every CatID."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audio import ucs

BLOCK = st.text(st.characters(codec="utf-8", exclude_characters="_-/\\.\0"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and text.strip().lower() != "none"
)
CATEGORY = st.sampled_from(sorted(ucs.categories()))


def test_category_list_is_complete() -> None:
    listed = ucs.categories()
    assert len(listed) == 752
    assert listed["DOORWood"].category == "DOORS" and listed["DOORWood"].subcategory == "WOOD"
    assert "barn" in listed["DOORWood"].synonyms
    assert len({(entry.category, entry.subcategory) for entry in listed.values()}) == 752
    assert all(entry.category and entry.subcategory for entry in listed.values())


def test_full_name() -> None:
    name = ucs.parse("GUNAuto-EXT_UZI 9mm-Rapid Fire Close Up Short Bursts_TN_DORY_416-MKH8040_DualMono.wav")
    assert name is not None
    assert name.tags() == {
        "category": "GUNS",
        "subcategory": "AUTOMATIC",
        "cat_id": "GUNAuto",
        "user_category": "EXT",
        "vendor_category": "UZI 9mm",
        "fx_name": "UZI 9mm-Rapid Fire Close Up Short Bursts",
        "creator": "TN",
        "source": "DORY",
        "user_data": "416-MKH8040_DualMono",
    }


def test_name_with_four_blocks() -> None:
    name = ucs.parse("GUNAuto_Uzi 9mm Rapid Fire Close Up Short Bursts_TN_DORY")
    assert name is not None and (name.creator, name.source, name.user_data) == ("TN", "DORY", "")
    assert name.fx_name == "Uzi 9mm Rapid Fire Close Up Short Bursts" and name.vendor_category == ""


def test_none_is_an_empty_block() -> None:
    name = ucs.parse("DOORWood_Creak_TN_NONE.wav")
    assert name is not None and "source" not in name.tags()


@pytest.mark.parametrize(
    "filename",
    [
        "DOORWood_Creak.wav",
        "a/b/DOORWood_Creak.flac",
        "C:\\sounds\\DOORWood_Creak.aif",
        "DOORWood_Creak",
        "/DOORWood_Creak.1",
    ],
)
def test_folders_and_extensions_are_ignored(filename: str) -> None:
    name = ucs.parse(filename)
    assert name is not None and name.fx_name == ("Creak.1" if filename.endswith(".1") else "Creak")


@pytest.mark.parametrize(
    "filename",
    [
        "",
        "_",
        "DOORWood",  # only a category
        "DOORWood.wav",
        "DOORWood_.wav",
        "DOORWood-_Creak.wav",
        "doorwood_creak_tn_dory.wav",  # CatIDs are case-sensitive
        "DoorWood_Creak_TN_DORY.wav",
        "DOORWoods_Creak_TN_DORY.wav",
        "DOOR_wood_creak_01.wav",  # a CatShort, not a CatID
        "GunAudio_UZI_TN_DORY.wav",
        "RAIN_heavy.wav",  # words in capitals count only with all four blocks
        "TEST_1.wav",
        "MIX_final_v2.wav",
        "RAIN___x.wav",
        "kick_DOORWood_x_y.wav",
        "door_wood_creak.wav",
        "DOORWood Creak_TN_DORY.wav",
        "x/DOORWood_y/kick.wav",
    ],
)
def test_similar_names_are_not_parsed(filename: str) -> None:
    assert ucs.parse(filename) is None


def test_category_in_capitals_requires_four_blocks() -> None:
    name = ucs.parse("RAIN_Heavy On Roof_TN_DORY.wav")
    assert name is not None and name.category.subcategory == "GENERAL"


@given(CATEGORY, BLOCK, BLOCK, BLOCK, st.none() | BLOCK, st.none() | BLOCK, st.none() | BLOCK)
def test_names_round_trip(
    cat_id: str, fx: str, creator: str, source: str, user: str | None, vendor: str | None, data: str | None
) -> None:
    first = cat_id if user is None else f"{cat_id}-{user}"
    second = fx if vendor is None else f"{vendor}-{fx}"
    name = ucs.parse("_".join([first, second, creator, source] + ([data] if data else [])) + ".wav")
    assert name is not None
    assert name.category == ucs.categories()[cat_id]
    assert (name.user_category, name.vendor_category) == ((user or "").strip(), (vendor or "").strip())
    assert (name.fx_name, name.creator, name.source) == (second.strip(), creator.strip(), source.strip())
    assert name.user_data == (data or "").strip()


@given(st.text(max_size=60))
def test_any_name_is_accepted_and_parsed_only_with_a_category(filename: str) -> None:
    name = ucs.parse(filename)
    assert name is None or name.category.cat_id in filename
