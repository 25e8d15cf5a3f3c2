"""How do linger and batch size trade latency for work per message in Kafka?"""

from loadgen import Durability, Kafka, Message, Rate, Scenario

scenario = Scenario(
    name="kafka-batching",
    question="How do linger and batch size trade latency for work per message in Kafka?",
    message=Message(size_bytes=100),
    rate=Rate.fixed(2_000),
    durability=Durability.BROKER,
    kafka=Kafka(linger_ms=[0, 20], batch_size=[2_048, 65_536]),
)
globals().update(scenario.locust_users())
