"""Files that are damaged in small ways, drawn by a seed: for tests that no damage ends in a foreign error."""

import struct
from collections.abc import Callable, Iterator

import numpy as np

ODD = (0, 1, 127, 128, 255)
WORDS = (
    b"0", b"-1", b"1e308", b"99999999999", b"null", b"[]", b"{}", b"''", b"true", b"NaN", b"'", b": ", b"\xe9", b"\n",
)  # fmt: skip


def mutated(whole: bytes, count: int, seed: int = 0, text: bool = False) -> Iterator[bytes]:
    """`count` damaged copies of a file: bits flipped, bytes and words changed, parts cut, doubled or filled.

    Args:
        whole: content of the file.
        count: of copies.
        seed: of the damage.
        text: put words in, and not numbers of four bytes.
    """
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        data = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            if data:
                _damage(data, generator, text)
        yield bytes(data)


def _damage(data: bytearray, generator: np.random.Generator, text: bool) -> None:
    # The head of a file says the most.
    place = int(generator.integers(len(data)) if generator.random() < 0.5 else generator.integers(min(len(data), 400)))
    length = int(min(generator.integers(1, 64), len(data) - place))
    kinds: list[Callable[[], None]] = [
        lambda: data.__setitem__(place, data[place] ^ (1 << int(generator.integers(8)))),
        lambda: data.__setitem__(place, int(generator.choice(ODD))),
        lambda: data.__delitem__(slice(place, place + length)),
        lambda: data.__delitem__(slice(place, None)),
        lambda: data.__setitem__(slice(place, place), data[place : place + length]),
        lambda: data.__setitem__(slice(place, place + length), bytes(length)),
    ]
    words = [struct.pack(order + "I", int(generator.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]))) for order in "<>"]
    chosen = bytes(generator.choice(np.array(WORDS, object)) if text else generator.choice(np.array(words, object)))
    kinds.append(lambda: data.__setitem__(slice(place, place + len(chosen)), chosen))
    kinds[int(generator.integers(len(kinds)))]()
