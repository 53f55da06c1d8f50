"""From real headers and a snapshot of devices to ways and rooms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.config import load_config
from router.errors import ModelUnusable
from router.memory.devices import DeviceInfo
from router.memory.estimate.learning import FootprintStatus
from router.memory.estimate.values import EstimatedPlacement
from router.models.catalog import Catalog
from router.models.definitions import define
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import Device, Measured
from router.scheduler.views import DeviceView, Snapshot
from router.supervisor.planning import Seen, choices, empty_rooms, missing, plan_together, rooms_now
from router.supervisor.planning.needs import wish
from tests.make_gguf import make_llama

GIB = 1 << 30
GPU, HOST = "local/cuda:GPU-1", "local/host"


def device(others: int | None = 2, margin: int = 1, room: int | None = 10) -> DeviceView:
    sizes = {"others": others, "room": room}
    scaled = {name: None if size is None else size * GIB for name, size in sizes.items()}
    free = None if others is None else 12 * GIB
    return DeviceView(
        id=GPU,
        label="cuda:0 A Card",
        total=24 * GIB,
        margin=margin * GIB,
        free=free,
        reserved=0,
        used=0,
        promised=0,
        returning=0,
        others=scaled["others"],
        room=scaled["room"],
    )


def snapshot(*devices: DeviceView) -> Snapshot:
    return Snapshot(0.0, "lru", (), (), devices, (), 0)


def test_an_empty_machine_has_what_the_margin_and_other_programs_leave():
    assert empty_rooms(snapshot(device())) == {GPU: 21 * GIB}
    assert empty_rooms(snapshot(device(others=30))) == {GPU: 0}


def test_an_unhealthy_device_has_no_room_and_one_without_a_check_any():
    assert empty_rooms(snapshot(device(others=None, room=None))) == {GPU: 0}
    assert rooms_now(snapshot(device(others=None, room=None))) == {GPU: 0}
    assert empty_rooms(snapshot(device(margin=0))) == {GPU: UNBOUNDED}


def test_what_is_missing_is_told_per_device():
    assert missing({GPU: 3}, {GPU: 5, HOST: 1}) == {GPU: 2, HOST: 1}
    assert missing({GPU: 5}, {GPU: 5, HOST: 0}) == {}
    assert missing({GPU: -4}, {GPU: 5}) == {GPU: 5}, "what is overdrawn is not to be paid back by a newcomer"


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    """A machine with 2 GiB on its GPU, of which other programs hold a little."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a", "b"):
        make_llama(folder / f"{name}.gguf", name=name, n_ctx_train=1 << 20, sparse=True, n_layers=4)
    (folder / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    source = tmp_path / "config.toml"
    source.write_text(
        f'[paths]\nmodels_dirs = ["{folder}"]\nhf_cache = false\n[memory]\ncontext_overhead_mib = 0\n'
        "[models.a]\nctx_size = 65536\n"
    )
    config = load_config(source)
    devices = [Device(GPU, 2 * GIB, GIB, "cuda:0 A Card"), Device(HOST, 64 * GIB, GIB, "host")]
    infos = {
        one.id: DeviceInfo(
            one.id.partition("/")[2], one.id.partition("/")[2].partition(":")[0], one.label, "GPU-1",
            one.total, one.total, 0, None, None, None, one.id.partition("/")[2],
        )
        for one in devices
    }  # fmt: skip
    definitions = define(Catalog.scan(config), config, devices, infos, binary=Path("/bin/true"), environ={})
    scheduler = Scheduler(definitions.models, devices, make_policy("lru"), Settings())
    scheduler.handle(Measured({GPU: 2 * GIB - (50 << 20), HOST: 60 * GIB}, at=0.0), 0.0)
    return Seen(definitions, scheduler.snapshot(0.0))


def test_a_wish_halves_the_context_down_to_4096(seen: Seen):
    sizes = [step[0].ctx_size for step in wish(seen, "a").steps]
    assert sizes == [65536, 32768, 16384, 8192, 4096]
    needs = [step[0].footprint[GPU] for step in wish(seen, "a").steps]
    assert needs == sorted(needs, reverse=True)
    assert [step[0].ctx_size for step in wish(seen, "a", 6000).steps] == [6000, 4096]
    assert [step[0].ctx_size for step in wish(seen, "a", 1000).steps] == [1000]
    assert len(wish(seen, "a", is_reducible=False).steps) == 1


def test_no_model_gets_more_context_than_it_was_trained_with(seen: Seen):
    assert seen.defined("a", 1 << 22).estimates[0].ctx_size == 1 << 20
    assert seen.defined("a") is seen.definitions.by_name["a"]


def test_what_cannot_be_loaded_says_why(seen: Seen):
    with pytest.raises(ModelUnusable, match="broken"):
        seen.defined("broken")
    with pytest.raises(ModelUnusable, match="broken"):
        plan_together(seen, ["a", "broken"])
    kept = seen.definitions.by_name["broken"].model.error
    assert kept is not None
    assert kept.__traceback__ is None, "what is kept holds no frame of those who were told"


def test_models_fit_together_with_less_context_where_their_own_is_too_much(seen: Seen):
    together, _ = plan_together(seen, ["a", "b"])
    assert together.all is not None and not together.all.is_reduced
    need = sum(way.footprint[GPU] for way in together.all.ways.values())
    others = next(one for one in seen.snapshot.devices if one.id == GPU)
    tight = replace(others, total=GIB + (others.others or 0) + need - 1)
    less = replace(seen, snapshot=replace(seen.snapshot, devices=(tight, seen.snapshot.devices[1])))
    together, wishes = plan_together(less, ["a", "b"])
    assert together.all is not None and together.all.is_reduced
    contexts = {name: way.ctx_size for name, way in together.all.ways.items()}
    assert contexts in ({"a": 32768, "b": 8192}, {"a": 65536, "b": 4096})
    assert [one.model for one in wishes] == ["a", "b"]


def test_what_was_learned_replaces_the_estimate_at_the_own_context_only(seen: Seen):
    estimate, *resorts = seen.definitions.by_name["a"].estimates
    booked = {device: size + 7 for device, size in estimate.footprint.items()}
    standing = FootprintStatus("measured", estimate.footprint, {}, booked)
    unknown = [FootprintStatus("estimated", one.footprint, {}, one.footprint) for one in resorts]
    learned = replace(seen, standings={"a": (standing, *unknown)})
    (choice,) = choices(learned, learned.defined("a"))
    assert (choice.reserved, choice.confidence) == (booked, "measured")
    assert set(choice.corrections.values()) == {7}
    (choice,) = choices(learned, learned.defined("a", 4096))
    assert (choice.confidence, choice.corrections) == ("estimated", {})


def test_slower_ways_are_offered_only_where_what_was_learned_leaves_no_other(seen: Seen):
    estimates = seen.definitions.by_name["a"].estimates
    whole = [one for one in estimates if not one.is_fallback]
    assert 0 < len(whole) < len(estimates)
    assert [one.estimate for one in choices(seen, seen.defined("a"))] == whole

    def learned(one: EstimatedPlacement) -> FootprintStatus:
        booked = one.footprint if one.is_fallback else {GPU: 999 * GIB}
        return FootprintStatus("measured", one.footprint, {}, booked)

    too_large = replace(seen, standings={"a": tuple(map(learned, estimates))})
    assert [one.estimate for one in choices(too_large, too_large.defined("a"))] == list(estimates)
