"""What `results/example` was asked: something of everything that the notebooks read, in a few minutes and little space.

`loadgen run notebooks/example.py --repeats 2`
"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

latency = Scenario(
    name="latency",
    question="How long does a confirmed message take at a rate that both brokers carry easily?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(500),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
    preset="low_latency",
    duration_s=8,
)
capacity = Scenario(
    name="capacity",
    question="What rate of large messages does each broker sustain, and how does latency grow on the way there?",
    message=Message(size_bytes=32 * 1024),
    rate=Rate.curve([0.3, 0.6, 0.9]),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
    profile_share=0.5,
)
scaling = Scenario(
    name="scaling",
    question="How does throughput grow with the number of queues that share the work?",
    message=Message(size_bytes=4096, keys=1_000),
    rate=Rate.saturate(),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(exchange="direct", queues=[1, 2, 4, 8]),
    preset="throughput",
    profile_share=0.4,
)
