"""How long does a call take, from the request to its reply?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="use-rpc",
    question="How long does a call take, from the request to its reply?",
    pattern="request_reply",
    message=Message(size_bytes=256),
    rate=Rate.fixed(200),
    rabbitmq=RabbitMQ(reply_to="direct"),
    kafka=Kafka(),
    preset="low_latency",
    durability=Durability.BROKER,
    profile_share=0.4,
)
globals().update(scenario.locust_users())
