"""How many messages a second, and at what CPU a message, does each client library carry beside the wire drivers?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="client-libraries",
    question="How many messages a second, and at what CPU a message, does each client library carry?",
    message=Message(size_bytes=1024),
    rate=Rate.saturate(),  # latencies, at a rate that all carry: client_latency.py
    durability=Durability.BROKER,
    preset="throughput",
    rabbitmq=RabbitMQ(driver=["amqp", "pika", "pika-blocking", "aio-pika", "stream", "rstream"]),
    kafka=Kafka(driver=["kafka", "confluent", "confluent-sync"]),
)
globals().update(scenario.locust_users())
