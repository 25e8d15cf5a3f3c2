"""How does throughput grow with unconfirmed messages in flight?

Answers to: figure 2 (quorum queue, 1 kB, one producer, one consumer, a prefetch of 1,000, each message acknowledged) of
https://www.rabbitmq.com/blog/2020/05/14/quorum-queues-and-flow-control-single-queue-benchmarks: 1.4 k msg/s with 1 in
flight, 12 k with 20, 26 k with 200 (the largest step), and the same with 1,000 and 10,000.
"""

from loadgen import Durability, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="published-in-flight",
    question="How does throughput grow with unconfirmed messages in flight?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    durability=Durability.FLUSHED,
    rabbitmq=RabbitMQ(confirm_window=[1, 20, 200, 1000, 10_000], prefetch=1000, ack_every=1),
)
globals().update(scenario.locust_users())
