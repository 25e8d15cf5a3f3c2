"""What does a consumer that works on each message do to the time in the queue?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="slow-consumer",
    question="What does a consumer that works on each message do to the time in the queue?",
    message=Message(size_bytes=1024),
    rate=Rate.poisson(200),
    think_ms=[0, 3],
    think="exponential",
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(prefetch=10, ack_every=1),
    kafka=Kafka(max_poll_records=10),
)
globals().update(scenario.locust_users())
