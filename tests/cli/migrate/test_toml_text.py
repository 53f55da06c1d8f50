"""Settings as text come back as what they were."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from router.cli.migrate.toml_text import toml_text

plain = st.text(max_size=12)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
values = st.recursive(
    plain | numbers, lambda one: st.lists(one, max_size=3) | st.dictionaries(plain, one, max_size=3)
)


@given(st.dictionaries(plain, values, max_size=4), plain)
def test_whatever_is_written_is_read(table: dict, name: str):
    read = tomllib.loads(toml_text({("models", name): table}))
    assert read == ({"models": {name: table}} if table else {})
