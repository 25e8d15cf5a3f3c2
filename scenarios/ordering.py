"""Does any message overtake another of its producer within a queue or partition, with several of each at once?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="ordering",
    question="Does any message overtake another of its producer within a queue or partition, with several of each?",
    message=Message(size_bytes=100, keys=1_000),
    rate=Rate.fixed(1_000),
    producers=2,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(exchange="direct", queues=4),
    kafka=Kafka(partitions=4),
    warmup_s=0.5,  # what is asked takes many messages, not much time
    duration_s=4.0,
)
globals().update(scenario.locust_users())
