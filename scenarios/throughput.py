"""How many messages a second does each broker carry, at equal guarantees?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="throughput",
    question="How many messages a second does each broker carry, at equal guarantees?",
    message=Message(size_bytes=100),
    rate=Rate.saturate(),
    durability=[Durability.NONE, Durability.BROKER, Durability.FLUSHED],
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
    preset="throughput",
    profile_share=0.6,
)
globals().update(scenario.locust_users())
