"""The eight sets of US-JEPA's comparison: classes, counts, what a split keeps whole, and where to get each.

Six come in the layout of `pip install ultrabench` (https://github.com/adamtupper/ultrabench, v1.0.x cuts train,
validation and test as the paper's counts have it; later versions list train_val and test). BUSBRA and TN5000 are the
paper's own additions, whose lists are unpublished: write a labels.csv with the columns path, label, group, split.
Counts: arXiv 2602.19322, appendix B.2, table 5. We redistribute none of them; each has terms of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sharding.recording import InputError

Unit = Literal["patient", "video", "image"]


@dataclass(frozen=True)
class BenchSet:
    """One set.

    Attributes:
        key: as `KEY=FOLDER` on the command line.
        name: in tables.
        folder: how its folder begins, before `_v` and UltraBench's version.
        classes: in the order of UltraBench's numbers.
        counts: images in train, val and test of the paper.
        listed: images in train_val and test of UltraBench after v1.0.x, None where unknown or not in it.
        unit: what the published split keeps on one side as far as known; `image` where nobody says whose they are.
        source: where to ask or to download.
        how: what to do with it.
        terms: what is known of its licence; read the source's own words before use.

    """

    key: str
    name: str
    folder: str
    classes: tuple[str, ...]
    counts: tuple[int, int, int]
    listed: tuple[int, int] | None
    unit: Unit
    source: str
    how: str
    terms: str

    def expected(self, has_val: bool) -> dict[str, int]:
        """Images by split of the paper, val within train where the lists are not cut."""
        train, val, test = self.counts
        return {"train": train, "val": val, "test": test} if has_val else {"train": train + val, "test": test}


_BENIGN_OR_MALIGNANT = ("benign", "malignant")
_ON_RECORD = "stated on the record at the source"
_RECORDS = "https://zenodo.org/records"

BENCH_SETS: tuple[BenchSet, ...] = (
    BenchSet(
        "aul", "AUL", "aul_mass", ("normal", "benign", "malignant"), (529, 59, 147), (588, 147), "image",
        f"{_RECORDS}/7272660", "unpack, then `ultrabench aul RAW OUT`", _ON_RECORD,
    ),
    BenchSet(
        "busbra", "BUSBRA", "busbra", _BENIGN_OR_MALIGNANT, (765, 86, 213), None, "patient",
        "https://github.com/wgomezf/BUS-BRA",
        "labels.csv with the case as group; the paper takes one image of each of the 1,064 patients, which is unsaid",
        "for academic and research use, says its article",
    ),
    BenchSet(
        "butterfly", "Butterfly", "butterfly",
        ("carotid", "2ch", "lungs", "ivc", "4ch", "bladder", "thyroid", "plax", "morisons_pouch"),
        (28053, 6272, 6751), (34325, 6751), "patient", "https://github.com/ButterflyNetwork/MITGrandHack2018",
        "unpack, then `ultrabench butterfly RAW OUT`", "made for a contest of 2018; its page says for what",
    ),
    BenchSet(
        "fatty_liver", "Fatty Liver", "fatty_liver", ("normal", "fatty"), (390, 50, 110), (440, 110), "patient",
        f"{_RECORDS}/1009146", "one .mat file; `ultrabench fatty-liver FILE OUT`", _ON_RECORD,
    ),
    BenchSet(
        "gbcu", "GBCU", "gbcu", ("normal", "benign", "malignant"), (1019, 114, 122), (1133, 122), "image",
        "https://gbc-iitd.github.io/data/gbcu", "by request, then `ultrabench gbcu RAW OUT`",
        "on request, under the agreement that is signed for it",
    ),
    BenchSet(
        "mmotu", "MMOTU", "mmotu",
        ("chocolate cyst", "serous cystadenoma", "teratoma", "theca cell tumor", "simple cyst", "normal ovary",
         "mucinous cystadenoma", "high grade serous"),
        (800, 200, 469), (1000, 469), "image", "https://github.com/cv516Buaa/MMOTU_DS2Net",
        "OTU_2d by hand, then `ultrabench mmotu RAW OUT`", "stated in the repository at the source",
    ),
    BenchSet(
        "pocus", "POCUS", "pocus", ("regular", "pneumonia", "covid"), (1444, 177, 443), (2128, 605), "video",
        "https://github.com/jannisborn/covid19_ultrasound",
        "clone, then `ultrabench pocus RAW OUT`; its videos have changed since, so counts differ from the paper's",
        "its metadata has a licence for each video",
    ),
    BenchSet(
        "tn5000", "TN5000", "tn5000", _BENIGN_OR_MALIGNANT, (3500, 500, 1000), None, "image",
        "the article of TN5000 in Scientific Data links to it",
        "labels.csv from its annotations and its train, val and test lists", _ON_RECORD,
    ),
)  # fmt: skip


def bench_set(key: str) -> BenchSet | None:
    """The set of that key or name, whatever the case; None when it is not one of the eight."""
    wanted = key.lower().replace(" ", "_")
    return next((one for one in BENCH_SETS if one.key == wanted), None)


def find_folder(one: BenchSet, place: Path) -> Path:
    """Folder of a set: the place itself, or the one below it that begins like the set.

    Raises:
        InputError: there is none, or several versions lie side by side.

    """
    if (place / "images").is_dir() or (place / "labels.csv").is_file():
        return place
    versions = sorted(place.glob(f"{one.folder}_v*")) if place.is_dir() else []
    found = [path for path in (place / one.folder, place / one.key, *versions) if path.is_dir()]
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"set {one.key}: {place} has {', '.join(path.name for path in found)}; name one of them")
    raise InputError(
        f"set {one.key}: no {one.folder}_v* in {place}; get it from {one.source} ({one.how}). Terms: {one.terms}"
    )


def sets_table() -> str:
    """The table of README.md, in Markdown."""
    header = ("`--sets`", "train / val / test", "split keeps whole", "get it from", "then", "licence")
    rows = [header, ("---",) * len(header), *(_row(one) for one in BENCH_SETS)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _row(one: BenchSet) -> tuple[str, ...]:
    counts = " / ".join(f"{count:,}" for count in one.counts)
    return f"`{one.key}=FOLDER`", counts, one.unit, one.source, one.how, one.terms
