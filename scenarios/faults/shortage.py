"""What becomes of publishers, and of what was confirmed, when a node has no more disk or memory?"""

from loadgen import At, Durability, Full, Kafka, Message, RabbitMQ, Rate, Scenario

QUESTION = "What becomes of publishers, and of what was confirmed, when a node has no more disk or memory?"
LOAD = {
    "question": QUESTION,
    "message": Message(size_bytes=1024),
    "rate": Rate.fixed(500),
    "warmup_s": 2,
    "duration_s": 30,
    "durability": [Durability.BROKER, Durability.REPLICATED],
}
disk = Scenario(name="full-disk", faults=[At("5s", Full("disk", for_s=5))], rabbitmq=RabbitMQ(), kafka=Kafka(), **LOAD)
memory = Scenario(name="full-memory", faults=[At("5s", Full("memory", for_s=5))], rabbitmq=RabbitMQ(), **LOAD)
for each in (disk, memory):
    globals().update(each.locust_users())
