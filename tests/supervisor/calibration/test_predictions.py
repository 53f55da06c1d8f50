"""By which key a placement is known: what takes memory is in it, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.models.definitions import Definitions
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.types import Device
from router.supervisor.calibration.predictions import predictions, telling_args, telling_env
from tests.make_gguf import make_llama
from tests.models.test_definitions import GIB, HOST, defined, machine, models

__all__ = ["models"]  # a fixture

MACHINE = machine(host=32, small=8, large=24)


def devices_of(definitions: Definitions, margin: int = GIB) -> list[Device]:
    return [Device(name, one.total_bytes, margin, one.label) for name, one in definitions.infos.items()]


def predicted(definitions: Definitions, name: str = "tiny", margin: int = GIB):
    return predictions(definitions, devices_of(definitions, margin))[name]


def test_each_placement_has_its_prediction_in_its_order(models: Path):
    definitions = defined(models, MACHINE)
    places = [place for place in definitions.models["tiny"].placements if not place.is_fallback]
    found = predicted(definitions)[: len(places)]
    assert all(one.has_resort for one in found)
    assert [one.devices for one in found] == [(*place.devices, HOST) for place in places]
    for one, place in zip(found, places, strict=True):
        assert dict(zip(one.devices, one.predicted, strict=True)) == place.footprint
        on_gpu = definitions.infos[place.devices[0]].total_bytes - GIB
        assert one.most == (on_gpu, 31 * GIB)
        assert all(0 <= part <= whole for part, whole in zip(one.growing, one.predicted, strict=True))
    assert found[0].files == definitions.by_name["tiny"].entry.stamps


def test_where_nothing_is_checked_nothing_bounds(models: Path):
    assert predicted(defined(models, MACHINE), margin=0)[0].most == (UNBOUNDED, UNBOUNDED)


def test_identical_cards_share_what_is_learned_and_others_do_not(models: Path):
    twins = machine(host=32, small=8, large=8)
    first, second, *_ = predicted(defined(models, twins))
    assert first.devices != second.devices
    assert first.id == second.id
    first, second, *_ = predicted(defined(models, MACHINE))
    assert first.key == second.key
    assert first.shape != second.shape
    named = {name: replace(one, name=name) for name, one in twins.items()}
    first, second, *_ = predicted(defined(models, named))
    assert first.shape != second.shape


def test_the_size_of_the_main_memory_is_no_shape(models: Path):
    (small,) = predicted(defined(models, machine(host=16)))
    (large,) = predicted(defined(models, machine(host=32)))
    assert small.id == large.id


@pytest.mark.parametrize(
    "setting",
    [
        "ctx_size = 512",
        "parallel = 2",
        'cache_type_k = "q8_0"',
        'env = { GGML_CUDA_FORCE_MMQ = "1" }',
        'args = ["--override-kv", "a=int:1"]',
        'args = ["--ctx-checkpoints", "4"]',
        "ubatch_size = 64",
    ],
)
def test_what_takes_memory_makes_another_key(models: Path, setting: str):
    plain = predicted(defined(models, MACHINE))
    changed = predicted(defined(models, MACHINE, f"[models.tiny]\n{setting}\n"))
    assert plain[0].key != changed[0].key


@pytest.mark.parametrize(
    "setting",
    [
        "ttl_seconds = 60",
        'aliases = ["another"]',
        'args = ["--temp", "0.1", "--top-k", "7", "--chat-template", "chatml", "--log-timestamps"]',
        'env = { MY_OWN = "1" }',
    ],
)
def test_what_takes_none_does_not(models: Path, setting: str):
    plain = predicted(defined(models, MACHINE))
    same = predicted(defined(models, MACHINE, f"[models.tiny]\n{setting}\n"))
    assert plain[0].id == same[0].id


def test_another_name_for_the_same_file_is_no_other_model(models: Path):
    (models / "second-name.gguf").symlink_to(models / "tiny.gguf")
    definitions = defined(models, MACHINE)
    assert predicted(definitions, "tiny")[0].id == predicted(definitions, "second-name")[0].id


def test_a_changed_file_and_a_changed_binary_are_known_by_another_key(models: Path, tmp_path: Path):
    binary = tmp_path / "llama-server"
    binary.write_bytes(b"one")
    first = predicted(defined(models, MACHINE, binary=str(binary)))[0].key
    binary.write_bytes(b"another")
    second = predicted(defined(models, MACHINE, binary=str(binary)))[0].key
    make_llama(models / "tiny.gguf", name="tiny", seed=5)
    third = predicted(defined(models, MACHINE, binary=str(binary)))[0].key
    assert len({first, second, third}) == 3


def test_a_model_that_cannot_be_run_has_no_prediction(models: Path):
    (models / "half.gguf").write_bytes((models / "tiny.gguf").read_bytes()[:100])
    text = '[models.tiny]\nenv = { CUDA_VISIBLE_DEVICES = "1" }\n'
    definitions = defined(models, MACHINE, text)
    assert predicted(definitions, "half") == ()
    assert predicted(definitions, "tiny") == ()


def test_the_same_option_is_the_same_by_any_of_its_names_and_in_any_order():
    short = telling_args(["llama-server", "-c", "512", "-np", "2", "-fa", "on"])
    long = telling_args(["/other/llama-server", "--flash-attn=on", "--parallel", "2", "--ctx-size", "512"])
    assert short == long == ("ctx-size 512", "flash-attn on", "parallel 2")


def test_a_value_that_looks_like_an_option_is_not_taken_for_one():
    assert telling_args(["x", "--cache-ram", "-1", "--seed", "-1", "-kvu"]) == ("cache-ram -1", "kv-unified")
    assert telling_args(["x", "-no-kvu"]) == ("no-kv-unified",)


def test_what_is_not_understood_stays_in_the_key():
    assert telling_args(["x", "--brand-new-flag", "7"]) == ("--brand-new-flag", "7")


def test_devices_and_private_variables_are_not_in_the_key():
    env = {"CUDA_VISIBLE_DEVICES": "GPU-1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "GPU_DEVICE_ORDINAL": "0"}
    env |= {"ROCR_VISIBLE_DEVICES": "1", "HOME": "/root", "PATH": "/bin", "LANG": "C"}
    assert telling_env(env) == {}
    told = {"GGML_CUDA_NO_PINNED": "1", "CUDA_LAUNCH_BLOCKING": "1", "HSA_OVERRIDE_GFX_VERSION": "11.0.0"}
    assert telling_env({**env, **told}) == told
