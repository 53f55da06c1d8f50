"""The machines that traces run on: devices, and models with bytes, load seconds and tokens per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from router.ids import Definition
from router.scheduler.types import Device, DeviceId, Model, ModelName, Placement

GIB: Final = 2**30
HOST: Final = "sim"


@dataclass(frozen=True, slots=True)
class Spec:
    """What the simulation knows of a model. Rates are tokens per second of one slot; beyond `slots`
    requests queue inside. `load_seconds` where it was measured; else it follows from the size."""

    name: ModelName
    size_bytes: int
    prefill_rate: float
    decode_rate: float
    slots: int = 4
    load_seconds: float | None = None

    @classmethod
    def of_size(cls, name: ModelName, gib: float, slots: int = 4) -> Spec:
        """A model of `gib` GiB on a card of about 500 GiB/s: decoding reads every weight once per token,
        so it goes with bandwidth / size; prefill is bound by arithmetic, which goes with size as well."""
        return cls(name, round(gib * GIB), min(6000.0, 20000.0 / gib), min(150.0, 480.0 / gib), slots)

    def prefill_seconds(self, tokens: int) -> float:
        return max(1, tokens) / self.prefill_rate

    def decode_seconds(self, tokens: int) -> float:
        return tokens / self.decode_rate


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices, the models that may run there, and how long things take.

    A load takes `startup_seconds` before the first byte is on a device, then the size at `load_rate` bytes
    per second, in `load_steps` equal parts: 1.2 s + size / 2 GiB/s by default, warm page cache. Loads do
    not slow each other down. A stopped child exits after `stop_seconds`; the driver gives its memory back
    `return_seconds` later.
    """

    devices: tuple[Device, ...]
    specs: tuple[Spec, ...]
    startup_seconds: float = 1.2
    load_rate: float = 2.0 * GIB
    load_steps: int = 4
    stop_seconds: float = 0.3
    return_seconds: float = 0.5

    def spec(self, model: ModelName) -> Spec:
        """The spec of `model`; KeyError if this machine has none."""
        return self.by_name()[model]

    def by_name(self) -> Mapping[ModelName, Spec]:
        return {spec.name: spec for spec in self.specs}

    def load_seconds(self, spec: Spec) -> float:
        if spec.load_seconds is not None:
            return spec.load_seconds
        return self.startup_seconds + spec.size_bytes / self.load_rate

    def models(self) -> Mapping[ModelName, Model]:
        """The definitions as the core wants them, placements best first."""
        return {
            spec.name: Model(
                spec.name,
                self.placements(spec),
                definition=Definition(spec.name),
                load_seconds=self.load_seconds(spec),
            )
            for spec in self.specs
        }

    def placements(self, spec: Spec) -> tuple[Placement, ...]:
        """Every single device that can hold it; if none can, a split over every set of the fewest
        devices that do, each taking its share of their room."""
        rooms = {device.id: device.total - device.margin for device in self.devices}
        for count in range(1, len(rooms) + 1):
            found = [
                Placement(HOST, _split(spec.size_bytes, chosen, rooms), chosen)
                for chosen in combinations(rooms, count)
                if spec.size_bytes <= sum(rooms[device] for device in chosen)
            ]
            if found:
                return tuple(found)
        raise ValueError(f"{spec.name} ({spec.size_bytes / GIB:.1f} GiB) fits no placement of this machine")


def _split(size: int, chosen: Sequence[DeviceId], rooms: Mapping[DeviceId, int]) -> Mapping[DeviceId, int]:
    room = sum(rooms[device] for device in chosen)
    split = {device: size * rooms[device] // room for device in chosen}
    split[max(chosen, key=lambda device: rooms[device])] += size - sum(split.values())
    return split


def card(name: str, gib: float, margin_gib: float = 0.5) -> Device:
    """A device `sim/NAME` of `gib` GiB, all of it usable but the margin."""
    return Device(f"{HOST}/{name}", round(gib * GIB), round(margin_gib * GIB), label=name)


def _specs(**sizes: float) -> tuple[Spec, ...]:
    return tuple(Spec.of_size(name.replace("_", "-"), gib) for name, gib in sizes.items())


#: Models stand in the order of their popularity: the generator's Zipf law and imported journals follow it.
MACHINES: Final[Mapping[str, Machine]] = {
    "home": Machine(
        (card("gpu0", 24),),
        _specs(chat_8b=6, coder_14b=11, chat_27b=18, vision_12b=9, reason_32b=20, title_1b=2.5, embed_4b=3),
    ),
    "lab": Machine(
        tuple(card(f"gpu{n}", 24) for n in range(4)),
        _specs(
            chat_8b=6, chat_27b=18, coder_32b=20, chat_14b=10, vision_12b=9, reason_32b=20, coder_7b=5.5,
            moe_60b=38, chat_4b=4, roleplay_24b=16, translate_9b=7, audio_3b=3.5, title_1b=2.5, embed_4b=3,
        ),
    ),
    "agents": Machine(
        (card("gpu0", 24), card("gpu1", 12)),
        _specs(
            coder_14b=11, reason_32b=20, chat_8b=6, coder_27b=17, chat_14b=10, vision_12b=9, title_1b=2.5,
            embed_4b=3,
        ),
    ),
    "bursts": Machine(
        (card("gpu0", 24),),
        _specs(m1=8, m2=14, m3=5, m4=20, m5=2.5, m6=11, m7=17, m8=6.5),
    ),
}  # fmt: skip
