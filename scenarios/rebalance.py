"""How long do deliveries pause when a consumer joins or leaves: a queue, and Kafka's classic and new group protocol?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="rebalance",
    question="How long do deliveries pause when a consumer joins or leaves, by Kafka's classic and new group protocol?",
    message=Message(size_bytes=200),
    rate=Rate.fixed(500),
    consumers=3,
    joins_at_s=1,  # the third one: members of a group hear of it with their next heartbeat, after 3 s or 5 s
    leaves_at_s=7,
    duration_s=13,
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(driver="confluent", partitions=6, group_protocol=["classic", "consumer"]),
)
globals().update(scenario.locust_users())
