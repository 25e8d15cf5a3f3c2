"""How fast is a log replayed from its beginning, from an offset and from a time, and how soon does the first come?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="replay",
    question="How fast is a log of events replayed from its beginning, an offset, a time; how soon comes the first?",
    message=Message(size_bytes=100, keys=10_000),  # an event's aggregate; its version is its place among the key's
    rate=Rate.saturate(),  # of writing the events; nothing is sent while they are replayed
    backlog_msgs=3_000_000,
    start_from=["beginning", "offset", "time"],
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(driver="stream"),  # a queue cannot: what was acknowledged is gone
    kafka=Kafka(),
    preset="throughput",
)
globals().update(scenario.locust_users())
