"""What does each further subscriber cost, when all of them receive every message?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="pubsub",
    question="What does each further subscriber cost, when all of them receive every message?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    subscribers=[1, 2, 4],
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(exchange="fanout", auto_delete=True),  # a subscriber's queue is its own, and goes with it
    kafka=Kafka(),
    preset="throughput",
)
globals().update(scenario.locust_users())
