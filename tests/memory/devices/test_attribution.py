"""Whether what a driver says of processes can be believed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from router.memory.devices.attribution import UNEXPLAINED_BYTES, Attribution, Listing

GIB = 1 << 30


def judge(attribution: Attribution, sizes: dict[int, int | None] | None, taken: int, *ours: int) -> bool:
    return attribution.judge({"gpu": Listing(sizes, taken)}, ours)["gpu"]


def test_a_list_that_shows_us_with_a_size_is_believed():
    assert judge(Attribution(), {7: GIB}, GIB, 7)


def test_no_list_no_size_and_no_bytes_are_not_believed():
    assert not judge(Attribution(), None, GIB, 7)
    assert not judge(Attribution(), {7: None}, GIB, 7)
    assert not judge(Attribution(), {7: 0}, GIB, 7)


def test_others_without_a_size_are_their_own_affair():
    assert judge(Attribution(), {7: GIB, 8: None}, 2 * GIB, 7)


def test_memory_that_no_list_explains_means_that_we_are_hidden():
    attribution = Attribution()
    assert judge(attribution, {}, 3 * GIB)  # others, in the background, before we had anything
    assert judge(attribution, {}, 3 * GIB, 7)
    assert judge(attribution, {}, 3 * GIB + UNEXPLAINED_BYTES, 7)
    assert not judge(attribution, {}, 4 * GIB, 7)


def test_of_a_child_that_was_there_before_us_no_background_is_known():
    assert not judge(Attribution(), {}, 3 * GIB, 7)


def test_a_list_that_has_shown_us_once_is_believed_when_a_stranger_appears_from_nowhere():
    attribution = Attribution()
    assert judge(attribution, {7: GIB}, GIB, 7)
    assert judge(attribution, {}, 9 * GIB, 8)


def test_one_device_that_shows_us_vouches_for_the_others():
    judged = Attribution().judge({"a": Listing({7: GIB}, GIB), "b": Listing({}, 9 * GIB)}, [7])
    assert judged == {"a": True, "b": True}


def test_a_device_that_cannot_say_what_is_taken_is_judged_by_its_list_alone():
    judged = Attribution().judge({"a": Listing({}, None), "b": Listing(None, None)}, [7])
    assert judged == {"a": True, "b": False}


sizes = st.dictionaries(st.integers(1, 9), st.none() | st.integers(0, 9 * GIB))


@settings(deadline=None)
@given(st.lists(st.tuples(st.none() | sizes, st.integers(0, 99 * GIB), st.sets(st.integers(1, 9)))))
def test_a_missing_or_empty_size_of_ours_is_never_believed(history):
    attribution = Attribution()
    for listed, taken, ours in history:
        believed = judge(attribution, listed, taken, *ours)
        if listed is None or any(not listed[pid] for pid in ours & listed.keys()):
            assert not believed
