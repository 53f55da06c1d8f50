"""What is reserved after a measurement, for every history of measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.memory.estimate.learning import (
    PROOF_REQUESTS,
    PROOF_TRIALS,
    PROVEN_SLACK_BYTES,
    UNPROVEN_SLACK_BYTES,
    Learned,
    Prediction,
    believed_loss,
    confidence,
    folded,
    growing_bytes,
    key,
    ran_out,
    reservation,
    shape,
    standing,
)
from router.memory.estimate.values import GIB, MIB, Estimate, Term

GPU, HOST = "local/cuda:GPU-1", "local/host"
STAMP = ("/models/a.gguf", 5 * GIB, 1_000)
BINARY = ("/bin/llama-server", 10 * MIB, 2_000)


def prediction(gpu: int = 8 * GIB, host: int = GIB, *, growing: int = 0, most: int = 23 * GIB) -> Prediction:
    return Prediction("key", "shape", (GPU, HOST), (gpu, host), (growing, 0), (most, 100 * GIB))


def proven(gpu: int, host: int = GIB) -> Learned:
    return Learned((gpu, host), (), PROOF_REQUESTS, PROOF_TRIALS)


# --- what is reserved ---


def test_the_prediction_is_reserved_until_something_was_measured():
    assert reservation(prediction()) == {GPU: 8 * GIB, HOST: GIB}
    assert reservation(prediction(), Learned((None, None))) == {GPU: 8 * GIB, HOST: GIB}


def test_a_first_measurement_below_the_prediction_releases_nothing_yet():
    learned = folded(None, (5 * GIB, GIB // 2))
    assert reservation(prediction(), learned)[GPU] == 8 * GIB
    assert confidence(learned) == "measured"


def test_each_measurement_after_use_that_finds_nothing_new_releases_half_of_the_surplus():
    learned = folded(None, (5 * GIB, GIB // 2))
    surplus = 3 * GIB - UNPROVEN_SLACK_BYTES
    for halvings in range(1, 5):
        learned = folded(learned, (5 * GIB, GIB // 2), is_trial=True)
        expected = 5 * GIB + UNPROVEN_SLACK_BYTES + (surplus >> halvings)
        assert reservation(prediction(), learned)[GPU] == pytest.approx(expected, abs=MIB)


def test_a_measurement_without_use_releases_nothing():
    learned = folded(None, (5 * GIB, GIB // 2))
    for _ in range(100):
        learned = folded(learned, (5 * GIB, GIB // 2))
    assert reservation(prediction(), learned)[GPU] == 8 * GIB


def test_a_proven_peak_is_reserved_with_little_more():
    learned = folded(None, (5 * GIB, GIB // 2))
    for _ in range(PROOF_TRIALS):
        assert not learned.is_proven
        learned = folded(learned, (5 * GIB, GIB // 2), requests=1, is_trial=True)
    assert confidence(learned) == "proven"
    kept = reservation(prediction(), learned)
    assert kept[GPU] == pytest.approx(5 * GIB + PROVEN_SLACK_BYTES + 5 * GIB // 100, abs=MIB)


def test_many_looks_are_no_proof_without_requests_and_many_requests_none_without_looks():
    learned = folded(None, (5 * GIB, GIB))
    idle = learned
    for _ in range(3 * PROOF_TRIALS):
        idle = folded(idle, (5 * GIB, GIB), is_trial=True)
    assert not idle.is_proven
    assert not folded(learned, (5 * GIB, GIB), requests=1000, is_trial=True).is_proven


def test_growth_begins_the_proof_anew_and_noise_does_not():
    noise = folded(proven(5 * GIB), (5 * GIB + 20 * MIB, GIB), is_trial=True)
    assert noise.is_proven and noise.peak[0] == 5 * GIB + 20 * MIB
    grown = folded(proven(5 * GIB), (6 * GIB, GIB), is_trial=True)
    assert not grown.is_proven
    assert reservation(prediction(), grown)[GPU] == 8 * GIB


def test_a_prediction_that_was_too_low_is_corrected_at_once():
    learned = folded(None, (9 * GIB, GIB))
    assert reservation(prediction(), learned)[GPU] == 9 * GIB + UNPROVEN_SLACK_BYTES


def test_what_grows_only_with_use_is_kept_but_never_beyond_the_prediction():
    quiet = reservation(prediction(growing=2 * GIB), proven(5 * GIB))[GPU]
    assert quiet == pytest.approx(7 * GIB + PROVEN_SLACK_BYTES + 5 * GIB // 100, abs=MIB)
    assert reservation(prediction(growing=6 * GIB), proven(5 * GIB))[GPU] == 8 * GIB


def test_terms_that_fill_with_use_are_told_from_the_others():
    kinds = ("weights", "kv", "cache", "mmproj", "checkpoints")
    made = Estimate.of([Term(device, kind, 1, "") for device in (GPU, HOST) for kind in kinds])
    assert growing_bytes(made, GPU) == 3
    assert growing_bytes(made, HOST) == 4, "mapped weights come and go"


def test_the_slack_does_not_make_impossible_what_was_seen_to_fit():
    tight = prediction(23 * GIB - 10 * MIB)
    learned = folded(None, (23 * GIB - 20 * MIB, GIB))
    assert reservation(tight, learned)[GPU] == 23 * GIB
    beyond = folded(None, (23 * GIB + 5 * MIB, GIB))
    assert reservation(tight, beyond)[GPU] == 23 * GIB + 5 * MIB, "that it breaks the margin is not hidden"


def test_what_is_measured_where_nothing_was_predicted_is_reserved_too():
    kept = reservation(prediction(), None, {"local/cuda:GPU-2": 300 * MIB})
    assert kept["local/cuda:GPU-2"] == 300 * MIB


# --- running out of memory ---


def test_after_running_out_of_memory_more_is_reserved_until_the_peak_is_proven():
    learned = ran_out(None, (8 * GIB, GIB), (0, 0), (23 * GIB, 100 * GIB))
    assert confidence(learned) == "estimated"
    first = reservation(prediction(), learned)
    assert first == {GPU: pytest.approx(8 * GIB * 1.15, abs=1), HOST: pytest.approx(GIB * 1.15, abs=1)}
    learned = folded(learned, (8 * GIB + 500 * MIB, GIB))
    assert reservation(prediction(), learned)[GPU] == pytest.approx(8 * GIB * 1.15, abs=MIB)
    for _ in range(PROOF_TRIALS):
        learned = folded(learned, (8 * GIB + 500 * MIB, GIB), requests=1, is_trial=True)
    assert learned.floor == ()
    assert reservation(prediction(), learned)[GPU] < 8 * GIB * 1.15


def test_a_proven_peak_that_ran_out_of_memory_is_not_proven_any_more():
    learned = ran_out(proven(5 * GIB), (5 * GIB, GIB), (5 * GIB, GIB), (23 * GIB, 100 * GIB))
    assert confidence(learned) == "measured"
    assert reservation(prediction(4 * GIB), learned)[GPU] == pytest.approx(5 * GIB * 1.15, abs=MIB)


def test_the_most_it_was_seen_to_hold_counts_where_that_is_more_than_was_reserved():
    learned = ran_out(None, (8 * GIB, GIB), (10 * GIB, 0), (23 * GIB, 100 * GIB))
    assert reservation(prediction(), learned)[GPU] == pytest.approx(10 * GIB * 1.15, abs=1)


def test_no_raise_goes_beyond_what_the_device_could_give():
    learned = None
    for _ in range(20):
        reserved = reservation(prediction(), learned)
        learned = ran_out(learned, (reserved[GPU], reserved[HOST]), (0, 0), (20 * GIB, 2 * GIB))
    assert reservation(prediction(), learned) == {GPU: 20 * GIB, HOST: 2 * GIB}


# --- a loss of a device as a measurement ---


def test_a_loss_is_believed_only_upwards_and_within_reason():
    assert believed_loss(8 * GIB, 9 * GIB) == 9 * GIB
    assert believed_loss(8 * GIB, 7 * GIB) is None, "somebody may have freed memory meanwhile"
    assert believed_loss(8 * GIB, 14 * GIB) is None, "a game was started meanwhile"
    assert believed_loss(8 * GIB, None) is None


# --- what people see ---


def test_a_standing_says_all_numbers_and_how_good_they_are():
    seen = standing(prediction(), Learned((5 * GIB, None), requests=2))
    assert (seen.confidence, seen.requests) == ("measured", 2)
    assert seen.predicted == {GPU: 8 * GIB, HOST: GIB}
    assert seen.measured == {GPU: 5 * GIB}, "nothing is said of what was never measured"
    assert seen.reserved == {GPU: 8 * GIB, HOST: GIB}
    running = standing(prediction(), None, reserved={GPU: 7}, measured={GPU: 6})
    assert (running.reserved, running.measured_now) == ({GPU: 7}, {GPU: 6})


# --- names ---


def test_a_key_differs_with_a_file_a_flag_a_variable_and_the_binary():
    args, env = ("ctx-size 4096", "parallel 1"), {"GGML_CUDA_FORCE_MMQ": "1"}
    same = key([STAMP], BINARY, args, env)
    assert same == key([STAMP], BINARY, args, dict(env))
    others = [
        key([(*STAMP[:2], 1_001)], BINARY, args, env),
        key([(STAMP[0], 1, STAMP[2])], BINARY, args, env),
        key([STAMP, ("/models/mmproj.gguf", 1, 1)], BINARY, args, env),
        key([STAMP], (*BINARY[:2], 2_001), args, env),
        key([STAMP], None, args, env),
        key([STAMP], BINARY, ("ctx-size 8192", "parallel 1"), env),
        key([STAMP], BINARY, args, {}),
    ]
    assert len({same, *others}) == len(others) + 1


def test_the_order_in_which_files_are_named_does_not_matter():
    other = ("/models/b.gguf", 1, 1)
    assert key([STAMP, other], BINARY, (), {}) == key([other, STAMP], BINARY, (), {})


def test_a_shape_is_that_of_the_cards_and_their_order():
    rtx, a4000, host = ("RTX 3090", 24 * GIB), ("RTX A4000", 16 * GIB), ("host", 0)
    assert shape([rtx, host]) == shape([rtx, host]) == "RTX 3090 24576 MiB + host"
    assert len({shape([rtx, a4000]), shape([a4000, rtx]), shape([rtx]), shape([rtx, host])}) == 4
    assert shape([("RTX 3090", 12 * GIB)]) != shape([rtx])


# --- for every history ---

SIZES = st.integers(0, 64 * GIB)
SAMPLES = st.tuples(st.none() | SIZES, st.none() | SIZES)
STEPS = st.lists(st.tuples(SAMPLES, st.integers(0, 5), st.booleans(), st.booleans()), max_size=30)


def after(steps) -> Learned | None:
    learned = None
    for sample, requests, is_trial, runs_out in steps:
        learned = folded(learned, sample, requests=requests, is_trial=is_trial)
        if runs_out:
            kept = reservation(prediction(), learned)
            learned = ran_out(learned, (kept[GPU], kept[HOST]), (0, 0), (23 * GIB, 99 * GIB))
    return learned


@given(STEPS, SIZES, SIZES, SIZES)
def test_never_less_is_reserved_than_is_measured_now_or_was_ever_measured(steps, growing, gpu, host):
    learned = after(steps)
    kept = reservation(prediction(growing=growing), learned, {GPU: gpu, HOST: host})
    assert kept[GPU] >= gpu and kept[HOST] >= host
    for device, peak in zip((GPU, HOST), learned.peak if learned else (None, None), strict=True):
        assert peak is None or kept[device] >= peak


@given(STEPS, SIZES, SIZES)
def test_a_higher_peak_never_reserves_less(steps, growing, more):
    learned = after([((1, 1), 0, False, False), *steps])
    assert learned is not None and learned.peak[0] is not None
    higher = replace(learned, peak=(learned.peak[0] + more, learned.peak[1]))
    place = prediction(growing=growing)
    assert reservation(place, higher)[GPU] >= reservation(place, learned)[GPU]
    assert reservation(place, higher)[HOST] == reservation(place, learned)[HOST]


@given(STEPS)
def test_a_peak_never_falls_and_a_floor_ends_with_the_proof(steps):
    learned = after(steps)
    if learned is None:
        return
    for at in (0, 1):
        seen = [sample[at] for sample, *_ in steps if sample[at] is not None]
        assert learned.peak[at] == max(seen, default=None)
    assert not (learned.is_proven and learned.floor)


@given(SIZES, SIZES, SIZES, st.integers(0, 40))
def test_more_quiet_trials_never_reserve_more(gpu, predicted, growing, trials):
    place = prediction(predicted, growing=growing)
    fewer = Learned((gpu, gpu), (), 0, trials)
    more = Learned((gpu, gpu), (), 0, trials + 1)
    assert reservation(place, more)[GPU] <= reservation(place, fewer)[GPU]
