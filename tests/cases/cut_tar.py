"""A tar that stops early, cut at the places where an interrupted copy or a killed writer leaves it.

Sources: Discovery_Obj_Move #7 (downloaded archives cut short), autoresearch PR 549 (a partial download taken whole),
webdataset #32 (writer never closed), webdataset #314.
"""

import io
import tarfile

_BLOCK = 512


def cuts(data: bytes) -> dict[str, bytes]:
    """Beginnings of a whole tar of at least three members, by the place where they end, at or in its middle member."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    middle, last = members[len(members) // 2], members[-1]
    end = last.offset_data + -(-last.size // _BLOCK) * _BLOCK
    places = {
        "before_header": middle.offset,
        "in_header": middle.offset + 100,
        "after_header": middle.offset_data,
        "in_data": middle.offset_data + middle.size // 2,
        "in_padding": middle.offset_data + middle.size,
        "no_end_blocks": end,
        "one_end_block": end + _BLOCK,
    }
    return {name: data[:place] for name, place in places.items()}
