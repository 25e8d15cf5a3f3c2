"""What do failing tasks cost: RabbitMQ's delivery limit and dead letters against a share group's limit?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="dead-letter",
    question="What do failing tasks cost: RabbitMQ's delivery limit and dead letters against a share group's limit?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(200),
    consumers=4,
    think_ms=2,
    think="exponential",
    durability=Durability.FLUSHED,  # only a quorum queue counts deliveries
    rabbitmq=RabbitMQ(
        prefetch=10, ack_every=1, delivery_limit=4, dead_letter=True, fail_every=[0, 20], reject_every=25
    ),
    kafka=Kafka(group="share", max_poll_records=10, share_delivery_count_limit=5, fail_every=[0, 20], reject_every=25),
)
globals().update(scenario.locust_users())
