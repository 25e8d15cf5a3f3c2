"""How does RabbitMQ's throughput grow with unconfirmed messages in flight, and with prefetch?

Answers to: RabbitMQ's blog of 2020 on quorum queues and flow control: 20 → 200 in flight is the largest step, and
hardly anything is won beyond 1,000; a prefetch of 1 collapses, and from about 100 on there is a plateau.
"""

from loadgen import Durability, Message, RabbitMQ, Rate, Scenario

in_flight = Scenario(
    name="published-in-flight",
    question="How does throughput grow with unconfirmed messages in flight?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    durability=Durability.FLUSHED,
    rabbitmq=RabbitMQ(confirm_window=[20, 200, 1000, 5000], prefetch=1000, ack_every=100),
)
prefetch = Scenario(
    name="published-prefetch",
    question="How does a prefetch of 1 change throughput, and where is the plateau?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    durability=Durability.FLUSHED,
    rabbitmq=RabbitMQ(prefetch=[1, 10, 100, 1000], confirm_window=1000),
)
globals().update(in_flight.locust_users() | prefetch.locust_users())
