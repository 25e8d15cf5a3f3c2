"""How long does a broker stand still when the leader is killed, and does it keep what it confirmed?"""

from loadgen import At, Durability, Kafka, Kill, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="failover",
    question="How long does a broker stand still when the leader is killed, and does it keep what it confirmed?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(500),
    duration_s=40,
    faults=[At("10s", Kill("leader"))],  # it comes back after 5 s; Kafka alone notices only when its session has ended
    durability=[Durability.BROKER, Durability.REPLICATED],
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
)
globals().update(scenario.locust_users())
