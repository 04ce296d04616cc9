"""Tables of labels in every spelling: `us-jepa shards --labels` and `us-jepa probe` read the same from each."""

import codecs
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.labelled_files import list_entries
from pipeline.rates import load_rates
from sharding.labels import describe_labels, load_labels
from sharding.profiles import load_profiles
from sharding.recording import InputError
from sharding.store import Store
from sharding.tables import decode_text, match, normal_name, read_table, refuse_unmatched
from tests.cases.label_tables import ACCENTED, NAMES, rows, text, variants, write_pictures

KINDS = list(variants(Path()))
REFUSED = {
    "cp1252": r"line 2 is not UTF-8; it seems to be Windows-1252, in which it has '.*Müllerp0'; save the file as UTF-8",
    "conflict": r"lines 2 and 26 both name a/im00\.png, with label 'benign' and 'malignant'; leave one of them",
    "comma_label": r"line 2: label 'benign, simple' is not a class name of up to 64",
    "case": r"24 of 24 rows match no source, the first is a/im00\.PNG; paths are relative to",
    "wrong_root": r"24 of 24 rows match no source, the first is images/a/im00\.png; paths are relative to",
}
SAID = {  # lines beside the first
    "duplicate": "24 rows that say the same again",
    "missing_label": "4 sources without a label, which is no class of its own",
    "nan_label": "4 rows with a cell `nan`, which is read as empty",
    "float_label": "classes 0, 0.0 differ only in letter case, blanks or `.0`",
    "short_row": "1 rows with fewer cells than the first line; the missing ones are read as empty",
    "subset": "12 sources have no row",
}
SOME = Counter(benign=12, malignant=12)
CLASSES = {
    "missing_label": Counter(benign=8, malignant=12),
    "nan_label": Counter(benign=8, malignant=12),
    "float_label": Counter({"0": 6, "1": 6, "0.0": 6, "1.0": 6}),
    "short_row": Counter(benign=12, malignant=11),
    "subset": Counter(benign=6, malignant=6),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """Folder by the names of its pictures."""
    folders = {names: tmp_path_factory.mktemp("pictures") for names in (NAMES, ACCENTED)}
    for names, folder in folders.items():
        write_pictures(folder, names)
    return folders


def of_shards(folder: Path, allow_unmatched: bool = False) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Class and patient by file, and what is said, as sharding takes them."""
    source, table = Store(folder), folder / "labels.csv"
    labels, lines = load_labels(source, table), describe_labels(source, table)
    names = [name for name, _ in source.entries() if name != "labels.csv"]
    found = match(str(table), labels, names)
    lines += refuse_unmatched(str(table), found, source.place, allow_unmatched)
    known = {name: labels[normal_name(name)] for name in found.sources.values()}
    return {name: (one.label, one.group or name) for name, one in known.items() if one.label}, lines


def of_probe(folder: Path, allow_unmatched: bool = False) -> tuple[dict[str, tuple[str, str]], list[str]]:
    listed = list_entries(folder, allow_unmatched)
    return {entry.name: (entry.label, entry.group) for entry in listed.entries}, listed.lines


@pytest.mark.parametrize("kind", KINDS)
def test_both_commands_read_the_same_from_every_spelling(kind: str, pictures: dict[tuple[str, ...], Path]) -> None:
    names = variants(Path())[kind][0]
    folder = pictures[names]
    (folder / "labels.csv").write_bytes(variants(folder)[kind][1])
    if kind in REFUSED:
        for read in (of_shards, of_probe):
            with pytest.raises(InputError, match=REFUSED[kind]):
                read(folder)
        return
    labels, lines = of_shards(folder)
    assert (labels, lines) == of_probe(folder)
    classes = CLASSES.get(kind, SOME)
    assert Counter(label for label, _ in labels.values()) == classes
    assert len({group for _, group in labels.values()}) == (6 if kind == "subset" else 12)
    expected = ", ".join(f"{name} {classes[name]}" for name in sorted(classes))
    assert lines[0].endswith(f"{12 if kind == 'subset' else 24} listed sources; classes: {expected}")
    assert [SAID[kind] in line for line in lines[1:]].count(True) == 1 if kind in SAID else not lines[1:]


def test_rows_that_match_nothing_may_be_allowed_and_are_said(pictures: dict[tuple[str, ...], Path]) -> None:
    folder = pictures[NAMES]
    (folder / "labels.csv").write_text(text([*rows(), ["gone.png", "benign", "p99"]]))
    for read in (of_shards, of_probe):
        labels, lines = read(folder, allow_unmatched=True)
        assert len(labels) == 24
        assert "1 of 25 rows match no source, the first is gone.png; paths are relative to" in lines[-1]


SPELLINGS = st.fixed_dictionaries({
    "separator": st.sampled_from(",;\t"),
    "end": st.sampled_from(["\n", "\r\n"]),
    "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    "form": st.sampled_from(["NFC", "NFD"]),
    "header": st.permutations(["path", "label", "group", "remark"]),
    "capital": st.booleans(),
    "blanks": st.lists(st.sampled_from(["", " ", "\u00a0", "\u2009 "]), min_size=7, max_size=7),
    "paths": st.lists(st.sampled_from(["{}", "./{}", "x/../{}", "//{}", "/scans/{}"]), min_size=6, max_size=6),
    "slash": st.sampled_from(["/", "//", "\\", "/./"]),
    "quoted": st.booleans(),
    "empty_rows": st.integers(0, 2),
    "repeated": st.booleans(),
})  # fmt: skip
TABLE = [[f"Zoë {number}/ü.png", ("benign", "", "mass 2")[number % 3], f"Jörg{number // 2}"] for number in range(6)]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(how=SPELLINGS)
def test_a_table_means_the_same_however_it_is_spelled(how: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(spelled(how))
    table = read_table(tmp_path / "labels.csv", "/scans")
    found = [[row.name, row.cells["label"], row.cells["group"]] for row in table.rows.values()]
    assert found == TABLE
    assert table.counts["repeated"] == bool(how["repeated"])


def spelled(how: dict) -> bytes:  # type: ignore[type-arg]
    """The table in one of its spellings."""
    columns, lines = how["header"], []
    titles = [title.capitalize() if how["capital"] else title for title in columns]
    body = [*TABLE, *TABLE[:1]] if how["repeated"] else TABLE
    for number, cells in enumerate([titles, *body]):
        known = dict(zip(("path", "label", "group"), cells, strict=False)) | {"remark": "a; b, c"}
        if number:
            path = known["path"].replace("/", how["slash"])
            spelling = how["paths"][(number - 1) % 6]
            known["path"] = (spelling if spelling != "//{}" else "{}").format(path)
        row = cells if number == 0 else [known[column] for column in columns]
        padded = [f"{how['blanks'][number % 7]}{cell}" if not how["quoted"] else cell for cell in row]
        needs = [how["quoted"] or any(sign in cell for sign in ',;\t"') for cell in padded]
        quoted = [f'"{cell}"' if need else cell for cell, need in zip(padded, needs, strict=True)]
        lines += [how["separator"].join(quoted), *[how["separator"] * 3] * how["empty_rows"]]
    content: str = unicodedata.normalize(how["form"], how["end"].join(lines))
    return content.encode(how["encoding"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "no column group; columns: path, label, group"),
        ("path;label;group\n", "no row in it"),
        ("path,label,group\na.png,benign, simple,p1\n", r"line 2 has 4 cells, the first line 3; put \" around"),
        ('path,label,group\na.png,"benign,p1\n', "line 2: unexpected end of data; close every quotation mark"),
        ("path,label,group\n\n,benign,p1\n", "line 3 has no path; it has 'benign, p1'"),
        ("path,label,Label,group\na,b,c,d\n", "column label is there twice"),
        (
            "path,label,group,split\na,b,c,train\n./a,b,c,test\n",
            "lines 2 and 3 both name a, with split .train. and",
        ),
    ],
)
def test_a_table_that_cannot_be_used_names_its_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=rf"labels .*t\.csv:? .*{message}"):
        read_table(tmp_path / "t.csv", "")


def test_text_in_no_known_encoding_is_said_with_a_way_out() -> None:
    assert decode_text(codecs.BOM_UTF16_BE + "Ähre".encode("utf-16-be"), "list") == "Ähre"
    with pytest.raises(InputError, match=r"list: holds zero bytes, as UTF-16 without a byte order mark does"):
        decode_text("Anna".encode("utf-16-le"), "list")
    with pytest.raises(InputError, match=r"list: line 2 is not UTF-8; it seems to be Windows-1252, .* 'Müller'"):
        decode_text("Anna\nMüller\n".encode("cp1252"), "list")


def test_two_files_whose_names_look_alike_are_not_guessed_at(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "Müller.png") for form in ("NFC", "NFD")]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "labels.csv").write_text(text([["Müller.png", "benign", "p"]]))
    for read in (of_shards, of_probe):
        with pytest.raises(InputError, match=r"could be .* or .*; rename one of the files"):
            read(tmp_path)


def test_profiles_and_rates_are_read_in_any_unicode_or_named(tmp_path: Path) -> None:
    entry = "- {manufacturer: ACME, model: Skän, rows: 9, columns: 9, polygon: [[1, 1], [8, 1], [8, 8]], reviewer: K, "
    entry += "reviewed_on: 2026-11-01, num_reviewed: 10}"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "profiles.yaml").write_bytes(entry.encode(encoding))
        assert load_profiles(tmp_path / "profiles.yaml")[0].model == "skän"
    for read in (load_profiles, load_rates):
        (tmp_path / "file").write_bytes(entry.encode("cp1252"))
        with pytest.raises(InputError, match=r"file: line 1 is not UTF-8; it seems to be Windows-1252, .*Skän"):
            read(tmp_path / "file")
