"""Other settings for one load of a model: what an operator may say beside its name, and what preset it makes.

They are a part of the definition of what was loaded with them (`written`): the scheduler, the record of the
child and the next router know from it how the child runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from router.config import Context, Layers
from router.errors import InvalidRequest
from router.ids import Definition
from router.presets.layer import LayerReader, merge
from router.presets.options import Options
from router.presets.preset import CacheType, ModelPreset

#: What is said stands in the journal, in the database and in every list: it has a bound.
Word: TypeAlias = Annotated[str, Meta(max_length=1024)]
Words: TypeAlias = Annotated[tuple[Word, ...], Meta(max_length=64)]


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Each means what it means in a preset; None leaves it as it is there. `args` are further options of
    llama-server, of those that `server.load_args` allows."""

    ctx_size: Context | None = None
    n_gpu_layers: Layers | None = None
    devices: Words | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    args: Words = ()


def check_args(args: Collection[str], allowed: Collection[str], options: Options) -> None:
    """Raises InvalidRequest for an option that is not among `allowed`, however it is spelt."""

    def name_of(arg: str) -> str:
        spelling = options.find_arg(arg)
        return f"--{spelling.option.name}" if spelling is not None else arg

    names = {name_of(one if one.startswith("-") else f"--{one}") for one in allowed}
    for arg in args:
        if not arg.startswith("-") or arg.removeprefix("-").replace(".", "").isdigit():
            continue  # a value: an option takes it, or the reader says that it belongs to none
        if name_of(arg) not in names:
            may = ", ".join(sorted(names)) or "none"
            raise InvalidRequest(
                f"args: {arg} is not among those that a load may set (server.load_args): {may}"
            )


def overridden(preset: ModelPreset, overrides: Overrides, options: Options) -> ModelPreset:
    """The preset with these settings instead of its own. Raises InvalidRequest for what cannot be read."""
    reader = LayerReader((Path.cwd(),), options=options)
    reader.set_args(overrides.args, "load")
    layer = reader.layer()
    if layer.problems:
        raise InvalidRequest("; ".join(layer.problems))
    own = LayerReader((Path.cwd(),), options=options)
    own.set_args(preset.args, "preset")
    groups = merge([own.layer(), layer]).args
    fields = msgspec.structs.asdict(overrides).items()
    given = {name: value for name, value in fields if value is not None and name != "args"}
    args = tuple(token for tokens in groups.values() for token in tokens)
    return replace(preset, args=args, **{**layer.fields, **given})


def written(definition: Definition, overrides: Overrides) -> Definition:
    """The definition of what is loaded with them."""
    return Definition(definition.hash, msgspec.json.encode(overrides, order="sorted").decode())


def read(definition: Definition) -> Overrides | None:
    """Those of a definition; None where there are none. Raises InvalidRequest for what another version
    of this program may have written."""
    if not definition.overrides:
        return None
    try:
        return msgspec.json.decode(definition.overrides, type=Overrides)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"unknown settings: {definition.overrides[:80]} ({error})") from error
