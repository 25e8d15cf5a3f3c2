"""Is what Kafka's transactions commit kept when all nodes fall, the leader stands still or consumers crash?"""

from loadgen import At, Crash, Kafka, Kill, Message, Pause, Rate, Scenario


def transactions(name: str, *faults: At, duration_s: float = 25) -> Scenario:
    """The load of delivery.py, committed every 20 ms, and read both ways; the leader's kill is there."""
    return Scenario(
        name=f"transactions-{name}",
        question="Does each committed message come, and what comes that was not committed, or twice?",
        message=Message(size_bytes=512),
        rate=Rate.fixed(500),
        warmup_s=2,
        duration_s=duration_s,
        faults=list(faults),
        durability="replicated",
        kafka=Kafka(transaction_ms=20, isolation_level=["read_committed", "read_uncommitted"]),
    )


# All nodes are away for some twenty seconds, in which no transaction can begin.
kill_all = transactions("kill-all", At("4s", Kill("all", back_after_s=1)), duration_s=45)
pause_leader = transactions("pause-leader", At("4s", Pause("leader", for_s=12)))
crash_consumers = transactions("crash-consumers", At("2s", Crash()), At("8s", Crash(when="before")), duration_s=11)
for each in (kill_all, pause_leader, crash_consumers):
    globals().update(each.locust_users())
