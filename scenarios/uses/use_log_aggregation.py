"""How many log lines a second come together from four producers?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="use-log-aggregation",
    question="How many log lines a second come together from four producers?",
    message=Message(size_bytes=512, compressibility=0.5),
    rate=Rate.saturate(),
    producers=4,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(compression_type="lz4"),
    preset="throughput",
    durability=Durability.BROKER,
    profile_share=0.4,
)
globals().update(scenario.locust_users())
