"""Does each durability class keep its word when a broker, its leader or a client breaks in mid-load?"""

from typing import Any

from loadgen import At, Crash, Kafka, Kill, Message, Pause, RabbitMQ, Rate, Scenario


def delivery(name: str, *faults: At, **given: Any) -> Scenario:
    """One column of the matrix: the same load, classes and brokers under other faults."""
    known: dict[str, Any] = {
        "question": "Is what each durability class promises kept, and what comes twice?",
        "message": Message(size_bytes=512),
        "rate": Rate.fixed(500),
        "warmup_s": 2,
        "duration_s": 25,  # Kafka notices a dead broker when its session has ended, after 9 s
        "durability": ["none", "broker", "flushed", "replicated"],
        "rabbitmq": RabbitMQ(),
        "kafka": Kafka(),
    }
    return Scenario(name=f"delivery-{name}", faults=list(faults), **(known | given))


kill_leader = delivery("kill-leader", At("4s", Kill("leader")))
kill_all = delivery("kill-all", At("4s", Kill("all", back_after_s=1)))
# Longer than Kafka's session: another leads meanwhile, and the old one wakes up without knowing.
pause_leader = delivery("pause-leader", At("4s", Pause("leader", for_s=12)))
# Kafka's consumers commit every five seconds: the first crash has nothing to resume from, the second has.
crash_consumers = delivery("crash-consumers", At("2s", Crash()), At("8s", Crash(when="before")), duration_s=11)
two = (At("2s", Crash("producers")), At("4s", Crash("producers")))
crash_producers = delivery("crash-producers", *two, duration_s=8, durability=["none", "broker", "replicated"])
transactions = delivery(
    "transactions",
    At("4s", Kill("leader")),
    durability=["broker", "replicated"],
    rabbitmq=None,
    kafka=Kafka(transaction_ms=20, isolation_level=["read_committed", "read_uncommitted"]),
)
for each in (kill_leader, kill_all, pause_leader, crash_consumers, crash_producers, transactions):
    globals().update(each.locust_users())
