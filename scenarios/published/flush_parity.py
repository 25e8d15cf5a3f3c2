"""Are the brokers alike where both flush every confirmed message?

Answers to: mqperf 2021 (https://softwaremill.com/mqperf/): Kafka with a flush for each message 20.8 k msg/s, RabbitMQ
quorum 19 k msg/s: equal guarantees, nearly equal rates (a ratio of 1.1), where as shipped Kafka is an order of
magnitude above. Each class has its rule in `loadgen/analysis/shapes.py`.
"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="published-flush-parity",
    question="Are the brokers alike where both flush every confirmed message?",
    message=Message(size_bytes=100),
    rate=Rate.saturate(),
    durability=[Durability.BROKER, Durability.FLUSHED],
    rabbitmq=RabbitMQ(confirm_window=1000, prefetch=1000, ack_every=100),
    kafka=Kafka(batch_size=16_384, linger_ms=1),
)
globals().update(scenario.locust_users())
