"""How long do tasks wait for one of four workers that take 2 ms for each?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="use-task-queue",
    question="How long do tasks wait for one of four workers that take 2 ms for each?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(400),
    consumers=4,
    think_ms=2,
    think="exponential",
    rabbitmq=RabbitMQ(prefetch=1, ack_every=1),
    kafka=Kafka(group="share", partitions=1, max_poll_records=10, linger_ms=0),
    durability=Durability.BROKER,
    profile_share=0.4,
)
globals().update(scenario.locust_users())
