"""Who does the work of a task queue when its workers are not alike, and how long do tasks wait?

Kafka's workers have a partition each, without a group's protocol (with it: `--set kafka.group_protocol=consumer`).
A worker takes 4.6 to 18.2 ms for a task, and a third of what all of them can do is asked for. An equal part of that is
three quarters of what the slowest can do; with `--set rate=250` it is more than all, though half of their time is left.
"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="task-queue",
    question="Who does a task queue's work when workers are not alike, and how long do tasks wait?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(160),
    consumers=4,
    think_ms=8,
    think="exponential",
    think_spread=4,  # how many times as long the slowest worker takes as the fastest
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(exchange="direct", prefetch=[1, 100], ack_every=1),
    kafka=Kafka(partitions=4),  # a share group: share_group.py; tasks that fail: dead_letter.py
)
globals().update(scenario.locust_users())
