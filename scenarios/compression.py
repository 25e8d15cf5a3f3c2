"""What does each codec cost and save where half of every message is redundant?"""

from loadgen import Durability, Kafka, Message, Rate, Scenario

scenario = Scenario(
    name="compression",
    question="What does each codec cost and save where half of every message is redundant?",
    message=Message(size_bytes=1024, compressibility=0.5),
    rate=Rate.saturate(),
    durability=Durability.BROKER,
    kafka=Kafka(compression_type=["none", "gzip", "snappy", "lz4", "zstd"]),
    preset="throughput",
)
globals().update(scenario.locust_users())
