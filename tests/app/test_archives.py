"""Zips: what is read of them, and what is refused before a byte is unpacked."""

import zipfile
from io import BytesIO

import pytest

from retfound_hf.app.uploads import Archive, ArchiveLimits
from retfound_hf.errors import RetFoundError


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> BytesIO:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def test_images_come_in_order_without_hidden_ones_and_other_files():
    entries = {
        "b/2.PNG": b"2", "a/1.jpg": b"1", "notes.txt": b"x", "__MACOSX/a/._1.jpg": b"x", ".hidden/3.png": b"x",
        "c/scan.dcm": b"3", "inner.zip": b"x",
    }  # fmt: skip
    archive = Archive(zipped(entries), ArchiveLimits())
    assert list(archive) == [("a/1.jpg", b"1"), ("b/2.PNG", b"2"), ("c/scan.dcm", b"3")] and len(archive) == 3


def test_scans_without_a_suffix_are_images_and_the_rest_is_told():
    scan = bytes(128) + b"DICM" + bytes(99)
    entries = {"CD/IM000001": scan, "CD/1.2.840.78": scan, "DICOMDIR": scan, "README": b"x", "__MACOSX/._1": scan}
    archive = Archive(zipped(entries), ArchiveLimits())
    assert [name for name, _ in archive] == ["CD/1.2.840.78", "CD/IM000001"]
    assert archive.passed_over == ["DICOMDIR", "README"]
    with pytest.raises(RetFoundError, match=r"or DICOM of any name; passed over: README$"):
        Archive(zipped({"README": b"x"}), ArchiveLimits())


@pytest.mark.parametrize("name", ["./", ".", "././"])
def test_an_entry_for_the_folder_itself_is_passed_over(name):
    archive = Archive(zipped({name: b"", "./a.png": b"x"}), ArchiveLimits())
    assert list(archive) == [("./a.png", b"x")] and archive.passed_over == []


@pytest.mark.parametrize("name", ["../up.png", "/etc/up.png", "a/../../up.png", "..\\up.png", "C:\\up.png"])
def test_paths_that_lead_out_are_refused(name):
    with pytest.raises(RetFoundError, match="leads out of it"):
        Archive(zipped({"fine.png": b"x", name: b"x"}), ArchiveLimits())


def test_bombs_are_refused_unread():
    with pytest.raises(RetFoundError, match="packed more than 100 times"):
        Archive(zipped({"a.png": bytes(50 * 2**20)}), ArchiveLimits())
    with pytest.raises(RetFoundError, match="unpacks to more than 1 MB"):
        Archive(zipped({"a.png": bytes(2**20 + 1)}, zipfile.ZIP_STORED), ArchiveLimits(bytes_each=2**20))
    many = {f"{index}.png": bytes(2**19) for index in range(5)}
    with pytest.raises(RetFoundError, match="unpacks to more than 2 MB; send it in parts"):
        Archive(zipped(many), ArchiveLimits(bytes_all=2**21))
    with pytest.raises(RetFoundError, match="holds 5 images; at most 4"):
        Archive(zipped(many), ArchiveLimits(images=4))


def test_a_table_of_contents_that_lies_gives_nothing():
    """A header that says 10 bytes over a member of 3,000: the read stops, and the content is not believed."""
    content = zipped({"a.png": bytes(range(250)) * 12}, zipfile.ZIP_STORED).getvalue()
    lie = content.replace((3000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    found = dict(Archive(BytesIO(lie), ArchiveLimits()))
    assert len(found["a.png"]) <= 10


def test_a_damaged_member_spoils_no_other():
    file = zipped({"a.png": b"a" * 500, "b.png": b"b" * 500}, zipfile.ZIP_STORED)
    content = bytearray(file.getvalue())
    content[content.index(b"aaaa") + 5] = 0
    assert dict(Archive(BytesIO(bytes(content)), ArchiveLimits())) == {"a.png": b"", "b.png": b"b" * 500}


def test_what_is_no_zip_encrypted_or_empty_is_said():
    for content in (b"", b"no zip", zipped({"a.png": b"x" * 99}).getvalue()[:-30]):
        with pytest.raises(RetFoundError, match="damaged, or no zip"):
            Archive(BytesIO(content), ArchiveLimits())
    with pytest.raises(RetFoundError, match=r"holds no image; accepted: \.jpg"):
        Archive(zipped({"a.txt": b"x"}), ArchiveLimits())
    locked = bytearray(zipped({"a.png": b"x"}).getvalue())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(mark) + offset] |= 1
    with pytest.raises(RetFoundError, match="encrypted"):
        Archive(BytesIO(bytes(locked)), ArchiveLimits())
