"""How many messages a second does an append-only log carry: a RabbitMQ stream, and a Kafka topic?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="event-stream",
    question="How many messages a second does an append-only log carry: a RabbitMQ stream, and a Kafka topic?",
    message=Message(size_bytes=100),
    rate=Rate.saturate(),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(driver="stream"),
    kafka=Kafka(),
    preset="throughput",
    profile_share=0.5,
)
globals().update(scenario.locust_users())
