"""At which rate does latency leave the ground, in one trial?

With repeats at each rate, and up to the capacity: capacity.py.
"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="ramp",
    question="At which rate does latency leave the ground, in one trial?",
    message=Message(size_bytes=1024),
    rate=Rate.ramp(200, 5_000),  # over warm-up and window together
    warmup_s=1,
    duration_s=8,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
    preset="low_latency",
)
globals().update(scenario.locust_users())
