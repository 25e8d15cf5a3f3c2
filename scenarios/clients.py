"""How many messages a second does an application get through the usual Python clients?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="clients",
    question="How many messages a second does an application get through the usual Python clients?",
    message=Message(size_bytes=100),
    rate=Rate.saturate(),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(driver="pika"),
    kafka=Kafka(driver="confluent"),
    preset="throughput",
    profile_share=0.5,
)
globals().update(scenario.locust_users())
