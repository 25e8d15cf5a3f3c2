"""How do several consumers share one queue or partition: RabbitMQ's prefetch against Kafka's share group?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="share-group",
    question="How do several consumers share one queue or partition: RabbitMQ's prefetch against Kafka's share group?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(400),
    consumers=4,
    think_ms=2,
    think="exponential",
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(prefetch=10, ack_every=1),
    kafka=Kafka(group="share", partitions=1, max_poll_records=10),
)
globals().update(scenario.locust_users())
