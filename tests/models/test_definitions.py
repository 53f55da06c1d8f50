"""From files and settings to what the scheduler places and a host launches."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from router.config import Config, load_config
from router.descriptors import is_out_of_files
from router.errors import ModelUnusable
from router.gguf import read_gguf
from router.memory.devices import DeviceInfo
from router.models import definitions
from router.models.catalog import Catalog
from router.models.definitions import Definitions, define
from router.presets import Overrides
from router.scheduler.types import Device, Model, Placement, Priority
from tests.make_gguf import KvValue, Tensor, make_bert, make_gemma3, make_llama, write_gguf
from tests.scarcity import at_each_moment

GIB = 1 << 30
HOST, SMALL, LARGE = "local/host", "local/cuda:GPU-small", "local/cuda:GPU-large"


def info(device: str, gib: float) -> DeviceInfo:
    name = device.partition("/")[2]
    kind = "host" if name == "host" else "cuda"
    size = int(gib * GIB)
    return DeviceInfo(name, kind, name, name.partition(":")[2], size, size, 0, None, None, None, name)


def machine(**gib: float) -> dict[str, DeviceInfo]:
    names = {"host": HOST, "small": SMALL, "large": LARGE}
    return {names[key]: info(names[key], size) for key, size in gib.items()}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    make_llama(folder / "tiny.gguf", name="tiny")
    return folder


def defined(
    models: Path, infos: dict[str, DeviceInfo], text: str = "", binary: str = "/bin/true"
) -> Definitions:
    source = models.parent / "config.toml"
    source.write_text(f'[paths]\nmodels_dirs = ["{models}"]\nhf_cache = false\n{text}')
    config: Config = load_config(source)
    margin = config.memory.margin_mib << 20
    devices = [Device(name, one.total_bytes, margin, one.label) for name, one in infos.items()]
    environ = {"PATH": "/usr/bin", "LLAMA_API_KEY": "secret"}
    return define(Catalog.scan(config), config, devices, infos, binary=Path(binary), environ=environ)


def without_resorts(model: Model) -> list[Placement]:
    return [place for place in model.placements if not place.is_fallback]


def test_a_model_is_offered_on_every_gpu_that_could_hold_it_and_not_on_the_host_beside_them(
    models: Path,
) -> None:
    offered = without_resorts(defined(models, machine(host=32, small=8, large=24)).models["tiny"])
    assert {place.devices for place in offered} == {(SMALL,), (LARGE,)}
    assert all(place.host == "local" and place.tier == 0 for place in offered)
    assert all(place.footprint[place.devices[0]] > 600 << 20 for place in offered), "a CUDA context"


@pytest.mark.parametrize(
    ("architecture", "kind", "reason"),
    [("llama", "adapter", "a LoRA adapter"), ("clip", "model", "a projector"), ("flux", "model", "an image")],
)
def test_what_a_header_says_late_rules_a_file_out_too(
    models: Path, architecture: str, kind: str, reason: str
) -> None:
    first = {"aaa": "x" * (1 << 17), "general.type": kind}
    write_gguf(models / "late.gguf", architecture, first, [Tensor("x", (4, 4))])
    error = defined(models, machine(host=32)).models["late"].error
    assert isinstance(error, ModelUnusable) and reason in error.message


def test_slower_ways_are_there_for_a_model_that_takes_more_than_is_estimated(models: Path) -> None:
    placements = defined(models, machine(host=32, small=8, large=24)).models["tiny"].placements
    resorts = [place for place in placements if place.is_fallback]
    assert list(placements[-len(resorts) :]) == resorts, "they stand last"
    assert [place.devices for place in resorts][-1] == (HOST,)
    assert {place.tier for place in resorts} == {1, 3}
    one_gpu = defined(models, machine(host=32, small=8)).models["tiny"].placements
    assert [(place.tier, place.is_fallback) for place in one_gpu] == [(0, False), (2, True), (3, True)]


def test_without_a_gpu_it_goes_to_the_host(models: Path) -> None:
    definitions = defined(models, machine(host=32))
    (place,) = definitions.models["tiny"].placements
    assert (place.devices, set(place.footprint)) == ((HOST,), {HOST})
    argv = definitions.launch("tiny", place).argv
    assert argv[argv.index("-ngl") + 1] == "0" and argv[argv.index("-dev") + 1] == "none"


def test_a_launch_shows_the_child_only_the_devices_it_was_placed_on_and_no_secret(models: Path) -> None:
    definitions = defined(models, machine(host=32, small=8, large=24))
    place = next(p for p in definitions.models["tiny"].placements if p.devices == (LARGE,))
    launch = definitions.launch("tiny", place)
    assert launch.env["CUDA_VISIBLE_DEVICES"] == "GPU-large"
    assert "LLAMA_API_KEY" not in launch.env
    pairs = dict(zip(launch.argv, launch.argv[1:], strict=False))
    assert (pairs["--alias"], pairs["--fit"], pairs["--host"]) == ("tiny", "off", "{socket}")
    assert launch.argv.count("-c") == launch.argv.count("-ngl") == 1, "said once"


def test_context_is_8192_or_the_training_context_and_a_preset_may_say_otherwise(models: Path) -> None:
    make_llama(models / "long.gguf", name="long", n_ctx_train=65536)
    make_llama(models / "short.gguf", name="short", n_ctx_train=2048)
    text = "[models.tiny]\nctx_size = 512\nparallel = 1\n[models.other]\nctx_size = 0\n"
    make_llama(models / "other.gguf", name="other", n_ctx_train=4096)
    definitions = defined(models, machine(host=32), text)

    def context(name: str) -> str:
        args = definitions.models[name].placements[0].args
        return args[args.index("-c") + 1]

    assert [context(name) for name in ("long", "short", "tiny", "other")] == ["8192", "2048", "512", "4096"]


def batches(definitions: Definitions, name: str) -> tuple[str | None, str | None]:
    """-b and -ub as it is launched."""
    argv = definitions.launch(name, definitions.models[name].placements[0]).argv
    assert argv.count("-b") <= 1 and argv.count("-ub") <= 1, "said once"
    pairs = dict(itertools.pairwise(argv))
    return pairs.get("-b"), pairs.get("-ub")


def test_a_model_that_takes_an_input_whole_is_launched_with_a_batch_as_long_as_its_context(
    models: Path,
) -> None:
    make_bert(models / "bert.gguf", n_ctx_train=4096)
    make_bert(models / "slots.gguf", n_ctx_train=8192)
    make_llama(models / "mean.gguf", n_ctx_train=65536)
    make_llama(models / "plain.gguf", n_ctx_train=65536)
    text = "[models.slots]\nctx_size = 16384\nparallel = 4\nkv_unified = false\n"
    text += '[models.mean]\nctx_size = 3000\nembedding = true\npooling = "mean"\n'
    definitions = defined(models, machine(host=32), text)
    assert batches(definitions, "bert") == ("4096", "4096")
    assert batches(definitions, "slots") == ("4096", "4096")
    assert batches(definitions, "mean") == ("3072", "3072"), "the cells that llama-server makes of 3000"
    assert batches(definitions, "plain") == (None, None)


def test_a_batch_that_is_set_for_it_is_kept(models: Path) -> None:
    for name in ("small", "large", "both", "args"):
        make_bert(models / f"{name}.gguf", n_ctx_train=4096)
    text = "[models.small]\nubatch_size = 512\n[models.large]\nubatch_size = 4096\n"
    text += "[models.both]\nbatch_size = 1024\nubatch_size = 2048\n"
    text += '[models.args]\nargs = ["-ub", "256"]\n'
    definitions = defined(models, machine(host=32), text)
    assert batches(definitions, "small") == ("512", "512")
    assert batches(definitions, "large") == ("4096", "4096"), "with llama-server's own -b it would be 2048"
    assert batches(definitions, "both") == ("1024", "1024")
    assert batches(definitions, "args") == ("256", "256")


def test_an_embedding_model_that_can_split_an_input_has_the_batch_of_llama_server(models: Path) -> None:
    make_llama(models / "last.gguf", n_ctx_train=65536)
    text = '[models.last]\nembedding = true\npooling = "last"\n'
    assert batches(defined(models, machine(host=32), text), "last") == (None, None)


def test_an_encoder_that_fits_only_with_shorter_inputs_gets_them_unless_a_context_is_set(
    models: Path,
) -> None:
    make_bert(models / "bert.gguf", n_ctx_train=8192, n_vocab=300_000)  # 9 GiB of outputs with 8192 tokens
    make_bert(models / "set.gguf", n_ctx_train=8192, n_vocab=300_000)
    text = "[memory]\nmargin_mib = 512\n[models.set]\nctx_size = 8191\n"
    definitions = defined(models, machine(host=6), text)
    assert batches(definitions, "bert") == ("4096", "4096")
    assert definitions.models["bert"].placements[0].args[:2] == ("-c", "4096")
    assert definitions.models["set"].placements[0].args[:2] == ("-c", "8191")
    assert definitions.models["set"].placements[0].footprint[HOST] > 9 * GIB, "refused with what it takes"


def test_what_the_scheduler_alone_uses_does_not_change_the_definition_and_what_the_child_sees_does(
    models: Path,
) -> None:
    plain = defined(models, machine(host=32)).models["tiny"]
    text = '[models.tiny]\nttl_seconds = 60\npinned = true\npriority = "high"\n'
    text += "replicas = 2\ntarget_inflight = 3\n"
    ruled = defined(models, machine(host=32), text).models["tiny"]
    assert (ruled.ttl, ruled.pinned, ruled.priority) == (60.0, True, Priority.HIGH)
    assert (ruled.replicas, ruled.replica_max, ruled.target_inflight) == (2, 2, 3)
    assert ruled.definition == plain.definition
    text = "[models.tiny]\nctx_size = 512\n"
    assert defined(models, machine(host=32), text).models["tiny"].definition != plain.definition
    assert (
        defined(models, machine(host=32), binary="/bin/false").models["tiny"].definition != plain.definition
    )


def test_models_that_exclude_each_other_share_a_group(models: Path) -> None:
    make_llama(models / "other.gguf", name="other")
    make_llama(models / "third.gguf", name="third")
    text = '[scheduler]\nexclusive = [["tiny", "other"]]\n[models.third]\nexclusive = ["mine"]\n'
    found = defined(models, machine(host=32), text).models
    assert found["tiny"].exclusive & found["other"].exclusive
    assert not found["third"].exclusive & found["tiny"].exclusive
    assert found["third"].exclusive


def test_a_broken_file_is_a_model_with_an_error_beside_the_others(models: Path) -> None:
    whole = (models / "tiny.gguf").read_bytes()
    (models / "half.gguf").write_bytes(whole[: len(whole) // 2])
    definitions = defined(models, machine(host=32))
    error = definitions.models["half"].error
    assert isinstance(error, ModelUnusable) and "half cannot be loaded" in error.message
    assert definitions.models["tiny"].error is None


def test_a_model_too_large_for_any_device_keeps_placements_that_say_how_large(models: Path) -> None:
    model = defined(models, machine(host=1.1)).models["tiny"]
    assert model.error is None and model.placements
    assert model.placements[0].footprint[HOST] + GIB > 1.1 * GIB


def test_a_device_that_is_not_there_is_named_with_those_that_are(models: Path) -> None:
    text = '[models.tiny]\ndevices = ["GPU-none"]\n'
    error = defined(models, machine(host=32, small=8), text).models["tiny"].error
    assert error is not None and "GPU-none" in error.message and "cuda:GPU-small" in error.message
    chosen = defined(models, machine(host=32, small=8, large=24), text.replace("GPU-none", "GPU-small"))
    assert {p.devices for p in without_resorts(chosen.models["tiny"])} == {(SMALL,)}
    infos = machine(host=32, small=8, large=24)
    infos[LARGE] = replace(infos[LARGE], label="cuda:0 NVIDIA RTX 3090")
    for name in ("CUDA0", "cuda:0", "GPU-large", "cuda:GPU-large"):
        model = defined(models, infos, text.replace("GPU-none", name)).models["tiny"]
        assert {p.devices for p in without_resorts(model)} == {(LARGE,)}, name


def test_a_file_or_a_binary_that_went_away_is_noticed_before_a_launch(models: Path, tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.touch(mode=0o755)
    definitions = defined(models, machine(host=32), binary=str(binary))
    definitions.check("tiny")
    definitions.check("unknown")
    binary.unlink()
    with pytest.raises(ModelUnusable, match=r"llama-server is not at .* any more"):
        definitions.check("tiny")
    (models / "tiny.gguf").unlink()
    with pytest.raises(ModelUnusable, match=r"tiny\.gguf is gone"):
        definitions.check("tiny")


def test_a_model_that_left_the_catalog_cannot_be_launched(models: Path) -> None:
    definitions = defined(models, machine(host=32))
    with pytest.raises(ModelUnusable, match="not in the catalog"):
        definitions.launch("gone", Placement("local", {}))


def test_another_context_changes_where_it_is_placed_and_nothing_else(models: Path) -> None:
    make_llama(models / "long.gguf", name="long", n_ctx_train=1 << 20)
    definitions = defined(models, machine(host=32, small=8, large=24))
    devices = [Device(name, one.total_bytes, GIB, one.label) for name, one in definitions.infos.items()]
    before, after = definitions.by_name["long"], definitions.at_context("long", 65536, devices)
    assert {place.ctx_size for place in after.estimates} == {65536}
    assert [dict(place.footprint) for place in after.model.placements] == [
        dict(place.footprint) for place in after.estimates
    ]
    assert after.model.placements[0].footprint[SMALL] > before.model.placements[0].footprint[SMALL]
    assert after.model.definition == before.model.definition and definitions.by_name["long"] is before
    asked = definitions.at_context("long", before.estimates[0].ctx_size, devices)
    assert asked.model.placements == before.model.placements, "its own context is where it is placed anyway"


def test_an_unusable_model_is_no_better_with_another_context(models: Path) -> None:
    (models / "half.gguf").write_bytes((models / "tiny.gguf").read_bytes()[:1000])
    definitions = defined(models, machine(host=32))
    assert definitions.at_context("half", 512, []) is definitions.by_name["half"]


def test_one_load_with_other_settings_is_placed_and_launched_with_them(models: Path) -> None:
    make_llama(models / "long.gguf", name="long", n_ctx_train=1 << 20)
    definitions = defined(models, machine(host=32, small=8, large=24))
    devices = [Device(name, one.total_bytes, GIB, one.label) for name, one in definitions.infos.items()]
    own = definitions.by_name["long"].model
    wanted = Overrides(ctx_size=65536, cache_type_k="q8_0", devices=("GPU-large",), args=("--threads", "3"))
    model = definitions.overridden("long", wanted, devices).model
    assert model.definition.overrides and model.definition.plain == own.definition
    (place,) = without_resorts(model)
    assert place.devices == (LARGE,)
    assert place.footprint[LARGE] > own.placements[0].footprint[SMALL]
    argv = " ".join(definitions.launch("long", place, model.definition).argv)
    assert "-c 65536" in argv and "-ctk q8_0" in argv and "--threads 3" in argv
    plain = " ".join(definitions.launch("long", own.placements[0]).argv)
    assert "-ctk" not in plain and "--threads" not in plain


def test_settings_that_are_its_own_already_are_no_others(models: Path) -> None:
    definitions = defined(models, machine(host=32), "[child]\nctx_size = 512\n")
    assert definitions.overridden("tiny", Overrides(ctx_size=512), []) is definitions.by_name["tiny"]


def test_settings_it_cannot_be_loaded_with_are_refused_with_the_reason(models: Path) -> None:
    (models / "half.gguf").write_bytes((models / "tiny.gguf").read_bytes()[:1000])
    definitions = defined(models, machine(host=32))
    devices = [Device(name, one.total_bytes, GIB, one.label) for name, one in definitions.infos.items()]
    with pytest.raises(ModelUnusable, match="no-such.*there are: host"):
        definitions.overridden("tiny", Overrides(devices=("no-such",)), devices)
    with pytest.raises(ModelUnusable, match="half"):
        definitions.overridden("half", Overrides(ctx_size=512), devices)


def test_when_files_run_out_at_any_moment_no_model_is_called_broken(models: Path) -> None:
    make_llama(models / "other.gguf", name="other")
    infos = machine(host=32, large=24)
    whole = defined(models, infos)

    def again() -> Definitions:
        return define(
            whole_catalog, whole.config, devices, infos, binary=Path("/bin/true"), environ=whole.environ
        )

    whole_catalog = Catalog.scan(whole.config)
    devices = [Device(name, one.total_bytes, 0, one.label) for name, one in infos.items()]
    *without, last = at_each_moment(again)
    assert isinstance(last, Definitions)
    assert [definition.model.error for definition in last.by_name.values()] == [None, None]
    assert len(without) >= 2
    assert all(isinstance(error, OSError) and is_out_of_files(error) for error in without)


def test_a_gpu_that_shares_the_hosts_memory_takes_layers_and_its_bytes_count_for_the_host(
    models: Path,
) -> None:
    infos = machine(host=32, small=32)
    infos[SMALL] = replace(infos[SMALL], pool="host")
    source = defined(models, {HOST: infos[HOST]})
    definitions = define(
        Catalog.scan(source.config), source.config, [Device(HOST, 32 * GIB, GIB, "host")], infos,
        binary=Path("/bin/true"), environ={},
    )  # fmt: skip
    first, *resorts = definitions.models["tiny"].placements
    assert (first.devices, set(first.footprint)) == ((SMALL,), {HOST})
    assert [place.devices for place in resorts if not place.is_fallback] == []
    launch = definitions.launch("tiny", first)
    assert launch.env["CUDA_VISIBLE_DEVICES"] == "GPU-small"
    assert launch.argv[launch.argv.index("-ngl") + 1] != "0"
    terms = definitions.by_name["tiny"].estimates[0].estimate.terms
    assert {term.device for term in terms} == {SMALL, HOST}
    assert sum(term.bytes for term in terms) == first.footprint[HOST]


def test_an_estimate_that_is_a_little_too_large_for_the_gpu_is_tried_and_one_by_far_is_not(
    models: Path,
) -> None:
    make_llama(models / "big.gguf", name="big", n_layers=16, n_embd=1024, n_ff=4096, sparse=True)
    text = "[models.big]\nn_gpu_layers = 99\n"  # a number is a wish: no part of it is offered
    margin = 1 << 30
    whole = defined(models, machine(host=32, small=24), text).models["big"].placements[0]
    need, host = whole.footprint[SMALL], (whole.footprint[HOST] + margin + (16 << 20)) / GIB

    def offered(share: float) -> list[Placement]:
        infos = machine(host=host, small=(need * share + margin) / GIB)
        return list(defined(models, infos, text).models["big"].placements)

    assert {place.devices for place in offered(1.01)} == {(SMALL,)}, "the host is too small for all of it"
    first = offered(0.9)[0]
    assert first.devices == (SMALL,)
    assert first.footprint[SMALL] == pytest.approx(need * 0.9 * 0.95, rel=0.01)
    assert offered(0.7)[0].footprint[SMALL] == need, "refused, with its numbers"


def test_a_server_is_told_how_many_checkpoints_its_memory_was_reserved_for(models: Path) -> None:
    make_gemma3(models / "gemma.gguf")

    def told(text: str = "") -> tuple[str, int]:
        definitions = defined(models, machine(host=32), text)
        (place,) = definitions.models["gemma"].placements
        argv = definitions.launch("gemma", place).argv
        last = max(at for at, arg in enumerate(argv) if arg in ("-ctxcp", "--swa-checkpoints"))
        return argv[last + 1], definitions.by_name["gemma"].estimates[0].estimate.bytes_of("checkpoints")

    assert told()[0] == "32"
    number, reserved = told('[models.gemma]\nargs = ["--ctx-checkpoints", "3"]\n')
    assert (number, reserved * 32) == ("3", told()[1] * 3)
    tiny = defined(models, machine(host=32))
    assert "-ctxcp" not in tiny.launch("tiny", tiny.models["tiny"].placements[0]).argv


@pytest.mark.parametrize(
    ("preset", "memory", "said", "given"),
    [
        ("", "", None, []),
        ('args = ["-lm", "dio"]', "", "dio", ["dio"]),
        ('args = ["--no-mmap"]', "", "none", ["none"]),
        ('args = ["--load-mode=mlock"]', "", "mlock", ["mlock"]),
        ("", 'load_mode = "none"', "none", ["none"]),
        ('args = ["--load-mode", "mmap"]', 'load_mode = "dio"', "mmap", ["mmap"]),
    ],
)
def test_what_a_preset_says_of_how_it_is_read_comes_before_what_the_configuration_says(
    models: Path, preset: str, memory: str, said: str | None, given: list[str]
) -> None:
    text = f"[memory]\n{memory}\n[models.tiny]\n{preset}\n"
    found = defined(models, machine(host=32, small=8), text)
    (place,) = without_resorts(found.models["tiny"])
    assert found.load_mode("tiny") == said
    argv = found.launch("tiny", place).argv
    assert [argv[at + 1] for at, arg in enumerate(argv) if arg == "--load-mode"] == given


def test_another_load_mode_for_all_is_another_definition(models: Path) -> None:
    usual = defined(models, machine(host=32)).models["tiny"].definition
    assert (
        defined(models, machine(host=32), '[memory]\nload_mode = "none"').models["tiny"].definition != usual
    )


# --- companions ---


@pytest.mark.parametrize(
    ("architecture", "tensor", "spec_type"),
    [
        ("dflash", "fc.weight", "draft-dflash"),
        ("dflash", "markov_w1.weight", "draft-dspark"),
        ("eagle3", "fc.weight", "draft-eagle3"),
        ("gemma4-assistant", "fc.weight", "draft-mtp"),
        ("qwen35", "blk.2.nextn.eh_proj.weight", "draft-mtp"),
        ("llama", "blk.0.attn_q.weight", "draft-simple"),
    ],
)
def test_a_draft_is_used_as_its_header_says(
    tmp_path: Path, architecture: str, tensor: str, spec_type: str
) -> None:
    write_gguf(
        tmp_path / "d.gguf", architecture, {f"{architecture}.block_count": 3}, [Tensor(tensor, (8, 8))]
    )
    assert definitions._spec_type(read_gguf(tmp_path / "d.gguf")) == spec_type


def adapter(path: Path, base: str, n_in: int, n_out: int) -> None:
    keys: dict[str, KvValue] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    write_gguf(
        path, "llama", keys, [Tensor(f"{base}.lora_a", (n_in, 4)), Tensor(f"{base}.lora_b", (4, n_out))]
    )


@pytest.mark.parametrize(
    ("base", "n_in", "n_out", "error"),
    [
        ("blk.0.ffn_up.weight", 64, 128, None),
        ("blk.0.ffn_up.weight", 32, 128, "blk.0.ffn_up.weight.lora_a has 32 dimensions, not 64"),
        ("blk.0.ffn_up.weight", 64, 64, "blk.0.ffn_up.weight.lora_b has 64 dimensions, not 128"),
        ("blk.9.ffn_up.weight", 64, 128, "it changes blk.9.ffn_up.weight"),
    ],
)
def test_an_adapter_for_another_model_is_told_before_anything_is_loaded(
    models: Path, base: str, n_in: int, n_out: int, error: str | None
) -> None:
    path = models.parent / "style.gguf"
    adapter(path, base, n_in, n_out)
    found = defined(models, machine(host=32), f'[models.tiny]\nlora = ["{path}"]\n').models["tiny"].error
    if error is None:
        assert found is None
    else:
        assert isinstance(found, ModelUnusable) and error in found.message
