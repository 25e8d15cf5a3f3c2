"""What do throughput and order become as more consumers share one queue, or one group's partitions?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="competing-consumers",
    question="What do throughput and order become as more consumers share one queue, or one group's partitions?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    consumers=[1, 2, 4],
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(partitions=4),
    preset="throughput",
)
globals().update(scenario.locust_users())
