"""What does a bad network between clients and a broker cost, and is what was confirmed kept?"""

from loadgen import At, Cut, Delay, Durability, Kafka, Message, RabbitMQ, Rate, Reset, Scenario, Throttle


def network(name: str, *faults: At) -> Scenario:
    """One thing that networks do: the same load, classes and brokers under another of them."""
    return Scenario(
        name=f"network-{name}",
        question="What does a bad network between clients and a broker cost, and is what was confirmed kept?",
        message=Message(size_bytes=1024),
        rate=Rate.fixed(500),
        warmup_s=2,
        duration_s=15,
        faults=list(faults),
        durability=[Durability.BROKER, Durability.REPLICATED],
        rabbitmq=RabbitMQ(),
        kafka=Kafka(),
    )


cut = network("cut", At("4s", Cut("leader", for_s=4)))
delay = network("delay", At("4s", Delay("leader", delay_ms=100, for_s=6)))
throttle = network("throttle", At("4s", Throttle("leader", rate_bytes_per_s=250_000, for_s=6)))  # half of what flows
reset = network("reset", At("4s", Reset("leader")), At("8s", Reset("all")))
for each in (cut, delay, throttle, reset):
    globals().update(each.locust_users())
