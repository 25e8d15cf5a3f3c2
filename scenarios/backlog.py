"""How fast is a backlog drained while producers go on, and how late is what is new until then?"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="backlog",
    question="How fast is a backlog drained while producers go on, and how late is what is new until then?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(2_000),
    backlog_s=15,  # consumers were away for so long: 30,000 messages; by size: `--set backlog_bytes=5000000000`
    duration_s=8,
    durability=[Durability.BROKER, Durability.FLUSHED],  # a classic queue, and a quorum queue
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
    preset="throughput",
)
globals().update(scenario.locust_users())
