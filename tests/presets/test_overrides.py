"""Other settings for one load: what may be said, and what it makes of a preset."""

from __future__ import annotations

import msgspec
import pytest

from router.errors import InvalidRequest
from router.ids import Definition
from router.presets import ModelPreset, Overrides
from router.presets import overrides as of_load
from router.presets.overrides import read, written
from tests.llama_server_options import OPTIONS


def overridden(preset: ModelPreset, overrides: Overrides) -> ModelPreset:
    return of_load.overridden(preset, overrides, OPTIONS)


def check_args(args: tuple[str, ...], allowed: list[str]) -> None:
    of_load.check_args(args, allowed, OPTIONS)


PRESET = ModelPreset(name="a", ctx_size=8192, cache_type_k="f16", args=("--threads", "4", "--jinja"))


def test_what_is_said_replaces_what_the_preset_says_and_nothing_else():
    made = overridden(PRESET, Overrides(ctx_size=512, cache_type_k="q8_0"))
    assert (made.ctx_size, made.cache_type_k, made.args) == (512, "q8_0", PRESET.args)
    assert overridden(PRESET, Overrides()) == PRESET


def test_an_option_replaces_the_presets_own_and_what_decides_memory_becomes_a_field():
    made = overridden(PRESET, Overrides(args=("-t", "8", "--batch-size", "64")))
    assert made.args == ("--jinja", "--threads", "8")
    assert made.batch_size == 64


def test_nothing_may_be_set_that_a_child_needs_from_the_router():
    with pytest.raises(InvalidRequest, match="port"):
        overridden(PRESET, Overrides(args=("--port", "80")))
    with pytest.raises(InvalidRequest, match="needs a value"):
        overridden(PRESET, Overrides(args=("--threads",)))


@pytest.mark.parametrize("args", [("--threads", "8"), ("-t", "8"), ("--threads", "-1"), ()])
def test_an_allowed_option_is_allowed_however_it_is_spelt(args: tuple[str, ...]):
    check_args(args, ["--threads"])
    check_args(args, ["threads"])


@pytest.mark.parametrize("arg", ["--threads-batch", "--lora", "--threads=8", "--no-such", "-np"])
def test_any_other_option_is_refused_with_those_that_are_not(arg: str):
    with pytest.raises(InvalidRequest, match=r"--threads$"):
        check_args((arg, "8"), ["--threads"])
    with pytest.raises(InvalidRequest, match="none$"):
        check_args((arg, "8"), [])


def test_they_can_be_read_back_from_behind_a_definition():
    given = Overrides(ctx_size=512, args=("--threads", "8"))
    text = written(Definition("3f2a"), given)
    assert str(text) == '3f2a {"args":["--threads","8"],"ctx_size":512}'
    assert read(text) == given
    assert read(Definition("3f2a")) is None
    with pytest.raises(InvalidRequest, match="unknown settings"):
        read(Definition("3f2a", '{"of_a_later_version":1}'))


def test_values_are_bounded_as_in_a_preset():
    for field, value in (
        ("ctx_size", -1),
        ("n_gpu_layers", "many"),
        ("cache_type_k", "q9"),
        ("devices", "x"),
    ):
        with pytest.raises(msgspec.ValidationError, match=field):
            msgspec.convert({field: value}, Overrides)
