"""What does a burst cost that is more than consumers carry, and how long until it is worked off?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="burst",
    question="What does a burst cost that is more than consumers carry, and how long until it is worked off?",
    message=Message(size_bytes=1024),
    rate=Rate.burst(200, times=[2, 8], burst_s=0.5, every_s=3),  # a consumer carries somewhat less than 1,000
    think_ms=1,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(prefetch=10, ack_every=1),
    kafka=Kafka(max_poll_records=10, max_partition_fetch_bytes=16_384),  # no more waits in a client than by prefetch
)
globals().update(scenario.locust_users())
