"""Compressed bodies are decoded piece by piece, within bounds."""

from __future__ import annotations

import gzip
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from router.errors import BodyTooLarge, InvalidRequest, UnsupportedCoding
from router.proxy.coding import MOST_MEMBERS, READ_BYTES, WRITTEN_BYTES, Decoder, decoder_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}
BODY = random.Random(1).randbytes(5_000) + b'{"model": "tiny"}' * 20_000


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def decoded(names: list[str], data: bytes, *cuts: int, limit: int = 0) -> bytes:
    decoder, found, last = Decoder(names, limit), b"", 0
    for cut in (*sorted(cuts), len(data)):
        for piece in decoder.feed(data[last:cut]):
            assert len(piece) <= WRITTEN_BYTES
            found += piece
        last = cut
    decoder.end()
    return found


def decoder(*lines: str) -> Decoder | None:
    headers = CIMultiDict([("Content-Encoding", one) for one in lines])
    return decoder_of(CIMultiDictProxy(headers), 0)


@pytest.mark.parametrize("name", ENCODE)
@given(cuts=st.lists(st.integers(0, 6_000), max_size=8), size=st.sampled_from([0, 1, 700, len(BODY)]))
def test_a_body_is_decoded_in_whatever_pieces_it_comes(name: str, cuts: list[int], size: int):
    assert decoded([name], ENCODE[name](BODY[:size]), *cuts) == BODY[:size]


@given(st.lists(st.sampled_from(list(ENCODE)), min_size=1, max_size=4), st.integers(0, 300))
def test_several_codings_are_undone_from_the_last_to_the_first(names: list[str], cut: int):
    data = BODY[:9_000]
    for name in names:
        data = ENCODE[name](data)
    assert decoded(names, data, cut) == BODY[:9_000]


def test_deflate_without_the_head_of_zlib_is_taken_as_many_send_it():
    assert decoded(["deflate"], bare_deflate(BODY), 1, 2) == BODY
    assert decoded(["deflate"], zlib.compress(BODY), 1, 2) == BODY


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_several_compressed_files_in_a_row_are_one_body(name: str):
    parts = [BODY[at : at + 100_000] for at in range(0, len(BODY), 100_000)]
    assert decoded([name], b"".join(map(ENCODE[name], parts)), 7, 30_000) == BODY


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_an_endless_row_of_empty_files_is_refused(name: str):
    with pytest.raises(InvalidRequest, match="at most 10000 in a row"):
        decoded([name], ENCODE[name](b"") * (MOST_MEMBERS + 1))


@pytest.mark.parametrize("name", ENCODE)
@pytest.mark.parametrize("size", [10_000, 100 << 20], ids=["a small one", "a bomb"])
def test_no_more_is_decoded_than_may_be(name: str, size: int):
    data, limit, steps = ENCODE[name](b"\0" * size), 9_999, 0
    with pytest.raises(BodyTooLarge):
        for _ in Decoder([name], limit).feed(data):
            steps += 1
    assert not steps, "the first step is over the limit, and nothing is done after it"


def test_a_bomb_within_a_bomb_is_bounded_where_it_goes_off():
    # Hundreds of MiB of gzip data that stand for nothing at all.
    inner = gzip.compress(b"") * 1_000
    outer = zstd.compress(inner * 500)
    with pytest.raises((BodyTooLarge, InvalidRequest)):
        decoded(["gzip", "zstd"], outer, limit=1 << 20)
    with pytest.raises(BodyTooLarge):
        decoded(["deflate", "gzip"], gzip.compress(b"\x78\x9c" + b"\0\0\0\xff\xff" * 500_000), limit=1 << 20)


def test_a_window_of_zstd_that_would_take_much_memory_is_refused():
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    packer = zstd.ZstdCompressor(options=options)
    data = packer.compress(random.Random(1).randbytes(1 << 20)) + packer.flush()
    with pytest.raises(InvalidRequest, match="wrong zstd data .*memory"):
        decoded(["zstd"], data)


@pytest.mark.parametrize("name", ENCODE)
def test_what_is_wrong_is_refused_with_the_reason(name: str):
    whole = ENCODE[name](BODY)
    for data, says in (
        (whole[:-1], f"{name} data are cut short"),
        (whole[: len(whole) // 2], f"{name} data are cut short"),
        (b"\xff" * 40, f"wrong {name} data"),
        (BODY[-400:], f"wrong {name} data"),
        (whole + b"\xff" * 40, "cannot be decoded"),
        (whole[:2000] + b"\xff" * 2000 + whole[2000:], "cannot be decoded"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            decoded([name], data, 3)


@given(st.sampled_from(list(ENCODE)), st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_decoded_or_refused(name: str, data: bytes, at: int):
    whole = bytearray(ENCODE[name](BODY[:600]))
    whole[at : at + len(data)] = data
    for one in (data, bytes(whole)):
        with suppress(InvalidRequest):
            decoded([name], one, at)


def test_a_step_reads_little_of_what_has_come_at_once():
    assert decoded(["gzip"], gzip.compress(BODY, 0)) == BODY
    assert len(gzip.compress(BODY, 0)) > 10 * READ_BYTES


@pytest.mark.parametrize(
    "lines",
    [(), ("",), ("identity",), ("Identity, ", "identity")],
    ids=["none", "empty", "as it is", "twice"],
)
def test_a_body_that_is_not_encoded_needs_no_decoder(lines: tuple[str, ...]):
    assert decoder(*lines) is None


@pytest.mark.parametrize(
    ("lines", "encoded"),
    [
        (("GZIP",), gzip.compress(BODY)),
        (("x-gzip",), gzip.compress(BODY)),
        (("identity, gzip",), gzip.compress(BODY)),
        (("gzip ,zstd",), zstd.compress(gzip.compress(BODY))),
        (("gzip", "zstd"), zstd.compress(gzip.compress(BODY))),
    ],
)
def test_the_header_may_be_written_in_many_ways(lines: tuple[str, ...], encoded: bytes):
    made = decoder(*lines)
    assert made is not None
    assert b"".join(made.feed(encoded)) == BODY


@pytest.mark.parametrize("line", ["br", "gzip, br", "compress", "x", "gzip;q=1", "aes128gcm", "gzip zstd"])
def test_an_unknown_coding_is_refused_with_those_that_are_known(line: str):
    with pytest.raises(UnsupportedCoding, match="send gzip, deflate, zstd, or the body as it is"):
        decoder(line)


def test_too_many_codings_are_refused():
    with pytest.raises(UnsupportedCoding, match=re.escape("at most 4 content codings are accepted, not 5")):
        decoder("gzip, gzip", "gzip, gzip, gzip")


def test_a_python_without_zstd_decodes_the_others():
    hidden = "sys.modules['backports'] = sys.modules['compression'] = None"
    code = f"import sys; {hidden}; from router.proxy.coding import ACCEPTED; print(ACCEPTED)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "gzip, deflate"
