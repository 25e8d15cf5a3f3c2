"""What does a leader confirm that is cut off from its followers, is any of it lost, and how long is the gap?"""

from loadgen import At, Cut, Durability, Kafka, Message, RabbitMQ, Rate, Scenario

scenario = Scenario(
    name="partition",
    question="What does a leader confirm that is cut off from its followers, and is any of it lost afterwards?",
    message=Message(size_bytes=1024),
    rate=Rate.fixed(300),
    warmup_s=5,
    duration_s=55,
    # Longer than either broker takes to have another leader (Kafka's session: 9 s). Its clients stay connected to it.
    faults=[At("5s", Cut("leader", for_s=20, between="nodes"))],
    durability=Durability.REPLICATED,
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
)
globals().update(scenario.locust_users())
