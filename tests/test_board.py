"""Orders about shares wait on the board until their producer reads them, and an unread one is missed knowingly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadgen.board import SHARES_KEPT, Board


@given(st.lists(st.integers(0, 2 * SHARES_KEPT), min_size=1, max_size=8))
def test_every_order_is_read_once_in_turn_or_counted_as_missed(bursts: list[int]) -> None:
    """However many orders come between two looks: those that are held are the newest, and the rest are counted."""
    board = Board.create(1)
    try:
        given_so_far = taken = 0
        for burst in bursts:
            for _ in range(burst):
                given_so_far += 1
                board.order_share(1, given_so_far)
            words, missed = board.shares_after(1, taken)
            assert missed + len(words) == given_so_far - taken
            assert words == list(range(taken + missed + 1, given_so_far + 1))
            assert not missed or len(words) == SHARES_KEPT - 1
            taken = given_so_far
    finally:
        board.remove()
