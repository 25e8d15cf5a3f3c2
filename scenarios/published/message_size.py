"""How do messages and bytes a second change with the size of a message?

Answers to: "Effect of Message Size", LinkedIn 2014
(https://engineering.linkedin.com/kafka/benchmarking-apache-kafka-2-million-writes-second-three-cheap-machines): the
larger the messages, the fewer a second, and the more bytes, until bandwidth takes over from the cost of a message.
"""

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="published-message-size",
    question="How do messages and bytes a second change with the size of a message?",
    message=Message(size_bytes=[64, 256, 1024, 4096, 16_384, 65_536]),
    rate=Rate.saturate(),
    durability=Durability.BROKER,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
    preset="throughput",
    profile_share=0.7,
)
globals().update(scenario.locust_users())
