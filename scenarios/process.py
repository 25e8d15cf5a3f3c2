"""What does it cost to process each message at least once, and what exactly once, by how often one commits?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="process",
    question="What does it cost to process messages at least once, and what exactly once, by how often one commits?",
    pattern="process",
    message=Message(size_bytes=256),
    rate=Rate.fixed(300),
    processors=1,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(ack_every=1),
    kafka=Kafka(processing_guarantee=["at_least_once", "exactly_once"], commit_interval_ms=[10, 100]),
    preset="low_latency",
)
globals().update(scenario.locust_users())
