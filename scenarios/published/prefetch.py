"""How does a prefetch of 1 change throughput, and where is the plateau?

Answers to: figure 4 (quorum queue, 1 kB, 1,000 in flight, each message acknowledged) of
https://www.rabbitmq.com/blog/2020/05/14/quorum-queues-and-flow-control-single-queue-benchmarks: consumed 0.3 k
msg/s with a prefetch of 1, 1 to 3 k with 10, and 23 to 26 k from 100 on.
"""

from loadgen import Durability, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="published-prefetch",
    question="How does a prefetch of 1 change throughput, and where is the plateau?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    durability=Durability.FLUSHED,
    rabbitmq=RabbitMQ(prefetch=[1, 10, 100, 1000], confirm_window=1000, ack_every=1),
)
globals().update(scenario.locust_users())
