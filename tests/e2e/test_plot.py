"""`bench/plot`: what it makes of the access log, in both of its forms, and of a run."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.plot import PARTS, draw, main, read, run

pytestmark = pytest.mark.e2e

TEXT = """\
llama-router 0.1.0 listens on http://127.0.0.1:8080 (2 models)
2026-11-21 12:00:00,000 INFO router.access: 127.0.0.1 GET /health 200 total=1ms
2026-11-21 12:00:10,000 INFO router.pool: start qwen#1 on local/host 205 MiB
2026-11-21 12:00:12,500 INFO router.access: 127.0.0.1 POST /v1/chat/completions 200 qwen loaded \
queue=250ms load=1500ms first=50ms total=2500ms tokens=8+64 policy=lru
2026-11-21 12:00:13,000 INFO router.access: 127.0.0.1 POST /v1/chat/completions 503 llama rejected \
queue=400ms load=0ms total=400ms error=queue_full policy=lru
"""
JSON = (
    '{"time":"2026-11-21T12:00:12.500Z","client":"127.0.0.1","method":"POST","path":"/v1/chat/completions",'
    '"status":200,"model":"qwen","action":"loaded","queue_ms":250.0,"load_ms":1500.0,"first_byte_ms":50.0,'
    '"total_ms":2500.0,"error":null,"evicted":[]}\n'
    '{"time":"2026-11-21T12:00:13.000Z","client":"127.0.0.1","method":"GET","path":"/health","status":200,'
    '"model":null,"total_ms":1.0}\n'
    "{ half a line\n"
)
SVG = "{http://www.w3.org/2000/svg}"


def test_the_parts_of_a_request_are_read_from_the_log_as_text() -> None:
    loaded, rejected = read(TEXT.splitlines())
    assert (loaded.model, loaded.action, loaded.status) == ("qwen", "loaded", 200)
    assert loaded.parts == pytest.approx((0.25, 1.5, 0.05, 0.7))
    assert rejected.begun_at - loaded.begun_at == pytest.approx(2.6)
    assert (rejected.action, rejected.status) == ("rejected", 503)
    assert rejected.parts == pytest.approx((0.4, 0.0, 0.0, 0.0))


def test_the_parts_of_a_request_are_read_from_the_log_as_json() -> None:
    (loaded,) = read(JSON.splitlines())
    assert (loaded.model, loaded.action, loaded.status) == ("qwen", "loaded", 200)
    assert loaded.parts == pytest.approx((0.25, 1.5, 0.05, 0.7))
    assert loaded.begun_at == 1795262410.0


def test_every_request_has_a_bar_of_its_parts_in_the_colour_of_its_action() -> None:
    bars = list(read(TEXT.splitlines()))
    picture = ElementTree.fromstring(draw(bars, "a <log>"))
    rows = picture.findall(f"{SVG}g")
    assert [row.findtext(f"{SVG}title", "").partition(";")[0] for row in rows] == [
        "qwen: loaded, 200",
        "llama: rejected, 503",
    ]
    loaded, rejected = ([one.get("fill") for one in row.findall(f"{SVG}rect")] for row in rows)
    assert len(set(loaded)) == len(PARTS)
    assert len(rejected) == 1
    assert not set(loaded) & set(rejected)
    widths = [float(one.get("width", 0)) for one in rows[0].findall(f"{SVG}rect")]
    assert widths[1] / widths[0] == pytest.approx(6.0, rel=0.01)


def test_a_log_without_requests_is_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("nothing of interest\n")
    assert main([str(log), "--out", str(tmp_path / "picture.svg")]) == 1
    assert "no request for a model" in capsys.readouterr().err
    assert not (tmp_path / "picture.svg").exists()


def test_the_latest_requests_are_drawn_where_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert main(["-", "--last", "1", "--out", str(tmp_path / "picture.svg")]) == 0
    assert len(ElementTree.parse(tmp_path / "picture.svg").getroot().findall(f"{SVG}g")) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_lines_of_a_real_router_are_drawn(form: str) -> None:
    """A log whose form changes must not become an empty picture."""
    bars = list(read(run(6, form)))
    assert len(bars) == 6
    assert {bar.status for bar in bars} == {200}
    assert {"loaded", "queued"} & {bar.action for bar in bars}
    assert all(bar.seconds > 0 for bar in bars)
    assert len(ElementTree.fromstring(draw(bars, "a run")).findall(f"{SVG}g")) == 6
