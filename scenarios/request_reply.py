"""How long does an answer take by RabbitMQ's direct reply-to, by exclusive queues, and by a Kafka topic?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="request-reply",
    question="How long does an answer take by RabbitMQ's direct reply-to, by exclusive queues, and by a Kafka topic?",
    pattern="request_reply",
    message=Message(size_bytes=256),
    rate=Rate.fixed(200),
    producers=2,
    consumers=1,
    timeout_ms=30_000,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(reply_to=["direct", "exclusive"]),
    kafka=Kafka(),
    preset="low_latency",
)
globals().update(scenario.locust_users())
