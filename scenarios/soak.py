"""Does anything drift or grow over hours: rate, latency, memory, or what the broker keeps?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="soak",
    question="Does anything drift or grow over hours: rate, latency, memory, or what the broker keeps?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(2_000),  # well below capacity: what grows then does so by itself
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),  # a queue keeps nothing that was acknowledged
    kafka=Kafka(retention_bytes=64 << 20, segment_bytes=16 << 20),  # a log only forgets what its limit removes
)
globals().update(scenario.locust_users())
