"""What latency does an application see through each client library, and at what CPU a message?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="client-latency",
    question="What latency does an application see through each client library, and at what CPU a message?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(200),  # which all of them carry, those that wait for each confirm, too
    durability=Durability.BROKER,
    preset="low_latency",  # each message is acknowledged by itself: aio-pika's iterator with process() is measured
    rabbitmq=RabbitMQ(driver=["amqp", "pika", "pika-blocking", "aio-pika", "stream", "rstream"]),
    kafka=Kafka(driver=["kafka", "confluent", "confluent-sync"]),
)
globals().update(scenario.locust_users())
