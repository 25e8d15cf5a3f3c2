"""What do Kafka's transactions cost, by how often they are committed?

The wire driver adds partitions to a transaction by a request of their own, as clients before 4.0 do; later ones leave
that to the broker (KIP-890). With `--set kafka.driver=confluent` it is as librdkafka does it.
"""

from loadgen import Durability, Kafka, Message, Rate, Scenario

scenario = Scenario(
    name="transactions",
    question="What do Kafka's transactions cost, by how often they are committed?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(1_000),
    durability=Durability.BROKER,
    kafka=Kafka(transaction_ms=[10, 100], isolation_level="read_committed"),
)
globals().update(scenario.locust_users())
