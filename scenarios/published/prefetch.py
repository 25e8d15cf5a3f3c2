"""How does a prefetch of 1 change throughput, and where is the plateau?

Answers to: RabbitMQ's blog of 2020: a prefetch of 1 collapses, and from about 100 on there is a plateau.
"""

from loadgen import Durability, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="published-prefetch",
    question="How does a prefetch of 1 change throughput, and where is the plateau?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),
    durability=Durability.FLUSHED,
    rabbitmq=RabbitMQ(prefetch=[1, 10, 100, 1000], confirm_window=1000),
)
globals().update(scenario.locust_users())
