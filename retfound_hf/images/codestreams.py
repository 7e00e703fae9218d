"""The size that a compressed frame of a DICOM file will have, told before anything of it is decoded."""

from struct import error as StructError
from struct import unpack, unpack_from

JP2_BOXES = b"\x00\x00\x00\x0cjP  "
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers of JPEG without a length
# Frame headers of JPEG and JPEG-LS (SOF 0-15 but DHT, JPG and DAC; DHP of hierarchical JPEG; SOF 55).
FRAMES = {*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC}
PADDING = 2  # times the pixels that a segment of run lengths may hold, since some writers pad


class CodestreamError(ValueError):
    """A frame whose size cannot be told, or is another one; the message is the reason."""


def jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Width, height and components in the first frame header of a JPEG or JPEG-LS codestream."""
    try:
        if frame[:2] != b"\xff\xd8":
            raise CodestreamError("its frame does not begin as a JPEG does")
        position = 2
        while frame[position] == 0xFF:
            kind = frame[position + 1]
            if kind in FRAMES:
                height, width, components = unpack_from(">HHB", frame, position + 5)
                return width, height, components
            if kind == 0xFF:
                position += 1
            elif kind in ALONE:
                position += 2
            elif kind >= 0xC0 and kind not in (0xD9, 0xDA):
                position += 2 + unpack_from(">H", frame, position + 2)[0]
            else:
                break
    except (IndexError, StructError):
        pass
    raise CodestreamError("its JPEG frame has no header that tells its size")


def jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Width, height and components in the header (SIZ) of a JPEG 2000 codestream, bare or in the boxes of a JP2."""
    try:
        position = _codestream(frame) if frame.startswith(JP2_BOXES) else 0
        if frame[position : position + 4] == b"\xff\x4f\xff\x51":
            right, bottom, left, top = unpack_from(">4I", frame, position + 8)
            return right - left, bottom - top, unpack_from(">H", frame, position + 40)[0]
    except StructError:
        pass
    raise CodestreamError("its JPEG 2000 frame has no header that tells its size")


def check_run_lengths(frame: bytes, pixels: int) -> None:
    """Refuse RLE of which a segment unpacks to more than `PADDING` times its pixels."""
    if len(frame) < 64:
        raise CodestreamError("its RLE frame has no header")
    count, *offsets = unpack("<16I", frame[:64])
    ends = [*offsets[1 : min(count, 15)], len(frame)]
    for start, end in zip(offsets, ends, strict=False):
        if _unpacked(memoryview(frame)[start:end], PADDING * pixels) > PADDING * pixels:
            raise CodestreamError(f"its RLE frame unpacks to more than the {pixels:,} pixels that its header says")


def _codestream(frame: bytes) -> int:
    """Where the first box of a JP2 that holds a codestream begins to hold it."""
    position = 0
    while True:
        length, kind = unpack_from(">I4s", frame, position)
        start = position + (16 if length == 1 else 8)
        if kind == b"jp2c":
            return start
        length = unpack_from(">Q", frame, position + 8)[0] if length == 1 else length
        if length < start - position:
            raise CodestreamError("its JPEG 2000 frame holds a box without an end")
        position += length


def _unpacked(segment: memoryview, limit: int) -> int:
    """Bytes that a segment unpacks to; the count stops beyond `limit`."""
    total = position = 0
    while position < len(segment) and total <= limit:
        header = segment[position]
        if header < 128:
            total += header + 1
            position += header + 2
        elif header > 128:
            total += 257 - header
            position += 2
        else:
            position += 1
    return total
