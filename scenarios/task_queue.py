"""How does prefetch change a task queue's throughput?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="task-queue",
    question="How does prefetch change a task queue's throughput?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    producers=1,
    consumers=4,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(prefetch=[1, 10, 100, 1000], ack_every=1),
    kafka=Kafka(partitions=4, max_poll_records=[1, 10, 100, 1000]),
)
globals().update(scenario.locust_users())
