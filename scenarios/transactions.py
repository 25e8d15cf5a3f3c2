"""What do Kafka's transactions cost, by how often they are committed?

As Kafka's own clients do, the wire driver leaves it to the brokers to add partitions to a transaction where the cluster
has transaction.version 2 (KIP-890, from Kafka 4.0 on); it begins each 1 ms after the one before (docs/performance.md).
With `--set kafka.driver=confluent` it is as librdkafka does it.
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
