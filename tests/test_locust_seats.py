"""Who takes part: the split of users, the order in which they come, their places and their shares. Pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadgen.locust.seats import Seats, Split, next_role, split

counts = st.integers(1, 60)


def test_two_users_are_a_consumer_and_a_producer() -> None:
    """Whatever the scenario's proportion is, -u 2 is one of each, and -u 1 a producer."""
    assert split(2, 1, 4) == Split(1, 1)
    assert split(2, 9, 1) == Split(1, 1)
    assert split(1, 1, 4) == Split(1, 0)
    assert split(5, 1, 4) == Split(1, 4)
    assert split(10, 1, 4) == Split(2, 8)
    assert split(6, 1, 0) == Split(6, 0)


@given(st.integers(2, 500), counts, counts)
def test_users_are_split_in_proportion_and_nobody_is_left_over(users: int, producers: int, consumers: int) -> None:
    """All users have a role, each role has one at least, and no other split is nearer to the proportion."""
    made = split(users, producers, consumers)
    assert made.producers + made.consumers == users
    assert min(made.producers, made.consumers) >= 1
    exact = users * consumers / (producers + consumers)
    assert abs(made.consumers - min(users - 1, max(1, exact))) <= 0.5


@given(st.integers(2, 300), counts, counts)
def test_more_users_never_take_a_role_away(users: int, producers: int, consumers: int) -> None:
    """When users are added, nobody has to change from one role to the other."""
    fewer, more = split(users, producers, consumers), split(users + 1, producers, consumers)
    assert more.producers >= fewer.producers
    assert more.consumers >= fewer.consumers


@given(st.integers(2, 200), counts, st.integers(1, 8), counts)
def test_every_subscriber_has_as_many_consumers(users: int, producers: int, subscribers: int, each: int) -> None:
    """Consumers are a multiple of the subscribers, who are fewer where there are not enough users."""
    made = split(users, producers, each * subscribers, subscribers)
    assert made.consumers % made.subscribers == 0
    assert made.consumers >= made.subscribers
    assert made.subscribers == min(subscribers, users - 1)
    assert made.producers >= 1


def test_only_picked_roles_are_taken() -> None:
    """Where the classes of one role were picked, all users are of that role."""
    assert split(4, 1, 1, roles={"producer"}) == Split(4, 0)
    assert split(4, 1, 1, roles={"consumer"}) == Split(0, 4)


@given(st.integers(0, 100), counts, counts)
def test_consumers_come_first_and_then_producers(users: int, producers: int, consumers: int) -> None:
    """User by user the order leads to the split, consumers before the first producer."""
    planned = split(users, producers, consumers)
    order: list[str] = []
    for _ in range(users):
        order.append(next_role(order.count("producer"), order.count("consumer"), planned))
    assert order == ["consumer"] * planned.consumers + ["producer"] * planned.producers


def test_load_may_start_when_all_consumers_and_one_producer_are_ready() -> None:
    """A message that is sent finds its consumers; who comes later has its own share."""
    seats = Seats(Split(2, 1))
    for uid, role in ((1, "consumer"), (2, "producer"), (3, "producer")):
        seats.join(("w", uid), role)
    seats.ready(("w", 2))
    assert not seats.may_start
    seats.ready(("w", 1))
    assert seats.may_start
    assert not seats.all_ready
    assert seats.shares() == {"w": {2: (0, 1), 3: (0, 0)}}
    seats.ready(("w", 3))
    assert seats.all_ready
    assert seats.shares() == {"w": {2: (0, 2), 3: (1, 2)}}


def test_who_leaves_has_no_share_and_leaves_its_number_to_no_other_producer() -> None:
    """A producer's number is its identity in the ledger; a consumer's place can be taken again."""
    seats = Seats(Split(2, 2))
    for uid, role in ((1, "consumer"), (2, "consumer"), (3, "producer"), (4, "producer")):
        seats.join(("a" if uid % 2 else "b", uid), role)
        seats.ready(("a" if uid % 2 else "b", uid))
    assert seats.leave(("a", 3))
    assert seats.shares() == {"a": {3: (0, 0)}, "b": {4: (0, 1)}}
    seats.end(("a", 3))
    seats.end(("a", 1))
    assert seats.join(("a", 5), "producer").index == 2
    assert seats.join(("a", 6), "consumer").index == 0
    assert not seats.leave(("a", 3))
    assert seats.told == {"producer": 2, "consumer": 2}


@given(st.lists(st.sampled_from(["join", "ready", "leave", "end"]), max_size=40), st.randoms(use_true_random=False))
def test_shares_are_always_a_whole(steps: list[str], chance: object) -> None:
    """Whatever happens, the ready producers' places are 0 … n - 1 of n, each once."""
    seats = Seats(Split(1, 0))
    for number, step in enumerate(steps):
        keys = sorted(seats.seats)
        if step == "join":
            seats.join(("w", number), "producer")
        elif keys:
            getattr(seats, step)(chance.choice(keys))  # type: ignore[attr-defined]
    given_shares = [share for places in seats.shares().values() for share in places.values()]
    held = sorted(share for share in given_shares if share != (0, 0))
    assert held == [(place, len(held)) for place in range(len(held))]
    assert len(held) == sum(seat.state == "ready" for seat in seats.seats.values())
