"""What a model looks like in a list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.admin import Known
from router.admin.listing import Listing, Progress, visible
from router.downloads import DownloadSpec, Job
from router.downloads.job import RemoteFile
from router.scheduler.types import State
from router.scheduler.views import ModelView, QueueView, Snapshot
from tests.admin.fake_pool import GIB, GPU, FakePool, Instance


def shown(known: Known, name: str, *states: State, **changes: Any) -> Any:
    pool = FakePool()
    for number, state in enumerate(states, 1):
        pool.instances[f"{name}#{number}"] = Instance(f"{name}#{number}", name, "", state)
    snapshot = replace(pool.snapshot(), **changes)
    row = Listing(known.cards, snapshot).row(name)
    return msgspec.json.decode(msgspec.json.encode(row))


def test_a_model_has_the_fields_of_llama_cpp(known: Known, models_dir: Path):
    model = shown(known, "tiny")
    assert model["object"] == "model"
    assert model["owned_by"] == "llamacpp"
    assert set(model["aliases"]) == {"small", "org/tiny"}
    assert model["tags"] == ["test"]
    assert model["source"] == "models_dir"
    assert model["architecture"] == {"input_modalities": ["text"], "output_modalities": ["text"]}
    assert model["can_remove"] is False
    assert model["meta"]["n_ctx"] == 512
    assert model["meta"]["n_ctx_train"] == 2048
    assert model["meta"]["n_params"] > 100_000
    assert model["created"] == int((models_dir / "tiny.gguf").stat().st_mtime)


def test_it_is_as_old_as_its_file_at_every_look(known: Known):
    assert shown(known, "tiny")["created"] == shown(known, "tiny")["created"] > 0


def test_a_projector_adds_its_modality(known: Known):
    assert shown(known, "seeing")["architecture"]["input_modalities"] == ["text", "image"]


@pytest.mark.parametrize(
    ("states", "value"),
    [
        ((), "unloaded"),
        ((State.PLANNED,), "loading"),
        ((State.STARTING,), "loading"),
        ((State.READY,), "loaded"),
        ((State.DRAINING,), "loaded"),
        ((State.STOPPING,), "loaded"),
        ((State.READY, State.STARTING), "loaded"),
    ],
)
def test_its_status_is_said_in_llama_cpps_words(known: Known, states: tuple[State, ...], value: str):
    assert shown(known, "tiny", *states)["status"]["value"] == value


def test_the_command_line_is_shown_before_and_while_it_runs(known: Known):
    for states in ((), (State.READY,)):
        args = shown(known, "tiny", *states)["status"]["args"]
        assert args[0] == "/opt/llama-server"
        assert "--alias" in args


def test_a_file_that_cannot_be_used_says_why(known: Known):
    status = shown(known, "broken")["status"]
    assert status["value"] == "unloaded"
    assert status["failed"] is True
    assert "broken.gguf" in status["error"]
    assert status["args"] == []


def test_a_failed_load_is_shown_until_the_next_one_begins(known: Known):
    view = ModelView("tiny", 1.0, 0, 0, 1, None, "exited with status 1", None, None)
    failed = shown(known, "tiny", models=(view,))
    assert (failed["status"]["failed"], failed["status"]["error"]) == (True, "exited with status 1")
    assert "failed" not in shown(known, "tiny", State.STARTING, models=(view,))["status"]


def test_who_waits_is_shown_with_the_reason(known: Known):
    queue = QueueView("tiny", 3, 90.0, 1, "room, until other has left", 4.5)
    status = shown(known, "tiny", queues=(queue,))["status"]
    assert status["waiting"] == 3
    assert (status["reason"], status["expected_seconds"]) == ("room, until other has left", 4.5)


def test_an_instance_is_shown_with_its_memory_and_its_times(known: Known):
    (one,) = shown(known, "tiny", State.READY)["instances"]
    assert one["devices"] == {GPU: {"reserved": 6 * GIB, "measured": 5 * GIB}}
    assert (one["since_seconds"], one["idle_seconds"], one["leases"]) == (10.0, 5.0, 0)


def test_the_order_is_that_of_the_catalog(known: Known):
    snapshot: Snapshot = FakePool().snapshot()
    entries = known.catalog.entries.items()
    names = [name for name, entry in entries if entry.is_model and not entry.hidden]
    assert visible(known.definitions) == names
    assert [m.id for m in Listing(known.cards, snapshot).rows(names).data] == names


def test_a_load_tells_how_far_it_is_by_the_time_that_loads_have_taken(known: Known):
    view = ModelView("seeing", 20.0, 3, 0, 0, None, None, None, None)
    pool = FakePool()
    pool.instances["seeing#1"] = Instance("seeing#1", "seeing", "", State.STARTING)
    snapshot = pool.snapshot()
    for started_at, value in ((95.0, 0.25), (0.0, 0.99), (None, 0.0)):
        one = replace(snapshot.instances[0], started_at=started_at)
        looked = replace(snapshot, instances=(one,), models=(view,))
        status = Listing(known.cards, looked).row("seeing").status
        assert status.progress == Progress(("text_model", "mmproj_model"), "text_model", value)


def test_a_failed_load_is_shown_with_its_exit_code_a_signal_as_a_negative_one(known: Known):
    view = ModelView("tiny", 1.0, 0, 0, 1, None, "killed by SIGKILL", None, None, exit_code=-9)
    assert shown(known, "tiny", models=(view,))["status"]["exit_code"] == -9
    assert "exit_code" not in shown(known, "tiny", State.READY, models=(view,))["status"]


def test_a_pin_is_shown_of_what_is_not_loaded_too(known: Known):
    view = ModelView("tiny", 1.0, 0, 0, 0, None, None, None, None, pinned=True)
    snapshot = replace(FakePool().snapshot(), models=(view,))
    encoded = msgspec.json.encode(Listing(known.cards, snapshot).rows(["tiny", "other"]))
    tiny, other = msgspec.json.decode(encoded)["data"]
    assert (tiny["status"]["pinned"], other["status"]["pinned"]) == (True, False)


def test_the_command_line_is_also_told_as_a_preset_that_reads_back(known: Known):
    preset = shown(known, "tiny")["status"]["preset"]
    head, *lines = preset.splitlines()
    assert head == "[tiny]"
    settings = dict(line.split(" = ", 1) for line in lines)
    assert settings["ctx-size"] == "512"
    assert settings["model"].endswith("tiny.gguf")
    assert "host" not in settings and "alias" not in settings


def test_what_is_being_downloaded_is_listed_until_it_is_a_model(known: Known):
    file = RemoteFile("r-Q4_K_M.gguf", 1000, None)
    job = Job(
        "j1",
        DownloadSpec("o/r"),
        "c" * 40,
        (file,),
        ("o/r:Q4_K_M",),
        "downloading",
        5.0,
        6.0,
        {file.path: 250},
    )
    snapshot = FakePool().snapshot()
    downloading = {"o/r:Q4_K_M": job, "tiny": job}
    encoded = msgspec.json.encode(Listing(known.cards, snapshot).rows(["tiny"], downloading))
    tiny, coming = msgspec.json.decode(encoded)["data"]
    assert (tiny["id"], tiny["status"]["value"]) == ("tiny", "unloaded")
    assert (coming["id"], coming["status"]["value"], coming["status"]["job"]) == (
        "o/r:Q4_K_M",
        "downloading",
        "j1",
    )
    assert coming["status"]["progress"]["value"] == 0.25
