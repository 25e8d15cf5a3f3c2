"""How does throughput grow with the number of queues or partitions that share the work?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="scaling",
    question="How does throughput grow with the number of queues or partitions that share the work?",
    message=Message(size_bytes=100, keys=1_000),
    rate=Rate.saturate(),
    producers=2,
    consumers=1,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(exchange="direct", queues=[1, 2, 4, 8]),
    kafka=Kafka(partitions=[1, 2, 4, 8]),
    preset="throughput",
    profile_share=0.4,
)
globals().update(scenario.locust_users())
