"""A configuration is loaded whole, or refused with every problem it has."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config import Config, DeviceConfig, find_config, load_config, parse_override
from router.config.nearest import valid_keys
from router.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "config.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def problems(path, overrides=None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load_config(path, overrides or {})
    return str(refused.value).splitlines()


# --- which file ---


def test_without_any_file_the_defaults_hold():
    loaded = load_config(None)
    assert loaded == Config()
    assert loaded.source is None


def test_the_file_in_the_users_configuration_folder_is_found(home):
    file = home / ".config" / "llama-router" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[server]\nport = 1\n")
    assert load_config(None).server.port == 1
    assert find_config() == file


def test_an_environment_variable_names_another_file(home, write, monkeypatch):
    (home / ".config" / "llama-router").mkdir(parents=True)
    (home / ".config" / "llama-router" / "config.toml").write_text("[server]\nport = 1\n")
    monkeypatch.setenv("LLAMA_ROUTER_CONFIG", str(write("[server]\nport = 2\n")))
    assert load_config(None).server.port == 2


def test_an_environment_variable_that_names_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_ROUTER_CONFIG", str(tmp_path / "gone.toml"))
    assert "LLAMA_ROUTER_CONFIG" in problems(None)[0]


def test_a_relative_xdg_folder_is_ignored_as_the_specification_wants(home, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "elsewhere")
    (home / "elsewhere" / "llama-router").mkdir(parents=True)
    (home / "elsewhere" / "llama-router" / "config.toml").write_text("[server]\nport = 1\n")
    assert find_config() is None


def test_a_file_that_was_named_must_exist(tmp_path):
    assert problems(tmp_path / "gone.toml") == [f"{tmp_path}/gone.toml: No such file or directory"]


def test_a_folder_is_not_a_file(tmp_path):
    assert problems(tmp_path) == [f"{tmp_path}: Is a directory"]


def test_a_file_that_is_not_toml_is_refused_with_the_place(write):
    (line,) = problems(write("[server\nport = 1\n"))
    assert "config.toml: " in line
    assert "line 1" in line


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"[server]\nhost = '\xff'\n")
    assert "not UTF-8" in problems(tmp_path / "config.toml")[0]


# --- what is wrong ---


def test_a_misspelt_key_is_refused_with_its_line_and_the_nearest_key(write):
    file = write("[server]\nhost = 'x'\nprot = 80\n")
    assert problems(file) == [f"{file}:3: server.prot: there is no such key; did you mean server.port?"]


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(write):
    file = write("port = 80\n[child]\nmargin_mib = 5\n")
    assert problems(file) == [
        f"{file}:1: port: there is no such key; did you mean server.port?",
        f"{file}:3: child.margin_mib: there is no such key; did you mean memory.margin_mib?",
    ]


def test_a_misspelt_section_is_refused_with_the_nearest_one(write):
    assert problems(write("[sheduler]\n"))[0].endswith(
        "sheduler: there is no such section; did you mean [scheduler]?"
    )


def test_an_unheard_of_section_is_told_which_there_are(write):
    assert "there are [child], [downloads], [memory]" in problems(write("[zzzz]\n"))[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("foreign_wait_seconds = 1.0", "external_memory_wait_seconds"),
        ("yield_to_others = true", "evict_on_memory_pressure"),
        ("second_opinion = true", "use_llama_fit_params"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(write, old: str, new: str):
    file = write(f"[memory]\n{old}\n")
    key = old.partition(" ")[0]
    assert problems(file) == [f"{file}:2: memory.{key}: this key is called memory.{new} now"]


def test_a_key_like_no_other_is_told_which_there_are(write):
    line = problems(write("[server]\nzzzz = 1\n"))[0]
    assert line.endswith(
        "[server] has host, port, api_keys, admin_keys, allowed_hosts, cors_origins, default_model, "
        "max_body_mib, connections_max, client_share, request_head_seconds, request_body_seconds, "
        "keepalive_seconds, client_stall_seconds, shutdown_grace_seconds, "
        "restart_grace_seconds, access_log, access_log_format, stream_head_seconds, "
        "stream_heartbeat_seconds, load_args"
    )


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("server.port", "65536", "expected int <= 65535"),
        ("server.port", "-1", "expected int >= 0"),
        ("server.port", "'80'", "expected int, got str"),
        ("server.port", "true", "expected int, got bool"),
        ("server.host", "5", "expected str | array, got int"),
        ("server.host", "[]", "a list without an address"),
        ("server.host", "['127.0.0.1', '']", "an address is empty"),
        ("server.host", "'[::1]:80'", "server.port"),
        ("server.allowed_hosts", "['llm.example:8080']", 'write "llm.example"'),
        ("server.allowed_hosts", "['*', 'a b']", "'a b' is no name of a host"),
        ("server.cors_origins", "['moz-extension:*']", "has no scheme"),
        (
            "server.cors_origins",
            "['http://x', 'https://chat.example/']",
            'browsers send only "https://chat.example"',
        ),
        ("server.client_share", "0", "expected float > 0.0"),
        ("server.client_share", "1.5", "expected float <= 1.0"),
        ("server.cors_origins", "'*'", "expected array, got str"),
        ("server.max_body_mib", "0", "expected int >= 1"),
        ("server.shutdown_grace_seconds", "-0.5", "expected float >= 0.0"),
        ("memory.margin_mib", "-1", "expected int >= 0"),
        ("memory.poll_seconds", "0", "expected float > 0.0"),
        ("scheduler.policy", "'lru-tll'", "did you mean 'lru-ttl'?"),
        ("scheduler.placement", "'worst'", "expected one of 'best-fit', 'spread'"),
        ("scheduler.queue_timeout_seconds", "nan", "expected float > 0.0"),
        ("scheduler.queue_timeout_seconds", "inf", "expected float <="),
        ("scheduler.queue_limit", "1.5", "expected int, got float"),
        ("scheduler.exclusive", "['a', 'b']", "expected array, got str at [0]"),
        ("scheduler.exclusive", "[['a']]", "needs two models or more"),
        ("child.ctx_size", "'atuo'", "expected a number or 'auto'; did you mean 'auto'?"),
        ("child.ctx_size", "-1", "expected int >= 0"),
        ("child.n_gpu_layers", "'al'", "did you mean 'all'?"),
        ("child.parallel", "0", "expected int >= 1"),
        ("child.cache_ram_mib", "-2", "expected int >= -1"),
        ("child.args", "['-x', 1]", "expected str, got int at [1]"),
        ("child.env", "{ A = 1 }", "expected str, got int"),
        ("paths.models_dirs", "['']", "expected a path"),
        ("paths.models_dirs", "['~nobody-of-that-name/x']", "home directory"),
        ("paths.hf_cache", "1", "expected bool, got int"),
        ("memory.devices", "{ 'cuda:0' = 5 }", "expected a table"),
        ("memory.devices", "{ 'cuda:0' = { margin_mib = -1 } }", "expected int >= 0"),
        (
            "memory.devices",
            "{ 'cuda:0' = { margin = 1 } }",
            'did you mean memory.devices."cuda:0".margin_mib?',
        ),
        ("models.x", "5", "expected a table, [models.x]"),
        ("server", "5", "expected a table, [server]"),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(write, key, value, reason):
    (line,) = problems(write(f"{key} = {value}\n"))
    assert ":1: " in line
    assert key in line
    assert reason in line


def test_all_problems_are_reported_at_once(write):
    file = write("[server]\nport = -1\n[memory]\nmargin = 5\n[scheduler]\npolicy = 'x'\n")
    found = problems(file, {"child.parallel": 0})
    assert [line.split(": ")[0] for line in found] == [f"{file}:2", f"{file}:4", f"{file}:6", "command line"]


def test_a_pause_cannot_begin_longer_than_it_may_become(write):
    (line,) = problems(write("[scheduler]\nbackoff_initial_seconds = 90\n"))
    assert "backoff_initial_seconds = 90.0: is more than scheduler.backoff_max_seconds = 60.0" in line


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
keys = st.text(max_size=8) | st.sampled_from([".".join(key) for key in valid_keys(Config)])


@settings(max_examples=200)
@given(st.dictionaries(keys, values, max_size=3))
def test_whatever_the_overrides_are_they_are_taken_or_refused(overrides):
    with suppress(ConfigError):
        load_config(None, overrides)


# --- keys ---


def test_keys_can_be_kept_in_the_environment_and_in_files(write, tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", " from-env\n")
    (tmp_path / "keys").write_text("# of the family\nfrom-file-1\n\nfrom-file-2\n")
    loaded = load_config(write("[server]\napi_keys = ['plain', 'env:THE_KEY', 'file:keys']\n"))
    assert loaded.server.api_keys == ("plain", "from-env", "from-file-1", "from-file-2")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("env:NOT_SET_ANYWHERE", "the environment variable NOT_SET_ANYWHERE is empty or not set"),
        ("file:gone", "gone: No such file or directory"),
        ("file:empty", "empty holds no key"),
        ("  ", "number 1 is empty"),
    ],
)
def test_an_empty_key_is_refused(write, tmp_path, key, reason):
    (tmp_path / "empty").write_text("# nothing\n")
    (line,) = problems(write(f"[server]\nadmin_keys = ['{key}']\n"))
    assert "server.admin_keys: " in line
    assert reason in line


def test_a_message_never_shows_a_key(write):
    (line,) = problems(write("[server]\napi_keys = 'sk-secret'\n"))
    assert "sk-secret" not in line


# --- what becomes of it ---


def test_paths_are_made_absolute_from_the_folder_of_the_file(write, tmp_path, home, monkeypatch):
    monkeypatch.setenv("DISK", "/mnt/disk")
    loaded = load_config(write(
        "[paths]\nmodels_dirs = ['~/m', 'near', '$DISK/m', '/a/../b']\nllama_server = './bin/x'\n"
        "state_dir = ''\n"
    ))  # fmt: skip
    assert loaded.paths.models_dirs == (home / "m", tmp_path / "near", Path("/mnt/disk/m"), Path("/b"))
    assert loaded.paths.llama_server == tmp_path / "bin" / "x"
    assert loaded.paths.state_dir is None


def test_a_whole_number_does_for_seconds(write):
    loaded = load_config(write("[server]\nshutdown_grace_seconds = 5\n"))
    assert isinstance(loaded.server.shutdown_grace_seconds, float)


def test_tables_of_names_are_read(write):
    loaded = load_config(write(
        "[memory.devices.host]\nenabled = false\n[child.env]\nA = 'b'\n[models.'a.b']\nctx_size = 5\n"
    ))  # fmt: skip
    assert loaded.memory.devices == {"host": DeviceConfig(enabled=False)}
    assert loaded.child.env == {"A": "b"}
    assert loaded.models == {"a.b": {"ctx_size": 5}}
    assert loaded.lines[("models", "a.b", "ctx_size")] == 6


def test_a_loaded_configuration_cannot_be_changed(write):
    loaded = load_config(write("[child.env]\nA = 'b'\n[models.x]\nctx_size = 5\n"))
    table: Any
    for table in (loaded.child.env, loaded.models, loaded.models["x"], loaded.memory.devices):
        with pytest.raises(TypeError):
            table["new"] = 1


# --- the command line ---


def test_the_command_line_has_the_last_word(write):
    file = write("[server]\nport = 1\nhost = 'h'\n[scheduler]\nexclusive = [['a', 'b']]\n")
    loaded = load_config(file, {"server.port": 2, "scheduler.exclusive": [["c", "d"]], "server.host": None})
    assert loaded.server.port == 2
    assert loaded.server.host == "h", "None is an option that was not given"
    assert loaded.scheduler.exclusive == (("c", "d"),)


def test_arguments_of_the_command_line_are_added_to_those_of_the_file(write):
    loaded = load_config(write("[child]\nargs = ['-t', '4']\n"), {"child.args": ("-t", "8")})
    assert loaded.child.args == ("-t", "4", "-t", "8")


def test_one_entry_of_a_table_can_be_set_from_the_command_line(write):
    file = write("[child.env]\nA = 'a'\nB = 'b'\n")
    loaded = load_config(
        file, {"child.env.B": "c", 'models."x.y".ctx_size': 5, "memory.devices.cuda:0.enabled": False}
    )
    assert loaded.child.env == {"A": "a", "B": "c"}
    assert loaded.models == {"x.y": {"ctx_size": 5}}
    assert loaded.memory.devices == {"cuda:0": DeviceConfig(enabled=False)}


def test_a_path_of_the_command_line_is_relative_to_the_working_directory(write, home):
    loaded = load_config(write(""), {"paths.models_dirs": [Path("m")], "paths.state_dir": "s"})
    assert loaded.paths.models_dirs == (home / "m",)
    assert loaded.paths.state_dir == home / "s"


def test_options_that_contradict_each_other_are_refused():
    assert "another option sets env as a whole" in problems(None, {"child.env": "x", "child.env.A": "b"})[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("server.port=9000", 9000),
        ("server.host=0.0.0.0", "0.0.0.0"),
        ("server.host = '::1'", "::1"),
        ("server.api_keys=['a', 'b']", ["a", "b"]),
        ("server.access_log=false", False),
        ("server.host=", ""),
        ("server.host=a\nserver.port=1", "a\nserver.port=1"),
        ("server.host='a'\nx=1", "'a'\nx=1"),
    ],
)
def test_an_override_is_a_toml_value_or_else_a_text(text, value):
    assert parse_override(text) == (text.partition("=")[0].strip(), value)


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_override("server.port")


@given(st.integers(0, 65535))
def test_every_port_can_be_overridden(port):
    key, value = parse_override(f"server.port={port}")
    assert load_config(None, {key: value}).server.port == port


def test_an_override_of_a_bare_key_is_what_toml_makes_of_it():
    assert tomllib.loads("a.b = 1") == {"a": {"b": 1}}
    assert problems(None, {"port": 1}) == [
        "command line: port: there is no such key; did you mean server.port?"
    ]
