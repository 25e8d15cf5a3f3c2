"""What does it cost RabbitMQ to find the one binding that matches, among many?

A headers exchange compares them all; a topic exchange goes down a tree of words, where it does not meet those that are
spelled otherwise: whether its cost stays the same is what is asked. Kafka has no counterpart: its broker routes by
nothing but the names of topic and partition, which the producer chooses; what a consumer does not want it drops after
it has read it.
"""

from loadgen import Durability, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="routing",
    question="What does it cost RabbitMQ to find the one binding that matches, by topic or by headers, among many?",
    message=Message(size_bytes=100),
    rate=Rate.saturate(),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(exchange=["topic", "headers"], bindings=[1, 10, 100, 1000]),
    preset="throughput",
)
globals().update(scenario.locust_users())
