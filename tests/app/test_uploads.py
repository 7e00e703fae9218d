"""Uploads: what of zips and folders is read, what is refused before a byte is unpacked, and names."""

import struct
import zipfile
from io import BytesIO

import numpy as np
import pytest

from retfound_hf.app.uploads import ACCEPTED, Archive, Batch, Limits, entry_names
from retfound_hf.errors import BadDataError


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> BytesIO:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def refused(file: BytesIO, limits: Limits | None = None) -> BadDataError:
    with pytest.raises(BadDataError) as error:
        Archive(file, limits or Limits())
    return error.value


SCAN = bytes(128) + b"DICM" + bytes(99)


def test_images_of_a_zip_come_in_order_without_hidden_and_other_files():
    entries = {
        "b/2.PNG": b"2", "a/1.jpg": b"1", "notes.txt": b"x", "__MACOSX/a/._1.jpg": b"x", ".hidden/3.png": b"x",
        "c/scan.dcm": b"3", "inner.zip": b"x",
    }  # fmt: skip
    archive = Archive(zipped(entries), Limits())
    assert list(archive) == [("a/1.jpg", b"1"), ("b/2.PNG", b"2"), ("c/scan.dcm", b"3")] and len(archive) == 3
    assert archive.passed_over == ["notes.txt", "inner.zip"]


def test_scans_without_a_suffix_are_images():
    entries = {"CD/IM000001": SCAN, "CD/1.2.840.78": SCAN, "DICOMDIR": SCAN, "README": b"x", "__MACOSX/._1": SCAN}
    archive = Archive(zipped(entries), Limits())
    assert [name for name, _ in archive] == ["CD/1.2.840.78", "CD/IM000001"]
    assert archive.passed_over == ["DICOMDIR", "README"]


@pytest.mark.parametrize("name", ["./", ".", "././"])
def test_an_entry_for_the_folder_itself_is_passed_over(name):
    archive = Archive(zipped({name: b"", "./a.png": b"x"}), Limits())
    assert list(archive) == [("./a.png", b"x")] and archive.passed_over == []


def test_an_entry_without_a_name_is_passed_over():
    content = zipped({"QQ": b"x", "a.png": b"x"}).getvalue().replace(b"QQ", b"\0\0")
    assert list(Archive(BytesIO(content), Limits())) == [("a.png", b"x")]


@pytest.mark.parametrize("name", ["../up.png", "/etc/up.png", "a/../../up.png", "..\\up.png", "C:\\up.png"])
def test_paths_that_lead_out_are_refused(name):
    assert refused(zipped({"fine.png": b"x", name: b"x"})).rows == (name,)


@pytest.mark.parametrize(
    ("entries", "limits", "said"),
    [
        ({"a.png": bytes(50 * 2**20)}, {}, "a.png"),
        ({"a.png": bytes(2**20 + 1)}, {"upload_bytes": 2**20}, "a.png"),
        ({f"{index}.png": bytes(2**19) for index in range(5)}, {"unpacked_bytes": 2**21}, "2 MB"),
    ],
)
def test_bombs_are_refused_unread(entries, limits, said, monkeypatch):
    file = zipped(entries, zipfile.ZIP_STORED if limits else zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("a file of the zip was opened"))
    assert said in str(refused(file, Limits(**limits)))


def test_a_table_of_contents_that_lies_gives_nothing():
    """A header that says 10 bytes over a member of 3,000: the read stops, and the content is not believed."""
    content = zipped({"a.png": bytes(range(250)) * 12}, zipfile.ZIP_STORED).getvalue()
    lie = content.replace((3000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert len(dict(Archive(BytesIO(lie), Limits()))["a.png"]) <= 10


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_spoils_no_other(kind):
    """Also one without a suffix, whose content says whether it is an image."""
    one, other = np.random.default_rng(0).bytes(5000), SCAN
    content = bytearray(zipped({"a.png": one, "b": one, "scan": other}, kind).getvalue())
    with zipfile.ZipFile(BytesIO(content)) as archive:
        for entry in archive.infolist()[:2]:
            start = entry.header_offset + 30 + len(entry.filename)
            content[start + 9 : start + 60] = bytes(51)
    assert dict(Archive(BytesIO(bytes(content)), Limits())) == {"a.png": b"", "scan": other}


def test_a_zip_of_a_later_version_is_refused():
    content = bytearray(zipped({"a.png": b"x"}).getvalue())
    content[content.index(b"PK\x01\x02") + 6] = 99
    assert "9.9" in str(refused(BytesIO(bytes(content))))


def test_damaged_and_encrypted_zips_are_refused():
    for content in (b"", b"no zip", zipped({"a.png": b"x" * 99}).getvalue()[:-30]):
        assert "damaged" in str(refused(BytesIO(content)))
    locked = bytearray(zipped({"a.png": b"x"}).getvalue())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(mark) + offset] |= 1
    error = refused(BytesIO(bytes(locked)))
    assert error.rows == ("a.png",) and "encrypted" in str(error)


def test_of_a_folder_the_images_stay(upload):
    """By name, or as DICOM by content, as hospital media hold it: without a suffix, or with a number for one."""
    uploads = [upload(name, b"x") for name in ("b.dcm", "notes.txt", "a.JPG", "Thumbs.db", "inner.zip")]
    uploads += [upload(name, SCAN) for name in ("IM000001", "1.2.840.78", "DICOMDIR")]
    batch = Batch([], uploads, Limits())
    kept = ["1.2.840.78", "IM000001", "a.JPG", "b.dcm"]
    assert sorted(one.name for one in uploads if one.path.exists()) == kept
    assert [name for name, _ in batch] == kept and len(batch) == 4
    assert batch.passed_over == ["DICOMDIR", "Thumbs.db", "inner.zip", "notes.txt"]
    assert not any(one.path.exists() for one in uploads)


def test_images_of_one_name_get_names_of_their_own(upload):
    names = ["eye.png (2)", "eye.png", "eye.png", "eye.png"]
    uploads = [upload("a.zip", zipped({"left/eye.png": b"0"}).getvalue())]
    batch = Batch([*uploads, *(upload(name, b"x") for name in names)], [], Limits())
    found = [name for name, _ in batch]
    assert found == ["left/eye.png", "eye.png (2)", "eye.png", "eye.png (3)", "eye.png (4)"]
    assert [name for name, _ in batch.renamed] == found[-2:]


def test_batches_without_images_or_with_too_many_are_refused(upload):
    with pytest.raises(BadDataError) as error:
        Batch([upload("a.zip", zipped({"a.txt": b"x"}).getvalue())], [upload("b.txt", b"x")], Limits())
    assert sorted(error.value.rows) == ["a.txt", "b.txt"] and ACCEPTED in str(error.value)
    with pytest.raises(BadDataError) as error:
        Batch([], [], Limits())
    assert error.value.rows == ()
    with pytest.raises(BadDataError) as error:
        Batch([upload(f"{index}.png", b"x") for index in range(3)], [], Limits(images=2))
    assert "3 images; at most 2" in str(error.value)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("gbk", ["左眼_001.jpg", "张三/眼底.jpg"]), ("cp932", ["患者/右目.jpg", "カルテ.jpg", "山田太郎.jpg"]),
        ("cp949", ["왼쪽_001.jpg", "김철수/우안.jpg"]), ("big5", ["病人/右眼.jpg"]),
        ("cp850", ["rétine.jpg", "Fuß/Ø.jpg"]),
        ("cp1252", ["Größe.jpg"]), ("cp866", ["Иванов/левый.jpg"]), ("cp1251", ["Иванов.jpg"]),
        ("utf-8", ["rétine.jpg", "左眼.jpg"]),
    ],
)  # fmt: skip
def test_names_in_other_code_pages_are_read_as_they_were_meant(page, names):
    stands = [chr(ord("A") + number) * len(name.encode(page)) for number, name in enumerate(names)]
    content = zipped({**dict.fromkeys(stands, b"x"), "plain.txt": b"x"}).getvalue()
    for stand, name in zip(stands, names, strict=True):
        content = content.replace(stand.encode(), name.encode(page))
    archive = Archive(BytesIO(content), Limits())
    assert [name for name, _ in archive] == sorted(names) and archive.passed_over == ["plain.txt"]
    assert all(content == b"x" for _, content in archive)


@pytest.mark.parametrize("name", ["左眼.jpg", "α.jpg"])
def test_a_name_that_is_marked_as_utf8_is_taken(name):
    """Also where it is that of the entry: later versions of `zipfile` read the field, and α is a sign of cp437."""
    path = name.encode()
    entry = zipfile.ZipInfo("zzz.jpg")
    entry.extra = struct.pack("<HHBI", 0x7075, 5 + len(path), 1, 0) + path
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(entry, b"x")
        archive.writestr("œil.jpg", b"x")
    assert sorted(found for found, _ in Archive(file, Limits())) == sorted(["œil.jpg", name])
    entry.filename, entry.flag_bits = name, 0
    assert entry_names([entry]) == {name: name}
