"""A record that is put into words late, in the hands of handlers that know nothing of it."""

from __future__ import annotations

import io
import logging

import pytest

from router.cli.log_lines import Lines
from router.log_record import Lasting


class Told(Lasting):
    name = "router.test"

    def words(self) -> str:
        return "100 % told"


@pytest.mark.parametrize("at", [1.0, 1.25, 1.999, 86_399.5])
def test_any_handler_writes_it_as_it_would_write_another(at: float):
    pattern = "%(asctime)s %(levelname)s %(name)s %(module)s %(lineno)d %(process)d: %(message)s"
    usual = logging.LogRecord("router.test", logging.INFO, "log_record.py", 0, "100 % told", None, None)
    usual.created, usual.msecs = at, at % 1 * 1e3
    written = []
    for record in (Told(at), usual):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(pattern))
        handler.handle(record)
        written.append(stream.getvalue())
    assert written[0] == written[1]


def test_our_own_formatter_writes_it_as_any_other():
    usual = logging.LogRecord("router.test", logging.INFO, "", 0, "100 % told", None, None)
    told = Told(usual.created)
    assert Lines().format(told) == Lines().format(usual)
