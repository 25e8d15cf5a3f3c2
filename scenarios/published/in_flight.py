"""How does throughput grow with unconfirmed messages in flight?

Answers to: RabbitMQ's blog of 2020 on quorum queues and flow control: 20 → 200 in flight is the largest step, and
hardly anything is won beyond 1,000.
"""

from loadgen import Durability, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="published-in-flight",
    question="How does throughput grow with unconfirmed messages in flight?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    durability=Durability.FLUSHED,
    rabbitmq=RabbitMQ(confirm_window=[20, 200, 1000, 5000], prefetch=1000, ack_every=100),
)
globals().update(scenario.locust_users())
