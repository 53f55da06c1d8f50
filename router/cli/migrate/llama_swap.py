"""A llama-swap.yaml: every name that it serves, as models of ours."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import msgspec

from router.cli.migrate.child_args import NotCarriedOver, read_command, without_comments
from router.cli.migrate.swap_yaml import Macros, SwapModel, expand
from router.cli.migrate.toml_text import toml_text

#: Keys that have another place here, or that nothing here needs: no line of the report is about them.
_NOT_REPORTED: Final = frozenset({
    "healthCheckTimeout", "logLevel", "logTimeFormat", "logToStdout", "metricsMaxInMemory", "startPort",
    "performance", "ui", "macros", "models", "groups", "hooks", "apiKeys", "globalTTL", "unloadTimeout",
    "selectors", "routing",
})  # fmt: skip
_NOT_REPORTED_OF_MODEL: Final = frozenset({
    "cmd", "cmdStop", "macros", "proxy", "checkEndpoint", "aliases", "env", "ttl", "unloadTimeout",
    "unlisted", "name", "description", "useModelName", "timeouts", "healthCheckTimeout", "filters",
    "compat", "metadata", "concurrencyLimit", "sendLoadingState", "capabilities",
})  # fmt: skip
_WHY: Final[Mapping[str, str]] = {
    "matrix": "which models may be loaded together is decided by memory, as measured",
    "profiles": "names are not replaced at runtime; give a model an alias",
    "peers": "this router serves one machine",
    "tailcat": "put a proxy in front",
    "captureBuffer": "bodies of requests are not kept",
    "store": "requests are told to Prometheus and the access log",
    "upstream": "/upstream/MODEL/ never loads a model for a page's files",
    "includeAliasesInList": "aliases stand in the field `aliases` of each model",
    "sendLoadingState": "a client that waits is kept by comments in its stream",
}


@dataclass(slots=True)
class Imported:
    """What another router's configuration becomes."""

    #: Name -> section of config.toml.
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The other sections of config.toml, by name.
    sections: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {} for name in ("server", "paths", "scheduler", "child")}
    )
    #: Lines: what is different here, or was left out and why.
    report: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text of a config.toml."""
        sections = {(name,): section for name, section in self.sections.items()}
        return toml_text(sections | {("models", name): table for name, table in self.models.items()})


def _at(table: Mapping[str, Any], *path: str) -> Any:
    """Return what stands at a path of keys; an empty table where a key is missing or has no value."""
    for key in path:
        table = table.get(key) or {}
    return table


def read_llama_swap(
    document: Mapping[str, Any],
    folders: Sequence[Path],
    environ: Mapping[str, str],
    *,
    keep_groups: bool = False,
) -> Imported:
    """`folders` as for `read_command`. `keep_groups`: what may not be loaded together there may not here."""
    imported = Imported()
    programs = Counter[str]()
    for name, given in _at(document, "models").items():
        try:
            local = msgspec.convert(given, Macros).macros or {}
            own = {**_at(document, "macros"), **local, "MODEL_ID": name, "PORT": 0, "PID": 0}
            model = expand({**given, "cmd": without_comments(str(given.get("cmd") or ""))}, own, environ)
            msgspec.convert(model, SwapModel)
            settings, program = _model(name, model, folders, imported.report)
        except msgspec.ValidationError as error:
            reason = f"llama-swap does not take it either: {error}"
        except RecursionError:
            reason = "it contains itself"
        except NotCarriedOver as error:
            reason = str(error)
        else:
            imported.models[name] = settings
            programs[program] += 1
            continue
        imported.report.append(f"{name}: NOT CARRIED OVER: {reason}")
    _globals(imported, document)
    _program(imported, programs)
    _selectors(imported, _at(document, "selectors"))
    names = {alias: name for name, model in imported.models.items() for alias in model.get("aliases", ())}
    for name in _at(document, "hooks", "on_startup", "preload"):
        if (model := imported.models.get(name) or imported.models.get(names.get(name, ""))) is not None:
            model["load_on_startup"] = True
        elif name not in _at(document, "models"):
            imported.report.append(f"hooks.on_startup.preload: {name} is no model here")
    _priorities(imported, document)
    _groups(imported, document, keep=keep_groups)
    return imported


def _model(
    name: str, model: Mapping[str, Any], folders: Sequence[Path], report: list[str]
) -> tuple[dict[str, Any], str]:
    variables = dict(str(line).partition("=")[::2] for line in model.get("env") or ())
    command = read_command(str(model.get("cmd") or ""), folders, variables)
    settings = dict(command.settings)
    settings |= {"env": command.env} if command.env else {}
    if devices := settings.get("devices"):
        report.append(f"{name}: keeps to {', '.join(devices)}; without `devices` it goes where there is room")
    filters, by_id = _at(model, "filters"), _at(model, "filters", "setParamsByID")
    named = (alias["id"] if isinstance(alias, Mapping) else alias for alias in _at(model, "aliases"))
    given = [*map(str, named), *by_id]
    aliases = [alias for alias in dict.fromkeys(given) if alias != name]
    settings |= {"aliases": aliases} if aliases else {}
    if words := model.get("description") or model.get("name"):
        settings["description"] = str(words)
    settings |= {"hidden": True} if model.get("unlisted") else {}
    ttl = model.get("ttl")
    if ttl is not None and ttl >= 0:
        settings["ttl_seconds"] = ttl or -1  # 0 is "never" there, and "as soon as idle" here
    if timeout := model.get("unloadTimeout"):
        settings["stop_grace_seconds"] = timeout
    report += [
        f"{name}: left out: {what}"
        for what in (*command.left_out, *_left_out_of_model(model, filters, by_id))
    ]
    report += _differences(name, settings)
    return settings, command.program


def _left_out_of_model(
    model: Mapping[str, Any], filters: Mapping[str, Any], by_id: Mapping[str, Any]
) -> Iterator[str]:
    if filters.get("stripParams") or filters.get("setParams"):
        yield "filters: the router does not change what requests ask for"
    if by_id:
        yield f"filters.setParamsByID: {', '.join(by_id)} are served, as the same model"
    if model.get("concurrencyLimit"):
        yield "concurrencyLimit: requests queue, up to scheduler.queue_limit; `parallel` are served at a time"
    if model.get("metadata"):
        yield "metadata: /v1/models tells what the file says"
    for key in sorted(model.keys() - _NOT_REPORTED_OF_MODEL):
        yield f"{key}: there is nothing like it"


def _differences(name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    if "ctx_size" not in settings:
        yield f"{name}: its command has no --ctx-size: it gets child.ctx_size, not what it was trained with"
    path = settings.get("model")
    if path is None and "hf_repo" not in settings:
        yield f"{name}: its command names no model file"
    elif path is not None and not Path(path).exists():
        yield f"{name}: there is no file {path}"
    elif "hf_repo" in settings:
        file = f" --include {shlex.quote(settings['hf_file'])}" if "hf_file" in settings else ""
        yield f"{name}: fetch it once, as a load does not: llama-router pull {settings['hf_repo']}{file}"


def _globals(imported: Imported, document: Mapping[str, Any]) -> None:
    keys = [str(key) for key in document.get("apiKeys") or ()]
    if keys:
        # A key that comes from the environment still does.
        imported.sections["server"]["api_keys"] = [
            f"env:{key[6:-1]}" if key.startswith("${env.") and key.endswith("}") else key for key in keys
        ]
    if ttl := document.get("globalTTL"):
        imported.sections["scheduler"] |= {"policy": "lru-ttl", "ttl_seconds": float(ttl)}
    if (timeout := document.get("unloadTimeout")) not in (None, 10):
        imported.sections["child"]["stop_grace_seconds"] = float(timeout)
    for key in document:
        if key not in _NOT_REPORTED and document[key]:
            imported.report.append(f"{key}: left out: {_WHY.get(key, 'there is nothing like it')}")
    imported.report.append(
        "llama-swap listens on every address unless told otherwise, this router on 127.0.0.1 (server.host)"
    )


def _program(imported: Imported, programs: Counter[str]) -> None:
    """The llama-server that most of them were started with, where it is a program of this machine."""
    absolute = [program for program, _ in programs.most_common() if Path(program).is_file()]
    if absolute:
        imported.sections["paths"]["llama_server"] = str(Path(absolute[0]).absolute())
    if len(programs) > 1:
        chosen = absolute[0] if absolute else "the one that is found"
        imported.report.append(f"models were started with {', '.join(programs)}; here all are with {chosen}")


def _selectors(imported: Imported, selectors: Mapping[str, Any]) -> None:
    for name, selector in selectors.items():
        target = next((one for one in selector.get("targets") or () if one in imported.models), None)
        if target is None:
            imported.report.append(f"selectors.{name}: NOT CARRIED OVER: none of its targets is served here")
            continue
        model = imported.models[target]
        model["aliases"] = [*model.get("aliases", ()), name]
        if selector.get("strategy") != "pin":
            imported.report.append(
                f"selectors.{name}: is always {target} here; see `replicas` for more than one"
            )


def _priorities(imported: Imported, document: Mapping[str, Any]) -> None:
    """Numbers there, three words here: above and below the 0 that all others have."""
    given = _at(document, "routing", "scheduler", "settings", "fifo", "priority")
    for name, number in given.items():
        if name in imported.models and number:
            imported.models[name]["priority"] = "high" if number > 0 else "low"
    if len({number for number in given.values() if number}) > 1:
        imported.report.append("routing.scheduler: priorities are high, normal or low here, not numbers")


def _groups(imported: Imported, document: Mapping[str, Any], *, keep: bool) -> None:
    """A persistent group may not be evicted: pinned. The others are there because llama-swap knows nothing of
    memory."""
    is_matrix = "matrix" in document or _at(document, "routing", "router", "use") == "matrix"
    # Newer files have the groups in the second place.
    given = _at(document, "groups") or _at(document, "routing", "router", "settings", "groups")
    groups = {name: {"swap": True, "exclusive": True, **(group or {})} for name, group in given.items()}
    members = {
        name: [m for m in group.get("members") or () if m in imported.models]
        for name, group in groups.items()
    }
    grouped = {member for ones in members.values() for member in ones}
    rest = [name for name in imported.models if name not in grouped]
    if rest and not is_matrix:
        groups["(default)"], members["(default)"] = {"swap": True, "exclusive": True}, rest
    for name, group in groups.items():
        if group.get("persistent"):
            for member in members[name]:
                imported.models[member]["pinned"] = True
    if keep:
        if exclusive := list(_exclusive(groups, members)):
            imported.sections["scheduler"]["exclusive"] = exclusive
    elif len(imported.models) > 1:
        imported.report.append(
            "groups: models are loaded together where they fit, by memory as measured; --keep-groups forbids "
            "what llama-swap forbade"
        )


def _exclusive(groups: Mapping[str, Any], members: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """Who may not be loaded together: the members of a group that swaps, and those of a group that is
    exclusive with those of others that may leave."""
    for name, group in groups.items():
        if group["swap"] and len(members[name]) > 1:
            yield members[name]
    for one, other in combinations(groups, 2):
        if (groups[one]["exclusive"] or groups[other]["exclusive"]) and not (
            groups[one].get("persistent") or groups[other].get("persistent")
        ):
            yield from ([a, b] for a in members[one] for b in members[other])
