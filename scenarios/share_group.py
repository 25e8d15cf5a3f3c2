"""Does a share group leave a task to whoever is free, as prefetch 1 does, when workers are not alike?

The load is that of task_queue.py. There is one partition: of as many as it has members a group may give each its own,
and then nothing is shared.
"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="share-group",
    question="Does a share group leave a task to whoever is free, as prefetch 1 does, when workers are not alike?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(160),
    consumers=4,
    think_ms=8,
    think="exponential",
    think_spread=4,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(exchange="direct", prefetch=1, ack_every=1),
    kafka=Kafka(group="share", share_acquire_mode="record_limit", max_poll_records=10),
)
globals().update(scenario.locust_users())
