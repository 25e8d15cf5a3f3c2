"""What do priorities give to the messages that have them, and what do they cost the others?"""

from loadgen import Durability, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="priorities",
    question="What do priorities give to the messages that have them, and what do they cost the others?",
    message=Message(size_bytes=1024),
    rate=Rate.poisson(150),
    think_ms=4,
    think="exponential",
    durability=[Durability.BROKER, Durability.FLUSHED],  # a classic queue for each priority; a quorum queue has 32
    rabbitmq=RabbitMQ(prefetch=1, ack_every=1, priorities=5),  # Kafka has none
)
globals().update(scenario.locust_users())
