"""How long does a confirmed message take at rates that both brokers carry easily?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="latency",
    question="How long does a confirmed message take at rates that both brokers carry easily?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed([500, 2_000]),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
    preset="low_latency",
)
globals().update(scenario.locust_users())
