"""One load with other settings than the model's own, and a pin that an operator sets: both end where they
should."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from router.errors import LoadFailed, SettingsConflict
from router.ids import Definition
from router.scheduler.types import Grant, Model, Pinned, Refuse, Release, Start, Stop
from router.scheduler.views import ModelView
from tests.scheduler.playbook import Table, model, on


def varied(size: float, words: str = '{"ctx_size":512}', name: str = "a") -> Model:
    return model(name, on(gpu=size), definition=Definition("1", words))


def loads(table: Table, lease: str, wanted: Model) -> list[str]:
    """An operator's load with other settings, which ends when the model is ready."""
    return table.asks(lease, wanted.name, overrides=wanted)  # type: ignore[arg-type]


def serving(table: Table, wanted: Model) -> None:
    assert loads(table, "load", wanted) == ["start a"]
    assert table.ready("a") == ["grant load on a"]
    table.ends("load")


def test_it_gets_what_it_asked_for_and_the_next_load_gets_the_presets_own() -> None:
    table = Table(gpu=10, a=6, b=9)
    assert loads(table, "load", varied(2)) == ["start a"]
    start = next(one for one in table.commands if isinstance(one, Start))
    assert (start.definition, start.placement) == (Definition("1", '{"ctx_size":512}'), on(gpu=2))
    table.ready("a")
    table.ends("load")
    assert table.view("a").definition == Definition("1", '{"ctx_size":512}')
    assert table.asks("r1", "b") == ["stop a: evicted for b"]
    assert table.exits("a") == ["start b"]
    table.ready("b")
    table.ends("r1")
    assert table.asks("r2", "a") == ["stop b: evicted for a"]
    assert table.exits("b") == ["start a.2"]
    assert table.view("a.2").placement == on(gpu=6)
    assert table.view("a.2").definition == Definition("1")


def test_requests_that_come_meanwhile_are_served_by_it() -> None:
    table = Table(gpu=10, a=6)
    loads(table, "load", varied(2))
    assert table.asks("r1", "a") == []
    assert table.ready("a") == ["grant load on a", "grant r1 on a"]


@pytest.mark.parametrize("is_ready", [False, True])
def test_while_it_runs_with_other_settings_it_is_refused(is_ready: bool) -> None:
    table = Table(gpu=10, a=6)
    assert table.asks("r1", "a") == ["start a"]
    if is_ready:
        table.ready("a")
    assert loads(table, "load", varied(2)) == ["refuse load: SettingsConflict"]
    assert table.errors["load"].status == 409
    assert "unload it first" in table.errors["load"].message


def test_the_same_settings_again_are_no_load() -> None:
    table = Table(gpu=10, a=6)
    serving(table, varied(2))
    assert loads(table, "again", varied(2)) == ["grant again on a"]
    assert loads(table, "other", varied(3, '{"ctx_size":9}')) == ["refuse other: SettingsConflict"]


def test_a_plan_for_the_presets_settings_makes_way_for_what_the_operator_wants() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("b")
    table.asks("busy", "b")
    assert table.asks("r1", "a") == []
    assert loads(table, "load", varied(3)) == ["start a"], "beside b, which the preset's would wait for"
    assert table.ready("a") == ["grant r1 on a", "grant load on a"]


def test_one_that_leaves_the_queue_leaves_the_model_as_it_is_defined() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("b")
    table.asks("busy", "b")
    assert loads(table, "load", varied(9)) == []
    assert table.asks("r1", "a") == []
    assert table.ends("load") == []
    table.ends("busy")
    assert table.exits("b") == ["start a"]
    assert table.view("a").placement == on(gpu=6)


def test_a_gate_that_opens_again_does_not_give_an_operator_other_settings() -> None:
    table = Table(gpu=10, a=6, b=6, settings={"quantum": 0.0, "linger": 0.0})
    table.serves("a")
    table.asks("busy", "a")
    table.asks("r1", "b")
    table.wait(1.0)
    assert table.state("a") == "draining"
    assert loads(table, "load", varied(2)) != ["refuse load: SettingsConflict"]
    table.ends("r1")
    assert table.state("a") == "ready"
    assert isinstance(table.errors["load"], SettingsConflict)


def test_settings_that_do_not_load_are_told_to_who_asked_and_harm_nobody_else() -> None:
    table = Table(gpu=10, a=6)
    loads(table, "load", varied(2))
    table.asks("r1", "a")
    assert table.fails("a", "bad cache type") == ["refuse load: LoadFailed", "start a.2"]
    assert "bad cache type" in table.errors["load"].message
    assert table.view("a.2").placement == on(gpu=6)
    assert table.ready("a.2") == ["grant r1 on a.2"]


def test_out_of_memory_with_other_settings_does_not_enlarge_the_presets() -> None:
    table = Table(gpu=10, a=6)
    loads(table, "load", varied(2))
    assert table.exits("a", LoadFailed("no memory"), out_of_memory=True) == ["refuse load: LoadFailed"]
    assert table.asks("r1", "a") == ["start a.2"], "no pause, and what it always takes"
    assert table.view("a.2").placement == on(gpu=6)


def test_a_model_that_pauses_after_a_failure_may_be_tried_with_other_settings() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.fails("a")
    assert table.asks("r2", "a") == ["refuse r2: LoadFailed"]
    assert loads(table, "load", varied(2)) == ["start a.2"]


def test_one_too_large_for_the_machine_is_refused_with_its_own_numbers() -> None:
    table = Table(gpu=10, a=6)
    assert loads(table, "load", varied(40)) == ["refuse load: ModelTooLarge"]
    assert "40.0 GiB" in table.errors["load"].message
    assert table.asks("r1", "a") == ["start a"]


def test_a_reload_keeps_it_as_long_as_the_preset_is_the_same() -> None:
    table = Table(gpu=10, a=6)
    serving(table, varied(2))
    assert table.reloads(model("a", on(gpu=6))) == []
    assert table.reloads(model("a", on(gpu=6), definition=Definition("2"))) == ["stop a: reloaded"]


def test_the_next_router_adopts_it_as_long_as_the_preset_is_the_same() -> None:
    table = Table(gpu=10, a=6)
    assert table.adopts("a", "a", on(gpu=2), Definition("1", '{"ctx_size":512}')) == []
    assert table.view("a").definition == Definition("1", '{"ctx_size":512}')
    assert table.asks("r1", "a") == ["grant r1 on a"]
    table = Table(gpu=10, a=6)
    assert table.adopts("a", "a", on(gpu=2), Definition("0", '{"ctx_size":512}')) == ["stop a: reloaded"]


def test_it_gets_no_replica_of_another_kind() -> None:
    two = replace(model("a", on(gpu=3)), replicas=2, replica_max=2)
    table = Table(gpu=10, models=[two])
    assert loads(table, "load", varied(2)) == ["start a"]
    assert table.ready("a") == ["grant load on a"]
    assert table.tell(Release("load")) == []


def test_a_pin_keeps_it_and_its_end_lets_it_go() -> None:
    table = Table(gpu=10, policy="lru-ttl", ttl=30.0, a=6, b=6)
    table.serves("a")
    table.tell(Pinned("a", True))
    assert table.view("a").pinned
    assert table.wait(100.0) == []
    assert table.asks("r1", "b") == ["refuse r1: NoRoom"]
    assert "pinned" in table.errors["r1"].message
    assert table.tell(Pinned("a", False)) == ["stop a: expired"]


def test_whoever_waits_gets_the_room_of_one_that_is_unpinned() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.asks("busy", "a")
    table.tell(Pinned("a", False))
    table.asks("r1", "b")
    assert table.ends("busy") == ["stop a: evicted for b"]


def test_a_pin_outlives_the_instance_and_a_reload_and_none_is_the_presets_again() -> None:
    table = Table(gpu=10, models=[model("a", on(gpu=6), pinned=True)])
    table.serves("a")
    table.tell(Pinned("a", False))
    assert not table.view("a").pinned
    table.reloads(model("a", on(gpu=6), pinned=True))
    assert not table.view("a").pinned
    table.tell(Pinned("a", None))
    assert table.view("a").pinned


def test_a_pin_of_what_is_not_known_says_nothing() -> None:
    table = Table(gpu=10, a=6)
    assert table.tell(Pinned("zz", True)) == []


# --- at random ---


class Chance:
    """Clients, operators and children at random over one small GPU; every answer is held to what was promised
    to who asks for other settings."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.table = Table(gpu=10, a=6, b=6, c=3, settings={"quantum": 1.0, "linger": 0.0})
        self.wanted: dict[str, str] = {}
        self.granted: set[str] = set()
        self.starting: set[str] = set()
        self.alive: dict[str, str] = {}
        self.stopping: set[str] = set()
        self.generation = 1
        self.served = self.refused = 0

    def step(self) -> None:
        kinds = (
            ["ask"] * 5
            + ["vary"] * 3
            + ["ready", "exit", "end"] * 4
            + ["crash", "unload", "pin", "reload", "wait"]
        )
        getattr(self, f"_{self.random.choice(kinds)}")()

    def settle(self) -> None:
        """Nobody asks any more: every child does what it is told, every lease ends."""
        for _ in range(200):
            for verb in (self._exit, self._ready, self._end):
                while verb():
                    pass
            self.heard(self.table.wait(5.0))
            if not self.wanted and not self.starting and not self.stopping:
                return
        raise AssertionError(f"somebody waits for ever: {self.wanted}")

    # --- what happens ---

    def _ask(self) -> bool:
        return self._asks(self.random.choice("abc"), "")

    def _vary(self) -> bool:
        name = self.random.choice("abc")
        size, words = self.random.choice(
            ((1, '{"ctx_size":1}'), (4, '{"ctx_size":4}'), (9, '{"ctx_size":9}'))
        )
        return self._asks(name, f"{self.generation} {words}", size)

    def _asks(self, name: str, definition: str, size: float = 0.0) -> bool:
        lease = f"r{len(self.table.errors) + len(self.wanted) + self.served}-{self.random.random()}"
        self.wanted[lease] = definition
        if definition:
            overrides = model(name, on(gpu=size), definition=Definition.parse(definition))
            self.heard(self.table.asks(lease, name, overrides=overrides))  # type: ignore[arg-type]
        else:
            self.heard(self.table.asks(lease, name))
        return True

    def _ready(self) -> bool:
        if not (name := self._one(self.starting - self.stopping)):
            return False
        self.starting.discard(name)
        self.heard(self.table.ready(name))
        return True

    def _exit(self) -> bool:
        if not (name := self._one(self.stopping)):
            return False
        self._gone(name)
        self.heard(self.table.exits(name))
        return True

    def _crash(self) -> bool:
        if not (name := self._one(set(self.alive))):
            return False
        self._gone(name)
        self.heard(self.table.exits(name, LoadFailed("signal 11"), out_of_memory=self.random.random() < 0.3))
        return True

    def _end(self) -> bool:
        if not (lease := self._one(self.granted)):
            return False
        self.granted.discard(lease)
        self.wanted.pop(lease, None)
        self.heard(self.table.ends(lease))
        return True

    def _unload(self) -> bool:
        self.heard(self.table.unloads(self.random.choice("abc"), force=self.random.random() < 0.3))
        return True

    def _pin(self) -> bool:
        # The last word is never a pin of two that exclude each other for ever.
        self.heard(
            self.table.tell(Pinned(self.random.choice("abc"), self.random.choice((True, False, None))))
        )
        self.heard(self.table.tell(Pinned(self.random.choice("abc"), False)))
        return True

    def _reload(self) -> bool:
        self.generation += 1
        new = [
            model(name, on(gpu=size), definition=Definition(str(self.generation if name == "a" else 1)))
            for name, size in (("a", 6), ("b", 6), ("c", 3))
        ]
        self.heard(self.table.reloads(*new))
        return True

    def _wait(self) -> bool:
        self.heard(self.table.wait(self.random.choice((0.1, 1.0, 7.0))))
        return True

    # --- what is answered ---

    def heard(self, _: list[str]) -> None:
        """The commands of all that the table was told since."""
        told, self.table.told = self.table.told, []
        for command in told:
            match command:
                case Start(instance):
                    self.alive[self._name(instance)] = instance
                    self.starting.add(self._name(instance))
                case Stop(instance):
                    self.stopping.add(self._name(instance))
                case Grant(lease, instance):
                    wanted = self.wanted[lease]
                    has = self.table.view(self._name(instance)).definition
                    assert not wanted or str(has) == wanted, f"{lease} wanted {wanted} and got {has}"
                    self.granted.add(lease)
                    self.served += 1
                case Refuse(lease):
                    del self.wanted[lease]
                    self.refused += 1

    def _gone(self, name: str) -> None:
        self.starting.discard(name)
        self.stopping.discard(name)
        del self.alive[name]

    def _one(self, names: set[str]) -> str | None:
        return self.random.choice(sorted(names)) if names else None

    def _name(self, instance: str) -> str:
        return next(name for name, known in self.table.ids.items() if known == instance)


def test_at_random_nobody_waits_for_ever_or_gets_what_was_not_asked_for() -> None:
    served = refused = 0
    for seed in range(300):
        chance = Chance(seed)
        for _ in range(60):
            chance.step()
        for name in "abc":
            chance.heard(chance.table.tell(Pinned(name, False)))
        chance.settle()
        served, refused = served + chance.served, refused + chance.refused
    assert served > 1000 and refused > 1000, "both ways were gone"


def test_how_a_model_looks_follows_what_happens_to_it() -> None:
    table = Table(gpu=10, a=6, b=6)

    def seen() -> ModelView:
        return next(one for one in table.scheduler.snapshot(table.now).models if one.name == "a")

    assert seen() is seen(), "nobody has asked for it"
    table.tell(Pinned("a", True))
    assert seen().pinned
    table.tell(Pinned("a", None))
    assert not seen().pinned
    table.reloads(model("a", on(gpu=6), pinned=True), model("b", on(gpu=6)))
    assert seen().pinned
    table.asks("r1", "a")
    table.fails("a", "exit status 1")
    assert (seen().failures, seen().error) == (1, "exit status 1")
