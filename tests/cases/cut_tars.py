"""A tar that stops early, cut at the places where an interrupted copy or a killed writer leaves it.

Sources: Discovery_Obj_Move #7 (downloaded archives cut short), autoresearch PR 549 (a partial download taken whole),
webdataset #32 (writer never closed), webdataset #314.
"""

import tarfile
from pathlib import Path


def cuts_of(plain: Path) -> dict[str, int]:
    """Where to cut a whole tar, by the name of the place."""
    with tarfile.open(plain) as tar:
        members = list(tar)
    middle = members[len(members) // 2]  # of 64: the 17th picture
    end = max(member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for member in members)
    return {
        "before_header": middle.offset,
        "in_header": middle.offset + 100,
        "after_header": middle.offset_data,
        "in_data": middle.offset_data + middle.size // 2,
        "in_padding": middle.offset_data + middle.size,
        "no_end_blocks": end,
        "one_end_block": end + tarfile.BLOCKSIZE,
    }
