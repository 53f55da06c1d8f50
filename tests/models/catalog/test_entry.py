"""A fingerprint differs exactly when a model would run differently."""

from __future__ import annotations

import os
from typing import Any

import pytest

from router.models.catalog import Catalog
from tests.models.catalog.conftest import gguf


@pytest.fixture
def fingerprint(disk):
    """The fingerprint of the model `m` with these settings."""
    disk.write("m.gguf", "other.gguf")

    def fingerprint(**settings: Any) -> str:
        catalog = Catalog.scan(disk.with_models({"m": settings}))
        return catalog.entries["m"].fingerprint

    return fingerprint


def test_a_second_look_at_the_same_gives_the_same(fingerprint):
    assert fingerprint(ctx_size=5, env={"A": "b"}) == fingerprint(env={"A": "b"}, ctx_size=5)
    assert len(fingerprint()) == 64


@pytest.mark.parametrize(
    "settings",
    [
        {"ctx_size": 5},
        {"n_gpu_layers": 1},
        {"parallel": 1},
        {"env": {"A": "b"}},
        {"args": ["--temp", "1"]},
        {"flags": {"temp": 1}},
        {"devices": ["cuda:0"]},
        {"embedding": True},
        {"cache_type_k": "q8_0"},
        {"lora": ["{models}/other.gguf"]},
        {"mmproj": "{models}/other.gguf"},
        {"draft_model": "{models}/other.gguf"},
        {"model": "{models}/other.gguf"},
        {"model": "{models}/gone.gguf"},
    ],
)
def test_what_the_child_would_see_changes_it(disk, fingerprint, settings):
    def filled(value):
        if isinstance(value, list):
            return [filled(each) for each in value]
        return value.format(models=disk.models) if isinstance(value, str) else value

    assert fingerprint(**{key: filled(value) for key, value in settings.items()}) != fingerprint()


@pytest.mark.parametrize(
    "settings",
    [
        {"ttl_seconds": 5},
        {"pinned": True},
        {"priority": "high"},
        {"replicas": 2},
        {"aliases": ["x"]},
        {"tags": ["x"]},
        {"hidden": True},
        {"description": "x"},
        {"exclusive": ["x"]},
        {"load_on_startup": True},
        {"stop_grace_seconds": 1},
        {"target_inflight": 1},
    ],
)
def test_what_only_the_router_sees_does_not_change_it(fingerprint, settings):
    assert fingerprint(**settings) == fingerprint()


def test_another_content_or_time_of_any_file_changes_it(disk):
    disk.write("m/m-00001-of-00002.gguf", "m/m-00002-of-00002.gguf", "m/mmproj.gguf", "m/mtp-x.gguf")

    def fingerprint() -> str:
        return Catalog.scan(disk.config).entries["m"].fingerprint

    seen = {fingerprint()}
    for number, file in enumerate(sorted((disk.models / "m").iterdir())):
        os.utime(file, ns=(0, number))
        seen.add(fingerprint())
    (disk.models / "m" / "mmproj.gguf").write_bytes(gguf(general__name="longer"))
    os.utime(disk.models / "m" / "mmproj.gguf", ns=(0, 2))
    seen.add(fingerprint())
    assert len(seen) == 6


def test_the_same_file_behind_another_link_does_not_change_it(disk, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.gguf").symlink_to(disk.models / "real.gguf")
    disk.write("real.gguf")
    entries = [
        Catalog.scan(disk.with_models({"m": {"model": str(tmp_path / name / "m.gguf")}})).entries["m"]
        for name in ("one", "two")
    ]
    assert entries[0].stamps == entries[1].stamps
