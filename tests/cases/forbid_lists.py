"""Lists of names for `us-jepa verify --forbid`, in the ways that Notepad and spreadsheets save them.

Public reports: openwall/john #2138 (a byte order mark spoils the first word), mcode-extraction-framework PR 120
(patient identifiers), carrot-mapper PR 299, Loris-MRI PR 604.
"""

_NAMES = "mueller\r\nschmidt\r\n"

LISTS = {
    "plain": _NAMES.encode(),
    "bom": _NAMES.encode("utf-8-sig"),
    "bom_second": "schmidt\r\nmueller\r\n".encode("utf-8-sig"),
    "utf16": _NAMES.encode("utf-16"),
    "utf16_big_endian": b"\xfe\xff" + _NAMES.encode("utf-16-be"),
    "quoted": b'"mueller"\r\n"schmidt"\r\n',
    "columns": b"mueller,anna\r\nschmidt,ben\r\n",
    "semicolon": b"mueller;anna;1970\r\n",
    "tabs": b"1970\tmueller\tanna\r\n",
    "dicom_name": b"Mueller^Anna\r\n",
    "dicom_column": b"4711;Mueller^Anna;1970\r\n",
    "nbsp": "mueller\u00a0\r\n".encode(),
    "capitals": b"MUELLER\r\n",
    "empty_rows": b"\r\n\r\nmueller\r\n",
}
"""Each forbids `mueller`."""
