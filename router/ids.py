"""Identifiers as values: what is compared has parts, and a text form only for logs and for the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True, slots=True)
class Definition:
    """How one model is run. Equal definitions mean that a running instance need not be replaced.

    `hash` is of everything that decides how the model runs: files, settings, binary. `overrides` are the
    other settings of one load, as JSON; "" where the model is loaded with its own.
    """

    hash: str = ""
    overrides: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The definition whose text form is `text`; any text is the form of one."""
        return cls(*text.partition(" ")[::2])

    @property
    def plain(self) -> Definition:
        """The same without the settings of one load."""
        return Definition(self.hash)

    def __str__(self) -> str:
        return f"{self.hash} {self.overrides}" if self.overrides else self.hash


#: Where no definition is told: in a command, the model's own is meant.
NO_DEFINITION: Final = Definition()


def instance_id(model: str, number: int) -> str:
    """The id of the model's instance with this number: "qwen#4". A model's name may have a "#" as well."""
    return f"{model}#{number}"


def model_of(instance: str) -> str:
    """The model of the instance with this id."""
    return instance.rpartition("#")[0]


def number_of(instance: str) -> int:
    """The number of the instance among those of its model; 0 where its id ends in none."""
    number = instance.rpartition("#")[2]
    return int(number) if number.isdecimal() else 0
