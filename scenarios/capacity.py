"""What rate does each broker sustain, and how does latency grow on the way there?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="capacity",
    question="What rate does each broker sustain, and how does latency grow on the way there?",
    message=Message(size_bytes=1024),
    rate=Rate.curve([0.1, 0.25, 0.5, 0.75, 0.9, 1.1]),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
)
globals().update(scenario.locust_users())
